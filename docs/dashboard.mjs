// Draws the dashboard from the answers of a Prometheus server: node docs/dashboard.mjs FILE SECONDS, with
// PROMETHEUS_URL, CLIENTS_DIR and CHROMIUM set, for the last SECONDS. `./dev screenshot` runs it on the demo.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

import { inBrowser } from "../tests/page/browser.mjs";

const require = createRequire(`${process.env.CLIENTS_DIR}/`);
const [file, seconds] = process.argv.slice(2);
const dashboard = JSON.parse(readFileSync(new URL("../helm/customerio-sync/files/dashboard.json", import.meta.url)));
const end = Math.floor(Date.now() / 1000);
const start = end - Number(seconds);
const step = 2;

async function answer(expression) {
  const query = expression
    .replaceAll("$namespace", ".*")
    .replaceAll("$job", ".*")
    .replaceAll("$__rate_interval", "10s");
  const parameters = new URLSearchParams({ query, start, end, step });
  const response = await fetch(`${process.env.PROMETHEUS_URL}/api/v1/query_range?${parameters}`);
  const body = await response.json();
  if (body.status !== "success") throw new Error(`${query}: ${body.error}`);
  return body.data.result;
}

// One line per series: its legend, and a value or null per step.
async function lines(panel) {
  const found = [];
  for (const target of panel.targets) {
    for (const { metric, values } of await answer(target.expr)) {
      const legend = target.legendFormat.replace(/\{\{(\w+)\}\}/g, (_, label) => metric[label] ?? "");
      const byTime = new Map(values.map(([time, value]) => [Math.round(time), Number(value)]));
      const points = [];
      for (let time = start; time <= end; time += step) {
        const value = byTime.get(time);
        points.push(Number.isFinite(value) ? value : null);
      }
      found.push({ legend, points });
    }
  }
  return found;
}

const panels = [];
for (const panel of dashboard.panels) {
  panels.push({
    type: panel.type,
    title: panel.title,
    position: panel.gridPos,
    unit: panel.fieldConfig?.defaults.unit,
    texts: panel.fieldConfig?.defaults.mappings?.[0].options,
    lines: panel.type === "row" ? [] : await lines(panel),
  });
}

// Runs in the page.
function draw({ title, panels, start, end, step }) {
  const colors = ["#1f60c4", "#37872d", "#e0752d", "#8f3bb8", "#c4162a", "#0a7c86", "#b08a00", "#705da0"];
  const unit = 28;
  const duration = (value) => {
    if (value < 1) return `${Math.round(value * 1000)} ms`;
    return value < 120 ? `${Number(value.toFixed(1))} s` : `${Math.round(value / 60)} min`;
  };
  const units = {
    s: duration,
    bytes: (value) => `${Math.round(value / 2 ** 20)} MiB`,
    percentunit: (value) => `${Math.round(value * 100)}%`,
    ops: (value) => `${Number(value.toPrecision(3))}/s`,
    reqps: (value) => `${Number(value.toPrecision(3))}/s`,
  };
  const times = [];
  for (let time = start; time <= end; time += step) times.push(time);
  const element = (parent, text, style) => {
    const created = parent.appendChild(document.createElement("div"));
    created.textContent = text;
    created.style.cssText = style;
    return created;
  };
  document.body.style.cssText = "margin:12px;font:12px sans-serif;color:#222;background:#f4f5f5";
  element(document.body, title, "font:600 18px sans-serif;margin-bottom:10px");
  const grid = element(document.body, "", `position:relative;width:1392px`);
  const width = 1392 / 24;
  let bottom = 0;
  for (const { type, title, position, unit: name, texts, lines } of panels) {
    const format = units[name] ?? ((value) => String(Number(value.toPrecision(4))));
    const box = element(
      grid,
      "",
      `position:absolute;box-sizing:border-box;padding:4px 8px;overflow:hidden;left:${position.x * width}px;` +
        `top:${position.y * unit}px;width:${position.w * width - 6}px;height:${position.h * unit - 6}px;` +
        (type === "row" ? "" : "background:#fff;border:1px solid #ddd;border-radius:3px"),
    );
    bottom = Math.max(bottom, (position.y + position.h) * unit);
    element(box, title, "font-weight:600");
    if (type === "stat") {
      const last = lines[0]?.points.findLast((value) => value !== null);
      const text = last === undefined ? "no data" : (texts?.[last]?.text ?? format(last));
      element(box, text, "font:600 30px sans-serif;text-align:center;margin-top:14px");
    } else if (type === "timeseries") {
      const series = lines.map(({ legend }, index) => ({
        label: legend,
        stroke: colors[index % colors.length],
        width: 1.5,
        points: { show: false },
      }));
      const size = { width: position.w * width - 24, height: position.h * unit - 54 };
      const axis = { size: 64, values: (_, values) => values.map(format), grid: { stroke: "#eee" } };
      const scales = { y: { range: (_, low, high) => [0, high > 0 ? high * 1.05 : 1] } };
      const hour = { grid: { stroke: "#eee" }, values: (_, values) => values.map((value) => clock(value)) };
      const clock = (value) => new Date(value * 1000).toISOString().slice(11, 19);
      new uPlot(
        { ...size, scales, legend: { show: false }, cursor: { show: false }, axes: [hour, axis], series: [{}, ...series] },
        [times, ...lines.map(({ points }) => points)],
        box,
      );
      const legend = element(box, "", "white-space:nowrap;font-size:10px");
      for (const { label, stroke } of series) {
        const entry = element(legend, label, `display:inline;margin-right:10px;color:${stroke}`);
        entry.prepend("■ ");
      }
    }
  }
  grid.style.height = `${bottom}px`;
}

await inBrowser({ colorScheme: "light", viewport: { width: 1420, height: 900 } }, async (page) => {
  await page.setContent("<!doctype html><html><body></body></html>");
  await page.addStyleTag({ path: require.resolve("uplot/dist/uPlot.min.css") });
  await page.addScriptTag({ path: require.resolve("uplot/dist/uPlot.iife.min.js") });
  await page.evaluate(draw, { title: dashboard.title, panels, start, end, step });
  await page.screenshot({ path: file, fullPage: true });
});
