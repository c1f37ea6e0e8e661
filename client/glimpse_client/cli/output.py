"""Data on standard output, messages on standard error; colour and bars only on a terminal."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

# What spreadsheets take for the start of a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Format(StrEnum):
    """The form of the data."""

    TABLE = "table"
    JSON = "json"
    NDJSON = "ndjson"
    CSV = "csv"
    QUIET = "quiet"


def messages() -> Console:
    """The console for messages."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def printable(text: object) -> str:
    """`text` without control characters, which could change the terminal."""
    return "".join(
        c if c.isprintable() or c == " " else "\N{REPLACEMENT CHARACTER}" for c in str(text)
    )


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output: with lines on a terminal, else with tabs."""
    console = Console(highlight=False)
    if not console.is_terminal:
        for row in rows:
            sys.stdout.write("\t".join(printable(each) for each in row) + "\n")
        return
    table = Table()
    for number, name in enumerate(columns):
        # The first column has the id, which must stay in one piece.
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_local(each)) for each in row))
    console.print(table)


def _local(value: object) -> str:
    """A cell of a table; times are those of the reader, to the minute."""
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M")
    return printable(value)


def show_json(document: Any) -> None:
    """An indented JSON document on standard output."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False, default=str)
    sys.stdout.write("\n")


class Writer:
    """Writes rows of results as they come, as CSV, NDJSON, JSON or a table."""

    def __init__(self, format_: Format, columns: Sequence[str], out: IO[str]) -> None:
        self._format = format_
        self._columns = columns
        self._out = out
        self._rows: list[Sequence[object]] = []
        self._count = 0
        self._csv = csv.writer(out, lineterminator="\r\n" if format_ is Format.CSV else "\n")
        if format_ is Format.CSV:
            self._csv.writerow(columns)

    def write(self, row: Mapping[str, object], document: Mapping[str, Any]) -> None:
        """One result: `row` by column, `document` for JSON."""
        self._count += 1
        match self._format:
            case Format.CSV:
                self._csv.writerow([_cell(row.get(name)) for name in self._columns])
            case Format.NDJSON:
                self._out.write(json.dumps(document, ensure_ascii=False, default=str) + "\n")
            case Format.JSON:
                self._out.write("[\n" if self._count == 1 else ",\n")
                self._out.write(json.dumps(document, ensure_ascii=False, default=str))
            case Format.TABLE:
                self._rows.append([_shown(row.get(name)) for name in self._columns])
            case Format.QUIET:
                pass

    def close(self) -> None:
        """Write what is held back."""
        if self._format is Format.JSON:
            self._out.write("\n]\n" if self._count else "[]\n")
        elif self._format is Format.TABLE and self._rows:
            if self._out is sys.stdout:
                show_table(self._columns, self._rows)
            else:
                for row in self._rows:
                    self._out.write("\t".join(printable(each) for each in row) + "\n")


@contextmanager
def open_output(file: str | None) -> Any:
    """Standard output, or a file that replaces `file` once it is complete."""
    if file is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    target = Path(file)
    aside = target.with_name(f"{target.name}.part")
    with aside.open("w", encoding="utf-8", newline="") as out:
        yield out
    aside.replace(target)


def progress_bar(console: Console) -> Progress:
    """A bar on the console of messages; hidden if that is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


def _cell(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA):
        return "'" + value
    return "" if value is None else value


def _shown(value: object) -> object:
    if isinstance(value, float):
        return f"{100 * value:.0f} %"
    return "" if value is None else value
