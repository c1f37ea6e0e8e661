"""An image through real processes: upload, push, classify, request."""

import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.pictures import encode, picture, sha256
from tests.support.plain_http import NO_TLS
from tests.support.stack import Stack, until


@pytest.fixture(scope="module", params=["embedded", "emulator"])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, colour_bundle: Path
) -> Iterator[Stack]:
    namespace = {} if request.param == "embedded" else request.getfixturevalue("emulator_namespace")
    # No process is killed here. A lease that expires on a busy machine would repeat an inference.
    settings = {**namespace, "LEASE_SECONDS": 60}
    with Stack(tmp_path_factory.mktemp("stack"), colour_bundle, **settings) as running:
        yield running


def test_new_image_is_accepted_then_labelled_then_known(stack: Stack) -> None:
    image = picture(seed=1, colour=(20, 200, 30))
    image_hash = sha256(image)

    first = stack.upload(image)
    assert first.status_code == 202
    assert first.json()["status"] in ("pending", "queued")
    assert first.headers["location"] == f"/what/status/{image_hash}"
    assert int(first.headers["retry-after"]) >= 1

    result = stack.result(image_hash)
    assert result["status"] == "success"
    annotations = result["annotations"]
    assert isinstance(annotations, list)
    assert len(annotations) == 5
    assert annotations[0]["label"] == "green"
    assert [a["index"] for a in annotations] == [1, 2, 3, 4, 5]

    again = stack.upload(image)
    assert again.status_code == 200
    assert again.json() == result


def test_slow_upload_waits_for_the_result(stack: Stack) -> None:
    image = picture(seed=2, colour=(20, 30, 220))
    answer = stack.api.post("/what/slow", files={"img": ("p.jpg", image)})
    assert answer.status_code == 200
    assert answer.json()["annotations"][0]["label"] == "blue"


def test_raw_body_with_prefer_wait(stack: Stack) -> None:
    image = picture(seed=3, format_="PNG")
    answer = stack.api.post(
        "/api/v1/images",
        content=image,
        headers={"Content-Type": "image/png", "Prefer": "wait=20"},
    )
    assert answer.status_code == 200
    assert "wait=20" in answer.headers["preference-applied"]
    assert answer.json()["annotations"][0]["label"] == "red"


def test_signed_link_gives_the_bytes_back(stack: Stack) -> None:
    image = picture(seed=4, format_="WEBP")
    stack.upload(image)
    redirect = stack.api.get(f"/api/v1/images/{sha256(image)}/content")
    assert redirect.status_code == 307
    content = stack.api.get(redirect.headers["location"])
    assert content.status_code == 200
    assert content.content == image
    assert content.headers["content-type"] == "image/webp"


def test_truncated_image_ends_as_a_final_error(stack: Stack) -> None:
    image = picture(seed=5, size=(400, 300))
    truncated = image[: len(image) // 3]
    assert stack.upload(truncated).status_code == 202
    result = stack.result(sha256(truncated))
    assert result["status"] == "error"
    error = result["error"]
    assert isinstance(error, dict)
    assert error["code"] == "undecodable_image"
    assert error["retryable"] is False
    assert stack.upload(truncated).status_code == 200


def test_two_hundred_simultaneous_uploads_make_one_inference(stack: Stack) -> None:
    image = picture(seed=6, colour=(240, 240, 240))
    image_hash = sha256(image)
    limits = httpx.Limits(max_connections=200)
    with httpx.Client(
        base_url=stack.api.base_url, timeout=60, limits=limits, verify=NO_TLS
    ) as client:

        def post(_: int) -> int:
            while True:
                status = client.post("/what/fast", files={"img": ("p.jpg", image)}).status_code
                if status != 503 or not stack.on_emulators:
                    return status
                time.sleep(1)  # the emulators are slow, so the client retries

        with ThreadPoolExecutor(200) as pool:
            statuses = list(pool.map(post, range(200)))
    assert set(statuses) <= {200, 202}
    result = stack.result(image_hash)
    assert result["status"] == "success"
    assert result["attempts"] == 1
    assert stack.classifications(image_hash) == 1


def test_deleted_image_is_unknown_and_can_be_uploaded_again(stack: Stack) -> None:
    image = picture(seed=7)
    stack.upload(image)
    stack.result(sha256(image))
    assert stack.api.delete(f"/api/v1/images/{sha256(image)}").status_code == 204
    assert stack.api.get(f"/what/status/{sha256(image)}").status_code == 404
    assert stack.upload(image).status_code == 202


def test_every_log_line_of_an_image_carries_its_hash(stack: Stack) -> None:
    image = picture(seed=8)
    image_hash = sha256(image)
    trace = secrets.token_hex(16)
    headers = {"Traceparent": f"00-{trace}-{secrets.token_hex(8)}-01"}
    files = {"img": ("picture.jpg", image)}
    assert stack.api.post("/what/fast", files=files, headers=headers).status_code == 202
    stack.result(image_hash)
    item = f"/api/v1/images/{image_hash}"
    assert stack.api.delete(item, headers=headers).status_code == 204
    assert stack.api.get(item, headers=headers).status_code == 404
    assert stack.classifications(image_hash) == 1

    def lines(name: str) -> list[dict[str, Any]]:
        return [line for line in stack.log_lines(name) if line.get("trace") == trace]

    # The log line about a request is written after its response.
    asked = [("POST", "/what/fast"), ("DELETE", item), ("GET", item)]
    until(
        lambda: (
            asked == [(e["method"], e["path"]) for e in lines("api") if e["message"] == "request"]
        ),
        "the closing lines of an upload, a deletion and a look-up",
    )
    for line in lines("api") + lines("worker"):
        assert line.get("image_hash") == image_hash, line


def test_animated_gif_is_labelled_by_its_first_frame(stack: Stack) -> None:
    from PIL import Image

    frames = [Image.new("RGB", (40, 40), colour) for colour in ("blue", "red", "red")]
    image = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    answer = stack.api.post("/what/slow", files={"img": ("p.gif", image)})
    assert answer.json()["annotations"][0]["label"] == "blue"
