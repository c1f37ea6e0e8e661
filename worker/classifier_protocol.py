"""What the worker and its classifier processes say to each other over a stream socket.

A request is a frame of

    1 byte K, 4 bytes N, 4 bytes M, N bytes of JSON [identity, folder], M bytes

where K says what the M bytes are: nothing (load the model), an encoded image, or the path of a file
that holds one. Each is answered, in order, by

    4 bytes N, N bytes of JSON {"annotations": [[label, confidence], ...], "steps": ...}
                            or {"error": [code, detail, traceback], "steps": ...}

where the steps are [[name, began, ended], ...], in Unix nanoseconds. Lengths are big-endian. Both
ends are of one release, so there is no version.
"""

import struct

from core.errors import (
    BundleError,
    GlimpseError,
    InvalidImage,
    NotFound,
    Unavailable,
    UndecodableImage,
)
from worker.errors import InferenceFailed

LOAD, IMAGE, FILE = range(3)
READ = "read image"  # the step that reads a file
REQUEST = struct.Struct(">BII")
REPLY = struct.Struct(">I")
# What may come back, by its code; whatever else is raised comes back as InferenceFailed.
ERRORS: dict[str, type[GlimpseError]] = {
    error.code: error
    for error in (
        *(NotFound, Unavailable, InvalidImage, UndecodableImage),
        *(InferenceFailed, BundleError),
    )
}
