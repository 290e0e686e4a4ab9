// Bulk operations: retrying and dismissing several failures, and the progress of bulk retries.

import { act, retryJob } from "./actions.js";
import { api } from "./api.js";
import { dropSelection, targetFailures } from "./list.js";
import { $, ago, button, confirmAction, h, number, plural, secondsSince, toast } from "./view.js";

/** Time for which a bulk retry stays on the page after it has ended. */
const ENDED_SHOWN_SECONDS = 60;

// ----------------------------------------------------------------------------------- bulk retries

/** Bulk retries by id. */
const bulkRetries = new Map();

/** Records the latest state of bulk retries, and draws those that run or ended recently. */
export function updateBulkRetries(updates) {
  for (const update of updates) bulkRetries.set(update.id, update);
  const isShown = ({ status, updatedAt }) =>
    status === "running" || secondsSince(updatedAt) < ENDED_SHOWN_SECONDS;
  const shown = [...bulkRetries.values()].filter(isShown);
  shown.sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
  $("bulk-section").hidden = shown.length === 0;
  $("bulk").replaceChildren(...shown.map(bulkRetryItem));
}

function bulkRetryItem(bulkRetry) {
  const { id, status, eligible, retried, actor, createdAt, cancelledBy } = bulkRetry;
  // A completed bulk retry fills the bar, even if it had nothing to retry or skipped some jobs.
  const max = Math.max(1, eligible);
  const value = status === "completed" ? max : retried;
  return h(
    "li",
    { "data-bulk": id },
    h(
      "p",
      {},
      `${number(retried)} of ${number(eligible)} retried, ${status}, started by ${actor} `,
      ago(createdAt),
      cancelledBy && `, cancelled by ${cancelledBy}`,
    ),
    h("progress", { max, value, "aria-label": "Retried jobs" }),
    status === "running" && button("Cancel", () => cancelBulkRetry(id)),
  );
}

function cancelBulkRetry(id) {
  return act(
    () => api.cancelBulkRetry(id),
    () => "Bulk retry cancelled. Jobs already retried continue.",
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
    ({ dismissed }) => `${plural(dismissed, "failure")} dismissed.`,
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
