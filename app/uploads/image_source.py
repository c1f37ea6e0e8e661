"""An image that a client names in JSON: by its URL, or as its bytes in Base64."""

import asyncio
import binascii
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import unquote_to_bytes

from pydantic import Field, model_validator
from starlette.requests import Request

from app.http.json_body import JsonBody, check_content_type, parse_json
from app.uploads.image_upload import ImageBuffer, Upload, image_too_large
from app.uploads.limiter import UploadSlot
from core.errors import InvalidRequest, overloaded
from core.outbound.http_client import (
    MAX_URL_LENGTH,
    NoResponse,
    PublicClient,
    open_public_client,
)

FETCH_SECONDS = 15.0  # time limit of a fetch with its redirects
MAX_FETCHES = 16  # concurrent fetches of one process
READ_BUFFER = 64 * 1024
USER_AGENT = "Glimpse-Images/1"
_OVERHEAD = 64 * 1024  # bytes of the JSON without the image
_DATA_URL = re.compile(r"data:[^,;]*(?:;[^,;]*)*?(;base64)?,", re.IGNORECASE)


_URL_TEXT = "The `https` or `http` URL of an image on a public address, or a `data:` URL"


class ImageUrl(JsonBody):
    """The address of an image, which the service fetches."""

    url: str = Field(
        min_length=1,
        description=_URL_TEXT,
        examples=["https://example.com/cat.jpg"],
    )


class ImageSource(JsonBody):
    """An image by its URL, or in Base64."""

    url: str | None = Field(None, min_length=1, description=_URL_TEXT)
    base64: str | None = Field(None, min_length=1, description="The bytes of the image (RFC 4648)")

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.url is None) == (self.base64 is None):
            raise ValueError("Send either url or base64")
        return self


class ImageFetcher:
    """Fetches images from URLs that clients choose, unless the operator has disabled it."""

    def __init__(self, client: PublicClient, *, enabled: bool) -> None:
        self._client = client
        self._enabled = enabled
        self._fetches = 0

    async def fetch(self, url: str, image: ImageBuffer, slot: UploadSlot) -> None:
        """Add the response's body to `image`, and reserve its bytes in `slot`.

        Raises InvalidRequest, PrivateAddress, ImageTooLarge, Overloaded.
        """
        if not self._enabled:
            raise _invalid("This service fetches no URLs. Send the bytes of the image.")
        if self._fetches >= MAX_FETCHES:
            raise overloaded()
        self._fetches += 1
        headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
        try:
            async for chunk in self._client.get(url, headers):
                slot.reserve(len(chunk))
                image.add(chunk)
        except NoResponse as error:
            raise _invalid(f"The URL returned no image: {error}.") from error
        finally:
            self._fetches -= 1
        if not image.data:
            raise _invalid("The URL returned no image: its response is empty.")


@asynccontextmanager
async def open_image_fetcher(*, enabled: bool) -> AsyncIterator[ImageFetcher]:
    """A fetcher that never reaches a private address."""
    async with open_public_client(
        FETCH_SECONDS, allow_private=False, user_agent=USER_AGENT, read_buffer=READ_BUFFER
    ) as client:
        yield ImageFetcher(client, enabled=enabled)


async def read_image_source(
    request: Request, max_bytes: int, slot: UploadSlot, fetcher: ImageFetcher
) -> Upload:
    """Read the JSON, and the image that it contains or names.

    Raises UnsupportedMediaType, InvalidRequest, ImageTooLarge, PrivateAddress, Overloaded, and what
    `UploadSlot.read` raises.
    """
    check_content_type(request)
    body = bytearray()
    most = _OVERHEAD + 4 * (max_bytes + 2) // 3
    async for chunk in slot.read(request, most, lambda: image_too_large(max_bytes)):
        body += chunk
    source = await asyncio.to_thread(parse_json, bytes(body), ImageSource)
    size = len(body)
    body.clear()
    image = ImageBuffer(max_bytes)
    if source.url is not None and source.url[:5].lower() != "data:":
        if len(source.url) > MAX_URL_LENGTH:
            raise _invalid(f"The URL has more than {MAX_URL_LENGTH} characters.")
        await fetcher.fetch(source.url, image, slot)
    else:
        image.add(await asyncio.to_thread(_decoded, source))
        slot.reserve(len(image.data))
    slot.release(size)
    return Upload(image.data, image.image_hash(), slot)


def _decoded(source: ImageSource) -> bytes:
    """The bytes in Base64, or in a `data:` URL (RFC 2397). Raises InvalidRequest."""
    field = "base64" if source.url is None else "url"
    text = source.base64 if source.url is None else source.url
    if text is None or text[:5].lower() != "data:":  # browsers return a `data:` URL for Base64
        return _base64(text or "", field)
    begin = _DATA_URL.match(text[:1000])
    if begin is None:
        raise InvalidRequest("The data URL has no comma.", extra={"field": field})
    data = text[begin.end() :]
    content = _base64(data, field) if begin[1] else unquote_to_bytes(data)
    if not content:
        raise InvalidRequest("The data URL is empty.", extra={"field": field})
    return content


def _base64(text: str, field: str) -> bytes:
    """Standard or URL-safe Base64, with or without padding and line breaks."""
    compact = "".join(text.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        content = b64decode(compact + "=" * (-len(compact) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("The image is not in Base64.", extra={"field": field}) from None
    if not content:
        raise InvalidRequest("The image is empty.", extra={"field": field})
    return content


def _invalid(detail: str) -> InvalidRequest:
    return InvalidRequest(detail, extra={"field": "url"})
