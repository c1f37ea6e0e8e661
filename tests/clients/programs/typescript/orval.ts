// A round trip with the client that orval makes: see tests/clients/__main__.py.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import * as glimpse from "./glimpse";

const folder = process.env.FILES as string;

function check(holds: unknown, what: string, details?: unknown): asserts holds {
  if (!holds) {
    console.log("FAILED", what, details);
    process.exit(1);
  }
  console.log("ok", what);
}

const file = (name: string) => new File([readFileSync(`${folder}/${name}`)], name);
const wait = { headers: { Prefer: "wait=30" } };

const uploaded = await glimpse.uploadImage({ img: file("1.jpg") }, undefined, wait);
check(uploaded.status === 200 && uploaded.data.status === "success", "upload", uploaded);
check(uploaded.data.annotations.length > 0, "labels");

const hash = createHash("sha256").update(readFileSync(`${folder}/2.jpg`)).digest("hex");
const put = await glimpse.putImage(hash, file("2.jpg"), undefined, wait);
check(put.status === 200 && put.data.image_hash === hash, "put", put);
const found = await glimpse.getImage(hash);
check(found.status === 200 && found.data.status === "success", "get", found);

const three = await glimpse.createJob({ imgs: [file("1.jpg"), file("2.jpg"), file("3.jpg")] });
check(three.status === 202, "job of three", three);
let job = await glimpse.getJob(three.data.job_id);
for (let tries = 0; job.status === 200 && job.data.status !== "completed" && tries < 300; tries++) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  job = await glimpse.getJob(three.data.job_id);
}
check(job.status === 200 && job.data.succeeded === 3, "three images succeed", job);
const results = await glimpse.getJobResults(three.data.job_id);
check(results.status === 200 && (results.data as glimpse.JobResultList).results.length === 3, "results", results);
const jobs = await glimpse.listJobs();
check(jobs.status === 200 && jobs.data.jobs[0]?.job_id === three.data.job_id, "list jobs", jobs);
const zip = await glimpse.createZipJob(file("images.zip"));
check(zip.status === 202, "job from a zip", zip);

const tomorrow = new Date(Date.now() + 24 * 3600 * 1000).toISOString();
const later = await glimpse.createJob({ imgs: [file("3.jpg")] }, { not_before: tomorrow });
check(later.status === 202, "job for tomorrow", later);
const cancelled = await glimpse.cancelJob(later.data.job_id);
check(cancelled.status === 200 && cancelled.data.status === "cancelled", "cancel", cancelled);

const text = await glimpse.uploadImage({ img: file("text.txt") });
check(text.status === 415 && text.data.code === "unsupported_image", "415", text);
const large = await glimpse.uploadImage({ img: file("large.jpg") });
check(large.status === 413 && large.data.code === "image_too_large", "413", large);
check((large.data.max_bytes ?? 0) > 0, "with the limit");
const missing = await glimpse.getImage("0".repeat(64));
check(missing.status === 404 && missing.data.code === "not_found", "404", missing);
const ready = await glimpse.getReadiness();
check(ready.status === 200 && ready.data.checks.records === "ok", "ready", ready);
