// @ts-check
/** Models: the list, a model with its versions and figures, and the training of a tenant's own. */
import { useState } from "preact/hooks";

import { call, json, send } from "./api.js";
import { Action, Failure, html, percent, short, useLoaded, when } from "./ui.js";
import { Thumbnail } from "./thumbnail.js";
import { Trainer } from "./train.js";

/** @typedef {(path: string) => void} Go */

/** @param {string} name */
const addressOf = (name) => `/models/${encodeURIComponent(name)}`;

/** @param {{go: Go}} props */
export function Models({ go }) {
  const found = useLoaded(() => json("/api/v1/models"), []);
  return html`<h1>Models</h1>
    <${Failure} error=${found.error} />
    <div class="scroll card" tabindex="0" role="region" aria-label="Models"><table>
      <thead><tr><th scope="col">Model</th><th scope="col">Kind</th><th scope="col" class="number">Labels</th><th scope="col">Input</th><th scope="col">Default</th></tr></thead>
      <tbody>${(found.value?.models ?? []).map((/** @type {any} */ each) => html`<tr key=${each.id}>
        <td><a href=${`#${addressOf(each.trained ? each.name : each.id)}`}>${each.id}</a></td>
        <td>${each.trained ? "your own" : "of the service"}</td>
        <td class="number">${each.label_count}</td><td>${each.input ? `${each.input.width} × ${each.input.height}` : "any size"}</td>
        <td>${each.default ? "default" : ""}</td></tr>`)}</tbody></table></div>
    <${Trainer} onTrained=${(/** @type {string} */ name) => go(addressOf(name))} />`;
}

/** @param {{name: string, go: Go}} props */
export function ModelPage({ name, go }) {
  const found = useLoaded(() => json(`/api/v1${addressOf(name)}`), [name]);
  const model = found.value;
  if (!model) return html`<h1>${name}</h1><${Failure} error=${found.error} />`;
  const labels = html`<section class="card"><h2>Labels</h2><ul class="chips">${model.labels.map((/** @type {string} */ each) => html`<li class="chip">${each}</li>`)}</ul></section>`;
  if (!model.versions) {
    return html`<h1>${model.name}</h1><p class="mono">${model.id}</p><${TryIt} name=${model.id} />
      ${model.threshold === null ? null : html`<p>${rule(model)}</p>`}${labels}`;
  }
  const remove = async () => {
    await send(`/api/v1${addressOf(model.name)}`, { method: "DELETE", expect: [404] });
    go("/models");
  };
  return html`<h1>${model.name}</h1><p class="mono">${model.active_version}</p><${TryIt} name=${model.name} />
    <${Failure} error=${found.error} />
    ${model.versions.map((/** @type {any} */ version) => html`<${Version} key=${version.id} model=${model} version=${version} reload=${found.reload} />`)}
    <${Trainer} key=${model.versions[0].id} model=${model} onTrained=${found.reload} />
    ${labels}
    <p><${Action} kind="danger" confirm=${`Delete the model ${model.name} with all of its versions and their results? The images stay.`} run=${remove}>Delete the model<//></p>`;
}

/**
 * When the page shows an answer of the model as "not sure".
 * @param {{threshold: number, category_threshold: number | null}} model
 */
const rule = ({ threshold, category_threshold: category }) =>
  `Below ${percent(threshold)} an answer is “not sure”${category === null ? "" : `, unless its narrowest category has at least ${percent(category)}`}.`;

/** @param {{name: string}} props */
const TryIt = ({ name }) => html`<p><a class="button" href=${`#/?model=${encodeURIComponent(name)}`}>Try this model</a></p>`;

/**
 * A version with its figures. They are measured on pictures that its fit left out.
 * @param {{model: any, version: any, reload: () => Promise<void>}} props
 */
