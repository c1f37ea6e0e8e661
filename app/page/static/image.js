// @ts-check
/** One image: its result, its bytes, its deletion. */
import { useEffect, useState } from "preact/hooks";

import { json, send } from "./api.js";
import { Action, Failure, Labels, State, html, useLoaded, when } from "./ui.js";
import { Thumbnail } from "./thumbnail.js";
import { Requests } from "./try.js";

/** @param {{hash: string, go: (path: string) => void}} props */
export function ImagePage({ hash, go }) {
  const found = useLoaded(() => json(`/api/v1/images/${hash}`, {}), [hash]);
  const image = found.value;
  return html`<h1>Image</h1>
    <p class="mono">${hash}</p>
    <${Failure} error=${found.error} />
    ${image
      ? html`<article class="card result">
          <${Original} hash=${hash} label=${image.annotations?.[0]?.label ?? "image"} />
          <div><${State} state=${image.status} />
            ${image.error ? html`<p class="bad">${image.error.detail}</p>` : null}
            <${Labels} image=${image} />
            <p class="small soft">Model ${image.model} · uploaded ${when(image.created_at)} · attempts ${image.attempts}</p>
            <${Requests} name="photo.jpg" hash=${hash} />
            <details><summary>JSON</summary><pre tabindex="0">${JSON.stringify(image, null, 2)}</pre></details>
            <div class="row" style="margin-top:.75rem">
              <button type="button" onClick=${found.reload}>Refresh</button>
              <${Action} kind="danger" confirm="Delete this image and its results?"
                run=${async () => { await send(`/api/v1/images/${hash}`, { method: "DELETE" }); go("/history"); }}>Delete<//>
            </div></div></article>`
      : null}`;
}

/**
 * The image itself, by fetch, since an image element sends no key. A link to another host is not
 * followed: the page's policy permits this origin only.
 * @param {{hash: string, label: string}} props
 */
function Original({ hash, label }) {
  const [address, setAddress] = useState("");
  useEffect(() => {
    const stop = new AbortController();
    let made = "";
    send(`/api/v1/images/${hash}/content`, { signal: stop.signal })
      .then((answer) => answer.blob())
      .then((blob) => setAddress((made = URL.createObjectURL(blob))))
      .catch(() => undefined);
    return () => {
      stop.abort();
      if (made) URL.revokeObjectURL(made);
    };
  }, [hash]);
  return html`<div>${address ? html`<img src=${address} alt=${label} />` : html`<${Thumbnail} hash=${hash} label=${label} />`}</div>`;
}
