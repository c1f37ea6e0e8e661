"""Releases two images to Cloud Run, or rolls a release back: `python3 -m deploy.release`.

The order of the steps follows from the direction of messages. The API publishes, and Pub/Sub
pushes to the worker revision that has the traffic. When a new API starts, the queue still has
messages of the old API. So a worker must understand messages of its own API and of the previous
one:

1. Create both revisions without traffic. The worker revision starts only if its model loads.
2. Move the traffic of the worker. Test the API in service: its messages must work.
3. Test the new API revision at its own address: its messages must work.
4. Move the traffic of the API, and test it again.

If only a load balancer can reach the API (`--api-url`), a revision has no address for the test.
Then there is no step 3, and step 4 is the first test of the new API.

If a step fails, the API gets its old traffic back first, which stops new messages. Then the
worker gets its old traffic back. The old worker receives the messages that the new API has
published. If it does not have their model, they become dead letters, which can be replayed.

This module runs gcloud. It needs only the standard library.
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

from deploy.smoke import RESULT_SECONDS, Target, smoke

TAG = "candidate"  # gives the new revision an address until it has the traffic
GCLOUD_SECONDS = 900.0  # includes the start-up probe of a revision

Split = Mapping[str, int]  # revision: percent
Check = Callable[[str], str]  # tests the API at an address, returns its model. Raises SmokeFailed


class ReleaseFailed(Exception):
    """A step failed. The text says which one and why."""


@dataclass(frozen=True)
class Service:
    """The state of a Cloud Run service.

    `candidate` and `candidate_url` are empty if no revision has the tag.
    """

    name: str
    url: str
    image: str
    traffic: Split
    candidate: str = ""
    candidate_url: str = ""


@dataclass(frozen=True)
class CloudRun:
    """The Cloud Run services of a project and region, through gcloud."""

    project: str
    region: str

    def describe(self, name: str) -> Service:
        return service_of(name, self._json("run", "services", "describe", name))

    def add_revision(self, name: str, image: str) -> Service:
        """Create a revision of `image` with the tag and without traffic. The service must exist."""
        service = service_of(
            name,
            self._json(
                *("run", "services", "update", name),
                *(f"--image={image}", "--no-traffic", f"--tag={TAG}"),
            ),
        )
        # gcloud can return before the status has the tag.
        service = service if service.candidate else self.describe(name)
        if not service.candidate:
            raise ReleaseFailed(f"{name}: there is no new revision")
        return service

    def set_traffic(self, name: str, split: Split) -> None:
        """Split the requests as given, and remove the tag, which would keep its revision warm."""
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
                stdout=subprocess.PIPE,  # its standard error goes to the log
                text=True,
                check=True,
                timeout=GCLOUD_SECONDS,
            )
            return json.loads(done.stdout)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            raise ReleaseFailed(f"gcloud {' '.join(words[:4])}: {error}") from error


def service_of(name: str, document: Any) -> Service:
    """Parse the output of `gcloud run services describe --format=json`. Raises ReleaseFailed."""
    try:
        status, template = document["status"], document["spec"]["template"]["spec"]
        targets = status.get("traffic", [])
        # A revision can have several entries, one of them for its tag.
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
        raise ReleaseFailed(
            f"{name}: gcloud does not describe a service in use: {error!r}"
        ) from error
    if sum(traffic.values()) != 100:
        raise ReleaseFailed(
            f"{name}: there is no revision to roll back to, the traffic is {traffic}"
        )
    return service


@dataclass
class Journal:
    """A file with the traffic before the release, so that another process can restore it.

    The file exists until the release or the roll-back is complete. `summary` is an optional file
    that gets a line of Markdown for each step.
    """

    path: Path
    summary: Path | None = None
    began: float = field(default_factory=time.monotonic)

    def open(self, cloud: CloudRun, services: Sequence[Service]) -> None:
        before = {service.name: dict(service.traffic) for service in services}
        document = {"project": cloud.project, "region": cloud.region, "before": before}
        self.path.write_text(json.dumps(document, indent=1), encoding="utf-8")
        if self.summary is not None:
            with self.summary.open("a", encoding="utf-8") as page:
                page.write(f"## Release of {' and '.join(before)}\n\n")

    def read(self) -> tuple[CloudRun, dict[str, dict[str, int]]] | None:
        """The project and each service's traffic, in roll-back order, or None if it is closed."""
        if not self.path.exists():
            return None
        document = json.loads(self.path.read_text(encoding="utf-8"))
        return CloudRun(document["project"], document["region"]), document["before"]

    def close(self) -> None:
        self.path.unlink(missing_ok=True)

    def note(self, mark: str, text: str) -> None:
        line = f"{time.monotonic() - self.began:6.1f} s  {text}"
        print(line, flush=True)
        if self.summary is not None:
            with self.summary.open("a", encoding="utf-8") as page:
                page.write(f"- {mark} {text}\n")


