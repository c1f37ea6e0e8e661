// @ts-check
/** Many files as one job: hash, look up, send what is missing, then name everything by hash. */
import { Problem, call, json, sha256 } from "./api.js";

/**
 * An image of a job. `refused` is why the service does not accept its bytes.
 * @typedef {{hash: string, path: string, refused: string}} Sent
 */

const AT_ONCE = 4;
const MOST = 1000; // images of a job, and hashes of a lookup

/**
 * @param {{file: File, path: string}[]} images
 * @param {{model?: string, name?: string}} options empty ones are left to the service
 * @param {(word: string, done: number, total: number) => void} progress
 * @returns {Promise<string>} the job's id
 */
export async function createJob(images, options, progress) {
  if (images.length === 0) throw new Error("No images were found among these files.");
  if (images.length > MOST) {
    throw new Error(`A job has at most ${MOST} images; these are ${images.length}. Use the command line: glimpse label.`);
  }
  // Without a hash of the browser's (see `sha256`), a refused file has no name for the service, and
  // is left out.
  const sent = (await uploadMissing(images, options.model ?? "", progress)).filter(({ hash }) => hash !== "");
  if (sent.every(({ refused }) => refused)) {
    throw new Error("None of these files is an image that the service accepts.");
  }
  const chosen = Object.fromEntries(Object.entries(options).filter(([, value]) => value));
  const body = {
    ...chosen,
    image_hashes: sent.map(({ hash, path, refused }) => ({
      image_hash: hash, metadata: { file: path, ...(refused ? { refused } : {}) },
    })),
  };
  // The same key with each attempt: only one job is created.
  const headers = { "idempotency-key": crypto.randomUUID?.() ?? String(Math.random()) };
  const created = await persistent(() => call("POST", "/api/v1/jobs/batch-predict", body, headers));
  return created.job_id;
}

/**
 * The images in their order, each known to the service afterwards or refused by it.
 * @param {{file: File, path: string}[]} images
 * @param {string} model
 * @param {(word: string, done: number, total: number) => void} progress
 * @returns {Promise<Sent[]>}
 */
export async function uploadMissing(images, model, progress) {
  /** @type {Sent[]} */
  const found = images.map(({ path }) => ({ hash: "", path, refused: "" }));
  let done = 0;
  await each(images, async ({ file }, n) => {
    found[n].hash = (await sha256(file)) ?? "";
    progress("Hashing", ++done, images.length);
  });
  const hashes = [...new Set(found.map(({ hash }) => hash))];
  const missing = hashes.includes("") ? null : await lookUp(hashes, model);
  const sending = images.map((image, n) => ({ ...image, n })).filter(({ n }) => !missing || missing.delete(found[n].hash));
  /** @type {Map<string, string>} */
  const refused = new Map();
  let sent = 0;
  await each(sending, async ({ file, n }) => {
    try {
      const image = await persistent(() => json("/api/v1/images", {
        method: "POST", query: { model }, body: file, headers: { "content-type": "application/octet-stream" },
      }));
      found[n].hash = image.image_hash;
    } catch (error) {
      // A file that is no image fails its item only.
      if (!(error instanceof Problem) || ![413, 415, 422].includes(error.status)) throw error;
      refused.set(found[n].hash, error.message.slice(0, 300));
    }
    progress("Uploading", ++sent, sending.length);
  });
  return found.map((one) => ({ ...one, refused: refused.get(one.hash) ?? "" }));
}

/**
 * The hashes of images that the service does not have.
 * @param {string[]} hashes
 * @param {string} model
 * @returns {Promise<Set<string>>}
 */
async function lookUp(hashes, model) {
  /** @type {Set<string>} */
  const missing = new Set();
  for (let start = 0; start < hashes.length; start += MOST) {
    const body = { image_hashes: hashes.slice(start, start + MOST), ...(model ? { model } : {}) };
    const found = await persistent(() => call("POST", "/api/v1/images/lookup", body));
    for (const each of found.missing) missing.add(each);
  }
  return missing;
}

/**
 * The folder that all files are in, as a name for their job.
 * @param {{path: string}[]} images
 */
export function folderOf(images) {
  const [first = "", ...others] = new Set(images.map(({ path }) => (path.includes("/") ? path.split("/")[0] : "")));
  return others.length === 0 ? first.slice(0, 200) : "";
}

const PATIENCE = 60_000;

/**
 * Run a request again while the service does not answer or is busy, for a minute.
 * @template T
 * @param {() => Promise<T>} request
 * @returns {Promise<T>}
 */
export async function persistent(request) {
  const until = performance.now() + PATIENCE;
  for (let wait = 500; ; wait = Math.min(5000, 2 * wait)) {
    try {
      return await request();
    } catch (error) {
      const again = error instanceof Problem && [0, 408, 429, 502, 503, 504].includes(error.status);
      if (!again || performance.now() > until) throw error;
      const pause = error.retryAfter === null ? wait : 1000 * error.retryAfter;
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
}

/**
 * @template T
 * @param {T[]} items
 * @param {(item: T, index: number) => Promise<void>} work
 */
async function each(items, work) {
  let next = 0;
  await Promise.all(
    Array.from({ length: Math.min(AT_ONCE, items.length) }, async () => {
      while (next < items.length) {
        const n = next++;
        await work(items[n], n);
      }
    }),
  );
}
