// Requests with the types that openapi-typescript makes, by openapi-fetch: see
// tests/clients/__main__.py.

import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { components, paths } from "./schema";

const folder = process.env.FILES as string;
const client = createClient<paths>({ baseUrl: process.env.GLIMPSE_URL });

function check(holds: unknown, what: string, details?: unknown): asserts holds {
  if (!holds) {
    console.log("FAILED", what, details);
    process.exit(1);
  }
  console.log("ok", what);
}

function form(field: string, ...names: string[]): FormData {
  const body = new FormData();
  for (const name of names) body.append(field, new File([readFileSync(`${folder}/${name}`)], name));
  return body;
}

async function upload(name: string) {
  return client.POST("/api/v1/images", {
    body: { img: "" },
    bodySerializer: () => form("img", name),
    params: { header: { Prefer: "wait=30" } },
  });
}

const uploaded = await upload("1.jpg");
check(uploaded.data?.status === "success", "upload", uploaded.error);
const image_hash = uploaded.data.image_hash;
const found = await client.GET("/api/v1/images/{image_hash}", { params: { path: { image_hash } } });
check(found.data?.annotations.length, "get", found.error);
const created = await client.POST("/api/v1/jobs/batch-predict", {
  body: {},
  bodySerializer: () => form("imgs", "1.jpg", "2.jpg", "3.jpg"),
  params: { query: { priority: "high" } },
});
check(created.data?.job_id, "job of three", created.error);
const job_id = created.data.job_id;
let status: components["schemas"]["JobStatus"] | undefined;
for (let tries = 0; status !== "completed" && tries < 300; tries++) {
  await new Promise((resolve) => setTimeout(resolve, 100));
  status = (await client.GET("/api/v1/jobs/{job_id}", { params: { path: { job_id } } })).data?.status;
}
check(status === "completed", "the job completes", status);
const text = await upload("text.txt");
check(text.error?.code === "unsupported_image" && text.response.status === 415, "415", text.error);
const large = await upload("large.jpg");
check(large.error?.code === "image_too_large" && large.response.status === 413, "413", large.error);
