// Overview, filters, search, keyboard, job dialog, retry and dismissal. The service has six failed
// jobs: three failed in an outage, three were refused.

import assert from "node:assert/strict";
import { checkAccessibility, inBrowser, rows, service, waitForRows } from "./browser.mjs";

await inBrowser({}, async (page) => {
  await page.goto(service);
  await waitForRows(page, 6);
  await page
    .locator("#headline", { hasText: "6 of 6 signups of the last 24 hours are not in Customer.io" })
    .waitFor();
  assert.equal(await page.textContent("#tiles div:first-child dd"), "6");
  assert.ok(await page.locator("#mock-banner").isHidden(), "a service with credentials is live");
  const breaker = page.locator("#tiles div", { hasText: "Circuit breaker" });
  assert.equal(await breaker.locator("dd").textContent(), "closed, calls go through");
  await page.waitForFunction(() => document.querySelectorAll("#groups > li").length === 2);
  assert.match(await page.textContent("#groups > li:first-child"), /Next: /);
  assert.ok(!(await page.content()).includes("person1@example.com"), "addresses are masked");

  // Filters and search.
  await page.getByRole("button", { name: "server error", exact: true }).click();
  await waitForRows(page, 3);
  await page.getByRole("button", { name: "server error", exact: true }).click();
  await waitForRows(page, 6);
  await page.keyboard.press("/");
  await page.keyboard.type("person4@");
  await waitForRows(page, 1);
  await page.fill("#search", "nobody");
  await page.locator("#list-empty").waitFor();
  await page.fill("#search", "");
  await waitForRows(page, 6);
  await page.keyboard.press("Escape");

  // Shortcuts: move the focus, select, clear the selection, open the help.
  await page.keyboard.press("j");
  await page.keyboard.press("j");
  const second = await rows(page).nth(1).getAttribute("data-job");
  const focused = await page.evaluate(() => document.activeElement.closest("li").dataset.job);
  assert.equal(focused, second);
  await page.keyboard.press("x");
  await page.keyboard.press("k");
  await page.keyboard.press("x");
  assert.equal(await page.textContent("#selected-count"), "2 selected");
  await page.keyboard.press("Escape");
  await page.locator("#selection").waitFor({ state: "hidden" });
  await page.keyboard.press("?");
  await page.locator("dialog#help[open]").waitFor();
  await checkAccessibility(page, "help dialog");
  await page.keyboard.press("Escape");

  // The job dialog: ladder, tracked event, customer.
  await page.keyboard.press("j");
  await page.keyboard.press("Enter");
  await page.locator("dialog#job[open]").waitFor();
  assert.equal(await page.locator("#job .ladder li").count(), 6);
  assert.match(await page.textContent("#job"), /Tracked event[0-9A-Z]{26}/);
  await checkAccessibility(page, "job dialog");
  await page.getByRole("button", { name: "Reveal" }).click();
  await page.locator("#job dd", { hasText: "@example.com" }).waitFor();
  await page.keyboard.press("Escape");
  await page.locator("dialog#job[open]").waitFor({ state: "detached" });

  // A retry of the focused failure succeeds, and the list is updated without a reload.
  await page.keyboard.press("r");
  await waitForRows(page, 5);
  assert.match(await page.textContent("#toast"), /Retried/);

  // A dismissal requires a reason.
  await page.keyboard.press("j");
  await page.keyboard.press("d");
  await page.locator("dialog#ask[open]").waitFor();
  await page.locator("#ask-yes").click();
  const isOpen = await page.locator("dialog#ask[open]").isVisible();
  assert.ok(isOpen, "nothing is dismissed without a reason");
  await page.fill("#ask-reason", "a test account");
  await page.locator("#ask-yes").click();
  await waitForRows(page, 4);
});
