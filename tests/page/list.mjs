// List, filter, search, keyboard, a job, a retry. Six failures: three of an outage, three refused.

import assert from "node:assert/strict";
import { checkAccessibility, inBrowser, rows, service, waitForRows } from "./browser.mjs";

await inBrowser({}, async (page) => {
  await page.goto(service);
  await waitForRows(page, 6);
  await page.locator("#headline", { hasText: "6 signups of today are not in Customer.io yet" }).waitFor();
  assert.equal(await page.textContent("#tiles div:first-child dd"), "6");
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

  // Keys: move, select; a selection stops the list from moving.
  await page.keyboard.press("j");
  await page.keyboard.press("j");
  const second = await rows(page).nth(1).getAttribute("data-job");
  assert.equal(await page.evaluate(() => document.activeElement.closest("li").dataset.job), second);
  await page.keyboard.press("x");
  await page.keyboard.press("k");
  await page.keyboard.press("x");
  assert.equal(await page.textContent("#selected-count"), "2 selected");
  await page.keyboard.press("Escape");
  await page.locator("#selection").waitFor({ state: "hidden" });
  await page.keyboard.press("?");
  await page.locator("dialog#help[open]").waitFor();
  await checkAccessibility(page, "the help");
  await page.keyboard.press("Escape");

  // A job: its ladder, its tries, who it is about.
  await page.keyboard.press("j");
  await page.keyboard.press("Enter");
  await page.locator("dialog#job[open]").waitFor();
  assert.equal(await page.locator("#job .ladder li").count(), 6);
  assert.match(await page.textContent("#job"), /Tracked event[0-9A-Z]{26}/);
  await checkAccessibility(page, "a job");
  await page.getByRole("button", { name: "Reveal" }).click();
  await page.locator("#job dd", { hasText: "@example.com" }).waitFor();
  await page.keyboard.press("Escape");
  await page.locator("dialog#job[open]").waitFor({ state: "detached" });

  // A retry of the one that the keyboard is at: it succeeds, and the list shows it without a reload.
  await page.keyboard.press("r");
  await waitForRows(page, 5);
  assert.match(await page.textContent("#toast"), /Retried/);

  // A dismissal wants a reason.
  await page.keyboard.press("j");
  await page.keyboard.press("d");
  await page.locator("dialog#ask[open]").waitFor();
  await page.locator("#ask-yes").click();
  assert.ok(await page.locator("dialog#ask[open]").isVisible(), "without a reason nothing is dismissed");
  await page.fill("#ask-reason", "a test account");
  await page.locator("#ask-yes").click();
  await waitForRows(page, 4);
});
