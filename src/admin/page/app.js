// The operators' page: what it knows, how it is drawn, what the keys do.

import { api, watch } from "./api.js";
import { openJob, verdict } from "./job.js";
import { $, ago, button, chart, h, number, secondsSince, span, toast } from "./view.js";

const PAGE_SIZE = 50;
const FILTERS = [
  ["syncPhase", ["initial", "enriched"]],
  ["errorType", ["rate_limit", "server_error", "network", "other"]],
];

const state = {
  role: "viewer",
  filters: {},
  offset: 0,
  items: [],
  total: 0,
  selected: new Map(),
  active: undefined,
  isLive: false,
};

// ------------------------------------------------------------------------------------------------------------- drawing

function drawStats(stats) {
  const { today, gate, byStatus } = stats;
  const headline = $("headline");
  headline.className = today.notSynced || gate.state === "open" ? "wait" : "good";
  headline.textContent = today.notSynced
    ? `${number(today.notSynced)} ${today.notSynced === 1 ? "signup" : "signups"} of today ${today.notSynced === 1 ? "is" : "are"} not in Customer.io yet, the oldest for ${span(secondsSince(today.oldestAt))}.`
    : "Every signup of today is in Customer.io.";
  const failures = stats.failureQueueUrl
    ? h("a", { href: stats.failureQueueUrl, rel: "noreferrer", target: "_blank", title: "The failure queue in the management UI" }, number(stats.openFailures))
    : number(stats.openFailures);
  const tiles = [
    ["Open failures", failures, stats.openFailures ? "bad" : "good"],
    ["Pending", number(byStatus.pending)],
    ["Processing", number(byStatus.processing)],
    ["Completed", number(byStatus.completed)],
    ["Failed, all", number(byStatus.failed)],
    ["Not understood", number(stats.unprocessable), stats.unprocessable ? "bad" : ""],
    ["Calls to Customer.io", gate.state === "open" ? `${GATE[gate.reason]} for ${span(secondsSince(gate.since))}, probe in ${span(gate.seconds ?? 0)}` : "go through", gate.state === "open" ? "wait" : "good", gate.meaning],
  ];
  $("tiles").replaceChildren(...tiles.map(([name, value, kind = "", title]) =>
    h("div", { title }, h("dt", {}, name), h("dd", { class: kind }, value))));
  $("chart").replaceChildren(...chart(stats.lastHour));
}

function drawGroups(groups) {
  $("groups-empty").hidden = groups.length > 0;
  $("groups").replaceChildren(...groups.map((group) => {
    const selection = { signature: group.signature, errorType: group.errorType };
    const { role } = state;
    return h("li", { class: "card" },
      h("h3", {}, `${number(group.count)} × `, h("span", { class: "mono" }, group.signature)),
      h("p", { class: "soft" }, "first ", ago(group.firstSeen), ", last ", ago(group.lastSeen)),
      verdict(group.verdict),
      h("p", { class: "bar" },
        button("Retry one", () => retryOne(group.sampleSignupId, group.sampleSyncPhase), { role, title: "A canary: when it succeeds, retry all." }),
        button(`Retry all ${number(group.count)}`, () => retryMany(selection), { role }),
        button("Dismiss", () => dismissMany(selection, group.count), { role }),
        button("Show", () => setFilters(selection), { needs: "viewer" })));
  }));
}

function drawList() {
  $("total").textContent = number(state.total);
  $("list-empty").hidden = state.items.length > 0;
  $("list").replaceChildren(...state.items.map(row));
  const pages = Math.max(1, Math.ceil(state.total / PAGE_SIZE));
  $("page-number").textContent = `Page ${number(state.offset / PAGE_SIZE + 1)} of ${number(pages)}`;
  $("previous").disabled = state.offset === 0;
  $("next").disabled = state.offset + PAGE_SIZE >= state.total;
  drawSelection();
}

