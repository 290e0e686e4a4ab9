// Running an action of the user: sending it, reporting its result, refreshing the page.

import { api } from "./api.js";
import { toast } from "./view.js";

let refreshPage;

/** Sets the function that refreshes the page after every action. */
export function setRefresh(refresh) {
  refreshPage = refresh;
}

/**
 * Runs an action, shows its result or its error as a notice, and refreshes the page.
 *
 * The notice is the one in the response, or else what `describe` returns for the response.
 */
export async function act(action, describe) {
  try {
    const response = await action();
    toast(response?.notice ?? describe(response));
  } catch (error) {
    toast(error.message);
  }
  await refreshPage();
}

/** Retries one job by itself. */
export function retryJob(signupId, syncPhase) {
  return act(
    () => api.retry(signupId, syncPhase),
    () => "Retried: the job restarts from the first attempt.",
  );
}
