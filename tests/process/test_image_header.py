"""The memory that a hostile header costs a process."""

import subprocess
import sys

from tests.support.pictures import png_header
from tests.support.stack import ROOT

# Pillow allocates pixels outside of Python's heap, so only the process shows them.
_GROWTH = """
import resource, sys
from app.images.header import inspect_header
from core.errors import InvalidImage
from tests.support.pictures import png_header

def peak():  # kilobytes, on macOS bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (10 * (sys.platform == "darwin"))

def refusal(side):
    try:
        inspect_header(png_header(side, side), "image/png", 1)
    except InvalidImage as refused:
        return refused.detail

refusal(2)  # whatever the first picture loads is no part of the bomb
before = peak()
print(refusal(20_000))
print(peak() - before)
"""


def test_decompression_bomb_is_refused_by_its_header_in_little_memory() -> None:
    assert len(png_header(20_000, 20_000)) < 200
    shown = subprocess.run(
        # Through a shell: on Linux the peak of a process starts at that of its parent, and the test
        # run may have used more memory than the bomb.
        ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, _GROWTH],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    refusal, kilobytes = shown.splitlines()
    assert "20000 x 20000" in refusal
    assert int(kilobytes) < 8 * 1024  # its pixels would need 400 MB
