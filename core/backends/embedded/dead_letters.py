"""Looking at dead letters and putting them back.

python -m core.backends.embedded.dead_letters list [--all]
python -m core.backends.embedded.dead_letters replay [ID ...]      (no ID: all of them)
"""

import argparse
import asyncio
import sys
from collections.abc import Iterable, Sequence

from core.backends.embedded import open_queue_store, open_records
from core.backends.embedded.queue_store import DeadLetter, QueueStore
from core.clock import Clock, rfc3339, utc_now
from core.errors import MalformedEnvelope, Unavailable
from core.messages import ClassifyImage
from core.ports import RecordStore
from core.settings import Settings, load_settings


async def replay(
    store: QueueStore, records: RecordStore, ids: Iterable[int] | None, clock: Clock = utc_now
) -> list[int]:
    """Deliver dead letters anew: those named, or all (None). The ids of those put back.

    A dead letter has failed its record; the record is set free first, so that no delivery can meet
    it while it is still `error`. One whose record cannot be tried again is put back all the same:
    the worker finds it finished, or gone, and acknowledges.
    """
    wanted = None if ids is None else set(ids)
    chosen = [
        letter for letter in await store.dead_letters() if wanted is None or letter.id in wanted
    ]
    for letter in chosen:
        try:
            message = ClassifyImage.from_attributes(letter.attributes)
        except MalformedEnvelope:
            continue  # it names no record
        await records.retry(message.key)
    return await store.replay([letter.id for letter in chosen], clock())


def table(letters: Sequence[DeadLetter]) -> str:
    """The letters as aligned columns under a heading."""
    rows = [("ID", "IMAGE", "MODEL", "DELIVERIES", "DIED", "REPLAYED", "REASON")]
    rows += [
        (
            str(letter.id),
            letter.attributes.get("image_hash", "-")[:12],
            letter.attributes.get("model", "-"),
            str(letter.attempts),
            rfc3339(letter.died_at),
            "-" if letter.replayed_at is None else rfc3339(letter.replayed_at),
            letter.reason,
        )
        for letter in letters
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


async def run(settings: Settings, arguments: argparse.Namespace) -> str:
    """What the command prints."""
    async with open_queue_store(settings) as store:
        if arguments.command == "list":
            letters = await store.dead_letters(replayed=arguments.all)
            return table(letters) if letters else "No dead letters."
        async with open_records(settings, utc_now) as records:
            done = await replay(store, records, arguments.ids or None)
    missing = sorted(set(arguments.ids) - set(done))
    lines = [f"Put back {len(done)} of {len(arguments.ids) or len(done)} dead letters."]
    if missing:
        lines.append(f"Unknown, or put back before: {', '.join(map(str, missing))}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="dead_letters", description="Dead letters of the queue.")
    commands = parser.add_subparsers(dest="command", required=True)
    list_ = commands.add_parser("list", help="show those that wait")
    list_.add_argument("--all", action="store_true", help="also those that were put back")
    replay_ = commands.add_parser("replay", help="deliver them anew")
    replay_.add_argument("ids", nargs="*", type=int, metavar="ID", help="which ones; none: all")
    arguments = parser.parse_args()
    try:
        sys.stdout.write(asyncio.run(run(load_settings(), arguments)) + "\n")
    except Unavailable as unavailable:
        raise SystemExit(unavailable.detail) from None


if __name__ == "__main__":
    main()