function row(item) {
  const { customer } = item;
  const name = [customer.firstName, customer.lastName].filter(Boolean).join(" ");
  const who = [customer.email, name].filter(Boolean).join(", ") || item.signupId;
  const is = state.selected.has(item.jobId);
  return h("li", { "data-job": item.jobId, class: is && "selected" },
    h("input", { type: "checkbox", "aria-label": `Select ${who}, ${item.syncPhase}`, onchange: () => toggle(item) }),
    h("div", {},
      h("button", { type: "button", class: "open", "aria-haspopup": "dialog", onclick: () => open(item) }, who), " ",
      h("span", { class: "tag" }, item.syncPhase), " ",
      h("span", { class: "tag" }, item.errorType.replace("_", " ")), " ",
      h("span", { class: "soft" }, `${item.attemptCount} of ${item.maxAttempts} retries, `, ago(item.lastAttemptAt))),
    h("div", { class: "actions" }, button("Retry", () => retryOne(item.signupId, item.syncPhase), { role: state.role, "aria-label": `Retry ${who}` })),
    h("p", { class: "message" }, item.errorMessage));
}

function drawSelection() {
  const count = state.selected.size;
  $("selection").hidden = count === 0;
  $("selected-count").textContent = `${number(count)} selected`;
  for (const element of $("list").children) {
    const is = state.selected.has(element.dataset.job);
    element.classList.toggle("selected", is);
    element.querySelector("input").checked = is;
  }
  for (const id of ["retry-selected", "dismiss-selected"]) {
    $(id).disabled = state.role !== "operator";
    $(id).title = state.role === "operator" ? "" : "Needs the role operator; you are a viewer.";
  }
}

function drawChips() {
  const chips = FILTERS.flatMap(([key, values]) => values.map((value) => h("button", {
    type: "button", "aria-pressed": String(state.filters[key] === value),
    onclick: () => setFilters({ ...state.filters, [key]: state.filters[key] === value ? undefined : value }),
  }, value.replace("_", " "))));
  if (state.filters.signature) {
    chips.push(h("button", { type: "button", "aria-pressed": "true", title: "Remove this filter", onclick: () => setFilters({ ...state.filters, signature: undefined }) }, `${state.filters.signature} ×`));
  }
  $("chips").replaceChildren(...chips);
}

const GATE = { outage: "outage", credentials: "credentials refused", asked: "on hold" };
const bulks = new Map();

function drawBulks() {
  const recent = [...bulks.values()].filter((bulk) => bulk.status === "running" || secondsSince(bulk.updatedAt) < 60);
  recent.sort((a, b) => (a.createdAt < b.createdAt ? 1 : -1));
  $("bulk-section").hidden = recent.length === 0;
  $("bulk").replaceChildren(...recent.map((bulk) => h("li", { "data-bulk": bulk.id },
    h("p", {}, `${number(bulk.retried)} of ${number(bulk.eligible)} retried, ${bulk.status}, begun by ${bulk.actor} `, ago(bulk.createdAt),
      bulk.cancelledBy ? `, cancelled by ${bulk.cancelledBy}` : ""),
    h("progress", { max: Math.max(1, bulk.eligible), value: bulk.status === "completed" ? Math.max(1, bulk.eligible) : bulk.retried, "aria-label": "Retried" }),
    bulk.status === "running" && button("Cancel", () => act(() => api.cancel(bulk.id), () => "Cancelled; what was started goes on."), { role: state.role }))));
}

function drawUnprocessable({ items, total }) {
  $("unprocessable-section").hidden = total === 0;
  $("unprocessable-total").textContent = number(total);
  const { role } = state;
  $("unprocessable").replaceChildren(...items.map((item) => h("li", {},
    h("p", {}, item.path && h("code", {}, item.path), item.path ? ": " : "", item.errorMessage),
    h("p", { class: "soft" }, ago(item.failedAt), `, from ${item.exchange || "the default exchange"}, ${item.routingKey}`),
    h("p", {}, h("strong", {}, "Next: "), item.verdict.next),
    h("details", {}, h("summary", {}, `Body, ${number(item.bodyBytes)} bytes${item.bodyIsCut ? ", its start" : ""}`),
      h("pre", { tabindex: 0 }, item.body ?? `Base64: ${item.bodyBase64}`)),
    h("p", { class: "bar" },
      button("Replay", () => act(() => api.replay(item.id), () => "Published again."), { role }),
      button("Dismiss", async () => {
        const answer = await question({ title: "Dismiss this message?", yes: "Dismiss", needsReason: true });
        if (answer) await act(() => api.dismissMessage(item.id, answer.reason), () => "Dismissed.");
      }, { role })))));
}

