"""The journal of a release: what was there before, so that another process can restore it.

The file exists until the release or the roll-back is complete. One process at a time may use it.
The lock lasts until that process and the gcloud that it started have ended, however they end. So a
roll-back never runs beside a release that it should undo.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.cloud_run import ReleaseFailed

LOCK_SECONDS = 300.0  # longer than a change of traffic takes


@dataclass
class Entry:
    """A service: its traffic and the image that served before, and the revision of the release."""

    name: str
    before: Mapping[str, int]
    image: str
    revision: str = ""


@dataclass
class Journal:
    """`summary` is an optional file that gets a line of Markdown for each step."""

    path: Path
    summary: Path | None = None
    began: float = field(default_factory=time.monotonic)
    project: str = ""
    region: str = ""
    entries: list[Entry] = field(default_factory=list)

    def lock(self, seconds: float = LOCK_SECONDS) -> int:
        """Wait for the lock and return its file descriptor. Raises ReleaseFailed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path.with_name(self.path.name + ".lock"), os.O_RDWR | os.O_CREAT)
        deadline = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ReleaseFailed(f"another process still uses {self.path}") from None
                time.sleep(0.1)
            else:
                return descriptor

    def open(self, project: str, region: str, entries: Sequence[Entry]) -> None:
        """`entries` are in the order of the roll-back."""
        self.project, self.region, self.entries = project, region, list(entries)
        self.save()
        if self.summary is not None:
            with self.summary.open("a", encoding="utf-8") as page:
                page.write(f"## Release of {', '.join(entry.name for entry in entries)}\n\n")

    def save(self) -> None:
        document = {
            "project": self.project,
            "region": self.region,
            "services": [vars(entry) for entry in self.entries],
        }
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(document, indent=1), encoding="utf-8")
        part.replace(self.path)

    def created(self, name: str, revision: str) -> None:
        for entry in self.entries:
            if entry.name == name:
                entry.revision = revision
        self.save()

    def read(self) -> bool:
        """Load the file. False if it is closed."""
        if not self.path.exists():
            return False
        document = json.loads(self.path.read_text(encoding="utf-8"))
        self.project, self.region = document["project"], document["region"]
        self.entries = [Entry(**entry) for entry in document["services"]]
        return True

    def close(self) -> None:
        self.path.unlink(missing_ok=True)

    def note(self, mark: str, text: str) -> None:
        line = f"{time.monotonic() - self.began:6.1f} s  {text}"
        print(line, flush=True)
        if self.summary is not None:
            with self.summary.open("a", encoding="utf-8") as page:
                page.write(f"- {mark} {text}\n")
