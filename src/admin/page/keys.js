// Keyboard shortcuts.

import { dismissTargets, retryTargets } from "./bulk.js";
import { clearSelection, hasSelection, moveFocus, toggleFocused } from "./list.js";
import { $, isOperator } from "./view.js";

/** Shortcuts by key. The help dialog in index.html lists them. */
const SHORTCUTS = {
  "/": () => $("search").focus(),
  "?": () => $("help").showModal(),
  j: () => moveFocus(1),
  k: () => moveFocus(-1),
  x: toggleFocused,
  r: () => isOperator() && retryTargets(),
  d: () => isOperator() && dismissTargets(),
  Escape: () => hasSelection() && clearSelection(),
};

/** Starts to handle keyboard shortcuts. */
export function startKeys() {
  document.addEventListener("keydown", handleKey);
}

function handleKey(event) {
  const { key, target, ctrlKey, metaKey, altKey } = event;
  if (ctrlKey || metaKey || altKey || document.querySelector("dialog[open]")) return;
  if (target.matches("input:not([type=checkbox])")) {
    // The user is typing: the only shortcut is Escape, which leaves the field.
    if (key === "Escape") target.blur();
    return;
  }
  if (!Object.hasOwn(SHORTCUTS, key)) return;
  event.preventDefault();
  SHORTCUTS[key]();
}
