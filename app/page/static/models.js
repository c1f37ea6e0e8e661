// @ts-check
/** Models: the list, and one model with its labels. */
import { json } from "./api.js";
import { Failure, html, percent, useLoaded } from "./ui.js";

export function Models() {
  const found = useLoaded(() => json("/api/v1/models"), []);
  return html`<h1>Models</h1>
    <${Failure} error=${found.error} />
    <div class="scroll card"><table>
      <thead><tr><th scope="col">Model</th><th scope="col" class="number">Labels</th><th scope="col">Input</th><th scope="col">Default</th></tr></thead>
      <tbody>${(found.value?.models ?? []).map((/** @type {any} */ each) => html`<tr key=${each.id}>
        <td><a href=${`#/models/${encodeURIComponent(each.id)}`}>${each.id}</a></td>
        <td class="number">${each.label_count}</td><td>${each.input ? `${each.input.width} × ${each.input.height}` : "any size"}</td>
        <td>${each.default ? "default" : ""}</td></tr>`)}</tbody></table></div>`;
}

/** @param {{name: string}} props */
export function ModelPage({ name }) {
  const found = useLoaded(() => json(`/api/v1/models/${encodeURIComponent(name)}`), [name]);
  const model = found.value;
  if (!model) return html`<h1>${name}</h1><${Failure} error=${found.error} />`;
  return html`<h1>${model.name}</h1><p class="mono">${model.id}</p>
    ${model.threshold === null ? null : html`<p>Below ${percent(model.threshold)} an answer is “not sure”.</p>`}
    <section class="card"><h2>Labels</h2><ul class="chips">${model.labels.map((/** @type {string} */ each) => html`<li class="chip">${each}</li>`)}</ul></section>`;
}
