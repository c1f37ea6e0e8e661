"""Releases images to Cloud Run, or rolls a release back: `python3 -m deploy.release`.

The order of the steps follows from the direction of messages. The API publishes, and Pub/Sub pushes
to the worker revisions that have the traffic. When a new API starts, the queue still has messages
of the old API. So a worker must understand messages of its own API and of the previous one:

1. Check everything that the release needs, and list what is missing. Nothing has changed so far.
2. Create a revision of each service without traffic. A worker revision starts only if its model
   loads.
3. Move the traffic of each worker. Test the API in service: its messages must work.
4. Test the new API revision at its own address: its messages must work.
5. Move the traffic of the API, and test it again.

If only a load balancer can reach the API (`--api-url`), a revision has no address for the test.
Then there is no step 4, and step 5 is the first test of the new API.

If a step fails, the API gets its old traffic back first, which stops new messages. Then the workers
get their old traffic back, in reverse order. The old workers receive the messages that the new API
has published. If they do not have their model, these become dead letters, which can be replayed.
Last, each service's template gets its old image back, so that a later `terraform apply` does not
start the image that failed.

Without `--api-image` or `--worker-image`, the image in service stays. Such a release puts changed
settings into service after `terraform apply`, with the same tests.

Exit codes: 0, the release is in service. 1, it failed and was rolled back. 2, something is missing
and nothing was changed. 3, it was not rolled back: the output says what to do.

This module runs gcloud. It needs only the standard library.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from deploy import preflight
from deploy.cloud_run import (
    CloudRun,
    ReleaseFailed,
    Service,
    Split,
    TrafficChanged,
    repository,
    shown,
)
from deploy.journal import Entry, Journal
from deploy.smoke import RESULT_SECONDS, Target, smoke

FAILED, MISSING, BY_HAND = 1, 2, 3

Check = Callable[[str], str]  # tests the API at an address, returns its model. Raises SmokeFailed


class Missing(ReleaseFailed):
    """Something that the release needs is missing. Nothing was changed."""


class NotRolledBack(ReleaseFailed):
    """A roll-back is not complete."""


class Interrupted(BaseException):
    """A signal. Not an Exception, so that no step takes it for its own failure."""


@dataclass(frozen=True)
class Change:
    """A service, the image that serves and its new image.

    `public_url` is the address of the service if it is not reachable at its own.
    """

    service: Service
    serving_image: str
    image: str
    public_url: str = ""

    @property
    def name(self) -> str:
        return self.service.name

    @property
    def first(self) -> bool:
        """Whether the service runs another program, such as the placeholder of a new project."""
        return repository(self.serving_image) != repository(self.image)


def release(
    cloud: CloudRun, api: Change, workers: Sequence[Change], check: Check, journal: Journal
) -> None:
    """Do steps 2 to 5. Raises ReleaseFailed after the roll-back, NotRolledBack if that failed too.

    Leaves the journal open if it is interrupted.
    """
    changes = (*workers, api)
    journal.open(
        cloud.project,
        cloud.region,
        [Entry(c.name, dict(c.service.traffic), c.serving_image) for c in reversed(changes)],
    )
    for image in dict.fromkeys(change.image for change in (api, *workers)):
        journal.note("📦", f"`{image}`")
    try:
        _forward(cloud, api, workers, check, journal)
    except Exception as error:
        journal.note("❌", str(error))
        roll_back(cloud, journal)
        raise ReleaseFailed("the release failed and was rolled back") from error
    journal.close()


def _forward(
    cloud: CloudRun, api: Change, workers: Sequence[Change], check: Check, journal: Journal
) -> None:
    revisions: dict[str, str] = {}
    for change in (*workers, api):
        revision = cloud.add_revision(change.name, change.image).name
        revisions[change.name] = revision
        journal.created(change.name, revision)
        journal.note("✅", f"`{revision}` is ready, without traffic")
    candidate_url = "" if api.public_url else cloud.tag_revision(api.name, revisions[api.name])
    for worker in workers:
        _move(cloud, worker, revisions[worker.name])
        journal.note("✅", f"`{revisions[worker.name]}` gets the messages")
    url = api.public_url or api.service.url
    if api.first:
        journal.note("✅", "the API in service is a placeholder and was not tested")
    else:
        journal.note("✅", f"the API in service works with them: {check(url)}")
    if api.public_url:
        journal.note("✅", f"`{revisions[api.name]}` cannot be tested before it is in service")
    else:
        journal.note("✅", f"`{revisions[api.name]}` works: {check(candidate_url)}")
    _move(cloud, api, revisions[api.name])
    journal.note("✅", f"`{revisions[api.name]}` gets the requests")
    journal.note("✅", f"the API in service works: {check(url)}")


def _move(cloud: CloudRun, change: Change, revision: str) -> None:
    cloud.set_traffic(change.name, {revision: 100}, [change.service.traffic])


def roll_back(cloud: CloudRun, journal: Journal) -> None:
    """Restore the traffic and then the images of the journal, and close it.

    It can be repeated. Raises NotRolledBack after it has tried every service. Traffic that another
    person or program has set stays.
    """
    failed: list[str] = []
    for entry in journal.entries:
        ours: list[Split] = [{entry.revision: 100}] if entry.revision else []
        try:
            cloud.set_traffic(entry.name, entry.before, ours)
            journal.note("↩️", f"`{entry.name}` has its traffic back: {shown(entry.before)}")
        except TrafficChanged as error:
            failed.append(entry.name)
            journal.note("❌", str(error))
        except ReleaseFailed as error:
            failed.append(entry.name)
            text = f"`{entry.name}` could NOT be rolled back to {shown(entry.before)}: {error}"
            journal.note("❌", text)
    for entry in journal.entries:
        if entry.name not in failed:
            _restore_image(cloud, entry, journal)
    if failed:
        raise NotRolledBack(
            f"check these by hand: {', '.join(failed)}. Before the release they had: "
            + "; ".join(f"{e.name} {shown(e.before)}" for e in journal.entries if e.name in failed)
        )
    journal.close()


def _restore_image(cloud: CloudRun, entry: Entry, journal: Journal) -> None:
    """A failure here leaves the requests where they are, so it is only reported."""
    try:
        if cloud.describe(entry.name).image != entry.image:
            cloud.add_revision(entry.name, entry.image)
            journal.note("↩️", f"`{entry.name}` has its image back, for the next `terraform apply`")
    except ReleaseFailed as error:
        journal.note(
            "⚠️",
            f"the template of `{entry.name}` still has the new image. Before the next "
            f"`terraform apply`, run: gcloud run services update {entry.name} "
            f"--image={entry.image} --no-traffic --region={cloud.region} ({error})",
        )


def prepared(
    cloud: CloudRun, given: argparse.Namespace, api_key: str, identity_token: str
) -> tuple[Change, list[Change]]:
    """The changes of a release that lacks nothing. Raises Missing with everything that it lacks."""
    problems = list(preflight.missing_options(vars(given)))
    if problems:
        raise Missing(_listed(problems))
    names = [name.strip() for name in given.workers.split(",") if name.strip()]
    services = preflight.described(cloud, [*names, given.api], problems)
    changes: dict[str, Change] = {}
    for name, service in services.items():
        problems += preflight.service_problems(cloud, service)
        serving = cloud.revision(service.serving).image
        image = (given.api_image if name == given.api else given.worker_image) or serving
        changes[name] = Change(service, serving, image)
        if name != given.api:
            problems += preflight.worker_problems(service)
    if api := changes.get(given.api):
        api = changes[given.api] = replace(api, public_url=given.api_url)
        url = given.api_url or api.service.url
        target = None
        try:
            target = Target(url, api_key, identity_token) if url else None
        except ValueError as error:
            problems.append(str(error))
        problems += preflight.api_problems(api.service, given.api_url, target)
        if given.api_url:
            problems += preflight.address_problems(given.api_url)
        # A placeholder does not know keys.
        if target is not None and not problems and not api.first:
            problems += preflight.key_problems(target)
    if problems:
        raise Missing(_listed(problems))
    return changes[given.api], [changes[name] for name in names]


def _listed(problems: Sequence[str]) -> str:
    return "Nothing was changed. Before a release:\n" + "\n".join(f"- {each}" for each in problems)


def _check(api_key: str, identity_token: str, seconds: float) -> Check:
    def test(url: str) -> str:
        return smoke(Target(url, api_key, identity_token), seconds)

    return test


def _interrupted(number: int, frame: object) -> NoReturn:
    # The roll-back is not interrupted again.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Interrupted(f"stopped by signal {number}")


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Release images to Cloud Run, or roll a release back.",
        epilog="Exit codes: 0 in service, 1 rolled back, 2 nothing changed, 3 not rolled back.",
    )
    parser.add_argument(
        "--journal",
        type=Path,
        required=True,
        help="file that records the state before the release",
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for action, text in (
        ("run", "deploy, test, and move the traffic; roll back if a step fails"),
        ("check", "list what a release needs and does not have; change nothing"),
    ):
        run = actions.add_parser(action, help=text)
        for name in ("project", "region", "api"):
            run.add_argument(f"--{name}", required=True)
        run.add_argument("--workers", required=True, help="services, separated by commas")
        for name in ("api", "worker"):
            run.add_argument(
                f"--{name}-image", default="", help="without it, the image in service stays"
            )
        run.add_argument(
            "--api-url", default="", help="address of the API, if it is not reachable at its own"
        )
        run.add_argument(
            "--timeout",
            type=float,
            default=RESULT_SECONDS,
            help="longest time until an image has labels, in seconds",
        )
        run.add_argument(
            "--leave-interrupted",
            action="store_true",
            help="after a signal, leave the roll-back to `roll-back`: GitHub kills a step 10 s "
            "after it cancels it",
        )
    actions.add_parser("roll-back", help="restore the state after an interrupted run")
    return parser


def main() -> None:
    given = argument_parser().parse_args()
    page = os.environ.get("GITHUB_STEP_SUMMARY")
    journal = Journal(given.journal, Path(page) if page else None)
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGINT, _interrupted)
    try:
        lock = journal.lock()
        if given.action == "roll-back":
            if not journal.read():
                print("nothing to roll back")
                return
            roll_back(CloudRun(journal.project, journal.region, (lock,)), journal)
            print("rolled back")
            return
        cloud = CloudRun(given.project, given.region, (lock,))
        key, token = (
            os.environ.get(name, "") for name in ("GLIMPSE_API_KEY", "GLIMPSE_IDENTITY_TOKEN")
        )
        if journal.read():
            raise Missing(
                f"Nothing was changed. {given.journal} belongs to a release that was interrupted: "
                f"python3 -m deploy.release --journal={given.journal} roll-back"
            )
        api, workers = prepared(cloud, given, key, token)
        if given.action == "check":
            print("nothing is missing")
            return
        check = _check(key, token, given.timeout)
        try:
            release(cloud, api, workers, check, journal)
        except Interrupted as error:
            journal.note("❌", str(error))
            if given.leave_interrupted:
                raise NotRolledBack(f"{error}. `roll-back` has to follow") from None
            roll_back(cloud, journal)
            raise ReleaseFailed(f"{error}: rolled back") from None
    except Missing as error:
        print(error, file=sys.stderr)
        sys.exit(MISSING)
    except NotRolledBack as error:
        print(error, file=sys.stderr)
        sys.exit(BY_HAND)
    except ReleaseFailed as error:
        print(error, file=sys.stderr)
        sys.exit(FAILED)
    except Interrupted as error:
        print(f"{error}. Nothing was changed.", file=sys.stderr)
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
