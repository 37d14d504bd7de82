// Requests to the service: an error is one line, and a service that is busy is given time.

const MOST_TRIES = 20;

/** What the service refused, in its own words. */
export class ServiceError extends Error {
  constructor(line, status = 0) {
    super(line);
    this.status = status;
  }
}

/**
 * Ask the service, and return its response.
 *
 * @param {string} path
 * @param {object} [options] `json` or `form`: what is sent; `signal`: ends it;
 *   `onBusy(seconds)`: called before it is tried again.
 * @throws {ServiceError} the service refused, or cannot be reached.
 */
export async function call(path, { json, form, method, signal, onBusy } = {}) {
  const body = json === undefined ? form : JSON.stringify(json);
  const headers = json === undefined ? {} : { "Content-Type": "application/json" };
  const request = { method: method ?? (body ? "POST" : "GET"), body, headers, signal };
  for (let tries = 1; ; tries += 1) {
    const response = await send(path, request);
    if (response.ok) return response;
    const seconds = Number(response.headers.get("Retry-After"));
    if (response.status !== 503 || !seconds || tries === MOST_TRIES) throw await refusal(response);
    onBusy?.(seconds);
    await sleep(seconds, signal);
  }
}

async function send(path, request) {
  try {
    return await fetch(path, request);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServiceError("the service cannot be reached: does maskclip serve still run?");
  }
}

async function refusal(response) {
  let line = `the service answered ${response.status}`;
  try {
    line = (await response.json()).error ?? line;
  } catch {
    // what is before the service has answered in its place: the number says what there is to say
  }
  return new ServiceError(line, response.status);
}

function sleep(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
