// Groups, a bulk retry with its dry run, live updates, and polling without a WebSocket.

import assert from "node:assert/strict";
import { checkAccessibility, inBrowser, post, rows, service, waitForRows } from "./browser.mjs";

await inBrowser({}, async (page) => {
  await page.goto(service);
  await page.locator("#live", { hasText: "● live" }).waitFor();
  await waitForRows(page, 6);

  // Somebody else retries one: the page hears of it. Asking by itself would take longer than this waits.
  const list = await (await fetch(`${service}/api/v1/signups/customerio/sync-failures?errorType=other`)).json();
  await post(`/${list.items[0].signupId}/retry`);
  await page.waitForFunction(() => document.querySelectorAll("#list > li").length === 5, null, { timeout: 4000 });

  // What is selected stands still.
  await rows(page).first().getByRole("checkbox").check();
  await post(`/${list.items[1].signupId}/retry`);
  await page.waitForFunction(() => document.querySelector("#tiles div:first-child dd").textContent === "4");
  assert.equal(await rows(page).count(), 5);
  await page.getByRole("button", { name: "Clear selection" }).click();
  await waitForRows(page, 4);

  const group = page.locator("#groups > li", { hasText: "503" });
  await group.getByRole("button", { name: "Retry one" }).click();
  await waitForRows(page, 3);
  await group.getByRole("button", { name: "Retry all 2" }).click();
  await page.locator("dialog#ask[open]").waitFor();
  assert.match(await page.textContent("#ask"), /Retry 2 failures\?/);
  assert.match(await page.textContent("#ask"), /2 of them are of events older than 72 hours/);
  await checkAccessibility(page, "the question");
  await page.locator("#ask-yes").click();
  await page.locator("#bulk > li", { hasText: "2 of 2 retried, completed" }).waitFor();
  await waitForRows(page, 1);

  // A message that could not be understood.
  await page.locator("#unprocessable > li", { hasText: "customer.email" }).waitFor();
  await page.getByText("Body, ").click();
  assert.match(await page.textContent("#unprocessable pre"), /no-address/);
});

// Without a WebSocket the page asks.
await inBrowser({}, async (page) => {
  await page.routeWebSocket(/\/ws$/, (socket) => socket.close());
  await page.goto(service);
  await page.locator("#live", { hasText: "not live" }).waitFor();
  await waitForRows(page, 1);
  const [job] = await rows(page).evaluateAll((elements) => elements.map((element) => element.dataset.job));
  await post("/sync-failures/dismiss", { jobIds: [job], reason: "the last one" });
  await waitForRows(page, 0);
  await page.locator("#groups-empty").waitFor();
});
