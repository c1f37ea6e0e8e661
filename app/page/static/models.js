// @ts-check
/** Models: the list, and training one's own by sorting pictures into labels. */
import { useState } from "preact/hooks";

import { call, follow, json } from "./api.js";
import { Action, Failure, State, chosenFiles, droppedFiles, html, looksLikeImage, percent, useLoaded, when } from "./ui.js";
import { uploadMissing } from "./batch.js";
import { Pick } from "./try.js";
import { Thumbnail } from "./history.js";

export function Models() {
  const found = useLoaded(() => json("/api/v1/models"), []);
  return html`<h1>Models</h1>
    <${Failure} error=${found.error} />
    <div class="scroll card"><table>
      <thead><tr><th scope="col">Model</th><th scope="col">Kind</th><th scope="col" class="number">Labels</th><th scope="col"></th></tr></thead>
      <tbody>${(found.value?.models ?? []).map((/** @type {any} */ each) => html`<tr key=${each.id}>
        <td><a href=${`#/models/${encodeURIComponent(each.name)}`}>${each.id}</a></td>
        <td>${each.trained ? "your own" : "bundle"}</td>
        <td class="number">${each.label_count ?? each.labels?.length ?? ""}</td><td>${each.default ? "default" : ""}</td></tr>`)}</tbody></table></div>
    <${Train} onDone=${found.reload} />`;
}

/** @typedef {{label: string, images: {file: File, path: string}[]}} Pile */

