// Headless Chromium on the operators' page. Every page that is opened here has to stay without a console error.

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.CLIENTS_DIR}/`);
const { chromium } = require("playwright-core");
const axe = require("axe-core").source;

export const service = process.env.SERVICE_URL;
export const failures = `${service}/api/v1/signups/customerio`;

/** Runs `scenario` with a page of a fresh browser; fails on any error in the console. */
export async function inBrowser(options, scenario) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
  try {
    const context = await browser.newContext({ locale: "en-US", ...options });
    const page = await context.newPage();
    const errors = [];
    page.on("console", (message) => message.type() === "error" && errors.push(`${message.text()} ${message.location().url}`));
    page.on("pageerror", (error) => errors.push(String(error)));
    page.on("request", (request) => request.url().startsWith(service) || request.url().startsWith("data:") || errors.push(`outside: ${request.url()}`));
    await scenario(page, errors);
    assert.deepEqual(errors, [], "the console is silent and nothing comes from outside");
  } finally {
    await browser.close();
  }
}

/** Fails on any accessibility violation that axe-core finds. */
export async function checkAccessibility(page, what) {
  // Straight into the page: the content security policy lets no script be added.
  await page.evaluate(axe);
  const found = await page.evaluate(async () => {
    const { violations } = await window.axe.run(document, { resultTypes: ["violations"] });
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.html).join(" ")}`);
  });
  assert.deepEqual(found, [], `${what} is accessible`);
}

export const rows = (page) => page.locator("#list > li");

/** Waits until the list has so many rows. */
export async function waitForRows(page, count) {
  await page.waitForFunction((count) => document.querySelectorAll("#list > li").length === count, count);
}

export async function post(path, body) {
  const answer = await fetch(`${failures}${path}`, {
    method: "POST", headers: { "content-type": "application/json" }, body: body && JSON.stringify(body),
  });
  assert.ok(answer.ok, `${path}: ${answer.status} ${await answer.clone().text()}`);
  return answer.json();
}
