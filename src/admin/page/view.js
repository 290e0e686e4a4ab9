// View helpers: elements, numbers and times as text, buttons, notices, dialogs, the chart.

const HTML_NAMESPACE = "http://www.w3.org/1999/xhtml";
const SVG_NAMESPACE = "http://www.w3.org/2000/svg";
const SVG_TAGS = ["svg", "rect"];

const TOAST_DURATION_MS = 8000;

export const OPERATOR_REQUIRED = "Requires the operator role. Your role is viewer.";

const isPresent = (value) => value !== false && value !== null && value !== undefined;

/**
 * Creates an element.
 *
 * Attributes and children that are false, null or undefined are omitted. Attributes that are
 * functions become event listeners. Text is never parsed as markup.
 */
export function h(tag, attributes = {}, ...children) {
  const namespace = SVG_TAGS.includes(tag) ? SVG_NAMESPACE : HTML_NAMESPACE;
  const element = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes).filter(([, value]) => isPresent(value))) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(isPresent));
  return element;
}

export const $ = (id) => document.getElementById(id);

// ------------------------------------------------------------------------------------------- text

const numberFormat = new Intl.NumberFormat("en");
export const number = (value) => numberFormat.format(value);

/** Formats a count with its noun, such as "1 failure" or "2 failures". */
export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

/** Formats an identifier of the API as words: `server_error` becomes "server error". */
export const words = (identifier) => identifier.replaceAll("_", " ");

/** First and last name of a customer, as far as they are known. */
export const fullName = ({ firstName, lastName }) =>
  [firstName, lastName].filter(Boolean).join(" ");

const DURATION_UNITS = [
  ["d", 86_400],
  ["h", 3600],
  ["min", 60],
  ["s", 1],
];

/** Formats a duration with one or two units, such as "2 h 5 min" or "12 min". */
export function duration(seconds) {
  const index = DURATION_UNITS.findIndex(([, size]) => seconds >= size);
  if (index < 0) return "0 s";
  const [unit, size] = DURATION_UNITS[index];
  const count = Math.floor(seconds / size);
  const text = `${count} ${unit}`;
  const smaller = DURATION_UNITS[index + 1];
  if (!smaller || count >= 10) return text;
  const rest = Math.floor((seconds - count * size) / smaller[1]);
  return rest ? `${text} ${rest} ${smaller[0]}` : text;
}

export const secondsSince = (time) => Math.max(0, (Date.now() - Date.parse(time)) / 1000);

export const secondsUntil = (time) => Math.max(0, (Date.parse(time) - Date.now()) / 1000);

/** Element that shows how long ago a time was, with the time itself as its tooltip. */
export function ago(time) {
  if (!time) return "never";
  const title = new Date(time).toLocaleString();
  return h("time", { datetime: time, title }, `${duration(secondsSince(time))} ago`);
}

// ---------------------------------------------------------------------------------------- buttons

let role = "viewer";

/** Sets the role of the user, which decides which buttons are enabled. */
export function setRole(sessionRole) {
  role = sessionRole;
}

export const isOperator = () => role === "operator";

/**
 * Creates a button. If it requires the operator role and the user is a viewer, it is disabled, and
 * its tooltip says why.
 */
export function button(text, onclick, { requires = "operator", ...attributes } = {}) {
  const disabled = requires === "operator" && !isOperator();
  const title = disabled ? OPERATOR_REQUIRED : attributes.title;
  return h("button", { type: "button", ...attributes, onclick, disabled, title }, text);
}

// ---------------------------------------------------------------------------- notices and dialogs

let toastTimer;

/** Shows a notice at the bottom of the page for a few seconds. */
export function toast(text) {
  const element = $("toast");
  element.textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (element.textContent = ""), TOAST_DURATION_MS);
}

/**
 * Asks the user to confirm an action.
 *
 * Resolves to undefined if the user cancels, and to `{ reason }` if the user confirms. Lines of
 * `text` that are false are omitted.
 */
export function confirmAction({ title, text = [], action, needsReason = false }) {
  const dialog = $("ask");
  $("ask-title").textContent = title;
  $("ask-text").replaceChildren(...text.filter(Boolean).map((line) => h("p", {}, line)));
  $("ask-reason-line").hidden = !needsReason;
  $("ask-reason").required = needsReason;
  $("ask-reason").value = "";
  $("ask-yes").textContent = action;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      const isConfirmed = dialog.returnValue === "yes";
      resolve(isConfirmed ? { reason: $("ask-reason").value } : undefined);
    };
  });
}

// ------------------------------------------------------------------------------------------ chart

const CHART_RESULTS = ["completed", "retried", "failed"];
const CHART_HEIGHT = 40;
const CHART_BAR_HEIGHT_MAX = 38;
const CHART_MINUTE_WIDTH = 4;

const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Stacked bar chart of the attempts per minute over the last hour, with its caption. */
export function attemptChart(minutes) {
  const minuteTotals = minutes.map((minute) => sum(CHART_RESULTS.map((key) => minute[key])));
  const peak = Math.max(0, ...minuteTotals);
  const now = Date.now();
  const bars = minutes.flatMap((minute) => minuteBars(minute, Math.max(1, peak), now));
  const resultTotals = CHART_RESULTS.map((key) => {
    return `${number(sum(minutes.map((minute) => minute[key])))} ${key}`;
  });
  const label = `Attempts in the last hour: ${resultTotals.join(", ")}`;
  const svgAttributes = {
    viewBox: `0 0 240 ${CHART_HEIGHT}`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": label,
  };
  return [
    h("svg", svgAttributes, bars),
    h("figcaption", {}, `${label}; peak: ${number(peak)} per minute.`),
  ];
}

/** Bars of one minute, stacked from the bottom. The current minute is the rightmost of 60. */
function minuteBars(minute, peak, now) {
  const minutesAgo = Math.floor(now / 60_000) - Math.floor(Date.parse(minute.at) / 60_000);
  const x = (59 - minutesAgo) * CHART_MINUTE_WIDTH + 0.5;
  let y = CHART_HEIGHT;
  return CHART_RESULTS.map((key) => {
    const height = (minute[key] / peak) * CHART_BAR_HEIGHT_MAX;
    y -= height;
    return h("rect", { class: `bar-${key}`, x, y, width: CHART_MINUTE_WIDTH - 1, height });
  });
}
