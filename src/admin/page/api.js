// The admin API, and the WebSocket with its reconnects.

const BASE = "/api/v1/signups/customerio";

/** An answer that is a problem (RFC 9457); its message says what to do. */
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(method, path, body) {
  const options = { method, headers: {} };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Problem(0, "The service does not answer.");
  }
  // The session is over: the page becomes the login form.
  if (answer.status === 401) location.reload();
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Problem(answer.status, value.detail ?? `The service answered ${answer.status}.`);
  return value;
}

function query(parameters) {
  const set = Object.entries(parameters).filter(([, value]) => value !== undefined && value !== "" && value !== null);
  return set.length ? `?${new URLSearchParams(set)}` : "";
}

export const api = {
  who: () => ask("GET", "/session"),
  stats: () => ask("GET", `${BASE}/stats`),
  groups: () => ask("GET", `${BASE}/failure-groups`),
  failures: (parameters) => ask("GET", `${BASE}/sync-failures${query({ ...parameters, masked: true })}`),
  job: (id) => ask("GET", `${BASE}/jobs/${id}?masked=true`),
  reveal: (id) => ask("POST", `${BASE}/jobs/${id}/reveal`),
  retry: (signupId, syncPhase) => ask("POST", `${BASE}/${signupId}/retry${query({ syncPhase })}`),
  bulkRetry: (selection, dryRun) => ask("POST", `${BASE}/sync-failures/retry${query({ dryRun })}`, selection),
  dismiss: (selection, reason) => ask("POST", `${BASE}/sync-failures/dismiss`, { ...selection, reason }),
  bulkRetries: () => ask("GET", `${BASE}/bulk-retries`),
  cancel: (id) => ask("POST", `${BASE}/bulk-retries/${id}/cancel`),
  unprocessable: () => ask("GET", `${BASE}/unprocessable`),
  replay: (id) => ask("POST", `${BASE}/unprocessable/${id}/replay`),
  dismissMessage: (id, reason) => ask("POST", `${BASE}/unprocessable/${id}/dismiss`, { reason }),
};

/** Calls `onFrame` with each frame and `onState` with whether the connection is up; opens a lost one again. */
export function watch(onFrame, onState) {
  let pause = 500;
  const open = () => {
    const socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}${BASE}/ws`);
    socket.onopen = () => {
      pause = 500;
      onState(true);
    };
    socket.onmessage = ({ data }) => onFrame(JSON.parse(data));
    socket.onclose = () => {
      onState(false);
      setTimeout(open, pause * (0.5 + Math.random()));
      pause = Math.min(pause * 2, 15000);
    };
  };
  open();
}
