// The service, as the page sees it. The token is kept here, in memory, and nowhere else.

const TRIES = 6;

let token = "";

export function setToken(value) {
  token = value;
}

/** What the service said instead of an answer, in words for people. retry: seconds after which to try again, or null. */
export class ServiceError extends Error {
  constructor(status, message, retry = null) {
    super(message);
    this.status = status;
    this.retry = retry;
  }
}

/** {models, limits} of GET /v1/models. */
export async function models(signal) {
  const answer = await fetch("v1/models", { headers: authorization(), signal });
  if (!answer.ok) throw problem(answer.status, await answer.text(), answer.headers.get("Retry-After"));
  return answer.json();
}

/**
 * Localize one file. options: fields of the form. told(share): how much of the file is sent, in [0, 1].
 * Gives {row, words, scores, mask, photo}: scores and mask Blobs of PNG files, photo one of a JPEG, the picture as it was
 * examined. Tries again where the service is busy; waiting(seconds) says so.
 */
export async function localize(file, options, { signal, told, waiting }) {
  const body = form(file, { ...options, maps: "scores,mask,photo", words: "true" });
  const answer = await patiently(signal, waiting, () => send("v1/localize", body, "application/json", { signal, told }));
  const [found] = (await answer.json()).results;
  if (found.error) throw new ServiceError(200, withoutName(found.error, file.name));
  const { words, maps, ...row } = found;
  const [scores, mask] = [maps.scores, maps.mask].map((map) => blobOf(map, "image/png"));
  return { row, words, scores, mask, photo: blobOf(maps.photo, "image/jpeg") };
}

/** What a file says of itself. position: its place and free text, too. */
export async function metadata(file, position, signal) {
  const body = form(file, { position: String(position) });
  const answer = await patiently(signal, () => {}, () => send("v1/metadata", body, "application/json", { signal }));
  return answer.json();
}

/** The report on a file, as a Blob of HTML. */
export async function report(file, options, signal) {
  const answer = await patiently(signal, () => {}, () => send("v1/report", form(file, options), "text/html", { signal }));
  return answer.blob();
}

/** Which small edits would have been found in a file: the answer of /v1/detectability. waiting(seconds): it is busy. */
export async function detectability(file, { model, mode }, signal, waiting) {
  const body = form(file, { model, mode });
  const answer = await patiently(signal, waiting, () => send("v1/detectability", body, "application/json", { signal }));
  return answer.json();
}

function form(file, fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.set(name, value);
  body.set("file", file, file.name || "picture");
  return body;
}

async function patiently(signal, waiting, request) {
  for (let tried = 1; ; tried++) {
    try {
      return await request();
    } catch (error) {
      if (!(error instanceof ServiceError) || error.retry === null || tried === TRIES) throw error;
      waiting(error.retry);
      await pause(error.retry, signal);
    }
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

// XMLHttpRequest, since fetch does not tell how much has been sent.
function send(path, body, accept, { signal, told }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", path);
    request.responseType = "blob";
    request.setRequestHeader("Accept", accept);
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => told?.(event.lengthComputable ? event.loaded / event.total : 0);
    request.upload.onload = () => told?.(1);
    request.onerror = () => reject(new ServiceError(0, "The service does not answer. Is it still running?"));
    request.onabort = () => reject(signal.reason);
    request.onload = async () => {
      const answer = new Response(request.response, { headers: { "Content-Type": request.getResponseHeader("Content-Type") } });
      if (request.status === 200) resolve(answer);
      else reject(problem(request.status, await answer.text(), request.getResponseHeader("Retry-After"), body.get("file")));
    };
    signal?.addEventListener("abort", () => request.abort());
    request.send(body);
  });
}

function authorization() {
  return token ? { Authorization: `Bearer ${token}` } : {};
}

function problem(status, body, retryAfter, file) {
  let said = `The service answered ${status}.`;
  try {
    const { detail } = JSON.parse(body);
    if (detail) said = file ? withoutName(detail, file.name) : detail;
  } catch {
    // Not from the service itself but from something before it: there is nothing better to say.
  }
  const busy = status === 429 || status === 503;
  return new ServiceError(status, sentence(said), busy ? Math.min(60, Number(retryAfter) || 2) : null);
}

// Errors of a picture begin with its name, which the page shows already.
function withoutName(message, name) {
  return sentence(message.startsWith(`${name}: `) ? message.slice(name.length + 2) : message);
}

function sentence(message) {
  const begun = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

function blobOf(base64, type) {
  return new Blob([Uint8Array.from(atob(base64), (sign) => sign.charCodeAt(0))], { type });
}
