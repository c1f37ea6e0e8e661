// @ts-check
/** Try: photos in, labels out. */
import { useEffect, useRef, useState } from "preact/hooks";

import { base, follow, json, send, sha256 } from "./api.js";
import { Copy, Failure, Labels, Progress, State, chosenFiles, droppedFiles, html, looksLikeImage } from "./ui.js";

const AT_ONCE = 4;
export const MANY = 20; // more files than this become a job

/**
 * The query of a request; an empty value leaves the choice to the service.
 * @typedef {{model: string, labels: string, min_confidence: string}} Options
 */

/**
 * @typedef {object} Shown
 * @property {number} id
 * @property {string} name
 * @property {File} file
 * @property {string} preview
 * @property {string} state
 * @property {Options} options
 * @property {string} [note]
 * @property {any} [image]
 * @property {unknown} [error]
 */

let nextId = 1;

/** @param {{model: string, go: (path: string) => void}} props `model` is selected at first; "" is the default one */
export function Try({ model: selected, go }) {
  const [shown, setShown] = useState(/** @type {Shown[]} */ ([]));
  const [error, setError] = useState(/** @type {unknown} */ (null));
  const [over, setOver] = useState(false);
  const [camera, setCamera] = useState(false);
  const [progress, setProgress] = useState(/** @type {{done: number, total: number, word: string} | null} */ (null));
  const [models, setModels] = useState(/** @type {any[]} */ ([]));
  const [model, setModel] = useState(selected);
  const [labels, setLabels] = useState("");
  const [least, setLeast] = useState("");
  const stop = useRef(new AbortController());
  const waiting = useRef(/** @type {Shown[]} */ ([]));
  const busy = useRef(0);

  useEffect(() => {
    json("/api/v1/models", { signal: stop.current.signal }).then((found) => {
      setModels(found.models);
      if (selected === found.models[0].id) setModel("");
    }, () => undefined);
    return () => stop.current.abort();
  }, []);
  const options = { model, labels, min_confidence: least === "" ? "" : String(Number(least) / 100) };

  /** @param {Partial<Shown> & {id: number}} change */
  const update = (change) =>
    setShown((before) => before.map((each) => (each.id === change.id ? { ...each, ...change } : each)));

  /** @param {{file: File, path: string}[]} files */
  const take = async (files) => {
    setError(null);
    const images = files.filter(looksLikeImage);
    if (images.length === 0) {
      setError(new Error("No images were found among these files."));
      return;
    }
    if (images.length > MANY) {
      try {
        const { createJob, folderOf } = await import("./batch.js");
        const job = await createJob(images, { model, name: folderOf(images) }, (word, done, total) => setProgress({ word, done, total }));
        go(`/jobs/${job}`);
      } catch (failed) {
        setError(failed);
      } finally {
        setProgress(null);
      }
      return;
    }
    const added = images.map(({ file, path }) => ({
      id: nextId++, name: path, file, preview: URL.createObjectURL(file), state: "waiting", options,
    }));
    setShown((before) => [...added, ...before]);
    waiting.current.push(...added);
    work();
  };

  const work = () => {
    while (busy.current < AT_ONCE && waiting.current.length > 0) {
      const next = /** @type {Shown} */ (waiting.current.shift());
      busy.current += 1;
      classify(next, update, stop.current.signal).finally(() => {
        busy.current -= 1;
        work();
      });
    }
  };

  useEffect(() => {
    /** @param {ClipboardEvent} event */
    const paste = (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (files.length > 0) take(files.map((file) => ({ file, path: file.name || "pasted image" })));
    };
    addEventListener("paste", paste);
    return () => removeEventListener("paste", paste);
  });

  return html`
    <h1>What is in this picture?</h1>
    <div class=${`drop ${over ? "over" : ""}`}
      onDragOver=${(/** @type {DragEvent} */ event) => { event.preventDefault(); setOver(true); }}
      onDragLeave=${() => setOver(false)}
      onDrop=${async (/** @type {DragEvent} */ event) => {
        event.preventDefault();
        setOver(false);
        if (event.dataTransfer) take(await droppedFiles(event.dataTransfer));
      }}>
      <p>Drop photos or a folder here, or paste a picture.</p>
      <div class="row">
        <${Pick} label="Choose photos" onFiles=${take} />
        <${Pick} label="Choose a folder" folder onFiles=${take} />
        ${navigator.mediaDevices ? html`<button type="button" onClick=${() => setCamera(!camera)}>${camera ? "Close camera" : "Use camera"}</button>` : null}
      </div>
    </div>
    ${camera ? html`<${Camera} onFile=${(/** @type {File} */ file) => take([{ file, path: file.name }])} />` : null}
    <div class="row">
      ${models.length > 1
        ? html`<label class="field">Model
            <select value=${model} onChange=${(/** @type {any} */ event) => setModel(event.target.value)}>
              <option value="">${models[0].name} (default)</option>
              ${models.slice(1).map((each) => html`<option value=${each.trained ? each.name : each.id}>${each.name}</option>`)}
            </select></label>`
        : null}
      <label class="field">Labels
        <input type="number" min="1" max="20" placeholder="default" value=${labels} onChange=${(/** @type {any} */ event) => setLabels(event.target.validity.valid ? event.target.value : "")} /></label>
      <label class="field">From %
        <input type="number" min="0" max="100" placeholder="default" value=${least} onChange=${(/** @type {any} */ event) => setLeast(event.target.validity.valid ? event.target.value : "")} /></label>
    </div>
    <${Failure} error=${error} />
    ${progress ? html`<${Progress} ...${progress} />` : null}
    <div class="results" aria-live="polite" aria-relevant="additions text">
      ${shown.map((each) => html`<${Result} key=${each.id} shown=${each} />`)}
    </div>`;
}

