"""Says validation errors of pydantic in words that name what a field may be.

https://docs.pydantic.dev/latest/errors/validation_errors/ lists the types of errors.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

Context = Mapping[str, Any]

_QUOTED = re.compile(r"'([^']*)'")
# What a field must have so that it matches the pattern, for the patterns of request bodies.
_OF_PATTERNS: dict[str, str] = {}

_MESSAGES: dict[str, str] = {
    "missing": "is required",
    "json_invalid": "must be valid JSON",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "dict_type": "must be a JSON object",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "frozen_set_type": "must be a list",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode text",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large a number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "none_required": "must be null",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be more than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "datetime_type": "must be a time, such as 2026-11-21T09:30:00Z",
    "datetime_parsing": "must be a time, such as 2026-11-21T09:30:00Z",
    "datetime_from_date_parsing": "must be a time, such as 2026-11-21T09:30:00Z",
    "date_type": "must be a date, such as 2026-11-21",
    "date_parsing": "must be a date, such as 2026-11-21",
    "date_from_datetime_parsing": "must be a date, such as 2026-11-21",
}


def _one_of(context: Context) -> str:
    values = _QUOTED.findall(str(context["expected"]))
    return f"must be {' or '.join(filter(None, (', '.join(values[:-1]), values[-1])))}"


def _shorter(what: str) -> Callable[[Context], str]:
    return lambda context: f"must have at most {_count(context['max_length'], what)}"


def _longer(what: str) -> Callable[[Context], str]:
    return lambda context: f"must have at least {_count(context['min_length'], what)}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


_FUNCTIONS: dict[str, Callable[[Context], str]] = {
    "enum": _one_of,
    "literal_error": _one_of,
    "string_too_long": _shorter("character"),
    "string_too_short": _longer("character"),
    "too_long": _shorter("element"),
    "too_short": _longer("element"),
    "string_pattern_mismatch": lambda context: _OF_PATTERNS.get(
        context["pattern"], "has characters that are not allowed here"
    ),
}


def _about_unknown(location: Sequence[object], known: Collection[str]) -> str:
    path = [part for part in location if part != "body"]
    if len(path) != 1 or not known:  # a field of an inner object
        return "is not allowed here"
    close = difflib.get_close_matches(str(path[0]).lower()[:100], known, 1)
    if close:
        return f"is not allowed here. Did you mean {close[0]!r}?"
    return f"is not allowed here. The fields are {', '.join(sorted(known))}"


def explain_pattern(pattern: str, words: str) -> str:
    """Return `pattern`, whose mismatches are reported in `words`, such as "must be a hash"."""
    _OF_PATTERNS[pattern] = words
    return pattern


def message_of(error: Mapping[str, Any], known: Collection[str] = ()) -> str:
    """Return what is wrong with a field, without the input.

    `known` are the fields of the document, of which an unknown field may be a misspelling.
    """
    context: Context = error.get("ctx") or {}
    kind = error["type"]
    if kind == "extra_forbidden":
        return _about_unknown(error["loc"], known)
    if kind in _FUNCTIONS:
        return _FUNCTIONS[kind](context)
    if kind in _MESSAGES:
        return _MESSAGES[kind].format(**context)
    text = str(error["msg"]).removeprefix("Value error, ")
    return text.replace("Input should be", "must be", 1)
