"""Reads names from the Content-Disposition of a form's part, as clients really write them.

RFC 7578 wants the bytes of a name in quotes. Browsers encode quotes and line breaks as percent
(https://html.spec.whatwg.org/#multipart-form-data), aiohttp encodes everything so, .NET writes
encoded words (RFC 2047), and others send `filename*` (RFC 5987), which RFC 7578 forbids.
"""

import re
from email.errors import HeaderParseError
from email.header import decode_header, make_header
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes

MAX_HEADER = 4096 + 128  # bytes; a path has at most 4,096

_PARAMETER = re.compile(
    rb";[ \t]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*=[ \t]*(\"(?:[^\"\\]|\\.)*\"|[^;]*)", re.DOTALL
)
_ESCAPED = re.compile(rb"\\([\"\\])")
_BROWSER_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n", "%0d": "\r", "%0a": "\n"}
_BROWSER_ESCAPE = re.compile("|".join(_BROWSER_ESCAPES))
_ENCODED_WORDS = re.compile(r"(?:=\?[^?\s]+\?[bBqQ]\?[^?]*\?=\s*)+")
_REPLACEMENT = "\ufffd"
_UNRESERVED = re.compile(r"(?:[A-Za-z0-9_.~-]|%[0-9A-Fa-f]{2})*%[0-9A-Fa-f]{2}[A-Za-z0-9_.~%-]*")


class PartName(NamedTuple):
    """The field's name, and the file's: None if the part is no file, empty if none was chosen."""

    field: str
    file: str | None


def read_disposition(header: bytes, *, from_browser: bool) -> PartName:
    """The names in a Content-Disposition. A header that is too long has none.

    `from_browser` tells whether a browser wrote it, in which case `%20` means these characters.
    """
    parameters: dict[str, bytes] = {}
    for key, value in _PARAMETER.findall(header[:MAX_HEADER]):
        parameters.setdefault(key.decode().lower(), _unquoted(value))
    field = parameters.get("name", b"").decode(errors="replace")
    extended = _extended(parameters)
    # A `filename*` in an unknown charset is ignored if there is another name (RFC 6266, 4.3).
    undecoded = not extended or _REPLACEMENT in extended
    if "filename" not in parameters or (extended is not None and not undecoded):
        return PartName(field, extended)
    name = _text(parameters["filename"])
    return PartName(field, _decoded(name, from_browser=from_browser))


def _text(value: bytes) -> str:
    """UTF-8, or the Latin-1 of older clients, which browsers read as Windows-1252."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("cp1252", errors="replace")


def _unquoted(value: bytes) -> bytes:
    value = value.strip()
    if len(value) >= 2 and value[:1] == value[-1:] == b'"':
        return _ESCAPED.sub(rb"\1", value[1:-1])
    return value


def _extended(parameters: dict[str, bytes]) -> str | None:
    """The name in `filename*`, or in the numbered parts of RFC 2231."""
    if "filename*" in parameters:
        return _percent_decoded(parameters["filename*"])
    parts: list[bytes] = []
    encoded = False
    while len(parts) < 100:
        key = f"filename*{len(parts)}"
        if f"{key}*" in parameters:
            encoded = True
            parts.append(parameters[f"{key}*"])
        elif key in parameters:
            parts.append(quote(parameters[key]).encode() if encoded else parameters[key])
        else:
            break
    if not parts:
        return None
    whole = b"".join(parts)
    return _percent_decoded(whole) if encoded else _text(whole)


def _percent_decoded(value: bytes) -> str:
    """RFC 5987: a charset, a language, and bytes encoded as percent."""
    charset, _, rest = value.partition(b"'")
    _, separator, text = rest.partition(b"'")
    if not separator:
        charset, text = b"utf-8", value
    octets = unquote_to_bytes(text)
    try:
        return octets.decode(charset[:40].decode("ascii"))
    except (LookupError, UnicodeError):
        return octets.decode(errors="replace")


def _decoded(name: str, *, from_browser: bool) -> str:
    if from_browser:
        return _BROWSER_ESCAPE.sub(lambda found: _BROWSER_ESCAPES[found[0]], name)
    if _ENCODED_WORDS.fullmatch(name):
        try:
            return str(make_header(decode_header(name)))
        except (HeaderParseError, LookupError, ValueError):
            return name
    if _UNRESERVED.fullmatch(name):
        octets = unquote_to_bytes(name)
        # Only an encoder that encodes everything could have written this.
        if quote(octets, safe="").upper() == name.upper():
            try:
                return octets.decode()
            except UnicodeDecodeError:
                return name
    return _BROWSER_ESCAPE.sub(lambda found: _BROWSER_ESCAPES[found[0]], name)
