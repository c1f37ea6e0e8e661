// @ts-check
/** Training: sort pictures into labels, upload them, follow the job. */
import { useEffect, useRef, useState } from "preact/hooks";

import { call, follow, json } from "./api.js";
import { persistent, uploadMissing } from "./batch.js";
import { Pick } from "./try.js";
import { Action, Progress, State, droppedFiles, html, looksLikeImage } from "./ui.js";

const LEAST = 5; // pictures of a label
const SHOWN = 24; // pictures of a label until all are asked for
const DRAGGED = "application/x-glimpse-picture";

/** @typedef {{file: File, path: string}} Chosen */
/** @typedef {Chosen & {id: number}} Picture */
/** @typedef {{id: number, name: string, pictures: Picture[]}} Label */
/** @typedef {{image_hash: string, label: string}} Example */

let nextId = 1;
/** @param {string} name @param {Chosen[]} chosen @returns {Label} */
const labelOf = (name, chosen) => ({ id: nextId++, name, pictures: chosen.map((each) => ({ ...each, id: nextId++ })) });

/**
 * The pictures by the name of their folder. One folder that contains all others does not count.
 * @param {Chosen[]} chosen
 * @returns {Map<string, Chosen[]>}
 */
function byFolder(chosen) {
  const paths = chosen.map(({ path }) => path.split("/"));
  const outer = new Set(paths.map(([first]) => first));
  const skip = outer.size === 1 && paths.every((path) => path.length > 2) ? 1 : 0;
  /** @type {Map<string, Chosen[]>} */
  const found = new Map();
  chosen.forEach((each, n) => {
    const folder = paths[n].length > skip + 1 ? paths[n][skip] : "";
    found.set(folder, [...(found.get(folder) ?? []), each]);
  });
  return found;
}

/**
 * Follow a training until it ends.
 * @param {string} id of the job
 * @param {(job: any) => void} onChange
 * @param {AbortSignal} signal
 * @returns {Promise<any>} the job
 */
async function followTraining(id, onChange, signal) {
  await follow(`/api/v1/jobs/${id}/stream`, (document) => { if (document.job_id) onChange(document); }, signal);
  const job = await json(`/api/v1/jobs/${id}`, { signal });
  onChange(job);
  return job;
}

/**
 * The examples of a version: the items of the job that trained it.
 * @param {string} id of the job
 * @returns {Promise<Example[]>}
 */
async function examplesOf(id) {
  /** @type {Example[]} */
  const found = [];
  let cursor = "";
  do {
    const page = await json(`/api/v1/jobs/${id}/results`, { query: { limit: 1000, cursor } });
    for (const { image_hash, status, metadata } of page.results) {
      if (image_hash && status === "succeeded" && metadata?.label) found.push({ image_hash, label: metadata.label });
    }
    cursor = page.next_cursor ?? "";
  } while (cursor);
  return found;
}

/**
 * Sort pictures into labels and train. With `model`, the training adds a version to it, and the
 * pictures of its newest version are trained on again.
 * @param {{model?: any, onTrained: (name: string) => void}} props
 */
