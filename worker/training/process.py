"""The process of one fit: reads examples from standard input, and writes the head and the report.

`worker.training.wire` has the format, and `worker.training.client` starts the process.
"""

import contextlib
import json
import os
import signal
import sys
from typing import BinaryIO

import numpy as np

from core.child_process import end_with_parent
from core.domain.training_report import bytes_of_report
from worker.inference.head import NUMBER, bytes_of_head
from worker.training.fit import TrainingSet, fit_head
from worker.training.wire import IMAGE, SIZE

NICENESS = 5  # classifications go first


def read_examples(stream: BinaryIO) -> TrainingSet:
    """Read examples to the end of the stream, without a second copy of the embeddings."""
    header = json.loads(stream.readline())
    most = header["images"]
    embeddings = np.empty((0, 0), np.float32)
    classes = np.empty(most, np.int64)
    hashes: list[str] = []
    while head := stream.read(IMAGE.size):
        image_hash, label, size = IMAGE.unpack(head)
        numbers = np.frombuffer(stream.read(size), NUMBER)
        row = len(hashes)
        if not row:
            embeddings = np.empty((most, len(numbers)), np.float32)
        embeddings[row], classes[row] = numbers, label
        hashes.append(image_hash.hex())
    count = len(hashes)
    labels = tuple(header["labels"])
    return TrainingSet(header["base"], labels, hashes, classes[:count], embeddings[:count])


def fit_stream(stream: BinaryIO) -> bytes:
    """Fit the examples in `stream`. Returns the output of the process (`worker.training.wire`)."""
    head, report = fit_head(read_examples(stream))
    data = bytes_of_head(head)
    return SIZE.pack(len(data)) + data + bytes_of_report(report)


def main() -> None:
    # Ctrl-C reaches every process of the terminal. The worker decides when this one stops.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    end_with_parent(signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    sys.stdout.buffer.write(fit_stream(sys.stdin.buffer))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
