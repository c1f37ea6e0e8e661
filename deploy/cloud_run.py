"""Cloud Run's services, read and changed through gcloud. It needs only the standard library.

gcloud's exit code says less than the service. After a revision that did not start, gcloud ends with
1 for every later change, although the change took effect. After a 503, a change may have taken
effect as well. So each change ends with a comparison: does the service have the state that was
wanted?
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

TAG = "candidate"  # gives a revision without traffic an address
GCLOUD_SECONDS = 900.0  # includes the start-up probe of a revision
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # seconds between attempts, about a minute in total
# Another change at the same time, too many requests, and a service that is unavailable.
TRANSIENT = re.compile(
    r"\b(409|429|503)\b|\b(ABORTED|RESOURCE_EXHAUSTED|UNAVAILABLE)\b|Conflict for resource"
)

Split = Mapping[str, int]  # revision: percent


class ReleaseFailed(Exception):
    """A step failed. The text says which one and why."""


class CommandFailed(ReleaseFailed):
    """gcloud failed."""

    def __init__(self, command: str, output: str) -> None:
        lines = [line for line in output.splitlines() if line.strip()]
        super().__init__(f"gcloud {command}: {' '.join(lines[-3:])[:600]}")
        self.transient = bool(TRANSIENT.search(output))


class TrafficChanged(ReleaseFailed):
    """Another person or program changed the traffic. It was not overwritten."""


@dataclass(frozen=True)
class Service:
    """The state of a Cloud Run service.

    `traffic` is where requests go now, `wanted` where they go once every change is complete. `tags`
    maps each tag to its revision. `image` is that of the template, which a release that failed may
    have left behind: what serves is `CloudRun.revision(...)` of a revision with traffic.
    """

    name: str
    url: str
    image: str
    traffic: Split
    wanted: Split
    newest: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    tag_urls: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    environment: Collection[str] = ()

    def sends(self, split: Split) -> bool:
        """Whether requests go where `split` says, now and later, and no revision has the tag."""
        return self.traffic == split == self.wanted and TAG not in self.tags

    @property
    def serving(self) -> str:
        """The revision with the largest share of the requests."""
        return max(self.traffic, key=lambda revision: self.traffic[revision])


@dataclass(frozen=True)
class Revision:
    name: str
    image: str
    ready: bool
    problem: str = ""


@dataclass
class CloudRun:
    """The Cloud Run services of a project and region, through gcloud.

    A child process inherits the file descriptors `keep`, so that a lock on them lasts until gcloud
    ends, even if this process is killed.
    """

    project: str
    region: str
    keep: tuple[int, ...] = ()
    sleep: Callable[[float], None] = time.sleep

    def describe(self, name: str) -> Service:
        return service_of(name, self._repeated("run", "services", "describe", name))

    def revision(self, name: str) -> Revision:
        return revision_of(name, self._repeated("run", "revisions", "describe", name))

    def add_revision(self, name: str, image: str) -> Revision:
        """Create a revision of `image` without traffic, and wait until it is ready.

        The service must exist.

        The revision gets no tag here: gcloud would write the revision's name into the template, and
        each later `terraform plan` would remove it.
        """
        service, failed = self._changed(name, "update", f"--image={image}", "--no-traffic")
        revision = self.revision(service.newest)
        if revision.image != image:
            raise failed or ReleaseFailed(f"{name}: there is no revision of {image}")
        if not revision.ready:
            reason = revision.problem or str(failed or "it is not ready")
            raise ReleaseFailed(f"{revision.name} does not start: {reason}")
        return revision

    def tag_revision(self, name: str, revision: str) -> str:
        """Give `revision` the tag, and return its address. Empty if services have no address."""
        service, failed = self._changed(name, "update-traffic", f"--update-tags={TAG}={revision}")
        if service.tags.get(TAG) != revision:
            raise failed or ReleaseFailed(f"{name}: {revision} did not get its tag")
        return service.tag_urls.get(TAG, "")

    def set_traffic(self, name: str, split: Split, expected: Collection[Split]) -> None:
        """Split the requests as given, and remove the tag, which would keep its revision warm.

        Raises TrafficChanged if the traffic is neither `split` nor one of `expected`.
        """
        shares = ",".join(f"{revision}={percent}" for revision, percent in split.items())
        for pause in (*PAUSES, None):
            service = self.describe(name)
            if service.sends(split):
                return
            for found in (service.traffic, service.wanted):
                if found != split and found not in expected:
                    raise TrafficChanged(
                        f"{name}: the traffic is {shown(found)}, which this release did not set. "
                        "It was not overwritten"
                    )
            options = [f"--to-revisions={shares}"]
            if TAG in service.tags:
                options.append(f"--remove-tags={TAG}")
            # Not repeated here: before each attempt, the traffic must still be as expected.
            service, failed = self._changed(name, "update-traffic", *options, repeat=False)
            if service.sends(split):
                return
            if failed is not None and not failed.transient:
                raise failed
            if pause is not None:
                self.sleep(pause * random.uniform(0.5, 1.0))
        raise ReleaseFailed(f"{name}: the traffic did not become {shown(split)}")

    def _changed(
        self, name: str, verb: str, *options: str, repeat: bool = True
    ) -> tuple[Service, CommandFailed | None]:
        """The service after a change, and gcloud's failure, which says nothing about the change."""
        failed: CommandFailed | None = None
        try:
            (self._repeated if repeat else self._json)("run", "services", verb, name, *options)
        except CommandFailed as error:
            failed = error
        return self.describe(name), failed

    def command(self, *words: str) -> list[str]:
        where = (f"--project={self.project}", f"--region={self.region}")
        return ["gcloud", *words, *where, "--quiet", "--format=json"]

    def _repeated(self, *words: str) -> Any:
        """The output of a command that can be repeated, after transient failures as well."""
        for pause in PAUSES:
            try:
                return self._json(*words)
            except CommandFailed as error:
                if not error.transient:
                    raise
            self.sleep(pause * random.uniform(0.5, 1.0))
        return self._json(*words)

    def _json(self, *words: str) -> Any:
        short = " ".join(words[:4])
        try:
            with subprocess.Popen(
                self.command(*words),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                pass_fds=self.keep,
                start_new_session=True,  # gcloud is a shell that starts Python: both get the signal
            ) as process:
                try:
                    out, errors = process.communicate(timeout=GCLOUD_SECONDS)
                except BaseException:
                    os.killpg(process.pid, signal.SIGKILL)
                    raise
        except (subprocess.SubprocessError, OSError) as error:
            raise ReleaseFailed(f"gcloud {short}: {error}") from error
        sys.stderr.write(errors)
        if process.returncode:
            raise CommandFailed(short, errors)
        try:
            return json.loads(out)
        except ValueError as error:
            raise ReleaseFailed(f"gcloud {short}: {error}") from error


