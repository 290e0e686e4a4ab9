// One job: its ladder as a timeline, its tries, its audit trail.

import { api } from "./api.js";
import { $, ago, button, h, secondsSince, span, toast } from "./view.js";

let countdown;

/** Opens the job and calls `onRetry` or `onDismiss` for its buttons. */
export async function openJob(id, role, { onRetry, onDismiss }) {
  const detail = await api.job(id);
  const dialog = $("job");
  const close = () => dialog.close();
  const isFailed = detail.job.status === "failed";
  dialog.replaceChildren(
    h("h2", { id: "job-title" }, `${detail.job.syncPhase} job, ${detail.job.status}`),
    verdict(detail.verdict, detail.job.errorMessage),
    h("h3", {}, "Ladder"),
    ladder(detail),
    facts(detail, role),
    h("p", { class: "bar" },
      isFailed && button("Retry", () => (close(), onRetry(detail.job)), { role, class: "primary" }),
      isFailed && !detail.job.dismissedAt && button("Dismiss", () => (close(), onDismiss(detail.job)), { role }),
      detail.queueUrl && h("a", { href: detail.queueUrl, rel: "noreferrer", target: "_blank" }, "Queue in the management UI"),
      h("button", { type: "button", onclick: close }, "Close")),
    h("h3", {}, "Tries"),
    table(["When", "Took", "Answer", "What was said", "Then"], detail.attempts.map((attempt) => [
      ago(attempt.startedAt), `${Math.round(attempt.durationMs)} ms`, attempt.httpStatus ?? "none",
      attempt.errorMessage ?? "accepted", attempt.tier ? `waited ${attempt.tier}` : attempt.errorType ? "failed" : "completed",
    ])),
    h("h3", {}, "Audit trail"),
    table(["When", "Who", "What", "Details"], detail.audit.map((entry) => [
      ago(entry.createdAt), entry.actor, entry.action.replace("customerio_", "").replaceAll("_", " "),
      h("span", { class: "mono" }, shortDetails(entry.details)),
    ])),
  );
  clearInterval(countdown);
  countdown = setInterval(() => tick(dialog), 1000);
  dialog.onclose = () => clearInterval(countdown);
  tick(dialog);
  if (!dialog.open) dialog.showModal();
}

export function verdict(verdict, message) {
  if (!verdict) return null;
  return h("div", {},
    message && h("p", { class: "mono" }, message),
    h("p", {}, h("span", { class: "tag" }, verdict.cause.replace("_", " ")), " ", verdict.meaning),
    h("p", {}, h("strong", {}, "Next: "), verdict.next),
    verdict.warning && h("p", { class: "wait" }, verdict.warning));
}

function ladder({ job, attempts, ladder }) {
  const ended = job.status === "completed" || job.status === "failed";
  const step = (index) => {
    const attemptAt = (index) => attempts.findLast((one) => one.run === job.run && one.attempt === index);
    const attempt = attemptAt(index);
    // Retry-After may have made a wait longer than the ladder's own.
    const waited = attemptAt(index - 1)?.tier ?? ladder[index - 1]?.name ?? "a wait";
    const name = index === 0 ? "First call" : `Retry ${index}, after ${waited}`;
    if (attempt) {
      const said = attempt.errorType ? attempt.httpStatus ?? attempt.errorType.replace("_", " ") : "accepted";
      return h("li", { class: attempt.errorType ? "missed" : "done" }, h("strong", {}, name), h("br"), `${said}, `, ago(attempt.startedAt));
    }
    if (!ended && index === job.attemptCount) {
      const due = job.status === "processing" ? "now" : job.nextRetryAt ? h("span", { "data-due": job.nextRetryAt }) : "waits for its message";
      return h("li", { class: "due", "aria-current": "step" }, h("strong", {}, name), h("br"), due);
    }
    return h("li", {}, h("strong", {}, name), h("br"), h("span", { class: "soft" }, ended ? "not needed" : "remaining"));
  };
  return h("ol", { class: "ladder" }, Array.from({ length: job.maxAttempts + 1 }, (_, index) => step(index)));
}

function tick(dialog) {
  for (const element of dialog.querySelectorAll("[data-due]")) {
    const left = (Date.parse(element.dataset.due) - Date.now()) / 1000;
    element.textContent = left > 0 ? `in ${span(Math.ceil(left))}` : "due now";
  }
}

function facts({ job, signup }, role) {
  const customer = signup.customer;
  const name = [customer.firstName, customer.lastName].filter(Boolean).join(" ");
  const who = h("dd", {}, `${name || "no name"}, ${customer.email ?? "no address"} `);
  who.append(button("Reveal", async () => {
    try {
      const shown = await api.reveal(job.jobId);
      who.textContent = `${[shown.firstName, shown.lastName].filter(Boolean).join(" ") || "no name"}, ${shown.email ?? "no address"}`;
    } catch (problem) {
      toast(problem.message);
    }
  }, { role, title: "The audit log tells who looked." }));
  const rows = [
    ["Customer", who],
    ["Operator", signup.operatorName ?? signup.operatorId ?? "unknown"],
    ["Signup", job.signupId],
    ["Job", job.jobId],
    ["Tracked event", job.trackedEventId],
    ["Event happened", ago(job.occurredAt)],
    ["Job made", ago(job.createdAt)],
    ["Runs", `${job.run + 1}${job.manualRetry ? ", this one started by hand" : ""}`],
    job.dismissedAt && ["Dismissed", `${span(secondsSince(job.dismissedAt))} ago: ${job.dismissedReason}`],
  ].filter(Boolean);
  return h("dl", { class: "facts" }, rows.flatMap(([term, value]) =>
    [h("dt", {}, term), value instanceof HTMLElement && value.tagName === "DD" ? value : h("dd", {}, value)]));
}

function shortDetails(details) {
  const told = Object.entries(details).filter(([key, value]) => !["jobId", "syncPhase"].includes(key) && value !== null);
  return told.map(([key, value]) => `${key}: ${value}`).join(", ");
}

function table(heads, rows) {
  if (!rows.length) return h("p", { class: "soft" }, "None yet.");
  return h("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": heads.join(", ") }, h("table", {},
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))))));
}
