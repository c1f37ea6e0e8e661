// @ts-check
/** Many files as one job: hash, look up, send what is missing, then name everything by hash. */
import { Problem, call, json, send, sha256 } from "./api.js";

const AT_ONCE = 4;
const MOST = 1000;

/**
 * @param {{file: File, path: string}[]} images
 * @param {string} model empty for the default one
 * @param {(word: string, done: number, total: number) => void} progress
 * @returns {Promise<string>} the job's id
 */
export async function createJob(images, model, progress) {
  if (images.length > MOST) {
    throw new Error(`A job has at most ${MOST} images; these are ${images.length}. Use the command line: glimpse label.`);
  }
  const hashes = await uploadMissing(images, model, progress);
  const created = await call(
    "POST",
    "/api/v1/jobs/batch-predict",
    { image_hashes: hashes.map((hash, n) => ({ image_hash: hash, metadata: { file: images[n].path } })), ...(model ? { model } : {}) },
    { "idempotency-key": crypto.randomUUID?.() ?? String(Math.random()) },
  );
  return created.job_id;
}

/**
 * The hash of each image, all of them known to the service afterwards.
 * @param {{file: File, path: string}[]} images
 * @param {string} model
 * @param {(word: string, done: number, total: number) => void} progress
 * @returns {Promise<string[]>}
 */
async function uploadMissing(images, model, progress) {
  /** @type {string[]} */
  const hashes = new Array(images.length);
  let done = 0;
  await each(images, async ({ file }, n) => {
    hashes[n] = (await sha256(file)) ?? "";
    progress("Hashing", ++done, images.length);
  });
  const known = hashes.every((hash) => hash !== "")
    ? await json("/api/v1/images/lookup", {
        method: "POST",
        headers: { "content-type": "application/json" },
        body: JSON.stringify({ image_hashes: [...new Set(hashes)], ...(model ? { model } : {}) }),
      })
    : { missing: null };
  const missing = known.missing === null ? null : new Set(known.missing);
  const sending = images.map((image, n) => ({ ...image, n })).filter(({ n }) => missing === null || missing.delete(hashes[n]));
  let sent = 0;
  await each(sending, async ({ file, n }) => {
    try {
      const answer = await send("/api/v1/images", {
        method: "POST", query: { model }, body: file, headers: { "content-type": "application/octet-stream" },
      });
      hashes[n] = (await answer.json()).image_hash;
    } catch (error) {
      // A file that is no image fails its item only; the job says why.
      if (!(error instanceof Problem) || ![413, 415, 422].includes(error.status) || !hashes[n]) throw error;
      hashes[n] = "";
    }
    progress("Uploading", ++sent, sending.length);
  });
  const usable = hashes.filter((hash) => hash !== "");
  if (usable.length === 0) throw new Error("None of these files is an image that the service accepts.");
  return usable;
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
