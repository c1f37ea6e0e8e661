// @ts-check
/** History: the tenant's images, and one image. */
import { useEffect, useState } from "preact/hooks";

import { json, send } from "./api.js";
import { Action, Failure, Labels, State, html, percent, short, useLoaded, when } from "./ui.js";
import { Requests } from "./try.js";

export function History() {
  const [filters, setFilters] = useState({ label: "", status: "" });
  const [pages, setPages] = useState(/** @type {any[]} */ ([]));
  const [cursor, setCursor] = useState(/** @type {string | null} */ (null));
  const first = useLoaded(async () => {
    const found = await json("/api/v1/images", { query: { ...filters, limit: 30 } });
    setPages(found.images);
    setCursor(found.next_cursor);
    return found;
  }, [filters]);
  const more = async () => {
    const found = await json("/api/v1/images", { query: { ...filters, limit: 30, cursor } });
    setPages((before) => [...before, ...found.images]);
    setCursor(found.next_cursor);
  };
  /** @param {string} hash */
  const remove = async (hash) => {
    await send(`/api/v1/images/${hash}`, { method: "DELETE", expect: [404] });
    setPages((before) => before.filter((each) => each.image_hash !== hash));
  };
  return html`
    <h1>History</h1>
    <form class="row" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
      <label class="field">Label
        <input type="search" value=${filters.label} placeholder="any"
          onChange=${(/** @type {any} */ event) => setFilters({ ...filters, label: event.target.value.trim() })} /></label>
      <label class="field">Status
        <select value=${filters.status} onChange=${(/** @type {any} */ event) => setFilters({ ...filters, status: event.target.value })}>
          <option value="">any</option>
          ${["success", "error", "pending", "queued", "running"].map((each) => html`<option>${each}</option>`)}
        </select></label>
      <button type="button" onClick=${first.reload}>Refresh</button>
    </form>
    <${Failure} error=${first.error} />
    ${!first.busy && !first.error && pages.length === 0 ? html`<p class="soft">No images yet. <a href="#/">Try one.</a></p>` : null}
    <ul class="grid" style="margin-top:1rem" aria-busy=${first.busy}>
      ${pages.map(
        (image) => html`<li class="tile" key=${image.image_hash + image.model}>
          <${Thumbnail} hash=${image.image_hash} label=${image.annotations?.[0]?.label ?? image.status} />
          <a href=${`#/images/${image.image_hash}`}>${image.annotations?.[0]?.label ?? short(image.image_hash)}</a>
          <span class="small soft">${image.annotations?.length ? percent(image.annotations[0].confidence) : html`<${State} state=${image.status} />`} · ${when(image.created_at)}</span>
          <${Action} kind="danger small" label=${`Delete ${short(image.image_hash)}`} confirm="Delete this image and its results?" run=${() => remove(image.image_hash)}>Delete<//>
        </li>`,
      )}
    </ul>
    ${cursor ? html`<p style="margin-top:1rem"><${Action} run=${more}>More<//></p>` : null}`;
}

/**
 * By fetch, since an image element sends no key.
 * @param {{hash: string, label: string}} props
 */
export function Thumbnail({ hash, label }) {
  const [address, setAddress] = useState(/** @type {string | null} */ (null));
  useEffect(() => {
    const stop = new AbortController();
    let made = "";
    send(`/api/v1/images/${hash}/thumbnail`, { signal: stop.signal, expect: [202] })
      .then(async (answer) => {
        if (answer.status !== 200) return;
        made = URL.createObjectURL(await answer.blob());
        setAddress(made);
      })
      .catch(() => undefined);
    return () => {
      stop.abort();
      if (made) URL.revokeObjectURL(made);
    };
  }, [hash]);
  return address ? html`<img class="shot" src=${address} alt=${label} loading="lazy" />` : html`<div class="shot" style="height:6rem" role="img" aria-label="No thumbnail"></div>`;
}

/** @param {{hash: string, go: (path: string) => void}} props */
export function ImagePage({ hash, go }) {
  const found = useLoaded(() => json(`/api/v1/images/${hash}`, { query: { labels: 20 } }), [hash]);
  const image = found.value;
  return html`<h1>Image</h1>
    <p class="mono">${hash}</p>
    <${Failure} error=${found.error} />
    ${image
      ? html`<article class="card result">
          <${Thumbnail} hash=${hash} label=${image.annotations?.[0]?.label ?? "image"} />
          <div><${State} state=${image.status} />
            ${image.error ? html`<p class="bad">${image.error.detail}</p>` : null}
            <${Labels} image=${image} />
            <p class="small soft">Model ${image.model} · uploaded ${when(image.created_at)} · attempts ${image.attempts}</p>
            <${Requests} name="photo.jpg" hash=${hash} model="" labels=${5} />
            <details><summary>JSON</summary><pre tabindex="0">${JSON.stringify(image, null, 2)}</pre></details>
            <div class="row" style="margin-top:.75rem">
              <button type="button" onClick=${found.reload}>Refresh</button>
              <${Action} run=${() => show(hash)}>Original<//>
              <${Action} kind="danger" confirm="Delete this image and its results?"
                run=${async () => { await send(`/api/v1/images/${hash}`, { method: "DELETE" }); go("/history"); }}>Delete<//>
            </div></div></article>`
      : null}`;
}

/** Open the original bytes in a new tab. @param {string} hash */
async function show(hash) {
  const answer = await send(`/api/v1/images/${hash}/content`);
  const address = URL.createObjectURL(await answer.blob());
  open(address, "_blank", "noopener");
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