@dataclass(frozen=True)
class Change:
    """A service and its new image.

    `public_url` is the address of the service if it is not reachable at its own.
    """

    service: Service
    image: str
    public_url: str = ""

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def first(self) -> bool:
        """Whether the service runs another program, such as the placeholder of a new project."""
        return _repository(self.service.image) != _repository(self.image)


def release(cloud: CloudRun, api: Change, worker: Change, check: Check, journal: Journal) -> None:
    """Do the four steps. Raises ReleaseFailed after the roll-back."""
    # A roll-back uses this order: the API first.
    journal.open(cloud, [api.service, worker.service])
    journal.note("📦", f"`{api.image}`")
    journal.note("📦", f"`{worker.image}`")
    try:
        new_worker = cloud.add_revision(worker.name, worker.image)
        journal.note("✅", f"`{new_worker.candidate}` is ready, without traffic")
        new_api = cloud.add_revision(api.name, api.image)
        journal.note("✅", f"`{new_api.candidate}` is ready, without traffic")
        cloud.set_traffic(worker.name, {new_worker.candidate: 100})
        journal.note("✅", f"`{new_worker.candidate}` gets the messages")
        if api.first:
            journal.note("✅", "the API in service is a placeholder and was not tested")
        else:
            journal.note(
                "✅",
                f"the API in service works with it: {check(api.public_url or api.service.url)}",
            )
        if api.public_url:
            journal.note("✅", f"`{new_api.candidate}` cannot be tested before it is in service")
        else:
            journal.note("✅", f"`{new_api.candidate}` works: {check(new_api.candidate_url)}")
        cloud.set_traffic(api.name, {new_api.candidate: 100})
        journal.note("✅", f"`{new_api.candidate}` gets the requests")
        journal.note("✅", f"the API in service works: {check(api.public_url or new_api.url)}")
    except Exception as error:
        journal.note("❌", str(error))
        roll_back(journal)
        raise ReleaseFailed("the release failed and was rolled back") from error
    journal.close()


def roll_back(journal: Journal) -> bool:
    """Restore the traffic of the journal. Returns False if the journal is closed.

    It can be repeated. Raises ReleaseFailed after it has tried every service.
    """
    found = journal.read()
    if found is None:
        return False
    cloud, before = found
    failed = []
    for name, split in before.items():
        try:
            cloud.set_traffic(name, split)
            journal.note("↩️", f"`{name}` has its traffic back: {_shares(split)}")
        except ReleaseFailed as error:
            failed.append(name)
            journal.note("❌", f"`{name}` could NOT be rolled back to {_shares(split)}: {error}")
    if failed:
        raise ReleaseFailed(f"roll these back by hand: {', '.join(failed)}")
    journal.close()
    return True


def _shares(split: Split) -> str:
    return ", ".join(f"`{revision}` {percent} %" for revision, percent in split.items())


def _repository(image: str) -> str:
    """The name of an image without tag and digest."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0]


def _check(api_key: str, identity_token: str, seconds: float) -> Check:
    def test(url: str) -> str:
        if not url:
            raise ReleaseFailed("the API has no address: give --api-url")
        return smoke(Target(url, api_key, identity_token), seconds)

    return test


def _terminated(number: int, frame: object) -> NoReturn:
    raise ReleaseFailed(f"stopped by signal {number}")


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Release two images to Cloud Run, or roll a release back."
    )
    parser.add_argument(
        "--journal",
        type=Path,
        required=True,
        help="file that records the traffic before the release",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    run = actions.add_parser(
        "run", help="deploy, test, and move the traffic; roll back if a step fails"
    )
    for name in ("project", "region", "api", "worker", "api-image", "worker-image"):
        run.add_argument(f"--{name}", required=True)
    run.add_argument(
        "--api-url", default="", help="address of the API, if it is not reachable at its own"
    )
    run.add_argument(
        "--timeout",
        type=float,
        default=RESULT_SECONDS,
        help="longest time until an image has labels, in seconds",
    )
    actions.add_parser("roll-back", help="restore the traffic after an interrupted run")
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
            given.timeout,
        )
        api = Change(cloud.describe(given.api), given.api_image, given.api_url)
        worker = Change(cloud.describe(given.worker), given.worker_image)
        release(cloud, api, worker, check, journal)
    except ReleaseFailed as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
