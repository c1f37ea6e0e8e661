// @ts-check
/** Requests to the API that serves this page: the key, problems as errors, streams by fetch. */

const KEY = "glimpse-key";
/** The page's own address, without its file and fragment: the API may be below a path. */
export const base = new URL(".", document.baseURI).href.replace(/\/$/, "");

/** @returns {string} the key of this tab, or "" */
export function storedKey() {
  return sessionStorage.getItem(KEY) ?? "";
}

/** @param {string} key "" forgets it */
export function storeKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
  dispatchEvent(new Event("glimpse-key"));
}

/** A refusal of the API (RFC 9457), or `status` 0 where it does not answer. */
export class Problem extends Error {
  /**
   * @param {number} status
   * @param {Record<string, any>} document
   * @param {number | null} retryAfter seconds
   */
  constructor(status, document, retryAfter = null) {
    super(document.detail || document.title || `The service answered ${status}.`);
    this.status = status;
    this.code = document.code || "";
    this.document = document;
    this.retryAfter = retryAfter;
  }

  /** What a person can do about it. @returns {string} */
  get advice() {
    switch (this.status) {
      case 0:
        return "The service does not answer. Check that it runs.";
      case 401:
        return "Sign in with an API key.";
      case 403:
        return `Your key does not permit this${this.document.scope ? `: it needs the scope “${this.document.scope}”` : ""}.`;
      case 429:
        return `Your key has used its limit.${this.retryAfter ? ` Try again in ${this.retryAfter} s.` : ""}`;
      case 503:
        return `The service is busy or a part of it is down.${this.retryAfter ? ` Try again in ${this.retryAfter} s.` : ""}`;
      default:
        return "";
    }
  }
}

/**
 * Send a request; a refusal is thrown as Problem.
 * @param {string} path
 * @param {RequestInit & {query?: Record<string, any>, expect?: number[]}} [options]
 * @returns {Promise<Response>}
 */
export async function send(path, options = {}) {
  const { query = {}, expect = [], ...init } = options;
  const url = new URL(base + path);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, String(value));
  }
  const headers = new Headers(init.headers);
  const key = storedKey();
  if (key) headers.set("authorization", `Bearer ${key}`);
  let answer;
  try {
    answer = await fetch(url, { ...init, headers, credentials: "omit" });
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem(0, { detail: "The service does not answer." });
  }
  if (answer.ok || expect.includes(answer.status)) return answer;
  const after = Number(answer.headers.get("retry-after"));
  let document = {};
  try {
    document = await answer.json();
  } catch {
    // Not from the API itself, for example from a proxy.
  }
  if (answer.status === 401) dispatchEvent(new Event("glimpse-unauthenticated"));
  throw new Problem(answer.status, document, Number.isFinite(after) && after > 0 ? after : null);
}

/**
 * The JSON of an answer; null where there is no body. An answer that is cut off is a Problem.
 * @param {string} path
 * @param {Parameters<typeof send>[1]} [options]
 * @returns {Promise<any>}
 */
export async function json(path, options = {}) {
  const answer = await send(path, options);
  if (answer.status === 204) return null;
  try {
    return await answer.json();
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Problem(0, { detail: "The answer of the service was cut off." });
  }
}

/**
 * A JSON request.
 * @param {string} method
 * @param {string} path
 * @param {any} body
 * @param {Record<string, string>} [headers]
 */
export function call(method, path, body, headers = {}) {
  return json(path, {
    method,
    headers: { "content-type": "application/json", ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
}

/**
 * SHA-256 of a file in hex, or null where the browser offers none (a page without TLS that is not
 * on this machine: https://w3c.github.io/webappsec-secure-contexts/).
 * @param {Blob} file
 * @returns {Promise<string | null>}
 */
export async function sha256(file) {
  if (!globalThis.crypto?.subtle) return null;
  const digest = await crypto.subtle.digest("SHA-256", await file.arrayBuffer());
  return Array.from(new Uint8Array(digest), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const FINAL = new Set(["complete", "failed", "cancelled", "error"]);

/**
 * Follow server-sent events until the final one. By fetch, because EventSource sends no headers.
 * Connects again where the stream is cut off, with the last id.
 * @param {string} path
 * @param {(document: any) => void} onDocument
 * @param {AbortSignal} signal
 */
export async function follow(path, onDocument, signal) {
  let last = "";
  let failures = 0;
  while (!signal.aborted) {
    try {
      const answer = await send(path, {
        headers: { accept: "text/event-stream", ...(last ? { "last-event-id": last } : {}) },
        signal,
      });
      if (answer.status === 204 || !answer.body) return;
      failures = 0;
      for await (const event of events(answer.body)) {
        if (event.id) last = event.id;
        if (event.data) {
          const document = JSON.parse(event.data);
          if (document && typeof document === "object" && !("title" in document)) onDocument(document);
        }
        if (FINAL.has(event.name)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      const status = error instanceof Problem ? error.status : 0;
      failures += 1;
      if ((status >= 400 && status < 500 && status !== 429) || failures > 8) throw error;
    }
    await pause(Math.min(8000, 500 * 2 ** failures), signal);
  }
}

/** @param {number} milliseconds @param {AbortSignal} signal @returns {Promise<void>} */
function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); resolve(); }, { once: true });
  });
}

/**
 * The events of a stream (WHATWG HTML, 9.2.6).
 * @param {ReadableStream<Uint8Array>} body
 */
async function* events(body) {
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let rest = "";
  let event = { id: "", name: "message", data: "" };
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split(/\r\n|\n|\r/);
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "") {
          if (event.data || event.name !== "message") yield event;
          event = { id: "", name: "message", data: "" };
          continue;
        }
        const colon = line.indexOf(":");
        const field = colon < 0 ? line : line.slice(0, colon);
        const text = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
        if (field === "id") event.id = text;
        else if (field === "event") event.name = text;
        else if (field === "data") event.data += (event.data ? "\n" : "") + text;
      }
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
