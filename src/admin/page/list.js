// The list of failures: filters, pages, selection, and the focused row.

import { api, requestSequence } from "./api.js";
import {
  $,
  ago,
  button,
  fullName,
  h,
  isOperator,
  number,
  OPERATOR_REQUIRED,
  toast,
  words,
} from "./view.js";

const PAGE_SIZE = 50;
const SEARCH_DELAY_MS = 250;
const FILTERS = [
  ["syncPhase", ["initial", "enriched"]],
  ["errorType", ["rate_limit", "server_error", "network", "other"]],
];

const state = {
  filters: {},
  offset: 0,
  items: [],
  total: 0,
  /** Whether there are no more than `total`. */
  totalIsExact: true,
  /** Selected failures by job id. They may be on other pages. */
  selected: new Map(),
  /** Job id of the row that had the focus last. */
  lastFocused: undefined,
};

/** Callbacks for what happens outside the list; see `startList`. */
let callbacks;

/**
 * Connects the list with its controls.
 *
 * Calls `onOpen` and `onRetry` with a failure when its row is opened or retried, and
 * `onSelectionEnd` when the selection becomes empty and the list may be updated again.
 */
export function startList({ onOpen, onRetry, onSelectionEnd }) {
  callbacks = { onOpen, onRetry, onSelectionEnd };
  let searchTimer;
  $("search").addEventListener("input", () => {
    clearTimeout(searchTimer);
    searchTimer = setTimeout(() => {
      setFilters({ ...state.filters, search: $("search").value || undefined });
    }, SEARCH_DELAY_MS);
  });
  $("previous").addEventListener("click", () => showPage(state.offset - PAGE_SIZE));
  $("next").addEventListener("click", () => showPage(state.offset + PAGE_SIZE));
  $("clear-selection").addEventListener("click", clearSelection);
  $("list").addEventListener("focusin", () => (state.lastFocused = focusedJobId()));
  drawFilters();
}

// ---------------------------------------------------------------------------------------- loading

const startRequest = requestSequence();

/**
 * Loads the current page and draws it.
 *
 * While rows are selected, only a forced load changes the list: rows must not move while the user
 * is selecting them.
 */
export async function loadList({ force = false } = {}) {
  const isFrozen = () => state.selected.size > 0 && !force;
  if (isFrozen()) return;
  const isLatest = startRequest();
  const { filters, offset } = state;
  const page = await api.failures({ ...filters, limit: PAGE_SIZE, offset });
  if (!isLatest() || isFrozen()) return;
  const focused = focusedJobId();
  const { items, total, totalIsExact } = page;
  Object.assign(state, { items, total, totalIsExact });
  drawList();
  if (focused) focusJob(focused);
}

function reload() {
  loadList({ force: true }).catch((error) => toast(error.message));
}

function showPage(offset) {
  state.offset = Math.max(0, offset);
  reload();
}

/** Replaces the filters, clears the selection, and shows the first page. */
export function setFilters(filters) {
  state.filters = filters;
  state.offset = 0;
  state.selected.clear();
  const search = filters.search ?? "";
  // Assigning an equal value would move the cursor.
  if ($("search").value !== search) $("search").value = search;
  drawFilters();
  reload();
}

// ---------------------------------------------------------------------------------------- drawing

function drawList() {
  const atLeast = (count) => `${state.totalIsExact ? "" : "more than "}${number(count)}`;
  $("total").textContent = atLeast(state.total);
  $("list-empty").hidden = state.items.length > 0;
  $("list").replaceChildren(...state.items.map(row));
  const page = state.offset / PAGE_SIZE + 1;
  const pages = Math.max(1, Math.ceil(state.total / PAGE_SIZE));
  $("page-number").textContent = `Page ${number(page)} of ${atLeast(pages)}`;
  $("previous").disabled = state.offset === 0;
  const isLast = state.offset + PAGE_SIZE >= state.total && state.totalIsExact;
  $("next").disabled = isLast || state.items.length < PAGE_SIZE;
  drawSelection();
}

