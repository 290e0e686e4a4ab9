// Light, dark, narrow; a viewer's page; the login.

import assert from "node:assert/strict";
import { checkAccessibility, inBrowser, service, waitForRows } from "./browser.mjs";

async function logIn(page, token) {
  await page.goto(service);
  await page.fill("#token", token);
  await page.getByRole("button", { name: "Log in" }).click();
  await waitForRows(page, 6);
}

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 320]) {
    await inBrowser({ colorScheme, viewport: { width, height: 900 } }, async (page) => {
      await page.goto(service);
      await checkAccessibility(page, `the login, ${colorScheme}, ${width}`);
      await logIn(page, "token-of-an-operator");
      await checkAccessibility(page, `the page, ${colorScheme}, ${width}`);
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.equal(overflow, 0, `nothing sticks out at ${width}`);
      const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const brightness = Number(ground.match(/\d+/)[0]);
      assert.ok(colorScheme === "dark" ? brightness < 60 : brightness > 200, `${colorScheme} is ${ground}`);
      if (process.env.SCREENSHOTS) await page.screenshot({ path: `${process.env.SCREENSHOTS}/${colorScheme}-${width}.png`, fullPage: true });
    });
  }
}

// A viewer sees what may not be done, and why; keys do nothing.
await inBrowser({}, async (page) => {
  await logIn(page, "token-of-a-viewer");
  assert.match(await page.textContent("#who"), /vera, viewer/);
  const retry = page.locator("#list > li").first().getByRole("button", { name: /Retry/ });
  assert.ok(await retry.isDisabled());
  assert.match(await retry.getAttribute("title"), /Needs the role operator/);
  await page.keyboard.press("j");
  await page.keyboard.press("r");
  await checkAccessibility(page, "a viewer's page");
  await page.getByRole("button", { name: "Log out" }).click();
  await page.locator("#token").waitFor();
});

// A wrong token is told.
await inBrowser({}, async (page, errors) => {
  await page.goto(service);
  await page.fill("#token", "wrong");
  await page.getByRole("button", { name: "Log in" }).click();
  await page.locator("[role=alert]", { hasText: "not known" }).waitFor();
  // Chromium tells of the 403 in the console; that one is meant.
  assert.match(errors.splice(0).join(), /403/);
});

// The description of the API, drawn under its own policy.
await inBrowser({}, async (page) => {
  await page.goto(`${service}/docs/`);
  await page.locator(".opblock-summary-path", { hasText: "failure-groups" }).waitFor();
});