// ------------------------------------------------------------------------------------------------------------- reading

/** A check whether nobody has asked the same again since: a late answer must not undo a newer one. */
const turns = new Map();
function takeTurn(what) {
  const turn = (turns.get(what) ?? 0) + 1;
  turns.set(what, turn);
  return () => turns.get(what) === turn;
}

async function loadList(force) {
  // Nothing moves under the hands of somebody who selects.
  if (state.selected.size && !force) return;
  const isLatest = takeTurn("list");
  const { items, total } = await api.failures({ ...state.filters, limit: PAGE_SIZE, offset: state.offset });
  if (!isLatest() || (state.selected.size && !force)) return;
  const focused = focusedJob();
  Object.assign(state, { items, total });
  drawList();
  if (focused) focusJob(focused);
}

async function refresh(force = false) {
  const isLatest = takeTurn("rest");
  try {
    const [stats, groups, bulk, unprocessable] = await Promise.all([
      api.stats(), api.groups(), api.bulkRetries(), api.unprocessable(), loadList(force),
    ]);
    if (!isLatest()) return;
    drawStats(stats);
    drawGroups(groups.items);
    for (const one of bulk.items) bulks.set(one.id, one);
    drawBulks();
    drawUnprocessable(unprocessable);
  } catch (problem) {
    toast(problem.message);
  }
}

let refreshing;
/** Refreshes soon; many wishes in a row are one. */
function refreshSoon() {
  refreshing ??= setTimeout(async () => {
    await refresh();
    refreshing = undefined;
  }, 400);
}

function setFilters(filters) {
  state.filters = filters;
  state.offset = 0;
  state.selected.clear();
  if ($("search").value !== (filters.search ?? "")) $("search").value = filters.search ?? "";
  drawChips();
  loadList(true).catch((problem) => toast(problem.message));
}

// -------------------------------------------------------------------------------------------------------------- acting

/** Does something, says how it ended, and shows what has changed. */
async function act(what, told) {
  try {
    const answer = await what();
    toast(answer?.notice ?? told(answer));
  } catch (problem) {
    toast(problem.message);
  }
  await refresh(true);
}

const retryOne = (signupId, phase) => act(() => api.retry(signupId, phase), () => "Retried: it starts again from the first call.");

async function retryMany(selection) {
  try {
    const dry = await api.bulkRetry(selection, true);
    const answer = await question({
      title: `Retry ${number(dry.eligible)} failures?`,
      text: [
        dry.olderThan72Hours > 0 && `${number(dry.olderThan72Hours)} of them are of events older than 72 hours: Customer.io starts no campaign for those any more.`,
        ...dry.notEligible.map(({ count, meaning }) => `${number(count)} more are left alone: ${meaning}.`),
        "They start at a bounded rate, after live traffic; it can be cancelled.",
      ],
      yes: "Retry",
    });
    if (!answer) return;
  } catch (problem) {
    return toast(problem.message);
  }
  state.selected.clear();
  await act(() => api.bulkRetry(selection), () => "The bulk retry has begun.");
}

async function dismissMany(selection, count) {
  const answer = await question({
    title: `Dismiss ${number(count)} ${count === 1 ? "failure" : "failures"}?`,
    text: ["They leave the list without a retry. A retry of the signup by itself undoes it."],
    yes: "Dismiss",
    needsReason: true,
  });
  if (!answer) return;
  state.selected.clear();
  await act(() => api.dismiss(selection, answer.reason), ({ dismissed }) => `${number(dismissed)} dismissed.`);
}

/** Asks; answers undefined for no, and `{ reason }` for yes. */
function question({ title, text = [], yes, needsReason = false }) {
  const dialog = $("ask");
  $("ask-title").textContent = title;
  $("ask-text").replaceChildren(...text.filter(Boolean).map((line) => h("p", {}, line)));
  $("ask-reason-line").hidden = !needsReason;
  $("ask-reason").required = needsReason;
  $("ask-reason").value = "";
  $("ask-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "yes" ? { reason: $("ask-reason").value } : undefined);
  });
}

