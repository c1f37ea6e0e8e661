"""A multipart form (RFC 7578), part by part as it arrives.

`python_multipart`'s streaming parser is used directly: Starlette's form parser would spool every
file to disk, read it back and cost twice the time.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from core.errors import MalformedBody

if TYPE_CHECKING:  # it is not there when the program runs
    from python_multipart.multipart import MultipartCallbacks

FORM = "multipart/form-data"

# A malformed form is the sender's fault and is answered to the sender, not logged as our warning.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class FormParser:
    """Calls `part_begins`, `part_data` and `part_ends` of a subclass. What they raise ends it."""

    def __init__(self, content_type: str) -> None:
        """Raises MalformedBody where the Content-Type names no boundary, or one too long."""
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._ended = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._part,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value_part,
            "on_header_end": self._header_ends,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self.part_ends,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(_boundary(content_type), callbacks)
        except FormParserError as error:
            raise malformed(error) from None

    def part_begins(self, options: Mapping[bytes, bytes]) -> None:
        """A part whose Content-Disposition has these parameters: `name`, `filename`."""
        raise NotImplementedError

    def part_data(self, data: memoryview) -> None:
        """The part's next bytes, gone after this call."""
        raise NotImplementedError

    def part_ends(self) -> None:
        """The part is there to its end."""

    def feed(self, chunk: bytes) -> None:
        """Raises MalformedBody where this cannot be the form's next bytes."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise malformed(error) from None

    def close(self) -> None:
        """Raise MalformedBody unless the form is there to its end."""
        if not self._ended:
            raise MalformedBody("The form ends before its closing boundary.")

    def _part(self) -> None:
        self._disposition = b""

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_value_part(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_ends(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        self.part_begins(options)

    def _data(self, data: bytes, start: int, end: int) -> None:
        self.part_data(memoryview(data)[start:end])

    def _end(self) -> None:
        self._ended = True


def is_form(content_type: str) -> bool:
    return content_type[: len(FORM)].lower() == FORM


def malformed(error: FormParserError) -> MalformedBody:
    return MalformedBody(f"The form cannot be parsed: {error}.")


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedBody("The Content-Type names no boundary.")
    return boundary
