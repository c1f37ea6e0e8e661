"""Put two images into service on Cloud Run, or put everything back: `python3 -m deploy.release`.

The order follows from who talks to whom. The API publishes, Pub/Sub pushes to whichever worker
revision has the traffic, and messages of the old API are still on their way when the new one
starts. So a worker must understand the messages of the API before it and of its own:

1. Both revisions are made without traffic; the worker's starts only if its model loads.
2. The worker gets the traffic. The API in service is asked a whole question: old messages work.
3. The new API revision is asked one at its own address: new messages work.
4. The API gets the traffic, and is asked once more.

Behind a load balancer alone (`--api-url`) a revision has no address of its own that is open to us:
step 3 is left out there, and step 4 is the first to ask the new API.

A failure at any step gives the API's traffic back first, so that no new message is made, and the
worker's after it. What the new API had published by then is delivered to the old worker: one that
does not have its model refuses, and the message stays for replay as a dead letter.

Runs gcloud, and needs nothing but the standard library.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from deploy.smoke import PATIENCE, Target, smoke

TAG = "candidate"  # names the new revision's address until it has the traffic
GCLOUD_SECONDS = 900.0  # a revision's start-up probe may take its time

Split = Mapping[str, int]  # revision: percent
Check = Callable[[str], str]  # asks the API at an address; what it said. Raises SmokeFailed.


class ReleaseFailed(Exception):
    """A step did not succeed; the text says which and why."""


@dataclass(frozen=True)
class Service:
    """A Cloud Run service as it stands.

    `candidate*` are empty where no revision has the tag, addresses where there are none.
    """

    name: str
    url: str
    image: str
    traffic: Split
    candidate: str = ""
    candidate_url: str = ""


@dataclass(frozen=True)
class CloudRun:
    """The services of one project and region, through gcloud."""

    project: str
    region: str

    def describe(self, name: str) -> Service:
        return service_of(name, self._json("run", "services", "describe", name))

    def add_revision(self, name: str, image: str) -> Service:
        """A revision of `image` without traffic, ready under the tag. The service must exist."""
        service = service_of(
            name,
            self._json(
                *("run", "services", "update", name),
                *(f"--image={image}", "--no-traffic", f"--tag={TAG}"),
            ),
        )
        # gcloud may answer before the tag stands in the status.
        service = service if service.candidate else self.describe(name)
        if not service.candidate:
            raise ReleaseFailed(f"{name}: there is no new revision")
        return service

    def set_traffic(self, name: str, split: Split) -> None:
        """Send requests by `split`, and drop the tag, which would keep its revision warm."""
        shares = ",".join(f"{revision}={percent}" for revision, percent in split.items())
        self._json(
            *("run", "services", "update-traffic", name),
            *(f"--to-revisions={shares}", f"--remove-tags={TAG}"),
        )

    def command(self, *words: str) -> list[str]:
        where = (f"--project={self.project}", f"--region={self.region}")
        return ["gcloud", *words, *where, "--quiet", "--format=json"]

    def _json(self, *words: str) -> Any:
        try:
            done = subprocess.run(
                self.command(*words),
                stdout=subprocess.PIPE,  # its standard error is the log's
                text=True,
                check=True,
                timeout=GCLOUD_SECONDS,
            )
            return json.loads(done.stdout)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            raise ReleaseFailed(f"gcloud {' '.join(words[:4])}: {error}") from error


def service_of(name: str, document: Any) -> Service:
    """What `gcloud run services describe --format=json` says. Raises ReleaseFailed."""
    try:
        status, template = document["status"], document["spec"]["template"]["spec"]
        targets = status.get("traffic", [])
        # One revision may stand in several lines, one of them for its tag.
        traffic: dict[str, int] = {}
        for target in targets:
            if percent := target.get("percent", 0):
                revision = target["revisionName"]
                traffic[revision] = traffic.get(revision, 0) + percent
        tagged: Mapping[str, str] = next((t for t in targets if t.get("tag") == TAG), {})
        service = Service(
            name=name,
            url=status.get("url", ""),
            image=template["containers"][0]["image"],
            traffic=traffic,
            candidate=tagged.get("revisionName", ""),
            candidate_url=tagged.get("url", ""),
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ReleaseFailed(f"{name}: gcloud describes no service in use: {error!r}") from error
    if sum(traffic.values()) != 100:
        raise ReleaseFailed(f"{name}: no revision to go back to, traffic is {traffic}")
    return service


@dataclass
class Journal:
    """What was so before, in a file, so that another process can put it back; and what was done.

    `path` holds the traffic before the release until the release or the roll-back is complete.
    `summary`, where given, gets a line of Markdown for each step.
    """

    path: Path
    summary: Path | None = None
    began: float = field(default_factory=time.monotonic)

    def open(self, cloud: CloudRun, services: Sequence[Service]) -> None:
        before = {service.name: dict(service.traffic) for service in services}
        document = {"project": cloud.project, "region": cloud.region, "before": before}
        self.path.write_text(json.dumps(document, indent=1))
        if self.summary is not None:
            with self.summary.open("a") as page:
                page.write(f"## Release of {' and '.join(before)}\n\n")

    def read(self) -> tuple[CloudRun, dict[str, dict[str, int]]] | None:
        """Where, and each service's traffic before, in the order of going back; None if closed."""
        if not self.path.exists():
            return None
        document = json.loads(self.path.read_text())
        return CloudRun(document["project"], document["region"]), document["before"]

    def close(self) -> None:
        self.path.unlink(missing_ok=True)

    def note(self, mark: str, text: str) -> None:
        line = f"{time.monotonic() - self.began:6.1f} s  {text}"
        print(line, flush=True)
        if self.summary is not None:
            with self.summary.open("a") as page:
                page.write(f"- {mark} {text}\n")


