// The dialog of one job: its diagnosis, its ladder as a timeline, its attempts, its audit trail.

import { api } from "./api.js";
import {
  $,
  ago,
  button,
  duration,
  fullName,
  h,
  secondsSince,
  secondsUntil,
  toast,
  words,
} from "./view.js";

let countdownTimer;

/** Opens the dialog of a job. Its buttons call `onRetry` and `onDismiss` with the job. */
export async function openJob(id, { onRetry, onDismiss }) {
  const detail = await api.job(id);
  const { job, attempts, hasEarlierAttempts, audit, hasEarlierAudit } = detail;
  const dialog = $("job");
  dialog.replaceChildren(
    h("h2", { id: "job-title" }, `${job.syncPhase} job, ${job.status}`, job.mock && mockMark()),
    diagnosis(detail.verdict, job.errorMessage) ?? "",
    h("h3", {}, "Ladder"),
    ladder(detail),
    facts(detail),
    toolbar(detail, dialog, { onRetry, onDismiss }),
    h("h3", {}, "Attempts"),
    table(["Started", "Duration", "HTTP status", "Message", "Result"], attempts.map(attemptCells)),
    hasEarlierAttempts ? latestNote(attempts) : "",
    h("h3", {}, "Audit trail"),
    table(["Time", "Actor", "Action", "Details"], audit.map(auditCells)),
    hasEarlierAudit ? latestNote(audit) : "",
  );
  clearInterval(countdownTimer);
  countdownTimer = setInterval(() => updateCountdowns(dialog), 1000);
  dialog.onclose = () => clearInterval(countdownTimer);
  updateCountdowns(dialog);
  if (!dialog.open) dialog.showModal();
}

/** Mark of a job that was completed in mock mode, after its title. */
function mockMark() {
  const title = "Completed in mock mode: Customer.io does not have the data.";
  return [" ", h("span", { class: "tag", title }, "mock")];
}

/** Meaning of a failure and the next step, after its error message if one is given. */
export function diagnosis(verdict, errorMessage) {
  if (!verdict) return null;
  const { cause, meaning, next, warning } = verdict;
  return h(
    "div",
    {},
    errorMessage && h("p", { class: "mono" }, errorMessage),
    h("p", {}, h("span", { class: "tag" }, words(cause)), " ", meaning),
    h("p", {}, h("strong", {}, "Next: "), next),
    warning && h("p", { class: "warning" }, warning),
  );
}

function toolbar({ job, queueUrl }, dialog, { onRetry, onDismiss }) {
  const isFailed = job.status === "failed";
  const closeAnd = (action) => () => {
    dialog.close();
    action(job);
  };
  const queueLink = { href: queueUrl, rel: "noreferrer", target: "_blank" };
  return h(
    "p",
    { class: "toolbar" },
    isFailed && button("Retry", closeAnd(onRetry), { class: "primary" }),
    isFailed && !job.dismissedAt && button("Dismiss", closeAnd(onDismiss)),
    queueUrl && h("a", queueLink, "Queue in the RabbitMQ management UI"),
    button("Close", () => dialog.close(), { requires: "viewer" }),
  );
}

// ----------------------------------------------------------------------------------------- ladder

function ladder(detail) {
  const length = detail.job.maxAttempts + 1;
  const steps = Array.from({ length }, (_, index) => ladderStep(detail, index));
  return h("ol", { class: "ladder" }, steps);
}

function ladderStep({ job, attempts, ladder: tiers }, index) {
  const attemptAt = (number) =>
    attempts.findLast(({ run, attempt }) => run === job.run && attempt === number);
  // Retry-After may have made the wait longer than that of the ladder.
  const tier = attemptAt(index - 1)?.tier ?? tiers[index - 1]?.name ?? "a wait";
  const name = index === 0 ? "First attempt" : `Retry ${index}, after ${tier}`;
  const step = (attributes, ...text) =>
    h("li", attributes, h("strong", {}, name), h("br"), ...text);

  const attempt = attemptAt(index);
  if (attempt) {
    const { errorType, httpStatus, startedAt } = attempt;
    const result = errorType ? (httpStatus ?? words(errorType)) : "accepted";
    return step({ class: errorType ? "failed" : "done" }, `${result}, `, ago(startedAt));
  }
  const hasEnded = job.status === "completed" || job.status === "failed";
  if (!hasEnded && index === job.attemptCount) {
    return step({ class: "due", "aria-current": "step" }, dueText(job));
  }
  return step({}, h("span", { class: "muted" }, hasEnded ? "not needed" : "remaining"));
}

