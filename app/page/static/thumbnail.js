// @ts-check
/** The thumbnail of an image. */
import { useEffect, useState } from "preact/hooks";

import { send } from "./api.js";
import { html } from "./ui.js";

const ATTEMPTS = 8;

/**
 * Loaded by fetch, since an image element sends no key. The service makes a missing thumbnail, so
 * the request is repeated a few times.
 * @param {string} hash
 * @param {AbortSignal} signal
 * @returns {Promise<Blob | null>}
 */
async function load(hash, signal) {
  for (let attempt = 0; attempt < ATTEMPTS && !signal.aborted; attempt += 1) {
    const answer = await send(`/api/v1/images/${hash}/thumbnail`, { signal, expect: [202, 404] });
    if (answer.status === 200) return answer.blob();
    if (answer.status === 404) return null;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  return null;
}

/** @param {{hash: string, label: string}} props */
export function Thumbnail({ hash, label }) {
  const [address, setAddress] = useState("");
  useEffect(() => {
    const stop = new AbortController();
    let made = "";
    load(hash, stop.signal)
      .then((blob) => { if (blob && !stop.signal.aborted) setAddress((made = URL.createObjectURL(blob))); })
      .catch(() => undefined);
    return () => {
      stop.abort();
      if (made) URL.revokeObjectURL(made);
    };
  }, [hash]);
  return address
    ? html`<img class="shot" src=${address} alt=${label} />`
    : html`<div class="shot empty" aria-hidden="true"></div>`;
}
