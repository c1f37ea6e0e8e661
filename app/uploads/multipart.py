"""Parses a multipart form (RFC 7578) part by part as it arrives.

Uses the streaming parser of `multipart` directly: Starlette's form parser writes every file to disk
and reads it back, which takes twice the time.
"""

from typing import Any

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header

from app.uploads.disposition import MAX_HEADER, PartName, read_disposition
from core.errors import MalformedBody

FORM = "multipart/form-data"
MAX_BOUNDARY = 256  # characters; RFC 2046 allows 70
MAX_HEADERS = 32  # header fields of a part


class FormParser:
    """Calls `part_begins`, `part_data` and `part_ends` of a subclass.

    An exception that these raise ends the parsing.
    """

    def __init__(self, content_type: str, user_agent: str = "") -> None:
        """`user_agent` is that of the client: browsers encode file names differently.

        Raises MalformedBody if the Content-Type has no boundary, or one that is too long.
        """
        self._from_browser = user_agent.startswith("Mozilla/")
        try:
            self._parser = _Parser(
                _boundary(content_type),
                max_header_size=MAX_HEADER,
                max_header_count=MAX_HEADERS,
                header_charset="latin-1",  # so that every byte of a header is a character
            )
        except MultipartError as error:
            raise _malformed(error) from None

    def part_begins(self, name: PartName) -> None:
        """A part begins: `name` is that of its field and file."""
        raise NotImplementedError

    def part_data(self, data: bytes) -> None:
        """`data` are the part's next bytes."""
        raise NotImplementedError

    def part_ends(self) -> None:
        """The part is complete."""

    def feed(self, chunk: bytes) -> None:
        """Parse the next bytes of the form. Raises MalformedBody."""
        try:
            for event in self._parser.parse(chunk) if chunk else ():
                if event is None:
                    self.part_ends()
                elif isinstance(event, MultipartSegment):
                    header = str(event.header("Content-Disposition", "")).encode("latin-1")
                    self.part_begins(read_disposition(header, from_browser=self._from_browser))
                else:
                    self.part_data(event)
        except MultipartError as error:
            raise _malformed(error) from None

    def close(self) -> None:
        """Raise MalformedBody unless the form is complete."""
        try:
            self._parser.close()
        except MultipartError:
            raise MalformedBody("The form ends before its closing boundary.") from None


class _Parser(PushMultipartParser):  # type: ignore[misc] # the library has no types
    def _create_segment(self, headerlist: list[tuple[str, str]]) -> Any:
        """Accept a part without a name, which the form then refuses or ignores."""
        return MultipartSegment(headerlist)


def is_form(content_type: str) -> bool:
    return content_type[: len(FORM)].lower() == FORM


def _malformed(error: MultipartError) -> MalformedBody:
    if "line break" in str(error):
        return MalformedBody(
            "The lines of the form end with LF. They must end with CR LF (RFC 2046)."
        )
    return MalformedBody(f"The form cannot be parsed: {error}.")


def _boundary(content_type: str) -> str:
    boundary = str(parse_options_header(content_type)[1].get("boundary", ""))
    if not boundary:
        raise MalformedBody("The Content-Type has no boundary.")
    if len(boundary) > MAX_BOUNDARY:
        raise MalformedBody(f"The boundary has more than {MAX_BOUNDARY} characters.")
    return boundary
