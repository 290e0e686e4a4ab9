// Making elements, and writing times and numbers.

/** An element. Attributes that are false or absent are left out; functions become listeners. Text is never markup. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElementNS(
    ["svg", "rect"].includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const $ = (id) => document.getElementById(id);

const numbers = new Intl.NumberFormat("en");
export const number = (value) => numbers.format(value);

/** A length of time in words: two units at most. */
export function span(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const start = units.findIndex(([, size]) => seconds >= size);
  if (start < 0) return "0 s";
  const [name, size] = units[start];
  const whole = Math.floor(seconds / size);
  const next = units[start + 1];
  const rest = next ? Math.floor((seconds - whole * size) / next[1]) : 0;
  return rest && whole < 10 ? `${whole} ${name} ${rest} ${next[0]}` : `${whole} ${name}`;
}

export const secondsSince = (time) => Math.max(0, (Date.now() - Date.parse(time)) / 1000);

/** How long ago, with the time itself for those who point at it. */
export function ago(time) {
  if (!time) return "never";
  return h("time", { datetime: time, title: new Date(time).toLocaleString() }, `${span(secondsSince(time))} ago`);
}

/** A button that a role may not use is shown disabled, with the reason. */
export function button(text, onclick, { role, needs = "operator", ...attributes } = {}) {
  const refused = needs === "operator" && role !== "operator";
  const title = refused ? "Needs the role operator; you are a viewer." : attributes.title;
  return h("button", { type: "button", ...attributes, onclick, disabled: refused, title }, text);
}

/** Says something at the bottom for a while. */
export function toast(text) {
  const element = $("toast");
  element.textContent = text;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => (element.textContent = ""), 8000);
}

/** Tries, stacked by minute over the last hour. */
export function chart(minutes) {
  const kinds = ["completed", "retried", "failed"];
  const now = Math.floor(Date.now() / 60000);
  const most = Math.max(1, ...minutes.map((minute) => kinds.reduce((sum, kind) => sum + minute[kind], 0)));
  const totals = kinds.map((kind) => `${number(minutes.reduce((sum, minute) => sum + minute[kind], 0))} ${kind}`).join(", ");
  const bars = minutes.flatMap((minute) => {
    const x = 59 - (now - Math.floor(Date.parse(minute.at) / 60000));
    let top = 40;
    return kinds.map((kind) => {
      const height = (minute[kind] / most) * 38;
      top -= height;
      return h("rect", { class: `bar-${kind}`, x: x * 4 + 0.5, y: top, width: 3, height });
    });
  });
  const label = `Tries of the last hour: ${totals}`;
  return [
    h("svg", { viewBox: "0 0 240 40", preserveAspectRatio: "none", role: "img", "aria-label": label }, bars),
    h("figcaption", {}, `${label}; at most ${number(most)} a minute.`),
  ];
}
