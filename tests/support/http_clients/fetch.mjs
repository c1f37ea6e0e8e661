// Node's fetch and FormData: see `Program` in base.py.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";

async function request([kind, url, ...rest]) {
  if (kind === "get") return fetch(url);
  if (kind === "post") {
    const headers = { "Content-Type": "image/jpeg" };
    return fetch(url, { method: "POST", headers, body: await readFile(rest[0]) });
  }
  const form = new FormData();
  for (let at = 1; at < rest.length; at += 2) {
    form.append(rest[0], new Blob([await readFile(rest[at + 1])]), rest[at]);
  }
  return fetch(url, { method: "POST", body: form });
}

for await (const line of createInterface({ input: process.stdin })) {
  try {
    const response = await request(line.split("\t"));
    const body = Buffer.from(await response.arrayBuffer());
    console.log(`${response.status} ${body.toString("base64")}`);
  } catch (error) {
    console.log(`error: ${error} ${error.cause ?? ""}`.replaceAll("\n", " "));
  }
}
