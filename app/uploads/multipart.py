"""Parses a multipart form (RFC 7578) part by part as it arrives.

Uses the streaming parser of `python_multipart` directly: Starlette's form parser writes every file
to disk and reads it back, which takes twice the time.
"""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from core.errors import MalformedBody

if TYPE_CHECKING:  # does not exist at run time
    from python_multipart.multipart import MultipartCallbacks

FORM = "multipart/form-data"

# A malformed form is the client's fault: it is refused, not logged as a warning of the service.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class FormParser:
    """Calls `part_begins`, `part_data` and `part_ends` of a subclass.

    An exception that these raise ends the parsing.
    """

    def __init__(self, content_type: str) -> None:
        """Raises MalformedBody if the Content-Type has no boundary, or one that is too long."""
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._ended = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self.part_ends,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(_boundary(content_type), callbacks)
        except FormParserError as error:
            raise _malformed(error) from None

    def part_begins(self, options: Mapping[bytes, bytes]) -> None:
        """`options` are the parameters of the part's Content-Disposition: `name`, `filename`."""
        raise NotImplementedError

    def part_data(self, data: memoryview) -> None:
        """`data` are the part's next bytes. They are valid only during this call."""
        raise NotImplementedError

    def part_ends(self) -> None:
        """The part is complete."""

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the form. Raises MalformedBody."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise _malformed(error) from None

    def close(self) -> None:
        """Raise MalformedBody unless the form is complete."""
        if not self._ended:
            raise MalformedBody("The form ends before its closing boundary.")

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self.part_begins(options)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.part_data(memoryview(data)[start:end])

    def _on_end(self) -> None:
        self._ended = True


def is_form(content_type: str) -> bool:
    return content_type[: len(FORM)].lower() == FORM


def _malformed(error: FormParserError) -> MalformedBody:
    return MalformedBody(f"The form cannot be parsed: {error}.")


def _boundary(content_type: str) -> bytes:
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise MalformedBody("The Content-Type has no boundary.")
    return boundary
