// @ts-check
/** History: the tenant's images, newest first, with filters. */
import { useState } from "preact/hooks";

import { json, send } from "./api.js";
import { Action, Failure, State, html, percent, short, useLoaded, when } from "./ui.js";
import { Thumbnail } from "./thumbnail.js";

const PAGE = 30;
const STATUSES = ["success", "error", "pending", "queued", "running"];

export function History() {
  const [filters, setFilters] = useState({ label: "", min_confidence: "", status: "" });
  const [images, setImages] = useState(/** @type {any[]} */ ([]));
  const [cursor, setCursor] = useState(/** @type {string | null} */ (null));
  /** @param {string | null} from */
  const load = async (from) => {
    // A minimal confidence needs a label.
    const query = { ...filters, min_confidence: filters.label && filters.min_confidence, limit: PAGE };
    /** @type {any[]} */
    const found = [];
    let next = from;
    // A page may be empty although more follow.
    do {
      const page = await json("/api/v1/images", { query: { ...query, cursor: next } });
      found.push(...page.images);
      next = page.next_cursor;
    } while (next && found.length === 0);
    setCursor(next);
    return found;
  };
  const first = useLoaded(async () => setImages(await load(null)), [filters]);
  const more = async () => {
    const found = await load(cursor);
    setImages((before) => [...before, ...found]);
  };
  /** @param {string} hash */
  const remove = async (hash) => {
    await send(`/api/v1/images/${hash}`, { method: "DELETE", expect: [404] });
    setImages((before) => before.filter((each) => each.image_hash !== hash));
  };
  /** @param {string} name */
  const change = (name) => (/** @type {any} */ event) => {
    const value = event.target.value.trim();
    setFilters((before) => ({ ...before, [name]: value }));
  };
  return html`
    <h1>History</h1>
    <form class="row end" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
      <label class="field">Label<input type="search" value=${filters.label} placeholder="any" onChange=${change("label")} /></label>
      <label class="field">Confidence
        <select value=${filters.min_confidence} onChange=${change("min_confidence")}>
          ${["", "0.1", "0.25", "0.5", "0.75", "0.9"].map((each) => html`<option value=${each}>${each ? `at least ${percent(Number(each))}` : "any"}</option>`)}
        </select></label>
      <label class="field">Status
        <select value=${filters.status} onChange=${change("status")}>
          <option value="">any</option>
          ${STATUSES.map((each) => html`<option value=${each}>${each}</option>`)}
        </select></label>
      <button type="button" onClick=${first.reload}>Refresh</button>
    </form>
    <${Failure} error=${first.error} />
    ${!first.busy && !first.error && images.length === 0 ? html`<p class="soft" role="status">No images. <a href="#/">Try one.</a></p>` : null}
    <ul class="grid" aria-busy=${first.busy} aria-label="Images">
      ${images.map((image) => html`<${Tile} key=${image.image_hash + image.model} image=${image} remove=${remove} />`)}
    </ul>
    ${cursor ? html`<p><${Action} run=${more}>More<//></p>` : null}`;
}

/** @param {{image: any, remove: (hash: string) => Promise<void>}} props */
function Tile({ image, remove }) {
  const [best] = image.annotations ?? [];
  const name = best?.label ?? short(image.image_hash);
  return html`<li class="tile">
    <${Thumbnail} hash=${image.image_hash} label=${best ? name : `Image ${name}`} />
    <a href=${`#/images/${image.image_hash}`}>${image.confident === false ? `Not sure: ${name}` : name}</a>
    <span class="small soft">${best ? percent(best.confidence) : html`<${State} state=${image.status} />`} · ${when(image.created_at)}</span>
    ${image.error ? html`<span class="small bad">${image.error.detail}</span>` : null}
    <${Action} kind="danger small" label=${`Delete ${name} ${short(image.image_hash)}`} confirm="Delete this image and its results?" run=${() => remove(image.image_hash)}>Delete<//>
  </li>`;
}
