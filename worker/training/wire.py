"""What a fit reads from its standard input, and what it writes. This module needs no NumPy.

The process reads

    a line of JSON {"base", "labels", "images"}, then for each image
    32 bytes of hash, 2 bytes C, 4 bytes N (big-endian), N bytes of embedding

where C is the index of the image's label, and writes 4 bytes N, N bytes of head and the report.
"""

import json
import struct
from collections.abc import Sequence

IMAGE = struct.Struct(">32sHI")
SIZE = struct.Struct(">I")


def header_of(base: str, labels: Sequence[str], images: int) -> bytes:
    """The first line for a fit of at most `images` images."""
    return json.dumps({"base": base, "labels": labels, "images": images}).encode() + b"\n"


def image_of(image_hash: str, label: int, embedding: bytes) -> bytes:
    """One image for a fit."""
    return IMAGE.pack(bytes.fromhex(image_hash), label, len(embedding)) + embedding


def result_of(output: bytes) -> tuple[bytes, bytes]:
    """The head's file and the report in what a fit wrote."""
    (size,) = SIZE.unpack_from(output)
    return output[SIZE.size : SIZE.size + size], output[SIZE.size + size :]