/** When the next attempt of a job is due. A time becomes a countdown; see `updateCountdowns`. */
function dueText({ status, nextRetryAt }) {
  if (status === "processing") return "now";
  return nextRetryAt ? h("span", { "data-due": nextRetryAt }) : "waiting for its message";
}

function updateCountdowns(dialog) {
  for (const element of dialog.querySelectorAll("[data-due]")) {
    const seconds = secondsUntil(element.dataset.due);
    element.textContent = seconds > 0 ? `in ${duration(Math.ceil(seconds))}` : "due now";
  }
}

// ------------------------------------------------------------------------------------------ facts

function facts({ job, signup }) {
  const manual = job.manualRetry ? ", the current one started by an operator" : "";
  const rows = [
    ["Customer", maskedCustomer(job, signup.customer)],
    ["Signup operator", signup.operatorName ?? signup.operatorId ?? "unknown"],
    ["Signup", job.signupId],
    ["Job", job.jobId],
    ["Tracked event", job.trackedEventId],
    ["Event time", eventTime(job)],
    ["Job created", ago(job.createdAt)],
    ["Runs", `${job.run + 1}${manual}`],
  ];
  if (job.warningMessage) {
    rows.push(["Warning", job.warningMessage]);
  }
  if (job.dismissedAt) {
    const age = duration(secondsSince(job.dismissedAt));
    rows.push(["Dismissed", `${age} ago: ${job.dismissedReason}`]);
  }
  const cells = rows.flatMap(([term, value]) => [h("dt", {}, term), h("dd", {}, value)]);
  return h("dl", { class: "facts" }, cells);
}

/** Time of a job's event, and the time that it replaces because it was too far ahead. */
function eventTime({ occurredAt, statedAt }) {
  return statedAt ? `${ago(occurredAt)}; the event stated ${statedAt}` : ago(occurredAt);
}

/** Masked customer of a job, with a button that replaces it with the unmasked one. */
function maskedCustomer({ jobId }, customer) {
  const element = h("span", {}, `${customerText(customer)} `);
  const reveal = async () => {
    try {
      element.textContent = customerText(await api.reveal(jobId));
    } catch (error) {
      toast(error.message);
    }
  };
  element.append(button("Reveal", reveal, { title: "The audit log records who revealed it." }));
  return element;
}

const customerText = (customer) =>
  `${fullName(customer) || "no name"}, ${customer.email ?? "no e-mail address"}`;

// ----------------------------------------------------------------------------------------- tables

function attemptCells({ startedAt, durationMs, httpStatus, errorType, errorMessage, tier }) {
  const finalResult = errorType ? "failed" : "completed";
  return [
    ago(startedAt),
    `${Math.round(durationMs)} ms`,
    httpStatus ?? "none",
    errorMessage ?? "accepted",
    tier ? `retry after ${tier}` : finalResult,
  ];
}

function auditCells({ createdAt, actor, action, details }) {
  return [
    ago(createdAt),
    actor,
    words(action.replace("customerio_", "")),
    h("span", { class: "mono" }, auditDetails(details)),
  ];
}

/** Details of an audit entry, without those that the dialog shows anyway. */
function auditDetails(details) {
  return Object.entries(details)
    .filter(([key, value]) => !["jobId", "syncPhase"].includes(key) && value !== null)
    .map(([key, value]) => `${key}: ${value}`)
    .join(", ");
}

/** Note that a table has only the latest of more rows. */
function latestNote(rows) {
  return h("p", { class: "muted" }, `The latest ${rows.length} are shown. There are earlier ones.`);
}

function table(headings, rows) {
  if (!rows.length) return h("p", { class: "muted" }, "None yet.");
  const headingCells = headings.map((heading) => h("th", { scope: "col" }, heading));
  const bodyRows = rows.map((cells) => {
    const bodyCells = cells.map((cell) => h("td", {}, cell));
    return h("tr", {}, bodyCells);
  });
  return h(
    "div",
    { class: "scroll", tabindex: 0, role: "group", "aria-label": headings.join(", ") },
    h("table", {}, h("thead", {}, h("tr", {}, headingCells)), h("tbody", {}, bodyRows)),
  );
}