/**
 * A button that chooses files. `name` is for screen readers where several have one label.
 * @param {{label: string, name?: string, folder?: boolean, onFiles: (files: {file: File, path: string}[]) => void}} props
 */
export function Pick({ label, name = label, folder = false, onFiles }) {
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  return html`<button type="button" class=${folder || name !== label ? "" : "primary"} aria-label=${name} onClick=${() => input.current?.click()}>${label}</button>
    <input ref=${input} class="hidden" type="file" multiple tabindex="-1" aria-label=${name}
      accept=${folder ? undefined : "image/*,.heic,.heif,.avif,.tif,.tiff,.bmp"}
      webkitdirectory=${folder}
      onChange=${(/** @type {any} */ event) => {
        onFiles(chosenFiles(event.target.files));
        event.target.value = "";
      }} />`;
}

/** @param {{onFile: (file: File) => void}} props */
function Camera({ onFile }) {
  const video = useRef(/** @type {HTMLVideoElement | null} */ (null));
  const [error, setError] = useState(/** @type {unknown} */ (null));
  useEffect(() => {
    /** @type {MediaStream | null} */
    let stream = null;
    let closed = false;
    navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } }).then(
      (opened) => {
        stream = opened;
        if (closed) opened.getTracks().forEach((track) => track.stop());
        else if (video.current) video.current.srcObject = opened;
      },
      (failed) => setError(new Error(`The camera is not available: ${failed.message}`)),
    );
    return () => {
      closed = true;
      stream?.getTracks().forEach((track) => track.stop());
    };
  }, []);
  const shoot = () => {
    const source = video.current;
    if (!source || !source.videoWidth) return;
    const canvas = document.createElement("canvas");
    canvas.width = source.videoWidth;
    canvas.height = source.videoHeight;
    canvas.getContext("2d")?.drawImage(source, 0, 0);
    canvas.toBlob((blob) => { if (blob) onFile(new File([blob], "camera.jpg", { type: "image/jpeg" })); }, "image/jpeg", 0.9);
  };
  return html`<div class="card"><${Failure} error=${error} />
    <video ref=${video} autoplay playsinline muted aria-label="Camera"></video>
    <p><button type="button" class="primary" onClick=${shoot}>Take a photo</button></p></div>`;
}

/**
 * Hash, look up, upload if unknown, follow until the end.
 * @param {Shown} shown
 * @param {(change: Partial<Shown> & {id: number}) => void} update
 * @param {AbortSignal} signal
 */
