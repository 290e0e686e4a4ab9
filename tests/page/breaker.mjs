// The circuit breaker is open: an operator closes it on the page.

import assert from "node:assert/strict";
import { checkAccessibility, inBrowser, service } from "./browser.mjs";

await inBrowser({}, async (page) => {
  await page.goto(service);
  const tile = page.locator("#tiles div", { hasText: "Circuit breaker" });
  await tile.locator("dd", { hasText: "credentials rejected" }).waitFor();
  await checkAccessibility(page, "page with an open breaker");
  const open = tile.getByRole("button", { name: "Close breaker…" });

  await open.click();
  await page.locator("dialog#ask[open]").waitFor();
  await page.keyboard.press("Escape");
  await page.locator("dialog#ask").waitFor({ state: "hidden" });
  assert.match(await tile.textContent(), /open for/, "the action was not confirmed");

  await open.click();
  await page.getByRole("button", { name: "Close breaker", exact: true }).click();
  await tile.locator("dd", { hasText: "closed, calls go through" }).waitFor();
  assert.equal(await open.count(), 0);
});
