// @ts-check
/** Jobs: progress, results, cancel, retry; a new one from a folder. */
import { useEffect, useState } from "preact/hooks";

import { follow, json, send } from "./api.js";
import { Action, Failure, Progress, State, html, looksLikeImage, percent, short, useLoaded, when } from "./ui.js";
import { createJob, folderOf } from "./batch.js";
import { Pick } from "./try.js";

/** @param {{go: (path: string) => void}} props */
export function Jobs({ go }) {
  const found = useLoaded(() => json("/api/v1/jobs", { query: { limit: 50 } }), []);
  const [error, setError] = useState(/** @type {unknown} */ (null));
  const [progress, setProgress] = useState(/** @type {any} */ (null));
  const [name, setName] = useState("");
  /** @param {{file: File, path: string}[]} files */
  const start = async (files) => {
    setError(null);
    try {
      const images = files.filter(looksLikeImage);
      const options = { name: name.trim() || folderOf(images) };
      go(`/jobs/${await createJob(images, options, (word, done, total) => setProgress({ word, done, total }))}`);
    } catch (failed) {
      setError(failed);
    } finally {
      setProgress(null);
    }
  };
  return html`<h1>Jobs</h1>
    <section class="card"><h2>New job</h2>
      <div class="row end">
        <label class="field">Name<input value=${name} maxlength="200" placeholder="the folder's" onInput=${(/** @type {any} */ event) => setName(event.target.value)} /></label>
        <${Pick} label="Choose a folder" folder onFiles=${start} />
        <${Pick} label="Choose photos" onFiles=${start} />
      </div>
      ${progress ? html`<${Progress} ...${progress} />` : null}
      <${Failure} error=${error} />
    </section>
    <${Failure} error=${found.error} />
    ${found.value?.jobs.length === 0 ? html`<p class="soft">No jobs yet.</p>` : null}
    ${found.value?.jobs.length
      ? html`<div class="scroll card"><table>
          <thead><tr><th scope="col">Job</th><th scope="col">Status</th><th scope="col">Progress</th><th scope="col" class="number">Images</th><th scope="col" class="number">Failed</th><th scope="col">Created</th></tr></thead>
          <tbody>${found.value.jobs.map((/** @type {any} */ job) => html`<tr key=${job.job_id}>
            <td><a href=${`#/jobs/${job.job_id}`}>${job.name || short(job.job_id)}</a></td>
            <td><${State} state=${job.status} /></td>
            <td><progress max="100" value=${job.progress} aria-label=${`${job.progress} percent`}></progress></td>
            <td class="number">${job.total}</td><td class="number">${job.failed}</td><td>${when(job.created_at)}</td></tr>`)}</tbody></table></div>`
      : null}
    <button type="button" onClick=${found.reload}>Refresh</button>`;
}

/** @param {{id: string, go: (path: string) => void}} props */
export function JobPage({ id, go }) {
  const [job, setJob] = useState(/** @type {any} */ (null));
  const [error, setError] = useState(/** @type {unknown} */ (null));
  useEffect(() => {
    const stop = new AbortController();
    setJob(null);
    (async () => {
      const first = await json(`/api/v1/jobs/${id}`, { signal: stop.signal });
      setJob(first);
      if (first.completed_at) return;
      await follow(`/api/v1/jobs/${id}/stream`, (document) => { if (document.job_id) setJob(document); }, stop.signal);
      setJob(await json(`/api/v1/jobs/${id}`, { signal: stop.signal }));
    })().catch((failed) => { if (!stop.signal.aborted) setError(failed); });
    return () => stop.abort();
  }, [id]);
  const done = Boolean(job?.completed_at);
  const retry = async () => go(`/jobs/${(await json(`/api/v1/jobs/${id}/retry`, { method: "POST" })).job_id}`);
  return html`<h1>${job?.name || "Job"}</h1><p class="mono">${id}</p>
    <${Failure} error=${error} />
    ${job
      ? html`<section class="card" aria-live="polite">
          <div class="row spread"><${State} state=${job.status} /><span>${job.succeeded + job.failed} of ${job.total}</span></div>
          <progress max=${job.total} value=${job.succeeded + job.failed} aria-label="Progress"></progress>
          <p><span class="good">${job.succeeded} succeeded</span> · <span class="bad">${job.failed} failed</span>${job.cancelled ? ` · ${job.cancelled} cancelled` : ""}</p>
          ${job.error ? html`<p class="bad">${job.error.detail}</p>` : null}
          ${job.trained_model ? html`<p>The model <a href=${`#/models/${encodeURIComponent(job.trained_model.split("@")[0])}`}>${job.trained_model}</a> is trained.</p>` : null}
          ${job.retry_of ? html`<p class="small">A retry of <a href=${`#/jobs/${job.retry_of}`}>${short(job.retry_of)}</a></p>` : null}
          <p class="small soft">${job.type} · model ${job.model} · priority ${job.priority} · created ${when(job.created_at)}</p>
          <div class="row">
            ${done ? null : html`<${Action} kind="danger" confirm="Cancel this job?" run=${async () => setJob(await json(`/api/v1/jobs/${id}`, { method: "DELETE" }))}>Cancel<//>`}
            ${done && job.succeeded < job.total ? html`<${Action} kind="primary" run=${retry}>Retry failed<//>` : null}
            ${job.type === "batch-predict" ? html`<${Action} run=${() => download(id, "text/csv", "csv")}>CSV<//><${Action} run=${() => download(id, "application/x-ndjson", "ndjson")}>NDJSON<//>` : null}
          </div></section>
        <${Results} id=${id} stamp=${done ? 1 : Math.floor((job.succeeded + job.failed) / Math.max(1, job.total / 10))} />`
      : null}`;
}

/** Failed items first, then the frequent labels. @param {{id: string, stamp: number}} props */
function Results({ id, stamp }) {
  const found = useLoaded(() => json(`/api/v1/jobs/${id}/results`, { query: { limit: 1000 } }), [id, stamp]);
  if (!found.value) return html`<${Failure} error=${found.error} />`;
  const items = found.value.results;
  const failed = items.filter((/** @type {any} */ each) => each.status === "failed");
  /** @type {Map<string, number>} */
  const labels = new Map();
  for (const each of items) {
    const label = each.annotations?.[0]?.label;
    if (label) labels.set(label, (labels.get(label) ?? 0) + 1);
  }
  const common = [...labels].sort((a, b) => b[1] - a[1]).slice(0, 10);
  return html`
    ${failed.length
      ? html`<section class="card"><h2>Failed items</h2><div class="scroll"><table>
          <thead><tr><th scope="col">File</th><th scope="col">Reason</th></tr></thead><tbody>
          ${failed.slice(0, 200).map((/** @type {any} */ each) => html`<tr key=${each.index}><td>${each.image_hash ? html`<a href=${`#/images/${each.image_hash}`}>${nameOf(each)}</a>` : nameOf(each)}</td><td class="bad">${each.metadata?.refused || each.error?.detail}</td></tr>`)}
        </tbody></table></div></section>`
      : null}
    ${common.length
      ? html`<section class="card"><h2>Most frequent labels</h2><ul class="bars">
          ${common.map(([label, count]) => html`<li><span>${label}</span><meter min="0" max=${common[0][1]} value=${count} aria-label=${`${label}: ${count}`}></meter><span class="number">${count}</span></li>`)}
        </ul></section>`
      : null}
    <section class="card"><h2>Items</h2><div class="scroll"><table>
      <thead><tr><th scope="col">File</th><th scope="col">Status</th><th scope="col">Label</th><th scope="col" class="number">Confidence</th></tr></thead>
      <tbody>${items.slice(0, 300).map((/** @type {any} */ each) => html`<tr key=${each.index}>
        <td>${each.image_hash ? html`<a href=${`#/images/${each.image_hash}`}>${nameOf(each)}</a>` : nameOf(each)}</td>
        <td><${State} state=${each.status} /></td><td>${each.confident === false ? "not sure" : each.annotations?.[0]?.label ?? each.metadata?.label ?? ""}</td>
        <td class="number">${each.annotations?.length ? percent(each.annotations[0].confidence) : ""}</td></tr>`)}</tbody></table></div>
      ${items.length > 300 ? html`<p class="soft">The first 300 of ${items.length}. CSV and NDJSON have all of them.</p>` : null}</section>`;
}

/** @param {any} item */
const nameOf = (item) => item.name || item.metadata?.file || (item.image_hash ? short(item.image_hash) : `item ${item.index}`);

/** @param {string} id @param {string} kind @param {string} suffix */
async function download(id, kind, suffix) {
  const answer = await send(`/api/v1/jobs/${id}/results`, { headers: { accept: kind } });
  const address = URL.createObjectURL(await answer.blob());
  const link = document.createElement("a");
  link.href = address;
  link.download = `job-${id}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