@dataclass(frozen=True)
class Change:
    """A service as it stands, and the image that it shall run.

    `public_url` is the one address where it can be reached, if it is not the service's own.
    """

    service: Service
    image: str
    public_url: str = ""

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def first(self) -> bool:
        """Whether what runs is another program, such as the placeholder of a new project."""
        return _repository(self.service.image) != _repository(self.image)


def release(cloud: CloudRun, api: Change, worker: Change, check: Check, journal: Journal) -> None:
    """The four steps. Raises ReleaseFailed, after going back."""
    # Going back keeps this order: the API first.
    journal.open(cloud, [api.service, worker.service])
    journal.note("📦", f"`{api.image}`")
    journal.note("📦", f"`{worker.image}`")
    try:
        new_worker = cloud.add_revision(worker.name, worker.image)
        journal.note("✅", f"`{new_worker.candidate}` is ready, without traffic")
        new_api = cloud.add_revision(api.name, api.image)
        journal.note("✅", f"`{new_api.candidate}` is ready, without traffic")
        cloud.set_traffic(worker.name, {new_worker.candidate: 100})
        journal.note("✅", f"`{new_worker.candidate}` takes the messages")
        if api.first:
            journal.note("✅", "the API in service is a placeholder and was not asked")
        else:
            journal.note(
                "✅",
                f"the API in service works with it: {check(api.public_url or api.service.url)}",
            )
        if api.public_url:
            journal.note("✅", f"`{new_api.candidate}` cannot be asked before it is in service")
        else:
            journal.note("✅", f"`{new_api.candidate}` works: {check(new_api.candidate_url)}")
        cloud.set_traffic(api.name, {new_api.candidate: 100})
        journal.note("✅", f"`{new_api.candidate}` takes the requests")
        journal.note("✅", f"the API in service works: {check(api.public_url or new_api.url)}")
    except Exception as error:
        journal.note("❌", str(error))
        roll_back(journal)
        raise ReleaseFailed("the release failed and was rolled back") from error
    journal.close()


def roll_back(journal: Journal) -> bool:
    """Put the traffic back as the journal has it; False where nothing is open.

    May be repeated. Raises ReleaseFailed, after trying every service.
    """
    found = journal.read()
    if found is None:
        return False
    cloud, before = found
    failed = []
    for name, split in before.items():
        try:
            cloud.set_traffic(name, split)
            journal.note("↩️", f"`{name}` is back on {_shares(split)}")
        except ReleaseFailed as error:
            failed.append(name)
            journal.note("❌", f"`{name}` could NOT be put back on {_shares(split)}: {error}")
    if failed:
        raise ReleaseFailed(f"put back by hand: {', '.join(failed)}")
    journal.close()
    return True


def _shares(split: Split) -> str:
    return ", ".join(f"`{revision}` {percent} %" for revision, percent in split.items())


def _repository(image: str) -> str:
    """An image's name without tag or digest."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0]


def _check(api_key: str, identity_token: str, patience: float) -> Check:
    def ask(url: str) -> str:
        if not url:
            raise ReleaseFailed("the API has no address of its own: give --api-url")
        return smoke(Target(url, api_key, identity_token), patience)

    return ask


def _terminated(number: int, frame: object) -> NoReturn:
    raise ReleaseFailed(f"stopped by signal {number}")


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Release two images on Cloud Run, or go back.")
    parser.add_argument("--journal", type=Path, required=True, help="file for what was so before")
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser("run", help="deploy, test, shift the traffic; go back on failure")
    for name in ("project", "region", "api", "worker", "api-image", "worker-image"):
        run.add_argument(f"--{name}", required=True)
    run.add_argument("--api-url", default="", help="where clients reach the API, if not at its own")
    run.add_argument("--patience", type=float, default=PATIENCE, help="seconds for labels")
    actions.add_parser("roll-back", help="put back what an interrupted run has left")
    return parser


def main() -> None:
    given = argument_parser().parse_args()
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    journal = Journal(given.journal, Path(page) if page else None)
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGINT, _terminated)
    try:
        if given.action == "roll-back":
            print("rolled back" if roll_back(journal) else "nothing to roll back")
            return
        cloud = CloudRun(given.project, given.region)
        check = _check(
            os.environ.get("GLIMPSE_API_KEY", ""),
            os.environ.get("GLIMPSE_IDENTITY_TOKEN", ""),
            given.patience,
        )
        api = Change(cloud.describe(given.api), given.api_image, given.api_url)
        worker = Change(cloud.describe(given.worker), given.worker_image)
        release(cloud, api, worker, check, journal)
    except ReleaseFailed as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
