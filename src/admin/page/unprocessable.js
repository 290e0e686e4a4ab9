// Unprocessable messages: events that could not be parsed or validated.

import { act } from "./actions.js";
import { api } from "./api.js";
import { $, ago, button, confirmAction, h, number, plural, toast } from "./view.js";

/** Bodies that the user revealed, by the id of their message. */
const revealed = new Map();

/** Draws the unprocessable messages; without any, the section is hidden. */
export function drawUnprocessable({ items, total }) {
  const ids = new Set(items.map(({ id }) => id));
  for (const id of revealed.keys()) if (!ids.has(id)) revealed.delete(id);
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
    messageBody(message),
    h(
      "p",
      { class: "toolbar" },
      button("Replay", () => replay(id)),
      button("Dismiss", () => dismiss(id)),
      button("Replay all like this", () => replayLike(message)),
      button("Dismiss all like this", () => dismissLike(message)),
    ),
  );
}

/** Body of a message. A masked one is a button that replaces itself with the body. */
function messageBody(message) {
  const shown = revealed.get(message.id) ?? message;
  if (!shown.bodyIsMasked) return bodyDetails(shown);
  const element = h("p", {}, `Body, ${number(message.bodyBytes)} bytes, masked `);
  const reveal = async () => {
    try {
      const whole = await api.revealMessage(message.id);
      revealed.set(message.id, whole);
      const details = bodyDetails(whole);
      details.open = true;
      element.replaceWith(details);
    } catch (error) {
      toast(error.message);
    }
  };
  element.append(button("Reveal", reveal, { title: "The audit log records who revealed it." }));
  return element;
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

/** Selection of the messages with the reason, the path and the routing key of a message. */
const selectionLike = ({ reason, path, routingKey }) => ({ reason, path, routingKey });

/** Replays the messages that are like one of them, after a dry run and a confirmation. */
async function replayLike(message) {
  const selection = selectionLike(message);
  try {
    const { eligible, notReplayable } = await api.replayMessages(selection, true);
    const confirmation = await confirmAction({
      title: `Replay ${plural(eligible, "message")}?`,
      text: [
        "Each is published again, unchanged, to the queue that it came from.",
        notReplayable > 0 && `${number(notReplayable)} skipped: they came from no work queue.`,
        "The replay runs at a limited rate. You can cancel it.",
      ],
      action: "Replay",
    });
    if (!confirmation) return;
  } catch (error) {
    toast(error.message);
    return;
  }
  await act(
    () => api.replayMessages(selection),
    () => "Replay started.",
  );
}

/** Dismisses the messages that are like one of them, after a dry run and a confirmation. */
async function dismissLike(message) {
  const selection = selectionLike(message);
  let confirmation;
  try {
    const { eligible } = await api.previewMessages(selection);
    confirmation = await confirmAction({
      title: `Dismiss ${plural(eligible, "message")}?`,
      action: "Dismiss",
      needsReason: true,
    });
  } catch (error) {
    toast(error.message);
  }
  if (!confirmation) return;
  await act(
    () => api.dismissMessages(selection, confirmation.reason),
    ({ status, done }) =>
      status === "running" ? "Dismissal started." : `${plural(done, "message")} dismissed.`,
  );
}
