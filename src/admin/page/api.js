// Client for the admin API, and the WebSocket with its reconnects.

/** Path prefix of the admin API. The server writes it into the page. */
const API = document.documentElement.dataset.api;

const RECONNECT_DELAY_MIN_MS = 500;
const RECONNECT_DELAY_MAX_MS = 15_000;

/** Longer than the server's limit for a request. */
const REQUEST_TIMEOUT_MS = 35_000;
const STATS_TIMEOUT_MS = 10_000;

const leaving = new AbortController();

/** Aborts the requests in flight, and refuses further ones. */
export function abortRequests() {
  leaving.abort();
}

/** Sends a request. Throws an error for a user to read if it fails or is rejected. */
async function request(method, path, body, timeout = REQUEST_TIMEOUT_MS) {
  const signal = AbortSignal.any([AbortSignal.timeout(timeout), leaving.signal]);
  const options = { method, headers: {}, signal };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The service does not respond.");
  }
  // The session has ended: the reload shows the login form.
  if (response.status === 401) location.reload();
  const value = await response.json().catch(() => undefined);
  if (!response.ok) {
    // The detail of a problem (RFC 9457) says what is wrong and what to do.
    throw new Error(value?.detail ?? `The service returned status ${response.status}.`);
  }
  if (value === undefined) throw new Error("The response of the service is incomplete.");
  return value;
}

function query(parameters) {
  const isSet = ([, value]) => value !== undefined && value !== null && value !== "";
  const entries = Object.entries(parameters).filter(isSet);
  return entries.length ? `?${new URLSearchParams(entries)}` : "";
}

export const api = {
  session: () => request("GET", "/session"),
  stats: () => request("GET", `${API}/stats`, undefined, STATS_TIMEOUT_MS),
  groups: () => request("GET", `${API}/failure-groups`),
  failures: (parameters) =>
    request("GET", `${API}/sync-failures${query({ ...parameters, masked: true })}`),
  job: (id) => request("GET", `${API}/jobs/${id}?masked=true`),
  reveal: (id) => request("POST", `${API}/jobs/${id}/reveal`),
  retry: (signupId, syncPhase) =>
    request("POST", `${API}/${signupId}/retry${query({ syncPhase })}`),
  bulkRetry: (selection, dryRun) =>
    request("POST", `${API}/sync-failures/retry${query({ dryRun })}`, selection),
  dismiss: (selection, reason) =>
    request("POST", `${API}/sync-failures/dismiss`, { ...selection, reason }),
  bulkRetries: () => request("GET", `${API}/bulk-retries`),
  cancelBulkRetry: (id) => request("POST", `${API}/bulk-retries/${id}/cancel`),
  bulkActions: () => request("GET", `${API}/bulk-actions`),
  cancelBulkAction: (id) => request("POST", `${API}/bulk-actions/${id}/cancel`),
  closeBreaker: () => request("POST", `${API}/breaker/close`),
  unprocessable: () => request("GET", `${API}/unprocessable`),
  revealMessage: (id) => request("POST", `${API}/unprocessable/${id}/reveal`),
  replayMessage: (id) => request("POST", `${API}/unprocessable/${id}/replay`),
  dismissMessage: (id, reason) => request("POST", `${API}/unprocessable/${id}/dismiss`, { reason }),
  replayMessages: (selection, dryRun) =>
    request("POST", `${API}/unprocessable/replay${query({ dryRun })}`, selection),
  previewMessages: (selection) =>
    request("POST", `${API}/unprocessable/dismiss${query({ dryRun: true })}`, selection),
  dismissMessages: (selection, dismissReason) =>
    request("POST", `${API}/unprocessable/dismiss`, { ...selection, dismissReason }),
};

/**
 * Creates a sequence of overlapping requests, so that a late response never replaces a newer one.
 *
 * Each call of the returned function starts a request and returns a function that checks whether
 * this request is still the latest one.
 */
export function requestSequence() {
  let latest = 0;
  return () => {
    latest += 1;
    const current = latest;
    return () => current === latest;
  };
}

/**
 * Opens the WebSocket of the live feed, and reopens it with backoff when it closes.
 *
 * Calls `onFrame` with every frame, and `onConnection` with true when the connection opens and with
 * false when it closes.
 */
export function watchFeed(onFrame, onConnection) {
  const scheme = location.protocol === "https:" ? "wss" : "ws";
  let delay = RECONNECT_DELAY_MIN_MS;
  const open = () => {
    const socket = new WebSocket(`${scheme}://${location.host}${API}/live`);
    socket.onopen = () => {
      delay = RECONNECT_DELAY_MIN_MS;
      onConnection(true);
    };
    socket.onmessage = ({ data }) => onFrame(JSON.parse(data));
    socket.onclose = () => {
      onConnection(false);
      setTimeout(open, delay * (0.5 + Math.random()));
      delay = Math.min(delay * 2, RECONNECT_DELAY_MAX_MS);
    };
  };
  open();
}
