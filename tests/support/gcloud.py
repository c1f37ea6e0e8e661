"""A `gcloud` for tests, which keeps the services of Cloud Run in a JSON file.

It replaces Google's side only. Another test checks that the real gcloud accepts the same command
lines, if gcloud is installed.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.stack import ROOT

FILE_VARIABLE = "FAKE_CLOUD_RUN"


@dataclass(frozen=True)
class FakeCloudRun:
    """Services in `folder`, and the `gcloud` that changes them in `folder`/bin."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "cloud-run.json"

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, FILE_VARIABLE: str(self.file), "PYTHONPATH": str(ROOT)}

    def install(self, urls: dict[str, str], images: dict[str, str]) -> None:
        """Create a service for each of `urls`, with one of `images` as its revision NAME-00001."""
        state: dict[str, Any] = {"services": {}, "calls": [], "fail": "", "candidate_url": {}}
        for name, url in urls.items():
            state["services"][name] = {
                "url": url,
                "images": [images[name]],
                "traffic": {f"{name}-00001": 100},
                "tags": {},
            }
        self.write(state)
        command = self.folder / "bin" / "gcloud"
        command.parent.mkdir(parents=True, exist_ok=True)
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.support.gcloud "$@"\n')
        command.chmod(0o755)

    def read(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self.file.read_text())
        return state

    def write(self, state: dict[str, Any]) -> None:
        self.file.write_text(json.dumps(state))

    def change(self, **values: Any) -> None:
        self.write({**self.read(), **values})

    def traffic(self, name: str) -> dict[str, int]:
        split: dict[str, int] = self.read()["services"][name]["traffic"]
        return split

    def calls(self, verb: str) -> list[list[str]]:
        return [call for call in self.read()["calls"] if verb in call]


def described(state: dict[str, Any], name: str) -> dict[str, Any]:
    """The parts of a Knative service that releases read."""
    service = state["services"][name]
    traffic: list[dict[str, Any]] = [
        {"revisionName": revision, "percent": percent}
        for revision, percent in service["traffic"].items()
    ]
    for tag, revision in service["tags"].items():
        url = state["candidate_url"].get(name, service["url"])
        traffic.append({"revisionName": revision, "tag": tag} | ({"url": url} if url else {}))
    status = {"traffic": traffic} | ({"url": service["url"]} if service["url"] else {})
    return {
        "spec": {"template": {"spec": {"containers": [{"image": service["images"][-1]}]}}},
        "status": status,
    }


def answer(state: dict[str, Any], words: list[str]) -> Any:
    """Execute one command line, or exit as gcloud does."""
    options = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    verbs = [word for word in words if not word.startswith("--")]
    name = verbs[-1]
    state["calls"].append(words)
    if (pattern := state["fail"]) and pattern in " ".join(words):
        sys.exit(f"ERROR: (gcloud) {pattern}")
    service = state["services"][name]
    match verbs[:-1]:
        case ["run", "services", "describe"]:
            pass
        case ["run", "services", "update"]:
            assert "no-traffic" in options
            service["images"].append(options["image"])
            service["tags"][options["tag"]] = f"{name}-{len(service['images']):05d}"
        case ["run", "services", "update-traffic"]:
            shares = (share.partition("=") for share in options["to-revisions"].split(","))
            service["traffic"] = {revision: int(percent) for revision, _, percent in shares}
            service["tags"].pop(options["remove-tags"], None)
        case _:
            sys.exit(f"ERROR: (gcloud) Invalid choice: {verbs}")
    return described(state, name)


def main() -> None:
    file = Path(os.environ[FILE_VARIABLE])
    state = json.loads(file.read_text())
    try:
        print(json.dumps(answer(state, sys.argv[1:])))
    finally:
        file.write_text(json.dumps(state))


if __name__ == "__main__":
    main()
