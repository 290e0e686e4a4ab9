// Bulk operations: retrying and dismissing several failures, and the progress of bulk retries and
// bulk actions.

import { act, retryJob } from "./actions.js";
import { api } from "./api.js";
import { dropSelection, targetFailures } from "./list.js";
import { $, ago, button, confirmAction, h, number, plural, secondsSince, toast } from "./view.js";

/** Time for which a bulk operation stays on the page after it has ended. */
const ENDED_SHOWN_SECONDS = 60;
/** Time between two polls for the progress of bulk actions, which sends no frames. */
const PROGRESS_INTERVAL_MS = 1000;

// --------------------------------------------------------------------------------------- progress

/** Bulk retries and bulk actions by id. */
const operations = new Map();

/** What each kind of operation does with its items, and how it is cancelled. */
const KINDS = {
  retry: {
    done: "retried",
    cancel: (id) => api.cancelBulkRetry(id),
    cancelled: "Bulk retry cancelled. Jobs already retried continue.",
  },
  dismiss_failures: {
    done: "dismissed",
    cancel: (id) => api.cancelBulkAction(id),
    cancelled: "Dismissal cancelled. Failures already dismissed stay dismissed.",
  },
  dismiss_unprocessable: {
    done: "messages dismissed",
    cancel: (id) => api.cancelBulkAction(id),
    cancelled: "Dismissal cancelled. Messages already dismissed stay dismissed.",
  },
  replay_unprocessable: {
    done: "messages replayed",
    cancel: (id) => api.cancelBulkAction(id),
    cancelled: "Replay cancelled. Messages already replayed stay replayed.",
  },
};

/** Records the latest state of bulk retries, and draws the operations. */
export function updateBulkRetries(updates) {
  record(updates.map((update) => ({ ...update, kind: "retry", done: update.retried })));
}

/** Records the latest state of bulk actions, and draws the operations. */
export function updateBulkActions(updates) {
  record(updates.filter(({ kind }) => kind in KINDS));
  if (updates.some(({ status }) => status === "running")) pollProgress();
}

/** Draws the operations that run or ended recently. */
function record(updates) {
  for (const update of updates) operations.set(update.id, update);
  const isShown = ({ status, updatedAt }) =>
    status === "running" || secondsSince(updatedAt) < ENDED_SHOWN_SECONDS;
  const shown = [...operations.values()].filter(isShown);
  shown.sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
  $("bulk-section").hidden = shown.length === 0;
  $("bulk").replaceChildren(...shown.map(operationItem));
}

let progressTimer;

/** Loads the bulk actions again after a pause. The rest of the page follows when it refreshes. */
function pollProgress() {
  progressTimer ??= setTimeout(async () => {
    progressTimer = undefined;
    try {
      const { items } = await api.bulkActions();
      updateBulkActions(items);
    } catch (error) {
      toast(error.message);
    }
  }, PROGRESS_INTERVAL_MS);
}

function operationItem(operation) {
  const { id, kind, status, eligible, done, actor, createdAt, cancelledBy } = operation;
  // A completed operation fills the bar, even if it had nothing to do or skipped some items.
  const max = Math.max(1, eligible);
  const value = status === "completed" ? max : done;
  return h(
    "li",
    { "data-bulk": id },
    h(
      "p",
      {},
      `${number(done)} of ${number(eligible)} ${KINDS[kind].done}, ${status}, started by ${actor} `,
      ago(createdAt),
      cancelledBy && `, cancelled by ${cancelledBy}`,
    ),
    h("progress", { max, value, "aria-label": `Progress: ${KINDS[kind].done}` }),
    status === "running" && button("Cancel", () => cancel(id, KINDS[kind])),
  );
}

function cancel(id, kind) {
  return act(
    () => kind.cancel(id),
    () => kind.cancelled,
  );
}

// ------------------------------------------------------------------------------ retry and dismiss

/** Retries all failures of a selection, after a dry run and a confirmation. */
export async function retryMany(selection) {
  try {
    const dryRun = await api.bulkRetry(selection, true);
    if (!(await confirmBulkRetry(dryRun))) return;
  } catch (error) {
    toast(error.message);
    return;
  }
  dropSelection();
  await act(
    () => api.bulkRetry(selection),
    () => "Bulk retry started.",
  );
}

function confirmBulkRetry({ eligible, olderThan72Hours, notEligible }) {
  return confirmAction({
    title: `Retry ${plural(eligible, "failure")}?`,
    text: [
      olderThan72Hours > 0 &&
        `Events older than 72 hours: ${number(olderThan72Hours)}. ` +
          "Customer.io no longer starts campaigns for them.",
      ...notEligible.map(({ count, meaning }) => `${number(count)} skipped: ${meaning}.`),
      "The bulk retry runs at a limited rate, after live traffic. You can cancel it.",
    ],
    action: "Retry",
  });
}

/** Dismisses all failures of a selection, after a confirmation with a reason. */
export async function dismissMany(selection, count) {
  const confirmation = await confirmAction({
    title: `Dismiss ${plural(count, "failure")}?`,
    text: [
      "Dismissed failures leave the list without a retry. " +
        "To undo a dismissal, retry its signup by itself.",
    ],
    action: "Dismiss",
    needsReason: true,
  });
  if (!confirmation) return;
  dropSelection();
  await act(
    () => api.dismiss(selection, confirmation.reason),
    ({ status, dismissed }) =>
      status === "running" ? "Dismissal started." : `${plural(dismissed, "failure")} dismissed.`,
  );
}

/** Dismisses the given failures. */
export function dismissFailures(failures) {
  return dismissMany(selectionOf(failures), failures.length);
}

/** Retries the selected failures, or else the focused one. One failure needs no confirmation. */
export function retryTargets() {
  const targets = targetFailures();
  if (targets.length === 1) {
    dropSelection();
    retryJob(targets[0].signupId, targets[0].syncPhase);
  } else if (targets.length > 1) {
    retryMany(selectionOf(targets));
  }
}

/** Dismisses the selected failures, or else the focused one. */
export function dismissTargets() {
  const targets = targetFailures();
  if (targets.length) dismissFailures(targets);
}

const selectionOf = (failures) => ({ jobIds: failures.map(({ jobId }) => jobId) });
