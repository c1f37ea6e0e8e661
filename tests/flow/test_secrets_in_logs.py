"""No log contains a credential or image bytes, at any level.

The test calls every route of real processes at debug level with marked secrets, also with requests
that fail. Then it searches all output.
"""

import base64
import io
import json
import re
import secrets
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.main import create_app
from tests.support.api import api_settings, routes_of
from tests.support.pictures import sha256
from tests.support.plain_http import NO_TLS
from tests.support.stack import Stack


def marked_image(marker: str) -> bytes:
    text = PngInfo()
    text.add_text("Comment", marker)
    file = io.BytesIO()
    Image.new("RGB", (40, 30), "red").save(file, "PNG", pnginfo=text)
    return file.getvalue()


def forms_of(secret: str) -> list[bytes]:
    """The forms in which a log could contain the secret."""
    raw = secret.encode()
    return [raw, raw.hex().encode(), base64.b64encode(raw)[:-4], base64.b64encode(b"a" + raw)[4:-4]]


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_no_secret_and_no_byte_of_an_image_is_in_any_log(
    tmp_path: Path, colour_bundle: Path, log_format: str
) -> None:
    marks = {
        name: f"{name}-{secrets.token_hex(12)}"
        for name in ("secret", "image", "forged", "q", "hook")
    }
    image = marked_image(marks["image"])
    assert marks["image"].encode() in image
    settings = {
        "API_KEYS": "required",
        "KEY_SECRET": f"{marks['secret']}-{'x' * 32}",
        "LOG_LEVEL": "debug",
        "WEBHOOK_ALLOW_PRIVATE": "true",
        "LOG_FORMAT": log_format,
    }
    with Stack(tmp_path / "stack", colour_bundle, **settings) as stack:
        hidden = set(marks.values())
        hidden.add(stack.make_key("--scopes", "all"))
        good = dict(stack.api.headers)
        stack.upload(image)
        image_hash = sha256(image)
        stack.result(image_hash)
        link = stack.api.get(f"/api/v1/images/{image_hash}/content").headers["location"]
        hidden.add(re.search("signature=([0-9a-f]{64})", link)[1])  # type: ignore[index]
        made = stack.api.post("/api/v1/keys", json={"name": "n"}).json()
        rotated = stack.api.post(f"/api/v1/keys/{made['id']}/rotate").json()
        hidden |= {made["key"], rotated["key"]}
        # No server listens there: the test of the webhook fails, and the log says so.
        hook = stack.api.post(
            "/api/v1/webhooks", json={"url": f"http://127.0.0.1:9/{marks['hook']}"}
        ).json()
        turned = stack.api.post(f"/api/v1/webhooks/{hook['id']}/rotate").json()
        hidden |= {each["secret"].removeprefix("whsec_") for each in (hook, turned)}
        assert stack.api.post(f"/api/v1/webhooks/{hook['id']}/test").status_code == 202

        def send(method: str, path: str, headers: dict[str, str], **body: Any) -> None:
            with httpx.Client(base_url=stack.api.base_url, timeout=60, verify=NO_TLS) as client:
                client.request(method, path, headers=headers, **body)

        forged = {"Authorization": f"Bearer glp_{marks['forged']}", "Cookie": marks["forged"]}
        app = create_app(api_settings(tmp_path, colour_bundle))
        routes = [(m, p) for m, p, _ in routes_of(app) if m != "DELETE"]
        assert len(routes) >= 15
        for method, route in [*routes, ("GET", "/no/such"), ("PUT", "/what/fast")]:
            path = re.sub(r"\{image_hash\}", image_hash, route)
            path = re.sub(r"\{\w+\}", "public", path) + f"?signature={marks['q']}&expires=9"
            for headers in (good, forged, {}):
                if method in ("GET", "HEAD"):
                    send(method, path, headers)
                    continue
                send(method, path, headers, files={"img": (marks["q"], image)})
                send(method, path, headers, content=image)
                send(method, path, headers, content=image[:60])
                send(method, path, headers, json={marks["q"]: marks["q"], "name": 7})
        send("GET", link, {})
        send("GET", link[:-1] + "0", {})
        # The routes of the worker, with an invalid body, and with an invalid and the valid secret.
        hidden.add(stack.push_headers()["Authorization"].removeprefix("Bearer "))
        for path in (
            *("/generate_annotations", "/generate_annotations_dlq", "/reconcile"),
            "/notifications",
        ):
            for headers in (forged, stack.push_headers()):
                httpx.post(
                    f"http://127.0.0.1:{stack.worker_port}{path}?token={marks['q']}",
                    headers=headers,
                    content=json.dumps({"message": {"data": marks["q"]}}),
                    timeout=60,
                    verify=NO_TLS,
                )
        names = list(stack.processes)
        for name in names:
            stack.stop(name)
        written = b"".join(stack.log_file(name).read_bytes() for name in names)
    # The logs are at debug level, and contain these requests.
    assert written.count(b"/api/v1/images") > 10
    assert made["id"].encode() in written
    assert b"webhook not delivered" in written and hook["id"].encode() in written
    for secret in hidden:
        for form in forms_of(secret):
            assert form not in written, f"{secret.split('-')[0]} is in a log"
    assert b"\x89PNG" not in written
    assert b"\\x89PNG" not in written