def service_of(name: str, document: Any) -> Service:
    """Parse the output of `gcloud run services describe --format=json`. Raises ReleaseFailed."""
    try:
        status, spec = document["status"], document["spec"]
        container = spec["template"]["spec"]["containers"][0]
        ready = status.get("latestReadyRevisionName", "")
        targets = status.get("traffic", [])
        service = Service(
            name=name,
            url=status.get("url", ""),
            image=container["image"],
            traffic=_split(targets, ready),
            wanted=_split(spec.get("traffic", targets), ready),
            newest=status.get("latestCreatedRevisionName", ""),
            tags={t["tag"]: t["revisionName"] for t in targets if t.get("tag")},
            tag_urls={t["tag"]: t.get("url", "") for t in targets if t.get("tag")},
            annotations=document.get("metadata", {}).get("annotations", {}),
            environment=[f"{e['name']}={e.get('value', '')}" for e in container.get("env", [])],
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ReleaseFailed(
            f"{name}: gcloud does not describe a service in use: {error!r}"
        ) from error
    if sum(service.traffic.values()) != 100:
        raise ReleaseFailed(
            f"{name}: there is no revision to roll back to, the traffic is {shown(service.traffic)}"
        )
    return service


def _split(targets: Collection[Mapping[str, Any]], latest: str) -> dict[str, int]:
    # A revision can have several entries, one of them for its tag.
    split: dict[str, int] = {}
    for target in targets:
        if percent := target.get("percent", 0):
            revision = target.get("revisionName") or latest
            split[revision] = split.get(revision, 0) + percent
    return split


def revision_of(name: str, document: Any) -> Revision:
    """Parse the output of `gcloud run revisions describe --format=json`. Raises ReleaseFailed."""
    try:
        conditions = document["status"].get("conditions", [])
        ready: Mapping[str, str] = next((c for c in conditions if c["type"] == "Ready"), {})
        return Revision(
            name=name,
            image=document["spec"]["containers"][0]["image"],
            ready=ready.get("status") == "True",
            problem=ready.get("message", "") if ready.get("status") == "False" else "",
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ReleaseFailed(f"{name}: gcloud does not describe a revision: {error!r}") from error


def shown(split: Split) -> str:
    return ", ".join(f"`{revision}` {percent} %" for revision, percent in split.items()) or "empty"


def repository(image: str) -> str:
    """The name of an image without tag and digest."""
    name = image.partition("@")[0]
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(":")[0]
