"""`make demo` on real processes with the bundled model prints what the README shows."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from compose import demo_training
from compose.demo import PHOTOS
from compose.demo_batch import BROKEN, IMAGES
from core.bundles.bundle import write_sums
from core.settings import DEFAULT_BUNDLE
from tests.support.bundles import write_colour_bundle
from tests.support.stack import ROOT, Stack, free_port

WIDTH = 80  # columns of a default terminal, and of the block in the README


def demo(environment: Mapping[str, str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compose.demo"],
        cwd=ROOT,
        env={**environment, "HOST": "127.0.0.1", "COLUMNS": str(WIDTH), **more},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_demo_shows_photos_a_job_and_a_training_in_80_columns(tmp_path: Path) -> None:
    with Stack(tmp_path, DEFAULT_BUNDLE) as stack:
        done = demo(stack.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert f"What is in these images? ({stack.api.base_url})" in done.stdout
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    photos = [row for row in cells if len(row) == 6 and row[0]]
    assert [row[:3] for row in photos] == [[photo, "202", "success"] for photo in PHOTOS]
    for _, _, _, label, seconds, again in photos:
        assert re.fullmatch(r".+ \d+%|not sure", label)
        assert re.fullmatch(r"\d+ ms", seconds)
        assert re.fullmatch(r"200, \d+ ms", again)
    total = IMAGES + BROKEN
    assert (total, BROKEN) == (123, 3)
    assert re.search(rf"^one job ━+ {total}/{total} {BROKEN} failed ", done.stdout, re.MULTILINE)
    assert re.search(r"^Job [0-9a-f]{32}: completed\. ", done.stdout, re.MULTILINE)
    frequent = [row for row in cells if len(row) == 2]
    assert frequent
    assert 0 < sum(int(number) for _, number in frequent) <= IMAGES
    labels, each = tuple(demo_training.LABELS), demo_training.IMAGES
    images = len(labels) * each
    assert re.search(
        rf"^training ━+ {images + 1}/{images + 1} 0 failed ", done.stdout, re.MULTILINE
    )
    assert re.search(r"^Model shapes@[0-9a-f]{12}: accuracy \d+% ", done.stdout, re.MULTILINE)
    matrix = [row for row in cells if len(row) == 1 + len(labels)]
    assert tuple(row[0] for row in matrix) == labels
    counts = [[int(count.replace("·", "0")) for count in row[1:]] for row in matrix]
    assert [sum(row) for row in counts] == [each] * len(labels)
    # Shapes are easy: a table that was transposed or mixed up would not have this diagonal.
    assert sum(row[index] for index, row in enumerate(counts)) > 0.8 * images
    said = re.findall(r"^A new drawing of a (\w+): (.+)$", done.stdout, re.MULTILINE)
    assert tuple(label for label, _ in said) == labels
    assert sum(label in answer for label, answer in said) >= 3


def test_demo_names_the_key_that_it_needs(tmp_path: Path) -> None:
    """The default model has no embedding to train on, which is no failure either."""
    bundle = write_colour_bundle(tmp_path / "colours")
    manifest = json.loads((bundle / "model.json").read_text())
    del manifest["outputs"]["embedding"]
    (bundle / "model.json").write_text(json.dumps(manifest))
    write_sums(bundle)
    with Stack(tmp_path, bundle, API_KEYS="required") as stack:
        refused = demo(stack.environment)
        assert refused.returncode == 1
        said = re.search(r"make --silent key NAME=demo SCOPES=([\w,]+)", refused.stderr)
        assert said, refused.stderr
        key = stack.make_key("--scopes", said[1])
        accepted = demo(stack.environment, GLIMPSE_API_KEY=key)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert "Training is left out: base has no embedding" in accepted.stdout


class _Busy(BaseHTTPRequestHandler):
    """Refuses with 503: `refusals` times, then with the status `then`."""

    refusals, then, seen = 2, 418, 0

    def do_POST(self) -> None:
        kind = type(self)
        kind.seen += 1
        self.rfile.read(int(self.headers["content-length"]))
        busy = kind.seen <= kind.refusals
        body = json.dumps({"detail": "Busy." if busy else "A teapot."}).encode()
        self.send_response(503 if busy else kind.then)
        self.send_header("Retry-After", "1" if kind.refusals < 10 else "3600")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Write nothing."""


@pytest.mark.parametrize(
    ("refusals", "attempts", "said"), [(2, 3, "418: A teapot."), (1000, 1, "503: Busy.")]
)
def test_demo_honours_retry_after_and_ends_with_one_sentence(
    tmp_path: Path, colour_bundle: Path, refusals: int, attempts: int, said: str
) -> None:
    """A wait of an hour is too long."""
    busy: Any = type("Busy", (_Busy,), {"refusals": refusals})
    with ThreadingHTTPServer(("127.0.0.1", 0), busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack = Stack(tmp_path, colour_bundle)  # not started
        done = demo(stack.environment, API_PORT=str(server.server_port))
        server.shutdown()
    assert done.returncode == 1
    url = f"http://127.0.0.1:{server.server_port}"
    assert done.stderr == f"The demonstration ended: {url} answered {said}\n"
    assert busy.seen == attempts


def test_demo_reports_a_service_that_is_not_running(tmp_path: Path, colour_bundle: Path) -> None:
    stack = Stack(tmp_path, colour_bundle)  # not started
    done = demo(stack.environment, API_PORT=str(port := free_port()))
    assert done.returncode == 1
    assert done.stderr == (
        f"Glimpse is not running: nothing answers at http://127.0.0.1:{port}, and no process uses "
        f"{tmp_path / 'data'}. Start it in another terminal: make run\n"
    )
