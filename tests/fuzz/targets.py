"""The fuzz targets: functions that take bytes. They may refuse them, and raise nothing else."""

import asyncio
import atexit
import functools
import io
import json
from collections.abc import Callable
from typing import Any

from starlette.requests import Request

from app.batches.archive import ZipEntries
from app.batches.limits import BatchLimits
from app.batches.manifest import parse_manifest
from app.images.header import inspect_header
from app.uploads.image_upload import Upload, read_upload
from app.uploads.limiter import UploadLimiter, UploadLimits
from core.bundles.bundle import BundleManifest
from core.domain.messages import PushEnvelope
from core.errors import (
    BatchTooLarge,
    ImageTooLarge,
    InvalidImage,
    InvalidRequest,
    MalformedBody,
    MalformedEnvelope,
    UnsupportedImage,
)
from core.imaging.formats import accepted_type
from worker.inference.preprocessing import Preprocessor

MAX_BYTES = 100_000
MAX_PIXELS = 250_000
_BATCH = BatchLimits(10 * MAX_BYTES, MAX_BYTES)
_SLOTS = UploadLimiter(UploadLimits(max_bytes=10**6, min_bytes_per_second=10**6))
BOUNDARY = b"edge"
MANIFEST = {
    "name": "fuzz",
    "input": {"name": "pixels", "layout": "NCHW", "height": 8, "width": 8},
    "resize": {"method": "stretch", "resample": "bilinear"},
    "mean": [0.0, 0.0, 0.0],
    "std": [1.0, 1.0, 1.0],
    "outputs": {"scores": "logits", "kind": "logits"},
    "opset": 18,
}


def envelope(data: bytes) -> None:
    """The worker parses a push."""
    try:
        message = PushEnvelope.parse(data).image_message()
    except MalformedEnvelope:
        return
    assert type(message).from_attributes(message.attributes()) == message


def multipart(data: bytes) -> None:
    """The API parses a form, in chunks whose size is the first byte."""
    size, body = (data[0] if data else 0) + 1, data[1:]
    chunks = [body[at : at + size] for at in range(0, len(body), size)] or [b""]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": number < len(chunks)}
        for number, chunk in enumerate(chunks, start=1)
    ]
    position = iter(messages)

    async def receive() -> Any:
        return next(position)

    content_type = b"multipart/form-data; boundary=" + BOUNDARY
    scope = {"type": "http", "method": "POST", "headers": [(b"content-type", content_type)]}
    try:
        upload = _runner().run(_read(Request(scope, receive)))
    except (MalformedBody, InvalidRequest, ImageTooLarge):
        return
    assert 0 < len(upload.data) <= MAX_BYTES
    assert bytes(upload.data) in body


async def _read(request: Request) -> Upload:
    with _SLOTS.slot() as slot:
        return await read_upload(request, MAX_BYTES, slot)


@functools.cache
def _runner() -> asyncio.Runner:
    """One event loop for all inputs: a new one for each would take most of the time."""
    runner = asyncio.Runner()
    atexit.register(runner.close)
    return runner


def header(data: bytes) -> None:
    """The API inspects the header of an image."""
    try:
        inspect_header(data, accepted_type(data), MAX_PIXELS)
    except (InvalidImage, UnsupportedImage):
        return


def preparation(data: bytes) -> None:
    """The worker decodes bytes into a tensor."""
    try:
        tensor = _preprocessor().tensor(data)
    except InvalidImage:
        return
    assert tensor.shape == (1, 3, 8, 8)


@functools.cache
def _preprocessor() -> Preprocessor:
    return Preprocessor(BundleManifest.model_validate(MANIFEST), MAX_PIXELS)


def archive(data: bytes) -> None:
    """The API reads a batch that is a zip."""
    try:
        entries = ZipEntries(io.BytesIO(data), _BATCH)
    except (MalformedBody, BatchTooLarge):
        return
    unpacked = 0
    for entry in entries.images:
        image = entries.read(entry)
        assert (image.error is None) == bool(image.image_hash)
        assert len(image.data) <= _BATCH.max_image_bytes
        unpacked += len(image.data)
    assert unpacked <= _BATCH.max_bytes


def manifest(data: bytes) -> None:
    """The API reads the JSON document of a batch."""
    try:
        batch = parse_manifest(data)
    except (InvalidRequest, BatchTooLarge):
        return
    json.dumps([entry.metadata for entry in batch.image_hashes], allow_nan=False).encode()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "envelope": envelope,
    "multipart": multipart,
    "header": header,
    "preparation": preparation,
    "archive": archive,
    "manifest": manifest,
}
