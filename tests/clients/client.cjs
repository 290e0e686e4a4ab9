// Calls identify and track with the official Node.js client. It has no batch call, so that request
// is made as documented.
const { createRequire } = require("node:module");
const { TrackClient } = createRequire(process.env.CLIENTS_DIR + "/")("customerio-node");

const url = process.env.SIMULATOR_URL;

async function batch() {
  const event = { type: "person", identifiers: { id: "c-2" }, action: "event", id: "01JMC0000000000000000000ZZ", name: "signup_submitted" };
  const answer = await fetch(`${url}/api/v2/batch`, {
    method: "POST",
    headers: { "Content-Type": "application/json", Authorization: "Basic " + Buffer.from("site:key").toString("base64") },
    body: JSON.stringify({
      batch: [{ type: "person", identifiers: { id: "c-2" }, action: "identify", attributes: { plan: "silver" } }, event, event],
    }),
  });
  if (answer.status !== 200) throw new Error(`batch: ${answer.status} ${await answer.text()}`);
}

async function main() {
  const client = new TrackClient("site", "key", { url: `${url}/api/v1` });
  await client.identify("c-1", { email: "ann@example.com", plan: "gold" });
  await client.track("c-1", { name: "signup_submitted", data: { operator_id: "op-1" } });
  await batch();
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
