"""The file of a head: the linear classifier of a trained model, on embeddings of its base model.

The file is immutable, and its digest identifies the model's version:

    8 bytes "GLIMPSEH", 4 bytes N (big-endian), N bytes of JSON (`HeadHeader`),
    then float32 in little-endian: dimensions x labels weights, and a bias for each label

This module needs no NumPy, which the worker's own process does not load.
"""

import hashlib
import struct
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.domain.records import MODEL
from core.errors import BundleError

MEDIA_TYPE = "application/octet-stream"
NUMBER_BYTES = 4

_MAGIC = b"GLIMPSEH"
_SIZE = struct.Struct(">I")
_START = len(_MAGIC) + _SIZE.size


class HeadHeader(BaseModel):
    """What the file has before its numbers. A new release may define another `format`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    base: Annotated[str, Field(pattern=f"^{MODEL.pattern}$")]
    dimensions: Annotated[int, Field(ge=1, le=65536)]
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    temperature: Annotated[float, Field(gt=0)]
    thresholds: tuple[float, ...]

    @model_validator(mode="after")
    def _check_thresholds(self) -> Self:
        if len(self.thresholds) != len(self.labels):
            raise ValueError("labels and thresholds differ in number")
        return self


def pack_head(header: HeadHeader, numbers: bytes) -> bytes:
    """The file with these weights and biases."""
    text = header.model_dump_json().encode()
    return b"".join((_MAGIC, _SIZE.pack(len(text)), text, numbers))


def unpack_head(data: bytes) -> tuple[HeadHeader, int]:
    """The header of a file, and where its numbers begin.

    Raises BundleError, also for a format of a newer release: a worker of that release can read it.
    """
    if len(data) < _START or not data.startswith(_MAGIC):
        raise BundleError("The file is not a head.")
    begin = _START + _SIZE.unpack_from(data, len(_MAGIC))[0]
    try:
        header = HeadHeader.model_validate_json(data[_START:begin])
    except ValidationError as error:
        raise BundleError("This release cannot read the head.") from error
    count = (header.dimensions + 1) * len(header.labels)
    if len(data) - begin != NUMBER_BYTES * count:
        raise BundleError("The head is damaged.")
    return header, begin


def identity_of_head(name: str, data: bytes) -> str:
    """The identity of the version of the model `name` whose head's file is `data`."""
    return f"{name}@{hashlib.sha256(data).hexdigest()[:12]}"
