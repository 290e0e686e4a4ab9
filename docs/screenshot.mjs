// Takes a screenshot of the operators' page: node docs/screenshot.mjs FILE, with SERVICE_URL, CLIENTS_DIR and
// CHROMIUM set. `./dev screenshot` runs it on the demo.

import { inBrowser, service } from "../tests/page/browser.mjs";

const file = process.argv[2];
await inBrowser({ colorScheme: "light", viewport: { width: 1100, height: 760 } }, async (page) => {
  await page.goto(service);
  await page.locator("#list > li").first().waitFor();
  await page.screenshot({ path: file });
});
