"""The demonstration, against a service that refuses, ends or is another program."""

import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from compose import demo
from compose.demo import demonstrate
from tests.support.settings import isolated_settings

URL = "http://127.0.0.1:8080"
FULL = {"code": "overloaded", "detail": "The service is at capacity. Retry later.", "status": 503}
RECORD = {"status": "success", "annotations": [{"label": "cat", "confidence": 0.9}], "error": None}
CREATED = {"job_id": "1", "poll_url": "/jobs/1", "stream_url": "/jobs/1/stream"}

Handler = Callable[[httpx2.Request], httpx2.Response]


def full(request: httpx2.Request) -> httpx2.Response:
    # In parts, as from a network: a response that is closed before it is read has no text.
    parts = iter([json.dumps(FULL).encode()])
    return httpx2.Response(503, content=parts, headers={"Retry-After": "1"})


def full_of_streams(request: httpx2.Request) -> httpx2.Response:
    path = request.url.path
    if path.endswith("/stream"):
        return full(request)
    return httpx2.Response(202, json=CREATED if "/jobs/" in path else RECORD)


def another_page(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, html="<h1>It works!</h1>")


def another_document(request: httpx2.Request) -> httpx2.Response:
    return httpx2.Response(200, json={"hello": "world"})


def nothing(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("refused")


@pytest.mark.parametrize(
    ("handler", "sentence"),
    [
        (full, f"{URL} answered 503: The service is at capacity. Retry later."),
        (full_of_streams, f"{URL} answered 503: The service is at capacity. Retry later."),
        (another_page, f"The program that answers at {URL} is not Glimpse."),
        (another_document, f"The program that answers at {URL} is not Glimpse."),
        (nothing, f"nothing answers at {URL}"),
    ],
)
def test_refusal_is_one_sentence(
    handler: Handler, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_Retrying", lambda: httpx2.MockTransport(handler))
    with pytest.raises(SystemExit) as ended:
        demonstrate(isolated_settings(data_dir=tmp_path), URL)
    assert sentence in str(ended.value.code)


def test_unusable_data_folder_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("DATA_DIR", str(file))
    with pytest.raises(SystemExit, match=f"DATA_DIR={file} cannot be used"):
        demo.main()


def test_backend_of_make_run_may_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setenv("BACKEND", "compose")
    monkeypatch.setattr(demo, "demonstrate", lambda settings, url: shown.append(settings.backend))
    demo.main()
    assert shown == ["emulator"]


def test_interruption_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "demonstrate", interrupted)
    with pytest.raises(SystemExit, match="The demonstration was interrupted"):
        demo.main()
