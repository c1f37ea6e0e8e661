"""Demonstrates Glimpse: `make demo` sends photos to the running service, a batch, and a training.

`examples/README.md` names the sources of the photos.
"""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # While the packages load, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import hashlib
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
from rich.console import Console
from rich.progress import track
from rich.table import Table

from compose.choice import asked_backend
from compose.data_dir_lock import DataDirError, holder_url
from compose.demo_batch import NOT_SURE, show_batch
from compose.demo_training import show_training
from core.settings import ENV_FILE, Settings, load_settings

PHOTOS = ("cat.jpg", "coffee.jpg", "rocket.jpg")
FOLDER = Path(__file__).resolve().parents[1] / "examples"
RETRYABLE = (httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE)
RETRY_SECONDS = 60.0  # longest time for the retries of one request
RESULT_SECONDS = 60.0  # longest time until an image has a result
# Only `make run` knows which backend runs. Jobs need the scope `jobs` as well.
KEY_REQUIRED = """\
Glimpse requires an API key of the backend that make run has named. For embedded (or emulator):
  export GLIMPSE_API_KEY="$(BACKEND=embedded make --silent key NAME=demo SCOPES=classify,read,jobs)"
For compose:
  export GLIMPSE_API_KEY="$(docker compose --file compose/compose.yaml exec -T api \\
    python -m app.keys create demo --scopes classify,read,jobs)"
Then run make demo again."""


class _Retrying(httpx2.HTTPTransport):
    """Repeats a request that gets 429 or 503, after the time that `Retry-After` says."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            response = super().handle_request(request)
            if response.status_code not in RETRYABLE:
                return response
            after = response.headers.get("retry-after", "")
            wait = float(after) if after.isdigit() else 1.0
            if time.monotonic() + wait > deadline:
                return response
            response.close()
            time.sleep(wait)


def _reason(response: httpx2.Response) -> str:
    """The status of a refusal, and what the service says about it."""
    response.read()
    try:
        detail = response.json()["detail"]
    except (ValueError, KeyError, TypeError):
        detail = response.reason_phrase
    return f"{response.status_code}: {detail}"


@dataclass(frozen=True)
class Row:
    """The first response, the result, and the time that each took, in seconds."""

    file: str
    first_status: int
    status: str
    labels: list[str]
    seconds: float
    again_status: int
    again_seconds: float


def show(client: httpx2.Client, file: str, photo: bytes) -> Row:
    """Upload a photo, wait for its result, and upload it again."""
    began = time.perf_counter()
    first = client.post("/what/fast", files={"img": (file, photo)}).raise_for_status()
    answer = first.json()
    image_hash = hashlib.sha256(photo).hexdigest()
    while answer["status"] not in ("success", "error"):
        if time.perf_counter() - began > RESULT_SECONDS:
            break
        time.sleep(0.02)
        answer = client.get(f"/what/status/{image_hash}").raise_for_status().json()
    seconds = time.perf_counter() - began
    began_again = time.perf_counter()
    again = client.post("/what/fast", files={"img": (file, photo)}).raise_for_status()
    best = answer["annotations"][:3]
    labels = [f"{a['label']} {a['confidence']:.0%}" for a in best]
    if answer.get("confident") is False:
        labels.insert(0, NOT_SURE)
    return Row(
        file=file,
        first_status=first.status_code,
        status=answer["status"],
        labels=labels or [str((answer["error"] or {}).get("detail", ""))],
        seconds=seconds,
        again_status=again.status_code,
        again_seconds=time.perf_counter() - began_again,
    )


def photos() -> Iterator[tuple[str, bytes]]:
    for name in PHOTOS:
        yield name, (FOLDER / name).read_bytes()


def _key() -> dict[str, str]:
    key = os.environ.get("GLIMPSE_API_KEY", "")
    return {"X-API-Key": key} if key else {}


def _api_url(settings: Settings) -> str:
    """The address of the settings, if they name one, or else of what runs in the data folder."""
    if settings.model_fields_set & {"api_port", "host"}:
        return settings.api_url
    return holder_url(settings.data_dir) or settings.api_url


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked_backend(os.environ, Path(ENV_FILE)) == "compose":
        os.environ["BACKEND"] = "emulator"  # the backend of the containers
    try:
        settings = load_settings()
        demonstrate(settings, _api_url(settings))
    except DataDirError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("\nThe demonstration was interrupted. Its images and jobs stay.")


def demonstrate(settings: Settings, url: str) -> None:
    """Show the three parts. Exits with a sentence if the service refuses or does not answer."""
    console = Console()
    table = Table(title=f"What is in these images? ({url})")
    # In 80 columns, only labels need a second line.
    for column in ("file", "first", "status", "labels", "time", "again"):
        table.add_column(column, no_wrap=column != "labels")
    failed = False
    try:
        with httpx2.Client(
            base_url=url, timeout=30, headers=_key(), trust_env=False, transport=_Retrying()
        ) as client:
            for file, photo in track(
                list(photos()), "classifying", console=console, transient=True
            ):
                row = show(client, file, photo)
                failed |= row.status != "success"
                table.add_row(
                    row.file,
                    str(row.first_status),
                    row.status,
                    "\n".join(row.labels),
                    f"{1000 * row.seconds:.0f} ms",
                    f"{row.again_status}, {1000 * row.again_seconds:.0f} ms",
                    end_section=True,
                )
            console.print(table)
            failed |= not show_batch(client, [FOLDER / name for name in PHOTOS], console)
            failed |= not show_training(client, console)
    except httpx2.HTTPStatusError as refused:
        if refused.response.status_code == httpx2.codes.UNAUTHORIZED:
            sys.exit(KEY_REQUIRED)
        sys.exit(f"The demonstration ended: {url} answered {_reason(refused.response)}")
    except httpx2.TransportError:
        sys.exit(
            f"Glimpse is not running: nothing answers at {url}, and no process uses "
            f"{settings.data_dir.resolve()}. Start it in another terminal: make run"
        )
    except (ValueError, LookupError):  # no JSON, or another document
        sys.exit(f"The program that answers at {url} is not Glimpse.")
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