export function Trainer({ model, onTrained }) {
  const [newest] = model?.versions ?? [];
  const [name, setName] = useState(model?.name ?? "");
  const [labels, setLabels] = useState(/** @type {Label[]} */ ((newest?.labels ?? [{ label: "" }, { label: "" }]).map((/** @type {any} */ each) => labelOf(each.label, []))));
  const [again, setAgain] = useState(Boolean(newest));
  const [progress, setProgress] = useState(/** @type {{word: string, done: number, total: number} | null} */ (null));
  const [job, setJob] = useState(/** @type {any} */ (null));
  const [left, setLeft] = useState(/** @type {string[]} */ ([]));
  const stop = useRef(new AbortController());
  useEffect(() => () => stop.current.abort(), []);

  /** @param {number} id @param {(label: Label) => Label} edit */
  const change = (id, edit) => setLabels((before) => before.map((each) => (each.id === id ? edit(each) : each)));
  /** @param {number} id @param {Chosen[]} chosen */
  const add = (id, chosen) => change(id, (label) => ({ ...label, pictures: [...label.pictures, ...labelOf("", chosen.filter(looksLikeImage)).pictures] }));
  /** A folder is a label. @param {Chosen[]} chosen */
  const addFolders = (chosen) => {
    const found = byFolder(chosen.filter(looksLikeImage));
    setLabels((before) => {
      const kept = before.map((label) => {
        const more = found.get(label.name) ?? [];
        found.delete(label.name);
        return { ...label, pictures: [...label.pictures, ...labelOf("", more).pictures] };
      });
      const used = kept.filter((label) => label.name || label.pictures.length);
      return [...used, ...[...found].sort(([a], [b]) => a.localeCompare(b)).map(([folder, more]) => labelOf(folder, more))];
    });
  };
  /** Move a picture to another label, or to none. @param {number} picture @param {number} to */
  const move = (picture, to) => setLabels((before) => {
    const moved = before.flatMap((label) => label.pictures).find((each) => each.id === picture);
    return before.map((label) => {
      const others = label.pictures.filter((each) => each.id !== picture);
      return { ...label, pictures: label.id === to && moved ? [...others, moved] : others };
    });
  });

  const train = async () => {
    setJob(null);
    setLeft([]);
    const used = labels.filter((label) => label.pictures.length > 0);
    check(name.trim(), used, again);
    const all = used.flatMap(({ name: label, pictures }) => pictures.map((each) => ({ ...each, label: label.trim() })));
    try {
      const sent = await uploadMissing(all, "", (word, done, total) => setProgress({ word, done, total }));
      setLeft(sent.filter(({ hash, refused }) => refused || !hash).map(({ path }) => path));
      const examples = sent.flatMap(({ hash, refused }, n) => (hash && !refused ? [{ image_hash: hash, label: all[n].label }] : []));
      // A picture that is sorted again has its new label.
      const sorted = new Set(examples.map((each) => each.image_hash));
      const before = again ? (await examplesOf(newest.job_id)).filter((each) => !sorted.has(each.image_hash)) : [];
      const body = { name: name.trim(), examples: [...before, ...examples] };
      // The same key with each attempt: only one job is created.
      const headers = { "idempotency-key": crypto.randomUUID?.() ?? String(Math.random()) };
      const created = await persistent(() => call("POST", "/api/v1/jobs/train-model", body, headers));
      setJob(created);
      setProgress(null);
      const ended = await followTraining(created.job_id, setJob, stop.current.signal);
      if (ended.trained_model) onTrained(body.name);
    } catch (error) {
      if (!stop.current.signal.aborted) throw error;
    } finally {
      setProgress(null);
    }
  };

  const title = model ? "Add pictures and train again" : "Train on your own labels";
  /** @param {DragEvent} event */
  const drop = async (event) => {
    event.preventDefault();
    if (event.dataTransfer && !event.dataTransfer.getData(DRAGGED)) addFolders(await droppedFiles(event.dataTransfer));
  };
  return html`<section class="card" aria-label=${title} onDrop=${drop}><h2>${title}</h2>
    <p class="soft">Sort pictures into labels: at least ${LEAST} for each label, better 20 or more. Pictures with the label “none” teach the model what is none of the others.</p>
    <div class="row end">
      ${model ? null : html`<label class="field">Name of the model<input value=${name} maxlength="63" placeholder="birds" onInput=${(/** @type {any} */ event) => setName(event.target.value)} /></label>`}
      <${Pick} label="Choose a folder of folders" folder onFiles=${addFolders} />
      <span class="small soft">Or drop it here. Each folder is a label.</span>
    </div>
    <ul class="labels" aria-label="Labels">
      ${labels.map((label, n) => html`<${LabelCard} key=${label.id} label=${label} number=${n + 1} labels=${labels} move=${move} before=${again ? supportOf(newest, label.name) : 0}
        rename=${(/** @type {string} */ text) => change(label.id, (each) => ({ ...each, name: text }))}
        add=${(/** @type {Chosen[]} */ chosen) => add(label.id, chosen)}
        remove=${() => setLabels((before) => before.filter((each) => each.id !== label.id))} />`)}
    </ul>
    ${newest ? html`<p><label><input type="checkbox" checked=${again} onChange=${(/** @type {any} */ event) => setAgain(event.target.checked)} /> With the ${newest.images} pictures of ${newest.id}</label></p>` : null}
    ${model?.corrections ? html`<p>${model.corrections === 1 ? "1 correction is" : `${model.corrections} corrections are`} used in the next training.</p>` : null}
    <div class="row">
      <button type="button" onClick=${() => setLabels([...labels, labelOf("", [])])}>Add a label</button>
      <${Action} kind="primary" run=${train}>${model ? "Train again" : "Train"}<//>
    </div>
    ${progress ? html`<${Progress} ...${progress} />` : null}
    ${left.length ? html`<p class="bad" role="status">Left out, because the service does not accept them: ${left.slice(0, 5).join(", ")}${left.length > 5 ? " …" : ""}</p>` : null}
    ${job ? html`<${Training} job=${job} />` : null}
  </section>`;
}

