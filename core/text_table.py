"""Tables in the output of commands."""

from collections.abc import Iterable, Sequence


def format_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return the rows as aligned columns with a heading."""
    lines = [heading, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
