"""The command for operators to list, replay and delete dead letters, on any backend.

python -m app.dead_letters list [--all] [--code CODE]
python -m app.dead_letters replay [--code CODE] [ID ...]      (without an ID: all of them)
python -m app.dead_letters purge --days N
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta

from core.backends import Backend, open_backend
from core.clock import rfc3339, utc_now
from core.domain.dead_letters import DeadLetter, LetterFilter
from core.domain.records import PUBLIC_TENANT
from core.errors import NotFound, Unavailable
from core.observability.logs import configure_logging
from core.services.dead_letter_replay import replay, replay_all
from core.settings import MOST_DAYS, Settings, load_settings
from core.text_table import format_table

PAGE = 200


def table(letters: Sequence[DeadLetter]) -> str:
    """Format the dead letters as aligned columns with a heading."""
    heading = ("ID", "IMAGE/JOB", "MODEL", "DELIVERIES", "DIED", "RESOLVED", "REASON")
    rows = [
        (
            letter.id,
            letter.attributes.get("image_hash", letter.attributes.get("job", "-"))[:12],
            letter.attributes.get("model", "-")[:80],
            str(letter.attempts),
            rfc3339(letter.died_at),
            "-" if letter.resolved_at is None else rfc3339(letter.resolved_at),
            f"{letter.code}: {letter.detail}",
        )
        for letter in letters
    ]
    return format_table(heading, rows)


async def run(settings: Settings, arguments: argparse.Namespace) -> str:
    """Run the command, and return what it prints."""
    async with open_backend(settings) as backend:
        if arguments.command == "list":
            wanted = LetterFilter(arguments.tenant, arguments.code, resolved=arguments.all)
            return await _listing(backend, wanted)
        if arguments.command == "replay":
            counts = await _replayed(backend, arguments)
            summary = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
            return f"{summary or 'No dead letters'}."
        before, purged = utc_now() - timedelta(days=arguments.days), 0
        while more := await backend.dead_letters.purge(before, PAGE):
            purged += more
        return f"{purged} deleted."


async def _listing(backend: Backend, wanted: LetterFilter) -> str:
    letters: list[DeadLetter] = []
    after = ""
    while page := await backend.dead_letters.list(wanted, PAGE, after):
        letters += page
        after = page[-1].sort_key
    return table(letters) if letters else "No dead letters."


async def _replayed(backend: Backend, arguments: argparse.Namespace) -> Counter[str]:
    counts: Counter[str] = Counter()
    for id_ in arguments.ids:
        try:
            counts[await replay(backend, arguments.tenant, id_)] += 1
        except NotFound:
            counts["unknown"] += 1
    if arguments.ids:
        return counts
    wanted, after = LetterFilter(arguments.tenant, arguments.code), ""
    while True:
        done = await replay_all(backend, wanted, PAGE, after)
        counts.update({outcome.value: count for outcome, count in done.counts.items()})
        if not done.after:
            return counts
        after = done.after


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days <= MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {MOST_DAYS}")
    return days


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="dead_letters", description="Messages that used up their delivery attempts."
    )
    parser.add_argument("--tenant", default=PUBLIC_TENANT, help="default: %(default)s")
    commands = parser.add_subparsers(dest="command", required=True)
    list_ = commands.add_parser("list", help="list dead letters, newest first")
    list_.add_argument("--all", action="store_true", help="include resolved ones")
    replay_ = commands.add_parser("replay", help="start new attempts")
    replay_.add_argument("ids", nargs="*", metavar="ID", help="default: all")
    for command in (list_, replay_):
        command.add_argument("--code", default="", help="only with this error code")
    purge = commands.add_parser("purge", help="delete old dead letters of every tenant")
    purge.add_argument("--days", type=_days, required=True, help="minimum age in days")
    arguments = parser.parse_args()
    settings = load_settings()
    configure_logging("dead_letters", settings.log_format, settings.log_level, file=sys.stderr)
    try:
        sys.stdout.write(asyncio.run(run(settings, arguments)) + "\n")
    except Unavailable as unavailable:
        raise SystemExit(unavailable.detail) from None


if __name__ == "__main__":
    main()
