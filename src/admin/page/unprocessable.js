// Unprocessable messages: events that could not be parsed or validated.

import { act } from "./actions.js";
import { api } from "./api.js";
import { $, ago, button, confirmAction, h, number } from "./view.js";

/** Draws the unprocessable messages; without any, the section is hidden. */
export function drawUnprocessable({ items, total }) {
  $("unprocessable-section").hidden = total === 0;
  $("unprocessable-total").textContent = number(total);
  $("unprocessable").replaceChildren(...items.map(messageItem));
}

function messageItem(message) {
  const { id, errorMessage, failedAt, routingKey, verdict } = message;
  const exchange = message.exchange ? `exchange ${message.exchange}` : "the default exchange";
  return h(
    "li",
    {},
    h("p", {}, errorMessage),
    h("p", { class: "muted" }, ago(failedAt), `, from ${exchange}, routing key ${routingKey}`),
    h("p", {}, h("strong", {}, "Next: "), verdict.next),
    bodyDetails(message),
    h(
      "p",
      { class: "toolbar" },
      button("Replay", () => replay(id)),
      button("Dismiss", () => dismiss(id)),
    ),
  );
}

function bodyDetails({ body, bodyBase64, bodyBytes, bodyIsCut }) {
  const summary = `Body, ${number(bodyBytes)} bytes${bodyIsCut ? ", truncated" : ""}`;
  return h(
    "details",
    {},
    h("summary", {}, summary),
    h("pre", { tabindex: 0 }, body ?? `Base64: ${bodyBase64}`),
  );
}

function replay(id) {
  return act(
    () => api.replayMessage(id),
    () => "Message published again.",
  );
}

async function dismiss(id) {
  const confirmation = await confirmAction({
    title: "Dismiss this message?",
    action: "Dismiss",
    needsReason: true,
  });
  if (!confirmation) return;
  await act(
    () => api.dismissMessage(id, confirmation.reason),
    () => "Message dismissed.",
  );
}
