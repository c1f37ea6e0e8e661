"""What a hostile header costs a process."""

import subprocess
import sys

from tests.support.pictures import png_header
from tests.support.stack import ROOT

# Pillow's pixels lie outside of Python's memory: only the process shows them.
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
        # By way of a shell: on Linux a process's peak begins as that of whoever started it, and
        # what runs the tests may have been larger than the bomb.
        ["sh", "-c", '"$0" -c "$1"; exit $?', sys.executable, _GROWTH],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    refusal, kilobytes = shown.splitlines()
    assert "20000 x 20000" in refusal
    assert int(kilobytes) < 8 * 1024  # its pixels would take 400 MB
