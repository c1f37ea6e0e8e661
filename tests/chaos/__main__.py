"""Injects faults while clients upload, and checks the promises: `make chaos`.

    make chaos CHAOS_ARGS="--minutes 5 --backend emulator --seed 7 --markdown figures.md"

Exits with 1 if a promise is broken, and prints the seed that gives the same faults again.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.chaos.experiment import Experiment, Outcome, prepared
from tests.support.bundles import write_colour_bundle

BACKENDS = ("embedded", "emulator")


def run(backend: str, seconds: float, seed: int, progress: Progress, folder: Path) -> Outcome:
    """Run one experiment on `backend`, with all its files in `folder`."""
    bundle = write_colour_bundle(folder / "model")
    bar = progress.add_task(backend, total=1.0)

    def show(phase: str, share: float) -> None:
        progress.update(bar, description=f"{backend}: {phase}", completed=share)

    with prepared(backend, folder, bundle, seed) as (stack, emulators, rate):
        outcome = Experiment(stack, seconds, seed, show, emulators, rate).run()
    progress.update(bar, description=backend, completed=1.0)
    return outcome


def rows(outcome: Outcome) -> list[tuple[str, str]]:
    """The lines of the table."""
    statuses = ", ".join(f"{n} x {status}" for status, n in sorted(outcome.answers.items()))
    injected = sum(outcome.injected.values())
    return [
        ("faults for", f"{outcome.seconds:.0f} s"),
        ("load held", f"{outcome.rate:.0f} answers/s ({statuses})"),
        ("faults injected", f"{injected}, besides failing port calls"),
        *((f"  {name}", str(count)) for name, count in sorted(outcome.injected.items())),
        ("images accepted", str(outcome.accepted)),
        ("jobs accepted", str(outcome.jobs)),
        ("images deleted while they waited", str(outcome.deleted)),
        ("dead letters of jobs replayed", str(outcome.replayed["replayed"])),
        ("images lost", str(len(outcome.lost))),
        ("results stored twice", str(len(outcome.duplicates))),
        ("final states that changed", str(len(outcome.changed))),
        ("records that never ended", str(len(outcome.stuck))),
        ("wrong answers (5xx other than 503, and the like)", str(len(outcome.wrong))),
        ("longest time to end", f"{outcome.longest_seconds:.1f} s"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="of faults, for each backend")
    parser.add_argument("--backend", choices=BACKENDS, help="one only")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    args = parser.parse_args()
    console = Console(width=max(Console().width, 100))
    console.print(f"seed {args.seed}")
    outcomes: dict[str, Outcome] = {}
    with Progress(console=console) as progress:
        for backend in (args.backend,) if args.backend else BACKENDS:
            with tempfile.TemporaryDirectory() as folder:
                outcomes[backend] = run(
                    backend, 60 * args.minutes, args.seed, progress, Path(folder)
                )
    text = [f"Seed {args.seed}.", ""]
    for backend, outcome in outcomes.items():
        table = Table("", backend, title=f"Chaos on the {backend} backend")
        text += [f"| | {backend} |", "|---|---|"]
        for name, value in rows(outcome):
            table.add_row(name, value)
            text.append(f"| {name.strip()} | {value} |")
        text.append("")
        console.print(table)
        for kind in ("lost", "duplicates", "changed", "stuck", "wrong"):
            for line in getattr(outcome, kind)[:20]:
                console.print(f"[red]{kind}[/red] {line}", highlight=False)
    if args.markdown:
        args.markdown.write_text("\n".join(text))
    sys.exit(0 if all(outcome.held for outcome in outcomes.values()) else 1)


if __name__ == "__main__":
    main()
