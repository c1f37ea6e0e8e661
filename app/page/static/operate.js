// @ts-check
/** Operate: keys, usage, webhooks, dead letters, readiness. Each part shows what the key permits. */
import { useState } from "preact/hooks";

import { call, json, send } from "./api.js";
import { Action, Copy, Failure, html, short, useLoaded, when } from "./ui.js";

export function Operate() {
  return html`<h1>Operate</h1><${Readiness} /><${Keys} /><${Usage} /><${Webhooks} /><${DeadLetters} />`;
}

function Readiness() {
  const found = useLoaded(async () => (await send("/ready", { expect: [503] })).json(), []);
  const checks = Object.entries(found.value?.checks ?? {});
  return html`<section class="card"><div class="row spread"><h2>Readiness</h2><button type="button" onClick=${found.reload}>Check</button></div>
    <${Failure} error=${found.error} />
    <ul class="chips">${checks.map(([name, state]) => html`<li class="chip"><span class=${state === "ok" ? "good" : "bad"}>${name}: ${String(state)}</span></li>`)}</ul></section>`;
}

function Keys() {
  const found = useLoaded(() => json("/api/v1/keys"), []);
  const [name, setName] = useState("");
  const [scopes, setScopes] = useState("classify read jobs");
  const [expires, setExpires] = useState("");
  const [rate, setRate] = useState("");
  const [quota, setQuota] = useState("");
  const [shown, setShown] = useState("");
  const make = async () => {
    const chosen = Object.entries({ expires, rate_limit: rate, daily_quota: Number(quota) }).filter(([, value]) => value);
    const body = { name, scopes: scopes.split(/[\s,]+/).filter(Boolean), ...Object.fromEntries(chosen) };
    setShown((await call("POST", "/api/v1/keys", body)).key);
    setName("");
    found.reload();
  };
  return html`<section class="card"><h2>Keys</h2>
    <${Failure} error=${found.error} />
    ${shown ? html`<div class="notice" role="status"><p>The key is shown once. Copy it now.</p><div class="row"><code>${shown}</code><${Copy} text=${shown} /><button type="button" onClick=${() => setShown("")}>Done</button></div></div>` : null}
    ${found.value
      ? html`<div class="row end"><label class="field">Name<input value=${name} onInput=${(/** @type {any} */ event) => setName(event.target.value)} /></label>
          <label class="field">Scopes<input value=${scopes} onInput=${(/** @type {any} */ event) => setScopes(event.target.value)} /></label>
          <label class="field">Expires<input value=${expires} placeholder="never, or 90d" onInput=${(/** @type {any} */ event) => setExpires(event.target.value)} /></label>
          <label class="field">Rate limit<input value=${rate} placeholder="the service's, or 600/minute" onInput=${(/** @type {any} */ event) => setRate(event.target.value)} /></label>
          <label class="field">Requests a day<input type="number" min="1" value=${quota} placeholder="no limit" onInput=${(/** @type {any} */ event) => setQuota(event.target.value)} /></label>
          <${Action} kind="primary" run=${make}>Make a key<//></div>
        <div class="scroll"><table><thead><tr><th scope="col">Name</th><th scope="col">Key</th><th scope="col">Scopes</th><th scope="col">Limits</th><th scope="col">Expires</th><th scope="col">Last used</th><th scope="col">Actions</th></tr></thead>
        <tbody>${found.value.keys.map((/** @type {any} */ key) => html`<tr key=${key.id}>
          <td>${key.name}</td><td class="mono">${key.prefix}…</td><td>${key.scopes.join(" ")}</td><td>${[key.rate_limit, key.daily_quota ? `${key.daily_quota} a day` : ""].filter(Boolean).join(", ")}</td>
          <td>${when(key.expires_at)}</td><td>${when(key.last_used_at)}</td>
          <td>${key.active
            ? html`<${Action} label=${`Rotate ${key.name}`} run=${async () => { setShown((await call("POST", `/api/v1/keys/${key.id}/rotate`, {})).key); found.reload(); }}>Rotate<//>
                <${Action} kind="danger" label=${`Revoke ${key.name}`} confirm=${`Revoke the key ${key.name}?`} run=${async () => { await send(`/api/v1/keys/${key.id}`, { method: "DELETE" }); found.reload(); }}>Revoke<//>`
            : html`<span class="soft">inactive</span>`}</td></tr>`)}</tbody></table></div>`
      : null}</section>`;
}

function Usage() {
  const found = useLoaded(() => json("/api/v1/usage", { query: { days: 14 } }), []);
  const rows = found.value?.usage ?? [];
  const most = Math.max(1, ...rows.map((/** @type {any} */ each) => each.requests));
  return html`<section class="card"><h2>Usage</h2><${Failure} error=${found.error} />
    ${found.value && rows.length === 0 ? html`<p class="soft">Nothing in the last 14 days.</p>` : null}
    ${rows.length ? html`<div class="scroll"><table><thead><tr><th scope="col">Day</th><th scope="col">Requests</th><th scope="col" class="number">Images</th><th scope="col" class="number">MB</th><th scope="col" class="number">Refused</th></tr></thead>
      <tbody>${rows.map((/** @type {any} */ row) => html`<tr><td>${row.day}</td><td><meter min="0" max=${most} value=${row.requests} aria-label=${`${row.requests} requests`}></meter> ${row.requests}</td><td class="number">${row.images}</td><td class="number">${(row.bytes / 1e6).toFixed(1)}</td><td class="number">${row.refused}</td></tr>`)}</tbody></table></div>` : null}</section>`;
}

function Webhooks() {
  const found = useLoaded(() => json("/api/v1/webhooks"), []);
  const [url, setUrl] = useState("");
  const [secret, setSecret] = useState("");
  const make = async () => {
    setSecret((await call("POST", "/api/v1/webhooks", { url })).secret);
    setUrl("");
    found.reload();
  };
  return html`<section class="card"><h2>Webhooks</h2><${Failure} error=${found.error} />
    ${secret ? html`<div class="notice" role="status"><p>The secret is shown once. Copy it now.</p><div class="row"><code>${secret}</code><${Copy} text=${secret} /><button type="button" onClick=${() => setSecret("")}>Done</button></div></div>` : null}
    ${found.value
      ? html`<div class="row"><label class="field">URL<input type="url" value=${url} placeholder="https://example.com/hooks" onInput=${(/** @type {any} */ event) => setUrl(event.target.value)} /></label><${Action} kind="primary" run=${make}>Add<//></div>
        <div class="scroll"><table><thead><tr><th scope="col">URL</th><th scope="col">Events</th><th scope="col">Last delivery</th><th scope="col">Actions</th></tr></thead><tbody>
        ${found.value.webhooks.map((/** @type {any} */ hook) => html`<tr key=${hook.id}><td>${hook.url}${hook.enabled ? "" : html` <span class="bad">disabled</span>`}</td><td>${hook.events.join(" ")}</td>
          <td>${hook.last_delivery ? html`<span class=${(hook.last_delivery.status ?? 0) >= 200 && hook.last_delivery.status < 300 ? "good" : "bad"}>${hook.last_delivery.status ?? hook.last_delivery.error}</span> ${when(hook.last_delivery.at)}` : "none"}</td>
          <td><${Action} run=${async () => { await call("POST", `/api/v1/webhooks/${hook.id}/test`, undefined); setTimeout(found.reload, 1500); }}>Test<//>
            <${Action} kind="danger" confirm="Delete this webhook?" run=${async () => { await send(`/api/v1/webhooks/${hook.id}`, { method: "DELETE" }); found.reload(); }}>Delete<//></td></tr>`)}
        </tbody></table></div>`
      : null}</section>`;
}

function DeadLetters() {
  const found = useLoaded(() => json("/api/v1/dead-letters"), []);
  return html`<section class="card"><h2>Dead letters</h2><${Failure} error=${found.error} />
    ${found.value && found.value.dead_letters.length === 0 ? html`<p class="soft">None.</p>` : null}
    ${found.value?.dead_letters.length
      ? html`<div class="scroll"><table><thead><tr><th scope="col">Image</th><th scope="col">Reason</th><th scope="col">Since</th><th scope="col">Actions</th></tr></thead><tbody>
        ${found.value.dead_letters.map((/** @type {any} */ letter) => html`<tr key=${letter.id}><td class="mono">${letter.image_hash ? short(letter.image_hash) : short(letter.id)}</td><td>${letter.error.code}: ${letter.error.detail}</td><td>${when(letter.dead_lettered_at)}</td>
          <td>${letter.resolved_at ? "resolved" : html`<${Action} run=${async () => { await call("POST", `/api/v1/dead-letters/${letter.id}/replay`, undefined); found.reload(); }}>Replay<//>`}</td></tr>`)}
        </tbody></table></div>`
      : null}</section>`;
}
