// @ts-check
/** The page: sign-in, tabs, and the view that the address names. */
import { render } from "preact";
import { useEffect, useState } from "preact/hooks";

import { storeKey, storedKey } from "./api.js";
import { html } from "./ui.js";
import { Try } from "./try.js";

/** Views that most visits do not need are loaded with their first use. */
const VIEWS = {
  history: () => import("./history.js").then((module) => module.History),
  images: () => import("./image.js").then((module) => module.ImagePage),
  jobs: () => import("./jobs.js").then((module) => module.Jobs),
  job: () => import("./jobs.js").then((module) => module.JobPage),
  models: () => import("./models.js").then((module) => module.Models),
  model: () => import("./models.js").then((module) => module.ModelPage),
  operate: () => import("./operate.js").then((module) => module.Operate),
};
const TABS = [["/", "Try"], ["/history", "History"], ["/jobs", "Jobs"], ["/models", "Models"], ["/operate", "Operate"]];

const TITLES = { try: "", history: "History", images: "Image", jobs: "Jobs", job: "Job", models: "Models", model: "Model", operate: "Operate" };

const path = () => location.hash.slice(1) || "/";
/** @param {string} to */
const go = (to) => { location.hash = to; };

/** @param {string} at @returns {[keyof typeof VIEWS | "try", Record<string, string>]} */
function routeOf(at) {
  const [, first = "", second = ""] = at.split("/");
  const name = decodeURIComponent(second);
  if (first === "images" && /^[0-9a-f]{64}$/i.test(name)) return ["images", { hash: name.toLowerCase() }];
  if (first === "jobs" && name) return ["job", { id: name }];
  if (first === "models" && name) return ["model", { name }];
  if (first === "history" || first === "jobs" || first === "models" || first === "operate") return [first, {}];
  return ["try", { model: new URLSearchParams(at.split("?")[1]).get("model") ?? "" }];
}

function App() {
  const [at, setAt] = useState(path());
  const [signIn, setSignIn] = useState(false);
  const [key, setKey] = useState(storedKey());
  useEffect(() => {
    const moved = () => {
      setAt(path());
      document.querySelector("main")?.focus();
    };
    const changed = () => setKey(storedKey());
    const refused = () => setSignIn(true);
    addEventListener("hashchange", moved);
    addEventListener("glimpse-key", changed);
    addEventListener("glimpse-unauthenticated", refused);
    return () => {
      removeEventListener("hashchange", moved);
      removeEventListener("glimpse-key", changed);
      removeEventListener("glimpse-unauthenticated", refused);
    };
  }, []);
  const [view, props] = routeOf(at);
  useEffect(() => { document.title = TITLES[view] ? `${TITLES[view]} · Glimpse` : "Glimpse"; }, [view]);
  return html`
    <a class="skip" href="#main" onClick=${(/** @type {Event} */ event) => { event.preventDefault(); document.querySelector("main")?.focus(); }}>Skip to the content</a>
    <header class="top"><div>
      <a class="brand" href="#/"><svg viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8" fill="#1d4ed8"/><path d="M4 16s4.5-7 12-7 12 7 12 7-4.5 7-12 7S4 16 4 16Z" fill="none" stroke="#fff" stroke-width="2.2"/><circle cx="16" cy="16" r="4" fill="#fff"/></svg>Glimpse</a>
      <nav class="tabs" aria-label="Views">${TABS.map(([to, text]) => html`<a href=${`#${to}`} aria-current=${isCurrent(at, to) ? "page" : undefined}>${text}</a>`)}</nav>
      <a href="docs" class="small">API</a>
      <button type="button" onClick=${() => (key ? storeKey("") : setSignIn(!signIn))}>${key ? "Sign out" : "Sign in"}</button>
    </div></header>
    <main id="main" tabindex="-1">
      ${signIn && !key ? html`<${SignIn} onDone=${() => setSignIn(false)} />` : null}
      ${view === "try" ? html`<${Try} key=${props.model + key} model=${props.model} go=${go} />` : html`<${Later} key=${view + JSON.stringify(props) + key} view=${view} props=${{ ...props, go }} />`}
    </main>`;
}

/** @param {string} at @param {string} to */
const isCurrent = (at, to) => (to === "/" ? at === "/" || at.startsWith("/?") : at.startsWith(to));

/** @param {{view: keyof typeof VIEWS, props: Record<string, any>}} props */
function Later({ view, props }) {
  const [View, setView] = useState(/** @type {any} */ (null));
  const [error, setError] = useState("");
  useEffect(() => {
    VIEWS[view]().then((loaded) => setView(() => loaded), () => setError("This part of the page did not load. Reload the page."));
  }, [view]);
  if (error) return html`<p class="notice bad" role="alert">${error}</p>`;
  return View ? html`<${View} ...${props} />` : html`<p class="loading">Loading …</p>`;
}

/** @param {{onDone: () => void}} props */
function SignIn({ onDone }) {
  const [text, setText] = useState("");
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    if (!text.trim()) return;
    storeKey(text.trim());
    onDone();
  };
  return html`<form class="card" onSubmit=${submit}><h2>Sign in</h2>
    <p class="soft">Paste an API key. It stays in this tab and is forgotten when you close it.</p>
    <div class="row"><label class="field">API key<input type="password" autocomplete="off" value=${text} onInput=${(/** @type {any} */ event) => setText(event.target.value)} /></label>
      <button class="primary" type="submit">Sign in</button></div></form>`;
}

// A file that is dropped beside a place for files would replace the page.
for (const name of ["dragover", "drop"]) addEventListener(name, (event) => event.preventDefault());

const root = /** @type {HTMLElement} */ (document.getElementById("app"));
root.textContent = "";
render(html`<${App} />`, root);
