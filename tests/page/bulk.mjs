// Failure groups, a bulk retry with its dry run, live updates, and polling without a WebSocket.

import assert from "node:assert/strict";
import {
  api,
  checkAccessibility,
  inBrowser,
  post,
  rows,
  service,
  waitForRows,
} from "./browser.mjs";

await inBrowser({}, async (page) => {
  await page.goto(service);
  await page.locator("#live", { hasText: "● live" }).waitFor();
  await waitForRows(page, 6);

  // A retry by another user arrives over the WebSocket. The time limit is shorter than the polling
  // interval.
  const list = await (await fetch(`${api}/sync-failures?errorType=other`)).json();
  await post(`/${list.items[0].signupId}/retry`);
  await waitForRows(page, 5, { timeout: 4000 });

  // The list is not updated while rows are selected.
  await rows(page).first().getByRole("checkbox").check();
  await post(`/${list.items[1].signupId}/retry`);
  await page.waitForFunction(() => {
    return document.querySelector("#tiles div:first-child dd").textContent === "4";
  });
  assert.equal(await rows(page).count(), 5);
  await page.getByRole("button", { name: "Clear selection" }).click();
  await waitForRows(page, 4);

  // Retry one failure of a group, then the rest.
  const group = page.locator("#groups > li", { hasText: "503" });
  await group.getByRole("button", { name: "Retry one" }).click();
  await waitForRows(page, 3);
  await group.getByRole("button", { name: "Retry all 2" }).click();
  await page.locator("dialog#ask[open]").waitFor();
  assert.match(await page.textContent("#ask"), /Retry 2 failures\?/);
  assert.match(await page.textContent("#ask"), /Events older than 72 hours: 2\./);
  await checkAccessibility(page, "confirmation dialog");
  await page.locator("#ask-yes").click();
  await page.locator("#bulk > li", { hasText: "2 of 2 retried, completed" }).waitFor();
  await waitForRows(page, 1);

  // An unprocessable message: its error, with the path once, and its body.
  const message = page.locator("#unprocessable > li", { hasText: "customer.email" });
  await message.waitFor();
  assert.match(await message.textContent(), /^customer\.email: (?!customer\.email)/);
  await page.getByText("Body, ").click();
  assert.match(await page.textContent("#unprocessable pre"), /no-address/);

  // Its group is dismissed for a reason, and the progress is shown.
  await message.getByRole("button", { name: "Dismiss all like this" }).click();
  await page.locator("dialog#ask[open]").waitFor();
  assert.match(await page.textContent("#ask"), /Dismiss 1 message\?/);
  await page.fill("#ask-reason", "published again by its publisher");
  await page.locator("#ask-yes").click();
  await page.locator("#bulk > li", { hasText: "1 of 1 messages dismissed, completed" }).waitFor();
  await page.locator("#unprocessable-section").waitFor({ state: "hidden" });
});

// Without a WebSocket, the page polls.
await inBrowser({}, async (page) => {
  await page.routeWebSocket(/\/live$/, (socket) => socket.close());
  await page.goto(service);
  await page.locator("#live", { hasText: "not live" }).waitFor();
  await waitForRows(page, 1);
  const jobId = await rows(page).first().getAttribute("data-job");
  await post("/sync-failures/dismiss", { jobIds: [jobId], reason: "the last one" });
  await waitForRows(page, 0);
  await page.locator("#groups-empty").waitFor();
});