/** @param {{onDone: () => void}} props */
function Train({ onDone }) {
  const [name, setName] = useState("");
  const [piles, setPiles] = useState(/** @type {Pile[]} */ ([{ label: "", images: [] }, { label: "", images: [] }]));
  const [progress, setProgress] = useState(/** @type {any} */ (null));
  const [job, setJob] = useState(/** @type {any} */ (null));

  /** @param {number} n @param {Partial<Pile>} change */
  const change = (n, change) => setPiles((before) => before.map((pile, m) => (m === n ? { ...pile, ...change } : pile)));
  /** A folder with one folder a label fills the piles. @param {{file: File, path: string}[]} files */
  const fromFolder = (files) => {
    /** @type {Map<string, {file: File, path: string}[]>} */
    const found = new Map();
    for (const each of files.filter(looksLikeImage)) {
      const parts = each.path.split("/");
      if (parts.length < 2) continue;
      const label = parts[parts.length - 2];
      found.set(label, [...(found.get(label) ?? []), each]);
    }
    setPiles([...found].map(([label, images]) => ({ label, images })));
  };
  const start = async () => {
    setJob(null);
    const used = piles.filter((pile) => pile.images.length > 0);
    if (!name.trim()) throw new Error("Give the model a name.");
    if (used.length < 2 || used.some((pile) => !pile.label.trim())) throw new Error("Make at least two labels with pictures.");
    const all = used.flatMap((pile) => pile.images);
    const hashes = await uploadMissing(all, undefined, (word, done, total) => setProgress({ word, done, total }));
    if (hashes.length !== all.length) throw new Error("Some of these files are not images that the service accepts. Remove them.");
    let at = 0;
    const examples = used.flatMap((pile) => pile.images.map(() => ({ image_hash: hashes[at++], label: pile.label.trim() })));
    const created = await call("POST", "/api/v1/jobs/train-model", { name: name.trim(), examples });
    setJob(created);
    setProgress(null);
    const stop = new AbortController();
    await follow(`/api/v1/jobs/${created.job_id}/stream`, (document) => { if (document.job_id) setJob(document); }, stop.signal);
    setJob(await json(`/api/v1/jobs/${created.job_id}`));
    onDone();
  };
  return html`<section class="card"><h2>Train your own labels</h2>
    <p class="soft">Sort pictures into labels, at least five for each. Pictures under the label “none” teach the model what is none of the others.</p>
    <div class="row"><label class="field">Name<input value=${name} maxlength="60" placeholder="my-labels" onInput=${(/** @type {any} */ event) => setName(event.target.value)} /></label>
      <${Pick} label="Use a folder with one folder for each label" folder onFiles=${fromFolder} /></div>
    <div class="piles" style="margin:1rem 0">
      ${piles.map((pile, n) => html`<${PileCard} key=${n} pile=${pile} number=${n + 1} change=${(/** @type {Partial<Pile>} */ it) => change(n, it)}
        remove=${() => setPiles((before) => before.filter((_, m) => m !== n))} />`)}
    </div>
    <div class="row">
      <button type="button" onClick=${() => setPiles([...piles, { label: "", images: [] }])}>Add a label</button>
      <${Action} kind="primary" run=${start}>Train<//>
    </div>
    ${progress ? html`<p role="status">${progress.word} ${progress.done} of ${progress.total}</p>` : null}
    ${job ? html`<p role="status"><${State} state=${job.status} /> <progress max=${job.total || 1} value=${(job.succeeded ?? 0) + (job.failed ?? 0)} aria-label="Training"></progress>
      ${job.error ? html`<span class="bad">${job.error.detail}</span>` : null}
      ${job.status === "completed" ? html` <a href=${`#/models/${encodeURIComponent(name.trim())}`}>See how good it is</a>` : null}</p>` : null}
  </section>`;
}

/** @param {{pile: Pile, number: number, change: (it: Partial<Pile>) => void, remove: () => void}} props */
function PileCard({ pile, number, change, remove }) {
  const [over, setOver] = useState(false);
  /** @param {{file: File, path: string}[]} files */
  const add = (files) => change({ images: [...pile.images, ...files.filter(looksLikeImage)] });
  return html`<div class=${`pile ${over ? "over" : ""}`}
    onDragOver=${(/** @type {DragEvent} */ event) => { event.preventDefault(); setOver(true); }}
    onDragLeave=${() => setOver(false)}
    onDrop=${async (/** @type {DragEvent} */ event) => { event.preventDefault(); setOver(false); if (event.dataTransfer) add(await droppedFiles(event.dataTransfer)); }}>
    <label class="field">Label ${number}<input value=${pile.label} maxlength="100" onInput=${(/** @type {any} */ event) => change({ label: event.target.value })} /></label>
    <div class="row" style="margin-top:.5rem"><${Pick} label="Add pictures" onFiles=${add} />
      <button type="button" class="danger" onClick=${remove} aria-label=${`Remove label ${number}`}>Remove</button></div>
    <p class="small soft">${pile.images.length} pictures</p></div>`;
}

/** @param {{name: string}} props */
export function ModelPage({ name }) {
  const found = useLoaded(() => json(`/api/v1/models/${encodeURIComponent(name)}`), [name]);
  const model = found.value;
  if (!model) return html`<h1>${name}</h1><${Failure} error=${found.error} />`;
  const versions = model.versions ?? [];
  return html`<h1>${model.name}</h1><p class="mono">${model.id}</p>
    ${versions.map((/** @type {any} */ version) => html`<${Version} key=${version.id} model=${model} version=${version} reload=${found.reload} />`)}
    <section class="card"><h2>Labels</h2><ul class="chips">${(model.labels ?? []).slice(0, 400).map((/** @type {string} */ each) => html`<li class="chip">${each}</li>`)}</ul></section>
    ${model.card ? html`<section class="card"><h2>Model card</h2><pre tabindex="0">${model.card}</pre></section>` : null}`;
}

/** @param {{model: any, version: any, reload: () => void}} props */
function Version({ model, version, reload }) {
  const metrics = version.metrics ?? {};
  const labels = metrics.labels ?? [];
  const matrix = metrics.confusion_matrix ?? [];
  return html`<section class="card">
    <div class="row spread"><h2>${version.id}</h2>${version.active ? html`<strong class="good">active</strong>` : html`<${Action} run=${async () => { await call("POST", `/api/v1/models/${encodeURIComponent(model.name)}/activate`, { version: version.id }); reload(); }}>Activate<//>`}</div>
    <p class="soft small">${when(version.created_at)} · base ${version.base ?? ""}</p>
    ${metrics.accuracy !== undefined ? html`<p class="best">${percent(metrics.accuracy)} <span class="small soft">accuracy${metrics.accuracy_interval ? `, 95 % interval ${percent(metrics.accuracy_interval[0])} to ${percent(metrics.accuracy_interval[1])}` : ""}</span></p>` : null}
    ${(metrics.advice ?? []).map((/** @type {string} */ each) => html`<p class="notice">${each}</p>`)}
    ${labels.length
      ? html`<div class="scroll"><table><thead><tr><th scope="col">Label</th><th class="number" scope="col">Precision</th><th class="number" scope="col">Recall</th><th class="number" scope="col">F1</th><th class="number" scope="col">Images</th></tr></thead>
          <tbody>${labels.map((/** @type {any} */ each) => html`<tr><th scope="row">${each.label}</th><td class="number">${percent(each.precision)}</td><td class="number">${percent(each.recall)}</td><td class="number">${percent(each.f1)}</td><td class="number">${each.support}</td></tr>`)}</tbody></table></div>`
      : null}
    ${matrix.length
      ? html`<h3 style="margin-top:1rem">Confusion matrix</h3><p class="soft small">Rows are the true labels, columns the answers.</p>
          <div class="scroll"><table class="matrix"><thead><tr><td></td>${labels.map((/** @type {any} */ each) => html`<th scope="col">${each.label}</th>`)}</tr></thead>
          <tbody>${matrix.map((/** @type {number[]} */ row, /** @type {number} */ n) => html`<tr><th scope="row">${labels[n]?.label}</th>${row.map((count, m) => html`<td class=${n === m ? "hit" : count ? "miss" : ""}>${count}</td>`)}</tr>`)}</tbody></table></div>`
      : null}
    ${metrics.mistakes?.length
      ? html`<h3 style="margin-top:1rem">Worst mistakes</h3><ul class="grid">${metrics.mistakes.map((/** @type {any} */ each) => html`<${Mistake} model=${model} mistake=${each} labels=${labels} />`)}</ul>`
      : null}</section>`;
}

/** @param {{model: any, mistake: any, labels: any[]}} props */
function Mistake({ model, mistake, labels }) {
  const [label, setLabel] = useState(mistake.label);
  return html`<li class="tile"><${Thumbnail} hash=${mistake.image_hash} label=${mistake.label} />
    <span class="small">said <strong>${mistake.predicted}</strong>, marked ${mistake.label}</span>
    <label class="field">Right label<select value=${label} onChange=${(/** @type {any} */ event) => setLabel(event.target.value)}>${labels.map((each) => html`<option>${each.label}</option>`)}</select></label>
    <${Action} run=${() => call("POST", `/api/v1/models/${encodeURIComponent(model.name)}/corrections`, { corrections: [{ image_hash: mistake.image_hash, label }] })}>Correct<//></li>`;
}

export { chosenFiles };