function Version({ model, version, reload }) {
  const [open, setOpen] = useState(version.active);
  const [low, high] = version.accuracy_interval;
  const activate = async () => {
    await call("POST", `/api/v1${addressOf(model.name)}/activate`, { version: version.id });
    await reload();
  };
  const remove = async () => {
    await send(`/api/v1${addressOf(version.id)}`, { method: "DELETE", expect: [404] });
    await reload();
  };
  return html`<section class="card" aria-label=${version.id}>
    <div class="row spread"><h2 class="mono">${version.id}</h2>
      <div class="row">
        ${version.active ? html`<strong class="good">active</strong>` : html`<${Action} label=${`Activate ${version.id}`} run=${activate}>Activate<//>`}
        ${model.versions.length > 1 ? html`<${Action} kind="danger" label=${`Delete ${version.id}`} confirm=${`Delete the version ${version.id} and its results?`} run=${remove}>Delete<//>` : null}
      </div></div>
    <p class="best">${percent(version.accuracy)} <span class="small soft">accuracy, 95 % interval ${percent(low)} to ${percent(high)}</span></p>
    <p class="soft small">${version.images} pictures in ${version.folds} folds · mean F1 ${percent(version.macro_f1)} · ${when(version.created_at)} · base ${version.base}</p>
    <details open=${open} onToggle=${(/** @type {any} */ event) => setOpen(event.target.open)}><summary>Figures and mistakes</summary>
      ${open ? html`<${Figures} model=${model} version=${version} reload=${reload} />` : null}</details></section>`;
}

/** @param {{model: any, version: any, reload: () => Promise<void>}} props */
function Figures({ model, version, reload }) {
  /** @type {string[]} */
  const names = version.labels.map((/** @type {any} */ each) => each.label);
  return html`
    ${version.advice.map((/** @type {string} */ each) => html`<p class="notice">${each}</p>`)}
    <h3>Labels</h3>
    <div class="scroll" tabindex="0" role="region" aria-label="Figures of the labels"><table>
      <thead><tr><th scope="col">Label</th><th scope="col" class="number">Precision</th><th scope="col" class="number">Recall</th><th scope="col" class="number">F1</th><th scope="col" class="number">Confident from</th><th scope="col" class="number">Pictures</th></tr></thead>
      <tbody>${version.labels.map((/** @type {any} */ each) => html`<tr key=${each.label}><th scope="row">${each.label}</th>
        ${[each.precision, each.recall, each.f1, each.threshold].map((value) => html`<td class="number">${percent(value)}</td>`)}<td class="number">${each.support}</td></tr>`)}</tbody></table></div>
    <h3>Confusion matrix</h3>
    <p class="soft small">A row for each true label, a column for each answer.</p>
    <div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="matrix">
      <thead><tr><td></td>${names.map((name) => html`<th scope="col">${name}</th>`)}</tr></thead>
      <tbody>${version.confusion.map((/** @type {number[]} */ row, /** @type {number} */ n) => html`<${MatrixRow} key=${names[n]} label=${names[n]} row=${row} right=${n} />`)}</tbody></table></div>
    <h3>Worst mistakes</h3>
    ${version.mistakes.length
      ? html`<p class="soft small">Many of them are wrong labels of pictures. Correct them and train again.</p>
        <ul class="grid" aria-label="Worst mistakes">${version.mistakes.map((/** @type {any} */ each) => html`<${Mistake} key=${each.image_hash} model=${model} mistake=${each} names=${names} reload=${reload} />`)}</ul>`
      : html`<p class="soft">None.</p>`}`;
}

/** A cell is darker the larger its part of the row is. @param {{label: string, row: number[], right: number}} props */
function MatrixRow({ label, row, right }) {
  const total = Math.max(1, row.reduce((sum, count) => sum + count, 0));
  return html`<tr><th scope="row">${label}</th>${row.map((count, n) => html`
    <td class=${n === right ? "hit" : "miss"} style=${`--part: ${Math.round((40 * count) / total)}%`}>${count}</td>`)}</tr>`;
}

/** @param {{model: any, mistake: any, names: string[], reload: () => Promise<void>}} props */
function Mistake({ model, mistake, names, reload }) {
  const [label, setLabel] = useState(mistake.predicted);
  const [sent, setSent] = useState("");
  const correct = async () => {
    await call("POST", `/api/v1${addressOf(model.name)}/corrections`, { corrections: [{ image_hash: mistake.image_hash, label }] });
    setSent(label);
    await reload();
  };
  return html`<li class="tile"><${Thumbnail} hash=${mistake.image_hash} label=${`${mistake.label}, answered ${mistake.predicted}`} />
    <a href=${`#/images/${mistake.image_hash}`}>${short(mistake.image_hash)}</a>
    <span class="small">Labelled <strong>${mistake.label}</strong>, answered <strong>${mistake.predicted}</strong> (${percent(mistake.confidence)})</span>
    <label class="field">Right label<select value=${label} onChange=${(/** @type {any} */ event) => setLabel(event.target.value)}>${names.map((each) => html`<option value=${each}>${each}</option>`)}</select></label>
    <${Action} label=${`Correct ${short(mistake.image_hash)}`} run=${correct}>Correct<//>
    <span class="small good" role="status">${sent ? `Corrected to ${sent}. Train again to use it.` : ""}</span></li>`;
}
