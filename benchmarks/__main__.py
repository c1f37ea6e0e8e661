"""Run the comparison and print tables: `make compare`, or `make compare COMPARE_ARGS=--quick`.

Every contender classifies the same images with two worker processes on the same two cores. Its
queue, store and client use these cores as well. The contenders take turns within a round, so that a
busy moment of the machine affects all of them. Figures are medians of the rounds, and ratios are
ratios of medians. The clock runs from the first task sent to the last result stored.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from benchmarks import table
from benchmarks.batch import Batch, Seen, Survived, write_batch
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.environments import environment, pins
from benchmarks.peer import Peer
from benchmarks.peers.surroundings import CLASSIFY, NO_OP
from benchmarks.redis_server import require_redis
from core.bundles.bundle import read_bundle
from core.settings import DEFAULT_BUNDLE
from tests.bench.machine import machine
from tests.support.bundles import write_colour_bundle
from tests.support.pictures import photo, picture

CORES = 2
ABOUT = (
    "contender",
    "set up as",
    "the clock includes",
    "a power loss takes",
    "kill -9 of the workers",
)
SURVIVAL = ("contender", "results missing", "last result, s after the kill")


class Comparison:
    def __init__(
        self, contenders: Sequence[Contender], folder: Path, progress: Progress, images: int
    ) -> None:
        self.contenders = contenders
        self.folder = folder
        self.progress = progress
        self.images = images
        self._runs = 0

    def batch(self, task: str) -> Batch:
        """The images of `task`: photos for the classifier, tiny files for the no-op."""
        if task == CLASSIFY:
            return write_batch(
                task, DEFAULT_BUNDLE, self.folder / task, [photo(n) for n in range(self.images)]
            )
        small = [picture(seed=n, size=(16, 16)) for n in range(self.images)]
        colours = write_colour_bundle(self.folder / "colours")
        return write_batch(task, colours, self.folder / task, small)

    def measure(self, batch: Batch, rounds: int) -> dict[str, list[Seen]]:
        """Each contender's runs, by its name. Raises RuntimeError if their labels differ."""
        seen: dict[str, list[Seen]] = {each.name: [] for each in self.contenders}
        bar = self.progress.add_task(batch.task, total=rounds * len(seen))
        for _ in range(rounds):
            for contender in self.contenders:
                run = contender.subject.measure(batch, self._folder())
                seen[contender.name].append(run)
                self._say(batch, f"{contender.name}: {self.images / run.ended:.0f} images/s")
                self.progress.advance(bar)
        labels = {run.labels for runs in seen.values() for run in runs}
        if len(labels) > 1:
            raise RuntimeError("The contenders do not agree about what is in the pictures.")
        return seen

    def survive(self, batch: Batch, timeout: float) -> dict[str, Survived]:
        survived = {}
        bar = self.progress.add_task("kill -9", total=len(self.contenders))
        for contender in self.contenders:
            ended = contender.subject.survive(batch, self._folder(), timeout)
            survived[contender.name] = ended
            self._say(batch, f"{contender.name}: {ended.missing} missing")
            self.progress.advance(bar)
        return survived

    def _folder(self) -> Path:
        self._runs += 1
        return self.folder / f"run-{self._runs}"

    def _say(self, batch: Batch, line: str) -> None:
        self.progress.console.print(f"{batch.task}: {line}")


def sync_milliseconds(folder: Path) -> float:
    """The milliseconds that a durable write of 4 KB takes: the median of twenty."""
    times = []
    with (folder / "sync").open("wb") as file:
        for _ in range(20):
            began = time.perf_counter()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[10]


def surroundings(folder: Path, redis: str, contenders: Sequence[Contender]) -> list[str]:
    """Lines about the machine and the versions."""
    frameworks = {each.subject.framework for each in contenders if isinstance(each.subject, Peer)}
    versions = sorted(
        {
            pin.replace("==", " ")
            for framework in frameworks
            for pin in pins(framework)
            if pin.startswith((f"{framework}==", f"{framework}-redis==", "redis=="))
        }
    )
    busy = os.getloadavg()[0]
    return [
        f"Measured on {machine()}.",
        f"4 KB on disk take {sync_milliseconds(folder):.2f} ms (fsync); load before the run "
        f"{busy:.1f}.",
        "; ".join([f"redis-server {redis}", *versions, read_bundle(DEFAULT_BUNDLE).identity]) + ".",
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one round of 200 images")
    parser.add_argument("--rounds", type=int, default=3, help="the figures are their medians")
    parser.add_argument("--images", type=int, default=1000, help="in one job")
    parser.add_argument("--task", choices=(NO_OP, CLASSIFY), help="only this one of the two")
    parser.add_argument(
        "--only", default="", help="comma-separated parts of contenders' names: glimpse,celery"
    )
    parser.add_argument(
        "--kill", action="store_true", help="also kill the workers half way, and count what comes"
    )
    parser.add_argument(
        "--timeout", type=float, default=60, help="seconds without a result that end --kill"
    )
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.images = 1, 200
    return args


def chosen(only: str) -> list[Contender]:
    """The contenders that `only` selects by a part of their name, or all. Raises SystemExit."""
    wanted = [part.strip().lower() for part in only.split(",") if part.strip()]
    found = [
        each
        for each in CONTENDERS
        if not wanted or any(part in each.name.lower() for part in wanted)
    ]
    if not found:
        raise SystemExit(f"No contender is named {only!r}: {', '.join(c.name for c in CONTENDERS)}")
    return found


def main() -> None:
    args = arguments()
    contenders = chosen(args.only)
    # However the run ends, none of its processes keeps running.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    redis = require_redis()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    console = Console(width=max(Console().width, 140))
    report: list[str] = []
    with ExitStack() as opened, Progress(console=console) as progress:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        for framework in sorted(
            {each.subject.framework for each in contenders if isinstance(each.subject, Peer)}
        ):
            environment(framework)
        report += surroundings(folder, redis, contenders)
        tables: list[tuple[str, Sequence[str], list[tuple[str, ...]]]] = []
        comparison = Comparison(contenders, folder, progress, args.images)
        for task, title in ((NO_OP, "Tasks that do nothing"), (CLASSIFY, "Photos, classified")):
            if args.task in (None, task):
                batch = comparison.batch(task)
                seen = comparison.measure(batch, args.rounds)
                figures = {name: table.medians(args.images, runs) for name, runs in seen.items()}
                tables.append((title, table.COLUMNS, table.rows(figures)))
                if args.kill and task == CLASSIFY:
                    survived = comparison.survive(batch, args.timeout)
                    after = f"Workers killed half way, after {args.timeout:g} s without a result"
                    tables.append((after, SURVIVAL, table.survival_rows(survived)))
        about: list[tuple[str, ...]] = [
            (c.name, c.setup, c.clock, c.power_loss, c.killed) for c in contenders
        ]
        tables.append(("What was compared", ABOUT, about))
    for line in report:
        console.print(line)
    for title, columns, lines in tables:
        console.print(table.on_screen(title, columns, lines))
    if args.markdown:
        for title, columns, lines in tables:
            report += ["", f"{title}:", "", *table.in_markdown(columns, lines)]
        args.markdown.write_text("\n".join(report) + "\n")


if __name__ == "__main__":
    main()
