// @ts-check
/** Parts that every view uses. */
import { h } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import htm from "htm";

import { Problem } from "./api.js";

export const html = htm.bind(h);

/** @param {number} value from 0 to 1 */
export const percent = (value) => `${Math.round(100 * value)} %`;

/** @param {string | null | undefined} text RFC 3339 */
export const when = (text) => (text ? new Date(text).toLocaleString() : "");

/** @param {string} hash */
export const short = (hash) => `${hash.slice(0, 10)}…`;

/** The state as a word with a dot. @param {{state: string}} props */
export function State({ state }) {
  return html`<span class=${`state ${state}`}><span class="dot" aria-hidden="true"></span>${state}</span>`;
}

/**
 * How far something is. A screen reader says what it does, not each number.
 * @param {{word: string, done: number, total: number}} props
 */
export function Progress({ word, done, total }) {
  return html`<p class="row"><span role="status">${word} …</span>
    <progress max=${total} value=${done} aria-label=${word}></progress><span class="small soft">${done} of ${total}</span></p>`;
}

/** A refusal, said to everyone. @param {{error: unknown}} props */
export function Failure({ error }) {
  if (!error) return null;
  const text = error instanceof Error ? error.message : String(error);
  const advice = error instanceof Problem ? error.advice : "";
  return html`<div class="notice bad" role="alert"><strong>${text}</strong>${advice ? html` <span>${advice}</span>` : null}</div>`;
}

/**
 * Labels as bars, the best one large.
 * @param {{image: any}} props
 */
export function Labels({ image }) {
  const labels = image.annotations ?? [];
  const output =
    (image.output ?? null) === null ? null : html`<pre>${JSON.stringify(image.output, null, 2)}</pre>`;
  if (labels.length === 0) {
    if (output) return output;
    return image.status === "success" ? html`<p class="soft">No label has this confidence.</p>` : null;
  }
  const [best] = labels;
  const unsure = image.confident === false;
  return html`
    <p class="best">${unsure ? html`<span class="warn">Not sure</span>` : best.label}</p>
    ${unsure ? html`<p class="soft small">The best guess is “${best.label}” with ${percent(best.confidence)}.</p>` : null}
    ${image.categories?.length
      ? html`<ul class="chips" aria-label="Categories">
          ${image.categories.slice(0, 4).map((/** @type {any} */ each) => html`<li class="chip">${each.label} ${percent(each.confidence)}</li>`)}
        </ul>`
      : null}
    <ul class="bars" aria-label="Labels">
      ${labels.map(
        (/** @type {any} */ each) => html`<li>
          <span>${each.label}</span>
          <meter min="0" max="1" value=${each.confidence} aria-label=${`${each.label}: ${percent(each.confidence)}`}></meter>
          <span class="number">${percent(each.confidence)}</span>
        </li>`,
      )}
    </ul>
    ${output}`;
}

/**
 * Load once, and again by `reload`.
 * @template T
 * @param {() => Promise<T>} load
 * @param {unknown[]} inputs
 */
export function useLoaded(load, inputs) {
  const [state, setState] = useState(/** @type {{value: T | null, error: unknown, busy: boolean}} */ ({ value: null, error: null, busy: true }));
  const current = useRef(0);
  const reload = useCallback(async () => {
    const mine = ++current.current;
    setState((before) => ({ ...before, busy: true }));
    try {
      const value = await load();
      if (mine === current.current) setState({ value, error: null, busy: false });
    } catch (error) {
      if (mine === current.current) setState((before) => ({ ...before, error, busy: false }));
    }
  }, inputs);
  useEffect(() => { reload(); }, [reload]);
  return { ...state, reload };
}

/**
 * A button that runs something and shows its failure.
 * @param {{run: () => Promise<unknown>, children: any, kind?: string, confirm?: string, label?: string}} props
 */
export function Action({ run, children, kind = "", confirm: question, label }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(/** @type {unknown} */ (null));
  const press = async () => {
    if (question && !confirm(question)) return;
    setBusy(true);
    setError(null);
    try {
      await run();
    } catch (failed) {
      setError(failed);
    } finally {
      setBusy(false);
    }
  };
  return html`<button type="button" class=${kind} disabled=${busy} aria-label=${label} onClick=${press}>${children}</button>
    ${error ? html`<${Failure} error=${error} />` : null}`;
}

/** A button that copies a text. @param {{text: string}} props */
export function Copy({ text }) {
  const [done, setDone] = useState(false);
  if (!navigator.clipboard) return null;
  const press = async () => {
    await navigator.clipboard.writeText(text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button type="button" class="small" onClick=${press}>${done ? "Copied" : "Copy"}</button>`;
}

/**
 * The image files of a drop, folders included, each with its path below the dropped folder.
 * @param {DataTransfer} transfer
 * @returns {Promise<{file: File, path: string}[]>}
 */
export async function droppedFiles(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter((entry) => entry);
  if (entries.length === 0) return [...transfer.files].map((file) => ({ file, path: file.name }));
  /** @type {{file: File, path: string}[]} */
  const found = [];
  for (const entry of entries) await walk(/** @type {FileSystemEntry} */ (entry), "", found);
  return found;
}

/**
 * @param {FileSystemEntry} entry
 * @param {string} above
 * @param {{file: File, path: string}[]} found
 */
async function walk(entry, above, found) {
  if (entry.name.startsWith(".")) return;
  const path = above + entry.name;
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => /** @type {FileSystemFileEntry} */ (entry).file(resolve, reject));
    found.push({ file, path });
    return;
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  for (;;) {
    // A folder is read in parts of a hundred.
    const part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (part.length === 0) return;
    for (const each of part) await walk(each, `${path}/`, found);
  }
}

/** @param {FileList | null} list */
export function chosenFiles(list) {
  return [...(list ?? [])].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
}

const SUFFIX = /\.(jpe?g|jfif|png|webp|gif|avif|bmp|tiff?|heic|heif)$/i;
/** @param {{file: File, path: string}} each */
export const looksLikeImage = (each) => each.file.type.startsWith("image/") || SUFFIX.test(each.path);