const selectionOf = (jobs) => ({ jobIds: jobs.map((job) => job.jobId) });

function open(item) {
  openJob(item.jobId, state.role, {
    onRetry: (job) => retryOne(job.signupId, job.syncPhase),
    onDismiss: (job) => dismissMany(selectionOf([job]), 1),
  }).catch((problem) => toast(problem.message));
}

function toggle(item) {
  if (!state.selected.delete(item.jobId)) state.selected.set(item.jobId, item);
  drawSelection();
  if (state.selected.size === 0) refreshSoon();
}

function clearSelection() {
  state.selected.clear();
  drawSelection();
  refreshSoon();
}

/** Those that are selected, else the one that the keyboard is at. */
function chosen() {
  if (state.selected.size) return [...state.selected.values()];
  const active = state.items.find((item) => item.jobId === activeJob());
  return active ? [active] : [];
}

function retryChosen() {
  const jobs = chosen();
  if (jobs.length === 1) {
    state.selected.clear();
    retryOne(jobs[0].signupId, jobs[0].syncPhase);
  } else if (jobs.length) {
    retryMany(selectionOf(jobs));
  }
}

function dismissChosen() {
  const jobs = chosen();
  if (jobs.length) dismissMany(selectionOf(jobs), jobs.length);
}

// ---------------------------------------------------------------------------------------------------------------- keys

const focusedJob = () => document.activeElement?.closest?.("#list > li")?.dataset.job;

/** The job that the keyboard is at; drawing the list anew, or a dialog, may have taken the focus itself. */
const activeJob = () => focusedJob() ?? (document.activeElement === document.body ? state.active : undefined);

$("list").addEventListener("focusin", () => (state.active = focusedJob()));

function focusJob(id) {
  document.querySelector(`#list > li[data-job="${CSS.escape(id)}"] .open`)?.focus();
}

function move(by) {
  const rows = [...$("list").children];
  const at = rows.findIndex((element) => element.dataset.job === activeJob());
  const next = rows[Math.min(rows.length - 1, Math.max(0, at + by))];
  next?.querySelector(".open").focus();
}

const KEYS = {
  "/": () => $("search").focus(),
  "?": () => $("help").showModal(),
  j: () => move(1),
  k: () => move(-1),
  x: () => state.items.filter((item) => item.jobId === activeJob()).forEach(toggle),
  r: () => state.role === "operator" && retryChosen(),
  d: () => state.role === "operator" && dismissChosen(),
  Escape: () => state.selected.size && clearSelection(),
};

document.addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=checkbox])");
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (isTyping && event.key === "Escape") event.target.blur();
  if (isTyping || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

// --------------------------------------------------------------------------------------------------------------- start

function onFrame(frame) {
  if (frame.type === "bulk_retry.progress") {
    bulks.set(frame.bulkRetry.id, frame.bulkRetry);
    drawBulks();
  }
  refreshSoon();
}

function onState(isLive) {
  state.isLive = isLive;
  $("live").textContent = isLive ? "● live" : "○ not live, asking every 5 s";
  if (isLive) refreshSoon();
}

async function start() {
  try {
    const who = await api.who();
    state.role = who.role;
    $("who").textContent = `${who.name}, ${who.role}`;
    $("logout").hidden = !who.hasSession;
  } catch (problem) {
    toast(problem.message);
  }
  drawChips();
  await refresh();
  watch(onFrame, onState);
  let ticks = 0;
  setInterval(() => {
    ticks += 1;
    if (!state.isLive || ticks % 6 === 0) refreshSoon();
  }, 5000);
}

let searching;
$("search").addEventListener("input", () => {
  clearTimeout(searching);
  searching = setTimeout(() => setFilters({ ...state.filters, search: $("search").value || undefined }), 250);
});
$("previous").addEventListener("click", () => ((state.offset = Math.max(0, state.offset - PAGE_SIZE)), loadList(true)));
$("next").addEventListener("click", () => ((state.offset += PAGE_SIZE), loadList(true)));
$("retry-selected").addEventListener("click", retryChosen);
$("dismiss-selected").addEventListener("click", dismissChosen);
$("clear-selection").addEventListener("click", clearSelection);
$("help-button").addEventListener("click", () => $("help").showModal());
start();
