"""Sends hostile input to real processes, and checks the promises: `make abuse`.

    make abuse ABUSE_ARGS="--inputs 20000 --seed 7 --markdown figures.md"

First it uploads hostile images, and follows each one until its record ends. Then it uploads odd
pictures, whose labels must be those of what a viewer shows. Then it sends requests that
schemathesis generates from the OpenAPI documents of both services. Exits with 1 if a promise is
broken, and prints the seed that generates the same inputs again.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.abuse import experiment, schema
from tests.abuse.experiment import Abuse, Outcome
from tests.abuse.hostile import hostile_images
from tests.abuse.odd import odd_pictures
from tests.abuse.processes import MEBIBYTE
from tests.abuse.viewer import compare
from tests.support.bundles import write_colour_bundle
from tests.support.stack import Stack

Rows = list[tuple[str, str]]


def image_rows(outcome: Outcome) -> Rows:
    """The lines of the table about hostile images."""
    seconds, slowest = outcome.slowest_image
    answer_seconds, slowest_answer = outcome.slowest_answer
    return [
        ("inputs", f"{outcome.inputs} in {outcome.seconds:.0f} s"),
        *((f"  {name}", str(count)) for name, count in sorted(outcome.families.items())),
        ("refused, and nothing left of them", str(outcome.refused.total())),
        *((f"  {name}", str(count)) for name, count in sorted(outcome.refused.items())),
        ("accepted, and ended", str(outcome.ended.total())),
        *((f"  {name}", str(count)) for name, count in sorted(outcome.ended.items())),
        ("answers of 5xx", str(outcome.server_errors)),
        ("classifier processes lost", str(outcome.classifiers_lost)),
        ("slowest response", f"{answer_seconds:.2f} s ({slowest_answer})"),
        ("slowest image", f"{seconds:.2f} s ({slowest})"),
        ("peak memory of the API", _mebibytes(outcome.peaks["api"])),
        ("peak memory of the worker", _mebibytes(outcome.peaks["worker"])),
        ("peak memory of one classifier", _mebibytes(outcome.peaks["worker's children"])),
        ("broken promises", str(len(outcome.wrong))),
    ]


def schema_rows(outcome: schema.Outcome) -> Rows:
    """The lines of the table about generated requests."""
    return [
        ("generated requests", f"{outcome.requests} to {outcome.operations} operations"),
        *((f"  answered {status}", str(n)) for status, n in sorted(outcome.statuses.items())),
        ("responses that the document does not allow", str(len(outcome.wrong))),
    ]


def _mebibytes(size: int) -> str:
    return f"{size / MEBIBYTE:.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=5_200, help="hostile images")
    parser.add_argument("--requests", type=int, default=200, help="drawn for each operation")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    console = Console(width=max(Console().width, 110))
    console.print(f"seed {args.seed}")
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    tables: dict[str, Rows] = {}
    wrong: list[str] = []
    with (
        Progress(*columns, TimeElapsedColumn(), console=console) as progress,
        tempfile.TemporaryDirectory() as name,
    ):
        folder = Path(name)
        bundle = write_colour_bundle(folder / "model")
        bar = progress.add_task("hostile images", total=args.inputs)
        with Stack(folder / "images", bundle, **experiment.SETTINGS) as stack:
            abuse = Abuse(stack, lambda sent: progress.update(bar, completed=sent))
            images = abuse.run(hostile_images(args.inputs, args.seed))
        progress.update(bar, total=images.inputs)  # duplicates are sent once
        tables["Hostile images"] = image_rows(images)
        wrong += images.wrong
        pictures = list(odd_pictures())
        bar = progress.add_task("odd pictures", total=len(pictures))
        with Stack(folder / "odd", bundle, **experiment.SETTINGS) as stack:
            odd = compare(
                stack,
                pictures,
                lambda sent, bar=bar: progress.update(bar, completed=sent),  # type: ignore[misc]
            )
        tables["Odd pictures"] = [
            ("seen as a viewer shows them", str(odd.seen)),
            ("refused with a reason", str(odd.refused)),
            ("wrong", str(len(odd.wrong))),
        ]
        wrong += odd.wrong
        for service in schema.SERVICES:
            bar = progress.add_task(f"requests to the {service}", total=None)
            with Stack(folder / service, bundle) as stack:
                drawn = schema.attack(
                    stack,
                    service,
                    args.requests,
                    args.seed,
                    lambda sent, bar=bar: progress.update(bar, completed=sent),  # type: ignore[misc]
                )
            progress.update(bar, total=drawn.requests)
            tables[f"Requests to the {service}"] = schema_rows(drawn)
            wrong += drawn.wrong
    text = [f"Seed {args.seed}.", ""]
    for title, rows in tables.items():
        table = Table("", "", title=title, show_header=False)
        text += [f"| {title} | |", "|---|---|"]
        for label, value in rows:
            table.add_row(label, value)
            text.append(f"| {label.strip()} | {value} |")
        text.append("")
        console.print(table)
    for line in wrong[:40]:
        console.print(f"[red]wrong[/red] {line}", highlight=False)
    if args.markdown:
        args.markdown.write_text("\n".join(text))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
