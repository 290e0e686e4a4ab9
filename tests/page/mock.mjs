// Mock mode: the banner, the headline, and the mark of a job that was completed without a call.

import assert from "node:assert/strict";
import { api, checkAccessibility, inBrowser, post, service, waitForRows } from "./browser.mjs";

await inBrowser({}, async (page) => {
  await page.goto(service);
  await waitForRows(page, 6);
  const banner = page.locator("#mock-banner", { hasText: "no calls are made to Customer.io" });
  await banner.waitFor();
  assert.match(await banner.textContent(), /customerio-sync failures retry --mock/);
  assert.equal(await page.getAttribute("#headline", "class"), "warning");
  await checkAccessibility(page, "page in mock mode");

  // A retry completes the job without a call.
  const list = await (await fetch(`${api}/sync-failures?limit=1`)).json();
  const [{ jobId, signupId }] = list.items;
  await post(`/${signupId}/retry`);
  await page.locator("#tiles div", { hasText: "Completed in mock mode" }).waitFor();

  // The list contains failures alone, so the dialog is opened by the module that draws it.
  await page.evaluate(async (id) => {
    const { openJob } = await import("/assets/job.js");
    await openJob(id, {});
  }, jobId);
  await page.locator("#job-title .tag", { hasText: "mock" }).waitFor();
  assert.equal(await page.textContent("#job-title"), "initial job, completed mock");
  await checkAccessibility(page, "job dialog in mock mode");
});
