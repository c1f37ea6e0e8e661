"""What the terminal of `make run` shows of the log: one short line for each image.

`make logs` shows all lines.
"""

import re

_LINE = re.compile(r"\S+ \[(?P<level>\w+) *\] (?P<event>.*?)(?: {2,}(?P<fields>\S+=.*))?")
_FIELD = re.compile(r"(\w+)=('[^']*'|\"[^\"]*\"|\S*)")
_HASH_DIGITS = 12
# Events of services that run as they should.
_ROUTINE = re.compile(
    r"request|request refused|accepted|bundle read|Started server process .*"
    r"|Waiting for application .*|Application (startup|shutdown) complete\."
    r"|Uvicorn running on .*|Shutting down|Finished server process .*|queue (started|stopped)"
)


def shortened(line: str) -> str | None:
    """The line as the terminal shows it, or None if it does not. `line` has the console format."""
    found = _LINE.fullmatch(line)
    if found is None or found["level"] not in ("info", "debug", "audit"):
        return line
    if found["level"] == "audit" or _ROUTINE.fullmatch(found["event"]):
        return None
    if found["event"] == "classified":
        fields = {name: text.strip("'\"") for name, text in _FIELD.findall(found["fields"] or "")}
        image_hash = fields.get("image_hash", "")[:_HASH_DIGITS]
        return f"{image_hash} {fields.get('label', '')}, {fields.get('milliseconds', '?')} ms"
    return line
