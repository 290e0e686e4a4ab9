// The overview: headline, tiles, and the chart of attempts.

import {
  $,
  attemptChart,
  duration,
  h,
  number,
  plural,
  secondsSince,
  secondsUntil,
} from "./view.js";

const BREAKER_STATES = { closed: "closed", open: "open", half_open: "half-open" };
const BREAKER_REASONS = {
  outage: "outage",
  credentials: "credentials rejected",
  retry_after: "Retry-After",
};

/** Draws the overview from the stats of the API. */
export function drawOverview(stats) {
  $("mock-banner").hidden = stats.mode !== "mock";
  drawHeadline(stats);
  drawTiles(stats);
  $("chart").replaceChildren(...attemptChart(stats.lastHour));
}

function drawHeadline({ today, breaker, mode, mockCompleted }) {
  const { notSynced, oldestAt } = today;
  const isMock = mode === "mock" || mockCompleted > 0;
  const headline = $("headline");
  headline.className = notSynced || isMock || breaker.state !== "closed" ? "warning" : "good";
  const allSynced = mockCompleted
    ? `${plural(mockCompleted, "job")} completed in mock mode, not in Customer.io.`
    : "All of today's signups are in Customer.io.";
  headline.textContent = notSynced
    ? `${number(notSynced)} of today's signups ${notSynced === 1 ? "is" : "are"} ` +
      `not in Customer.io yet; the oldest has waited ${duration(secondsSince(oldestAt))}.`
    : allSynced;
}

function drawTiles(stats) {
  const { byStatus, breaker, mockCompleted, openFailures, unprocessable } = stats;
  const tiles = [
    tile("Open failures", openFailuresValue(stats), { kind: openFailures ? "bad" : "good" }),
    tile("Pending", number(byStatus.pending)),
    tile("Processing", number(byStatus.processing)),
    tile("Completed", number(byStatus.completed)),
    mockCompleted > 0 &&
      tile("Completed in mock mode", number(mockCompleted), {
        kind: "warning",
        title: "Send them with customerio-sync failures retry --mock.",
      }),
    tile("Failed jobs", number(byStatus.failed)),
    tile("Unprocessable", number(unprocessable), { kind: unprocessable ? "bad" : "" }),
    tile("Circuit breaker", breakerText(breaker), {
      kind: breaker.state === "closed" ? "good" : "warning",
      title: breaker.meaning,
    }),
  ];
  $("tiles").replaceChildren(...tiles.filter(Boolean));
}

function tile(name, value, { kind = "", title } = {}) {
  return h("div", { title }, h("dt", {}, name), h("dd", { class: kind }, value));
}

/** Number of open failures, with a link to the failure queue if its address is configured. */
function openFailuresValue({ openFailures, failureQueueUrl }) {
  const text = number(openFailures);
  if (!failureQueueUrl) return text;
  const title = "Failure queue in the RabbitMQ management UI";
  return h("a", { href: failureQueueUrl, rel: "noreferrer", target: "_blank", title }, text);
}

/** State of the circuit breaker, such as "open for 3 min (outage), next probe in 20 s". */
function breakerText({ state, reason, since, nextProbeAt }) {
  if (state === "closed") return "closed, calls go through";
  const elapsed = `${state === "open" ? "for" : "after"} ${duration(secondsSince(since))}`;
  const text = `${BREAKER_STATES[state]} ${elapsed} (${BREAKER_REASONS[reason]})`;
  if (state === "half_open") return `${text}, probe in flight`;
  return nextProbeAt ? `${text}, next probe in ${duration(secondsUntil(nextProbeAt))}` : text;
}
