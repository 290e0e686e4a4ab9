// Entry point of the operators' page: starts it, and keeps it up to date.

import { retryJob, setRefresh } from "./actions.js";
import { abortRequests, api, requestSequence, watchFeed } from "./api.js";
import {
  dismissFailures,
  dismissTargets,
  retryTargets,
  updateBulkActions,
  updateBulkRetries,
} from "./bulk.js";
import { drawGroups } from "./groups.js";
import { openJob } from "./job.js";
import { startKeys } from "./keys.js";
import { loadList, startList } from "./list.js";
import { drawOutdated, drawOverview } from "./overview.js";
import { drawUnprocessable } from "./unprocessable.js";
import { $, setRole, toast } from "./view.js";

const REFRESH_DELAY_MS = 400;
const POLL_INTERVAL_MS = 5000;
/** While the WebSocket is open, one poll in this many refreshes more than the overview. */
const LIVE_POLLS_PER_REFRESH = 6;

let isLive = false;

// ---------------------------------------------------------------------------------------- refresh

const startRequest = requestSequence();

/** Loads and draws everything. Without `force`, the list stays as it is while rows are selected. */
async function refresh({ force = false } = {}) {
  await Promise.all([refreshOverview(), refreshLists({ force })]);
}

async function refreshLists({ force }) {
  const isLatest = startRequest();
  try {
    const [groups, bulkRetries, bulkActions, unprocessable] = await Promise.all([
      api.groups(),
      api.bulkRetries(),
      api.bulkActions(),
      api.unprocessable(),
      loadList({ force }),
    ]);
    if (!isLatest()) return;
    drawGroups(groups.items);
    updateBulkRetries(bulkRetries.items);
    updateBulkActions(bulkActions.items);
    drawUnprocessable(unprocessable);
  } catch (error) {
    toast(error.message);
  }
}

/** Number of the last request for the stats, and of the last one whose result was drawn. */
let lastStatsRequest = 0;
let lastStatsDrawn = 0;

/** Loads and draws the overview, or says that it is outdated. */
async function refreshOverview() {
  lastStatsRequest += 1;
  const current = lastStatsRequest;
  let draw;
  try {
    const stats = await api.stats();
    draw = () => drawOverview(stats);
  } catch (error) {
    draw = () => drawOutdated(error.message);
  }
  // A late result never replaces a newer one. One that is only not the latest is drawn: while all
  // of them are slow, there would be none otherwise.
  if (current < lastStatsDrawn) return;
  lastStatsDrawn = current;
  draw();
}

let refreshTimer;

/** Refreshes after a short delay. Calls made before that refresh ends cause no further one. */
function refreshSoon() {
  refreshTimer ??= setTimeout(async () => {
    await refresh();
    refreshTimer = undefined;
  }, REFRESH_DELAY_MS);
}

function onFrame(frame) {
  if (frame.type === "bulk_retry.progress") updateBulkRetries([frame.bulkRetry]);
  refreshSoon();
}

function onConnection(isOpen) {
  isLive = isOpen;
  $("live").textContent = isOpen ? "● live" : "○ not live, polling every 5 s";
  if (isOpen) refreshSoon();
}

/**
 * Polls as a fallback for the WebSocket. While it is open, polls the overview, since queues and
 * other replicas cause no frames, and everything else rarely, in case frames were missed.
 */
function startPolling() {
  let polls = 0;
  setInterval(() => {
    polls += 1;
    const isDue = !isLive || polls % LIVE_POLLS_PER_REFRESH === 0;
    // A refresh that is waiting for a response must not keep an outdated overview.
    if (isDue && refreshTimer === undefined) refreshSoon();
    else refreshOverview();
  }, POLL_INTERVAL_MS);
}

// ------------------------------------------------------------------------------------------ start

function openFailure({ jobId }) {
  const callbacks = {
    onRetry: (job) => retryJob(job.signupId, job.syncPhase),
    onDismiss: (job) => dismissFailures([job]),
  };
  openJob(jobId, callbacks).catch((error) => toast(error.message));
}

function startControls() {
  setRefresh(() => refresh({ force: true }));
  startList({
    onOpen: openFailure,
    onRetry: ({ signupId, syncPhase }) => retryJob(signupId, syncPhase),
    onSelectionEnd: refreshSoon,
  });
  startKeys();
  $("retry-selected").addEventListener("click", retryTargets);
  $("dismiss-selected").addEventListener("click", dismissTargets);
  // A response to a request in flight would be 401.
  $("logout").addEventListener("submit", abortRequests);
  $("help-button").addEventListener("click", () => $("help").showModal());
}

async function showSession() {
  try {
    const { name, role, hasSession } = await api.session();
    setRole(role);
    $("who").textContent = `${name}, ${role}`;
    $("logout").hidden = !hasSession;
  } catch (error) {
    toast(error.message);
  }
}

async function start() {
  startControls();
  await showSession();
  await refresh();
  watchFeed(onFrame, onConnection);
  startPolling();
}

start();
