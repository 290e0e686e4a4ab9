// The headline claims no more than is known. The service has three completed signups and nothing
// else; the responses of `/stats` are changed on their way to the page.

import assert from "node:assert/strict";
import { api, inBrowser, service } from "./browser.mjs";

/** Removes all changes of responses. Requests that are in flight may fail. */
const unroute = (page) => page.unrouteAll({ behavior: "ignoreErrors" });

/** Opens the page with changed stats, and waits for its headline. */
async function waitForHeadline(page, change, { text, kind }) {
  await unroute(page);
  await page.route(/\/stats$/, async (route) => {
    const response = await route.fetch();
    const stats = await response.json();
    change(stats);
    await route.fulfill({ response, json: stats });
  });
  await page.goto(service);
  await page.locator(`#headline.${kind}`, { hasText: text }).waitFor();
  return page.textContent("#headline");
}

const stats = await (await fetch(`${api}/stats`)).json();
assert.equal(stats.last24Hours.signups, 3);

/** Changes of the stats, and the headline that each of them causes. */
const CASES = [
  [() => {}, "good", "All 3 signups of the last 24 hours are in Customer.io."],
  [(s) => (s.last24Hours.signups = 1), "good", "The only signup of the last 24 hours is in"],
  [(s) => (s.last24Hours.signups = 0), "good", "No signups were received in the last 24 hours."],
  [
    (s) => (s.messagesWaiting = 2),
    "warning",
    "3 signups received so far in the last 24 hours are in Customer.io; 2 messages wait in the",
  ],
  [(s) => (s.messagesWaiting = null), "warning", "the number of waiting messages is unknown"],
  [(s) => (s.last24Hours.unprocessable = 1), "warning", "1 message is unprocessable"],
  [
    (s) => Object.assign(s.breaker, { state: "open", reason: "outage", since: s.lastHour[0].at }),
    "warning",
    "calls to Customer.io are paused",
  ],
  [(s) => (s.mode = "mock"), "warning", "nothing was sent to Customer.io"],
  [
    (s) => Object.assign(s.last24Hours, { notSynced: 1, oldestNotSyncedAt: s.lastHour[0].at }),
    "warning",
    "1 of 3 signups of the last 24 hours is not in Customer.io yet",
  ],
];

await inBrowser({}, async (page) => {
  for (const [change, kind, text] of CASES) {
    const headline = await waitForHeadline(page, change, { text, kind });
    assert.equal(headline.startsWith("All "), kind === "good" && text.startsWith("All "), headline);
  }
  // An open failure does not hide that all signups are there, but it is not good either.
  const failing = (s) => (s.openFailures = 1);
  const text = "All 3 signups of the last 24 hours are in Customer.io. 1 failure is open.";
  await waitForHeadline(page, failing, { text, kind: "warning" });
  await unroute(page);
});

// Without stats, the headline says since when the numbers are outdated.
await inBrowser({}, async (page, errors) => {
  await waitForHeadline(page, () => {}, { text: "All 3 signups", kind: "good" });
  await unroute(page);
  const problem = { status: 503, detail: "the database did not answer" };
  await page.route(/\/stats$/, (route) => route.fulfill({ status: 503, json: problem }));
  await page.locator("#headline.bad", { hasText: /outdated since .*database did not/ }).waitFor();
  await unroute(page);
  await page.locator("#headline.good", { hasText: "All 3 signups" }).waitFor();
  // Chromium logs the 503 responses to the console; they are expected here.
  assert.match(errors.splice(0).join(), /503/);
});

// The list says that there are more failures than are counted.
await inBrowser({}, async (page) => {
  await page.route(/\/sync-failures\?/, async (route) => {
    const response = await route.fetch();
    const list = await response.json();
    await route.fulfill({ response, json: { ...list, total: 10_000, totalIsExact: false } });
  });
  await page.goto(service);
  await page.locator("#total", { hasText: "more than 10,000" }).waitFor();
  await page.locator("#page-number", { hasText: "Page 1 of more than 200" }).waitFor();
  await unroute(page);
});