async function classify(shown, update, signal) {
  const began = performance.now();
  try {
    update({ id: shown.id, state: "hashing" });
    const hash = await sha256(shown.file);
    const query = shown.options;
    let answer = null;
    if (hash) {
      answer = query.model
        ? await send(`/api/v1/images/${hash}/classify`, { method: "POST", query, expect: [404], signal })
        : await send(`/api/v1/images/${hash}`, { query, expect: [404], signal });
    }
    let image = answer && answer.status !== 404 ? await answer.json() : null;
    let note = "";
    if (image && !(image.error && image.error.retryable)) {
      const took = Math.max(1, Math.round(performance.now() - began));
      note = `Known: nothing was uploaded, ${took} ms.`;
    } else {
      update({ id: shown.id, state: "sending" });
      image = await json("/api/v1/images", {
        method: "POST", query, body: shown.file, signal,
        headers: { "content-type": "application/octet-stream" },
      });
    }
    update({ id: shown.id, state: image.status, image, note });
    if (image.status !== "success" && image.status !== "error") {
      const path = `/api/v1/images/${image.image_hash}`;
      const model = encodeURIComponent(image.model);
      await follow(`${path}/stream?model=${model}`, (document) => update({ id: shown.id, state: document.status ?? "running" }), signal);
      image = await json(path, { query: { ...query, model: image.model }, signal });
      const took = ((performance.now() - began) / 1000).toFixed(1);
      update({ id: shown.id, state: image.status, image, note: `Labelled in ${took} s.` });
    }
  } catch (error) {
    if (!signal.aborted) update({ id: shown.id, state: "error", error });
  }
}

/** @param {{shown: Shown}} props */
function Result({ shown }) {
  const { image } = shown;
  const failed = image?.error;
  return html`<article class="card result" aria-label=${shown.name}>
    <div><img src=${shown.preview} alt="" /></div>
    <div>
      <div class="row spread"><h2 class="small soft">${shown.name}</h2><${State} state=${shown.state} /></div>
      ${shown.error ? html`<${Failure} error=${shown.error} />` : null}
      ${failed ? html`<p class="bad">${failed.detail}</p>` : null}
      ${image ? html`<${Labels} image=${image} />` : null}
      ${shown.note ? html`<p class="soft small">${shown.note}</p>` : null}
      ${image ? html`<p class="small"><a href=${`#/images/${image.image_hash}`}>This image's page</a></p>
        <${Requests} name=${shown.name} hash=${image.image_hash} options=${shown.options} />
        <details><summary>JSON</summary><pre tabindex="0">${JSON.stringify(image, null, 2)}</pre></details>` : null}
    </div>
  </article>`;
}

/** The same request elsewhere. @param {{name: string, hash: string, options?: Partial<Options>}} props */
export function Requests({ name, hash, options = {} }) {
  const file = name.split("/").pop() || "photo.jpg";
  const quoted = `'${file.replaceAll("'", "'\\''")}'`;
  const chosen = Object.entries(options).filter(([, value]) => value);
  const query = new URLSearchParams(/** @type {[string, string][]} */ (chosen)).toString();
  const keywords = chosen.map(([key, value]) => `, ${key}=${key === "model" ? JSON.stringify(value) : value}`).join("");
  const flags = chosen.map(([key, value]) => ` --${key.replace("_", "-")} ${value}`).join("");
  const curl = `curl -H 'Prefer: wait=20' -H 'Content-Type: application/octet-stream' --data-binary @${quoted} '${base}/api/v1/images${query ? `?${query}` : ""}'`;
  const python = `from glimpse_client import Glimpse\n\nwith Glimpse(${JSON.stringify(base)}) as glimpse:\n    print(glimpse.images.classify(${JSON.stringify(file)}${keywords}).label)`;
  const shell = `glimpse --url ${base} label ${quoted}${flags}`;
  return html`<details><summary>The same request by curl, Python and glimpse</summary>
    ${[curl, python, shell].map((text) => html`<div class="row spread"><pre tabindex="0" style="flex:1">${text}</pre><${Copy} text=${text} /></div>`)}
    <p class="small soft mono">${hash}</p></details>`;
}
