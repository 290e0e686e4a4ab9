// Light and dark, wide and narrow; the page of a viewer; the login form; the API documentation.

import assert from "node:assert/strict";
import { checkAccessibility, inBrowser, service, waitForRows } from "./browser.mjs";

async function submitToken(page, token) {
  await page.goto(service);
  await page.fill("#token", token);
  await page.getByRole("button", { name: "Log in" }).click();
}

async function logIn(page, token) {
  await submitToken(page, token);
  await waitForRows(page, 6);
}

async function checkAppearance(page, colorScheme, width) {
  const overflow = await page.evaluate(() => {
    const { scrollWidth, clientWidth } = document.documentElement;
    return scrollWidth - clientWidth;
  });
  assert.equal(overflow, 0, `no horizontal overflow at ${width} pixels`);
  const background = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const brightness = Number(background.match(/\d+/)[0]);
  const isExpected = colorScheme === "dark" ? brightness < 60 : brightness > 200;
  assert.ok(isExpected, `${colorScheme}: the background is ${background}`);
}

for (const colorScheme of ["light", "dark"]) {
  for (const width of [1280, 320]) {
    await inBrowser({ colorScheme, viewport: { width, height: 900 } }, async (page) => {
      await page.goto(service);
      await checkAccessibility(page, `login form, ${colorScheme}, ${width}`);
      await logIn(page, "token-of-an-operator");
      await checkAccessibility(page, `page, ${colorScheme}, ${width}`);
      await checkAppearance(page, colorScheme, width);
      if (process.env.SCREENSHOTS) {
        const path = `${process.env.SCREENSHOTS}/${colorScheme}-${width}.png`;
        await page.screenshot({ path, fullPage: true });
      }
    });
  }
}

// A viewer sees which actions are disabled, and why. The shortcuts for actions do nothing.
await inBrowser({}, async (page) => {
  await logIn(page, "token-of-a-viewer");
  assert.match(await page.textContent("#who"), /vera, viewer/);
  const retry = page.locator("#list > li").first().getByRole("button", { name: /Retry/ });
  assert.ok(await retry.isDisabled());
  assert.match(await retry.getAttribute("title"), /Requires the operator role/);
  await page.keyboard.press("j");
  await page.keyboard.press("r");
  await checkAccessibility(page, "page of a viewer");
  await page.getByRole("button", { name: "Log out" }).click();
  await page.locator("#token").waitFor();
});

// The login form reports an unknown token.
await inBrowser({}, async (page, errors) => {
  await submitToken(page, "wrong");
  await page.locator("[role=alert]", { hasText: "not known" }).waitFor();
  // Chromium logs the 403 response to the console; it is expected here.
  assert.match(errors.splice(0).join(), /403/);
});

// The API documentation works under its own content security policy.
await inBrowser({}, async (page) => {
  await page.goto(`${service}/docs/`);
  await page.locator(".opblock-summary-path", { hasText: "failure-groups" }).waitFor();
});