function row(failure) {
  const { customer, syncPhase, errorType, attemptCount, maxAttempts, lastAttemptAt } = failure;
  const name = [customer.email, fullName(customer)].filter(Boolean).join(", ") || failure.signupId;
  const checkbox = h("input", {
    type: "checkbox",
    "aria-label": `Select ${name}, ${syncPhase}`,
    onchange: () => toggle(failure),
  });
  const open = button(name, () => callbacks.onOpen(failure), {
    requires: "viewer",
    class: "open",
    "aria-haspopup": "dialog",
  });
  const attempts = h(
    "span",
    { class: "muted" },
    `${attemptCount} of ${maxAttempts} retries, last attempt `,
    ago(lastAttemptAt),
  );
  const retry = button("Retry", () => callbacks.onRetry(failure), {
    "aria-label": `Retry ${name}`,
  });
  return h(
    "li",
    { "data-job": failure.jobId },
    checkbox,
    h("div", {}, open, " ", tag(syncPhase), " ", tag(words(errorType)), " ", attempts),
    h("div", { class: "actions" }, retry),
    h("p", { class: "message" }, failure.errorMessage),
  );
}

const tag = (text) => h("span", { class: "tag" }, text);

function drawFilters() {
  const chips = FILTERS.flatMap(([key, values]) => values.map((value) => filterChip(key, value)));
  const { signature } = state.filters;
  if (signature) {
    const removeFilter = () => setFilters({ ...state.filters, signature: undefined });
    const attributes = { "aria-pressed": "true", title: "Remove this filter" };
    chips.push(button(`${signature} ×`, removeFilter, { requires: "viewer", ...attributes }));
  }
  $("chips").replaceChildren(...chips);
}

function filterChip(key, value) {
  const isActive = state.filters[key] === value;
  const toggleFilter = () => setFilters({ ...state.filters, [key]: isActive ? undefined : value });
  const attributes = { "aria-pressed": String(isActive) };
  return button(words(value), toggleFilter, { requires: "viewer", ...attributes });
}

// -------------------------------------------------------------------------------------- selection

function drawSelection() {
  const count = state.selected.size;
  $("selection").hidden = count === 0;
  $("selected-count").textContent = `${number(count)} selected`;
  for (const element of $("list").children) {
    const isSelected = state.selected.has(element.dataset.job);
    element.classList.toggle("selected", isSelected);
    element.querySelector("input").checked = isSelected;
  }
  for (const id of ["retry-selected", "dismiss-selected"]) {
    $(id).disabled = !isOperator();
    $(id).title = isOperator() ? "" : OPERATOR_REQUIRED;
  }
}

function toggle(failure) {
  if (!state.selected.delete(failure.jobId)) state.selected.set(failure.jobId, failure);
  drawSelection();
  if (state.selected.size === 0) callbacks.onSelectionEnd();
}

/** Selects the focused failure, or deselects it. */
export function toggleFocused() {
  const failure = activeFailure();
  if (failure) toggle(failure);
}

export const hasSelection = () => state.selected.size > 0;

/** Clears the selection. */
export function clearSelection() {
  state.selected.clear();
  drawSelection();
  callbacks.onSelectionEnd();
}

/** Clears the selection before an action that redraws the list when it is done. */
export function dropSelection() {
  state.selected.clear();
}

/** Failures that a shortcut or a button acts on: the selected ones, or else the focused one. */
export function targetFailures() {
  if (hasSelection()) return [...state.selected.values()];
  const failure = activeFailure();
  return failure ? [failure] : [];
}

// ------------------------------------------------------------------------------------------ focus

const focusedJobId = () => document.activeElement?.closest?.("#list > li")?.dataset.job;

/**
 * Job id of the focused row. If nothing has the focus, because a redraw or a dialog took it from
 * the row, this is the row that had it last.
 */
function activeJobId() {
  const isFocusLost = document.activeElement === document.body;
  return focusedJobId() ?? (isFocusLost ? state.lastFocused : undefined);
}

function activeFailure() {
  const id = activeJobId();
  return state.items.find(({ jobId }) => jobId === id);
}

function focusJob(id) {
  document.querySelector(`#list > li[data-job="${CSS.escape(id)}"] .open`)?.focus();
}

/** Moves the focus down by `step` rows, or up if it is negative, within the page. */
export function moveFocus(step) {
  const rows = [...$("list").children];
  const id = activeJobId();
  const index = rows.findIndex((element) => element.dataset.job === id) + step;
  const target = rows[Math.min(rows.length - 1, Math.max(0, index))];
  target?.querySelector(".open").focus();
}
