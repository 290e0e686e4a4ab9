// Helpers for the browser tests: the operators' page in headless Chromium. A test fails if the page
// writes an error to the console.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.CLIENTS_DIR}/`);
const { chromium } = require("playwright-core");
const axe = require("axe-core").source;

export const service = process.env.SERVICE_URL;
export const api = `${service}/api/v1/signups/customerio`;

/**
 * Runs `scenario` with a page of a new browser. Fails on console errors, uncaught exceptions, and
 * requests to other servers.
 */
export async function inBrowser(options, scenario) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: ["--no-sandbox"],
  });
  try {
    const context = await browser.newContext({ locale: "en-US", ...options });
    const page = await context.newPage();
    const errors = [];
    page.on("console", (message) => {
      if (message.type() === "error") errors.push(`${message.text()} ${message.location().url}`);
    });
    page.on("pageerror", (error) => errors.push(String(error)));
    page.on("request", (request) => {
      const isOwn = request.url().startsWith(service) || request.url().startsWith("data:");
      if (!isOwn) errors.push(`request to another server: ${request.url()}`);
    });
    await scenario(page, errors);
    assert.deepEqual(errors, [], "no console errors, and no requests to other servers");
  } finally {
    await browser.close();
  }
}

/** Fails if axe-core finds an accessibility violation. */
export async function checkAccessibility(page, subject) {
  // Evaluated directly: the content security policy forbids adding a script element.
  await page.evaluate(axe);
  const found = await page.evaluate(async () => {
    const { violations } = await window.axe.run(document, { resultTypes: ["violations"] });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
  });
  assert.deepEqual(found, [], `${subject}: accessible`);
}

export const rows = (page) => page.locator("#list > li");

/** Waits until the list has `count` rows. */
export async function waitForRows(page, count, options = {}) {
  const hasRows = (expected) => document.querySelectorAll("#list > li").length === expected;
  await page.waitForFunction(hasRows, count, options);
}

export async function post(path, body) {
  const response = await fetch(`${api}${path}`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: body && JSON.stringify(body),
  });
  assert.ok(response.ok, `${path}: ${response.status} ${await response.clone().text()}`);
  return response.json();
}
