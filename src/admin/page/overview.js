// The overview: headline, tiles, and the chart of attempts.

import { act } from "./actions.js";
import { api } from "./api.js";
import {
  $,
  attemptChart,
  button,
  confirmAction,
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

/** Time of the last stats that were drawn. */
let drawnAt;

/** Draws the overview from the stats of the API. */
export function drawOverview(stats) {
  $("mock-banner").hidden = stats.mode !== "mock";
  drawnAt = new Date();
  const { text, kind } = headline(stats);
  drawHeadline(text, kind);
  drawTiles(stats);
  $("chart").replaceChildren(...attemptChart(stats.lastHour));
}

/** Says since when the numbers are outdated, because the stats cannot be read for this reason. */
export function drawOutdated(reason) {
  const text = drawnAt
    ? `The numbers are outdated since ${drawnAt.toLocaleTimeString()}, ` +
      `${duration(secondsSince(drawnAt.toISOString()))} ago. ${reason}`
    : `The numbers cannot be read. ${reason}`;
  drawHeadline(text, "bad");
}

function drawHeadline(text, kind) {
  $("headline").className = kind;
  $("headline").textContent = text;
}

// --------------------------------------------------------------------------------------- headline

/** What is known about the signups of the last 24 hours. It claims no more than that. */
function headline(stats) {
  const { signups, notSynced } = stats.last24Hours;
  if (stats.mode === "mock") {
    const received = `${plural(signups, "signup")} received in the last 24 hours`;
    return { text: `Mock mode: nothing was sent to Customer.io. ${received}.`, kind: "warning" };
  }
  const doubts = doubtsOf(stats);
  const failures = failuresText(stats);
  const text = [signupsText(stats, doubts.length > 0), ...doubts].join("; ");
  const isGood = notSynced === 0 && doubts.length === 0 && !failures;
  return { text: `${text}.${failures}`, kind: isGood ? "good" : "warning" };
}

function signupsText({ last24Hours }, isDoubtful) {
  const { signups, notSynced, oldestNotSyncedAt } = last24Hours;
  const period = "of the last 24 hours";
  if (notSynced > 0) {
    const missing = `${number(notSynced)} of ${plural(signups, "signup")} ${period}`;
    const oldest = `the oldest has waited ${duration(secondsSince(oldestNotSyncedAt))}`;
    return `${missing} ${notSynced === 1 ? "is" : "are"} not in Customer.io yet; ${oldest}`;
  }
  if (signups === 0) {
    return `No signups were received ${isDoubtful ? "so far " : ""}in the last 24 hours`;
  }
  if (isDoubtful) {
    const received = `${plural(signups, "signup")} received so far in the last 24 hours`;
    return `${received} ${signups === 1 ? "is" : "are"} in Customer.io`;
  }
  return signups === 1
    ? `The only signup ${period} is in Customer.io`
    : `All ${number(signups)} signups ${period} are in Customer.io`;
}

/** Reasons why there may be signups that are in no count. */
function doubtsOf({ last24Hours, messagesWaiting, mockCompleted, breaker, queues }) {
  const { unprocessable } = last24Hours;
  const doubts = [];
  if (unprocessable > 0) {
    const verb = unprocessable === 1 ? "is" : "are";
    doubts.push(`${plural(unprocessable, "message")} ${verb} unprocessable`);
  }
  if (mockCompleted > 0) {
    doubts.push(`${plural(mockCompleted, "job")} completed in mock mode, not in Customer.io`);
  }
  const inQuarantine = messagesInQuarantine(queues);
  if (inQuarantine > 0) {
    const verb = inQuarantine === 1 ? "is" : "are";
    doubts.push(`${plural(inQuarantine, "message")} ${verb} in quarantine`);
  }
  if (messagesWaiting === null) {
    doubts.push("the number of waiting messages is unknown");
  } else if (messagesWaiting > 0) {
    const verb = messagesWaiting === 1 ? "waits" : "wait";
    doubts.push(`${plural(messagesWaiting, "message")} ${verb} in the queues`);
  }
  if (breaker.state !== "closed") doubts.push("calls to Customer.io are paused");
  return doubts;
}

/** Failures may concern a later phase of a signup, or an older signup. */
function failuresText({ openFailures }) {
  if (openFailures === 0) return "";
  return ` ${plural(openFailures, "failure")} ${openFailures === 1 ? "is" : "are"} open.`;
}

// ------------------------------------------------------------------------------------------ tiles

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
    messagesInQuarantine(stats.queues) > 0 &&
      tile("In quarantine", number(messagesInQuarantine(stats.queues)), {
        kind: "bad",
        title: "Messages that ended their consumers again and again: see the runbook.",
      }),
    tile("Waiting in queues", waitingText(stats), { title: queuesText(stats) }),
    breakerTile(breaker),
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

/** Messages that the service has set aside; 0 if their number is unknown. */
const messagesInQuarantine = (queues) =>
  queues.find(({ name }) => name === "customerio-sync.quarantine")?.ready ?? 0;

const waitingText = ({ messagesWaiting }) =>
  messagesWaiting === null ? "unknown" : number(messagesWaiting);

/** Ready messages and consumers of each queue. */
function queuesText({ queues }) {
  const known = queues.map(({ name, ready, consumers }) => {
    if (ready === null) return `${name}: unknown`;
    return `${name}: ${plural(ready, "message")}, ${plural(consumers, "consumer")}`;
  });
  return known.join("\n");
}

function breakerTile(breaker) {
  const isClosed = breaker.state === "closed";
  const element = tile("Circuit breaker", breakerText(breaker), {
    kind: isClosed ? "good" : "warning",
    title: `Replica ${breaker.replica}: ${breaker.meaning}`,
  });
  if (!isClosed) element.append(h("dd", {}, button("Close breaker…", closeBreaker)));
  return element;
}

async function closeBreaker() {
  const confirmed = await confirmAction({
    title: "Close the circuit breaker?",
    text: [
      "Calls resume on all replicas, the first one with a single job. A pause that Customer.io " +
        "asked for ends.",
    ],
    action: "Close breaker",
  });
  if (!confirmed) return;
  await act(
    () => api.closeBreaker(),
    () => "Closed: calls resume.",
  );
}

/** State of the circuit breaker, such as "open for 3 min (outage), next probe in 20 s". */
function breakerText({ state, reason, since, nextProbeAt }) {
  if (state === "closed") return "closed, calls go through";
  const elapsed = `${state === "open" ? "for" : "after"} ${duration(secondsSince(since))}`;
  const text = `${BREAKER_STATES[state]} ${elapsed} (${BREAKER_REASONS[reason]})`;
  if (state === "half_open") return `${text}, probe in flight`;
  return nextProbeAt ? `${text}, next probe in ${duration(secondsUntil(nextProbeAt))}` : text;
}
