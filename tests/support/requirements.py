"""What some tests need beyond Python and make, and the one line about those that were skipped.

A test whose requirement is absent is skipped. With CI set it fails if the workflow installs that
requirement: a green run has left none of these out.
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

import pytest


@dataclass(frozen=True)
class Requirement:
    """`name` completes "This test needs ..."; `install` says how to get it."""

    name: str
    install: str
    in_ci: bool = True  # the workflow installs it

    def absent(self) -> NoReturn:
        """Skip the test, or fail it if CI installs the requirement."""
        __tracebackhide__ = True
        reason = f"needs {self.name} ({self.install})"
        if self.in_ci and os.environ.get("CI"):
            pytest.fail(f"{reason}; it is required where CI is set", pytrace=False)
        pytest.skip(reason)


EMULATORS = Requirement(
    "Google's emulators",
    "install gcloud with its components pubsub-emulator and cloud-datastore-emulator, and Java 17",
)
FIRESTORE = Requirement(
    "Firestore's emulator",
    "install gcloud with its component cloud-firestore-emulator, and Java 17",
)
GCLOUD = Requirement("gcloud", "install the Google Cloud CLI")
CHROMIUM = Requirement("a browser", "install chromium")
TERRAFORM = Requirement("Terraform", "install version 1.11 or newer")
GIT = Requirement("git and a checkout", "install git, and clone the repository", False)
SHA256SUM = Requirement("sha256sum", "install GNU coreutils", False)
CURL = Requirement("curl", "install curl", False)
MOUNTS = Requirement("a small disk", "run as root, where tmpfs can be mounted", False)
ORDINARY_USER = Requirement("an ordinary user", "run as another user than root", False)


def summary(reasons: Iterable[str]) -> str:
    """One line about the tests that were skipped for `reasons`; empty if there are none."""
    counts = Counter(reason.removeprefix("Skipped: ") for reason in reasons)
    if not counts:
        return ""
    parts = [f"{number} x {reason}" for reason, number in counts.most_common()]
    return f"{counts.total()} skipped: {'; '.join(parts)}"
