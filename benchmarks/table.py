"""Turns runs into rows with medians and ratios, and prints them as a table or as Markdown."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.batch import Seen, Survived

COLUMNS = (
    "contender",
    "images/s",
    "jobs of 1,000 a minute",
    "of the first",
    "all accepted, s",
    "sent p50/p99, ms",
    "workers, MB",
    "all, MB",
)


@dataclass(frozen=True)
class Figures:
    """The medians of several runs of `count` images."""

    rate: float
    accepted: float
    p50: float | None
    p99: float | None
    worker_memory: float
    memory: float

    @property
    def jobs_per_minute(self) -> float:
        """Jobs of 1,000 images, one after the other."""
        return self.rate * 60 / 1000


def medians(count: int, runs: Sequence[Seen]) -> Figures:
    """`count` is the number of images in each of the `runs`. There is at least one run."""

    def median(of: Callable[[Seen], float]) -> float:
        return statistics.median(map(of, runs))

    def median_of_percentile(share: int) -> float | None:
        known = [value for run in runs if (value := run.percentile(share)) is not None]
        return statistics.median(known) if known else None

    return Figures(
        rate=median(lambda run: count / run.ended),
        accepted=median(lambda run: run.accepted),
        p50=median_of_percentile(50),
        p99=median_of_percentile(99),
        worker_memory=median(lambda run: run.worker_memory),
        memory=median(lambda run: run.memory),
    )


def rows(figures: Mapping[str, Figures]) -> list[tuple[str, ...]]:
    """A row for each contender, in order. Ratios are relative to the rate of the first one."""
    if not figures:
        return []
    first = next(iter(figures.values()))
    return [
        (
            name,
            f"{each.rate:.0f}",
            f"{each.jobs_per_minute:.1f}",
            f"{each.rate / first.rate:.2f}",
            f"{each.accepted:.2f}",
            "" if each.p50 is None or each.p99 is None else f"{each.p50:.1f} / {each.p99:.1f}",
            f"{each.worker_memory:.0f}",
            f"{each.memory:.0f}",
        )
        for name, each in figures.items()
    ]


def survival_rows(survived: Mapping[str, Survived]) -> list[tuple[str, ...]]:
    return [(name, f"{each.missing}", f"{each.ended:.0f}") for name, each in survived.items()]


def on_screen(title: str, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> Table:
    table = Table(title=title)
    for number, column in enumerate(columns):
        # Text is aligned to the left, and numbers to the right.
        table.add_column(column, justify="right" if number and len(columns) > 5 else "left")
    for line in lines:
        table.add_row(*line)
    return table


def in_markdown(columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *lines]
    return [f"| {' | '.join(line)} |" for line in cells]
