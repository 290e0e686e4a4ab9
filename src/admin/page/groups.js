// Failure groups: the open failures by error signature, each with its diagnosis.

import { retryJob } from "./actions.js";
import { dismissMany, retryMany } from "./bulk.js";
import { diagnosis } from "./job.js";
import { setFilters } from "./list.js";
import { $, ago, button, h, number } from "./view.js";

/** Draws the failure groups, or says that there are none. */
export function drawGroups(groups) {
  $("groups-empty").hidden = groups.length > 0;
  $("groups").replaceChildren(...groups.map(groupCard));
}

function groupCard(group) {
  const { signature, count, firstSeen, lastSeen, verdict } = group;
  return h(
    "li",
    { class: "card" },
    h("h3", {}, `${number(count)} × `, h("span", { class: "mono" }, signature)),
    h("p", { class: "muted" }, "first seen ", ago(firstSeen), ", last seen ", ago(lastSeen)),
    diagnosis(verdict),
    h("p", { class: "toolbar" }, groupButtons(group)),
  );
}

function groupButtons({ signature, errorType, count, sampleSignupId, sampleSyncPhase }) {
  const selection = { signature, errorType };
  return [
    button("Retry one", () => retryJob(sampleSignupId, sampleSyncPhase), {
      title: "Retries the latest failure as a test. If it succeeds, retry all.",
    }),
    button(`Retry all ${number(count)}`, () => retryMany(selection)),
    button("Dismiss", () => dismissMany(selection, count)),
    button("Show", () => setFilters(selection), { requires: "viewer" }),
  ];
}