/** @param {any} version @param {string} label @returns {number} its pictures in the version */
const supportOf = (version, label) => version?.labels.find((/** @type {any} */ each) => each.label === label)?.support ?? 0;

/**
 * Throws an Error that says what is missing.
 * @param {string} name
 * @param {Label[]} used labels with pictures
 * @param {boolean} again whether there are pictures of a version, too
 */
function check(name, used, again) {
  if (!name) throw new Error("Give the model a name.");
  if (used.some((label) => !label.name.trim())) throw new Error("Give each label a name.");
  if (again) return; // The service counts all pictures.
  if (used.length < 2) throw new Error("Sort pictures into at least two labels.");
  const few = used.find((label) => label.pictures.length < LEAST);
  if (few) throw new Error(`The label “${few.name}” needs at least ${LEAST} pictures and has ${few.pictures.length}.`);
}

/** A training as it goes on. @param {{job: any}} props */
function Training({ job }) {
  const done = job.succeeded + job.failed;
  return html`<div aria-live="polite"><p class="row"><${State} state=${job.status} />
      <progress max=${job.total || 1} value=${done} aria-label="Training"></progress>
      <a href=${`#/jobs/${job.job_id}`}>${done} of ${job.total} steps</a></p>
    ${job.error ? html`<p class="bad">${job.error.detail}</p>` : null}</div>`;
}

/**
 * A label with its pictures.
 * @param {{label: Label, number: number, labels: Label[], before: number, move: (picture: number, to: number) => void, rename: (text: string) => void, add: (chosen: Chosen[]) => void, remove: () => void}} props
 */
function LabelCard({ label, number, labels, before, move, rename, add, remove }) {
  const [over, setOver] = useState(false);
  const [all, setAll] = useState(false);
  const called = label.name || `label ${number}`;
  const count = label.pictures.length;
  /** @param {DragEvent} event */
  const drop = async (event) => {
    event.preventDefault();
    event.stopPropagation(); // not for the whole section
    setOver(false);
    const transfer = event.dataTransfer;
    const moved = Number(transfer?.getData(DRAGGED));
    if (moved) move(moved, label.id);
    else if (transfer) add(await droppedFiles(transfer));
  };
  return html`<li class=${`drop label ${over ? "over" : ""}`} onDragLeave=${() => setOver(false)} onDrop=${drop}
    onDragOver=${(/** @type {DragEvent} */ event) => { event.preventDefault(); setOver(true); }}>
    <label class="field">Label ${number}<input value=${label.name} maxlength="100" onInput=${(/** @type {any} */ event) => rename(event.target.value)} /></label>
    <div class="row"><${Pick} label="Add pictures" name=${`Add pictures to ${called}`} onFiles=${add} />
      <button type="button" class="danger" onClick=${remove} aria-label=${`Remove ${called}`}>Remove</button></div>
    <p class="small soft" role="status">${count === 1 ? "1 picture" : `${count} pictures`}${before ? `, and ${before} of the version before` : count && count < LEAST ? `, ${LEAST - count} more needed` : ""}</p>
    <ul class="previews" aria-label=${`Pictures of ${called}`}>
      ${(all ? label.pictures : label.pictures.slice(0, SHOWN)).map((each) => html`<${Preview} key=${each.id} picture=${each} label=${label} labels=${labels} move=${move} />`)}
    </ul>
    ${!all && count > SHOWN ? html`<button type="button" onClick=${() => setAll(true)}>Show all ${count}</button>` : null}</li>`;
}

/**
 * A picture, to drag to another label or to move there by its menu.
 * @param {{picture: Picture, label: Label, labels: Label[], move: (picture: number, to: number) => void}} props
 */
function Preview({ picture, label, labels, move }) {
  const [address, setAddress] = useState("");
  useEffect(() => {
    const made = URL.createObjectURL(picture.file);
    setAddress(made);
    return () => URL.revokeObjectURL(made);
  }, [picture.file]);
  /** @param {DragEvent} event */
  const drag = (event) => event.dataTransfer?.setData(DRAGGED, String(picture.id));
  return html`<li draggable onDragStart=${drag}>
    ${address ? html`<img class="shot" src=${address} alt="" loading="lazy" decoding="async" />` : null}
    <select aria-label=${`Label of ${picture.path}`} value=${label.id} onChange=${(/** @type {any} */ event) => move(picture.id, Number(event.target.value))}>
      ${labels.map((each, n) => html`<option value=${each.id}>${each.name || `Label ${n + 1}`}</option>`)}
      <option value="0">Remove</option>
    </select></li>`;
}
