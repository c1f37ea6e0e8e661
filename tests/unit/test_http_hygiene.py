"""Security headers, CORS, allowed hosts, and requests of pages of other origins."""

import hashlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.http import docs_page
from tests.support.api import NOTHING, Api, api_settings, open_api, routes_of
from tests.support.pictures import picture, sha256
from tests.support.problems import assert_problem

IMAGE = picture()
HASH = sha256(IMAGE)
STRICT = "default-src 'none'; frame-ancestors 'none'"


async def test_every_response_has_the_security_headers(api: Api) -> None:
    """This includes refusals, and responses for unknown paths."""
    tried = [(m, re.sub(r"\{\w+\}", HASH, path)) for m, path, _ in routes_of(api.app)]
    tried += [("GET", "/no/such/page"), ("PUT", "/what/fast"), ("OPTIONS", "/what/fast")]
    for method, path in tried:
        answer = await api.client.request(method, path)
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"], path
        assert answer.headers.get_list("referrer-policy") == ["no-referrer"], path
        (policy,) = answer.headers.get_list("content-security-policy")
        assert "default-src 'none'" in policy, path
        assert "strict-transport-security" not in answer.headers
        if path != "/docs" and path != "/":  # pages have policies of their own
            assert policy == STRICT, path
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers


async def test_content_of_an_image_is_sandboxed(api: Api) -> None:
    await api.client.post("/api/v1/images", content=IMAGE)
    link = (await api.client.get(f"/api/v1/images/{HASH}/content")).headers["location"]
    answer = await api.client.get(link)
    policies = answer.headers.get_list("content-security-policy")
    assert policies == ["default-src 'none'; sandbox"]
    assert answer.headers.get_list("x-content-type-options") == ["nosniff"]


async def test_hsts_is_sent_for_a_public_https_url(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(tmp_path, colour_bundle, public_url="https://glimpse.example")
    async with open_api(settings) as api:
        answer = await api.client.get("/health")
        assert answer.headers["strict-transport-security"] == "max-age=31536000"


# Of the package that app/http/swagger/README.md names.
SWAGGER = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}


async def test_docs_page_needs_no_other_host_and_no_inline_code(api: Api) -> None:
    answer = await api.client.get("/docs")
    policy = answer.headers["content-security-policy"]
    assert policy == docs_page.CONTENT_POLICY
    assert "unsafe" not in policy and "http" not in policy and "default-src 'none'" in policy
    assert not re.findall(r"<script>|<style|style=|onload|https?://", answer.text)
    named = re.findall(r'(?:src|href)="([^"]+)"', answer.text)
    assert [each for each in named if each != "data:,"] == [
        f"docs/assets/{name}" for name in ("swagger-ui.css", "swagger-ui-bundle.js", "start.js")
    ]


@pytest.mark.parametrize("name", ["swagger-ui.css", "swagger-ui-bundle.js", "start.js"])
async def test_assets_of_the_docs_are_the_pinned_ones(api: Api, name: str) -> None:
    path = f"/docs/assets/{name}"
    for encoding in ("identity", "gzip"):
        answer = await api.client.get(path, headers={"Accept-Encoding": encoding})
        assert answer.status_code == 200
        assert answer.headers.get("content-encoding", "identity") == encoding
        if name in SWAGGER:
            assert hashlib.sha256(answer.content).hexdigest() == SWAGGER[name]
    same = await api.client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    assert (await api.client.get("/docs/assets/LICENSE")).status_code == 404


async def test_docs_can_be_turned_off(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle, docs=False)) as api:
        assert (await api.client.get("/")).status_code == 200
        for path in ("/docs", "/openapi.json", "/redoc", "/docs/oauth2-redirect"):
            answer = await api.client.get(path)
            assert answer.status_code == 404, path
            assert answer.json()["code"] == "unknown_path"


async def test_head_has_the_same_status_and_headers_as_get(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        for path in ("/", "/docs", "/openapi.json", "/health", "/ready"):
            get, head = await api.client.get(path), await api.client.head(path)
            assert head.status_code == get.status_code, path
            assert head.headers == get.headers, path


# --- Other origins, other hosts -------------------------------------------------------------------

PREFLIGHT = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,prefer",
}


async def test_other_origins_may_not_call_by_default(api: Api) -> None:
    answer = await api.client.options("/api/v1/images", headers=PREFLIGHT)
    assert answer.status_code == 405
    assert not any(name.startswith("access-control") for name in answer.headers)


async def test_headers_that_pages_may_send_are_a_setting(
    tmp_path: Path, colour_bundle: Path
) -> None:
    """The default includes the headers of tracing libraries and of old HTTP clients."""
    for given, asked, allowed in (
        ({}, "baggage,sentry-trace,tracestate,x-requested-with,cache-control", True),
        ({}, "range,if-range,idempotency-key,cancel-after,x-api-key", True),
        ({}, "x-amz-date", False),
        ({"cors_headers": ("X-Amz-Date",)}, "x-amz-date,authorization", True),
        ({"cors_headers": ("X-Amz-Date",)}, "baggage", False),
        ({"cors_headers": ("*",)}, "x-anything", True),
    ):
        origins = {"cors_origins": ("https://app.example",), **given}
        async with open_api(api_settings(tmp_path, colour_bundle, **origins)) as api:
            headers = PREFLIGHT | {
                "Access-Control-Request-Headers": asked,
                "Access-Control-Request-Method": "PUT",
            }
            answer = await api.client.options("/api/v1/images", headers=headers)
            assert (answer.status_code == 200) is allowed, (given, asked)


async def test_allowed_origins_may_call(tmp_path: Path, colour_bundle: Path) -> None:
    settings = api_settings(
        tmp_path, colour_bundle, cors_origins=("https://app.example",), api_keys="required"
    )
    async with open_api(settings) as api:
        answer = await api.client.options("/api/v1/images", headers=PREFLIGHT)
        assert answer.status_code == 200  # a preflight has no key
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in answer.headers["access-control-allow-headers"].lower()
        assert "access-control-allow-credentials" not in answer.headers
        answer = await api.client.get("/ready", headers={"Origin": "https://app.example"})
        assert "RateLimit" in answer.headers["access-control-expose-headers"]
        stranger = PREFLIGHT | {"Origin": "https://evil.example"}
        answer = await api.client.options("/api/v1/images", headers=stranger)
        assert answer.status_code == 400
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("glimpse.example", 404),
        ("GLIMPSE.example:8080", 404),
        ("a.cdn.example", 404),
        ("cdn.example", 400),
        ("evilcdn.example", 400),
        ("glimpse.example.evil", 400),
        ("[::1]:8080", 404),
        ("[::2]:8080", 400),
        ("127.0.0.1", 400),
        ("", 400),
    ],
)
async def test_only_allowed_hosts_are_served(
    tmp_path: Path, colour_bundle: Path, host: str, status: int
) -> None:
    hosts = ("glimpse.example", "*.cdn.example", "[::1]")
    async with open_api(api_settings(tmp_path, colour_bundle, allowed_hosts=hosts)) as api:
        answer = await api.client.get(f"/what/status/{HASH}", headers={"Host": host})
        assert answer.status_code == status
        if status == 400:
            assert answer.json()["code"] == "invalid_host"
            assert answer.headers["x-content-type-options"] == "nosniff"
        # Probes use an IP address.
        assert (await api.client.get("/health", headers={"Host": host})).status_code == 204


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 404),
        ("localhost:8080", 404),
        ("LOCALHOST", 404),
        ("[::1]:8080", 404),
        ("labels.example", 404),  # of PUBLIC_URL
        ("evil.example", 400),  # a name that now leads to 127.0.0.1 (DNS rebinding)
        ("evil.example:8080", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example", 400),
        ("169.254.169.254", 400),
    ],
)
async def test_service_on_loopback_serves_only_names_of_this_machine(
    tmp_path: Path, colour_bundle: Path, host: str, status: int
) -> None:
    settings = api_settings(tmp_path, colour_bundle, public_url="https://labels.example")
    async with open_api(settings) as api:
        answer = await api.client.get(f"/what/status/{HASH}", headers={"Host": host})
        assert answer.status_code == status
        if status == 400:
            assert_problem(answer, 400, "invalid_host")
            assert "ALLOWED_HOSTS" in answer.json()["detail"]


async def test_service_on_all_addresses_serves_every_host(
    tmp_path: Path, colour_bundle: Path
) -> None:
    settings = api_settings(tmp_path, colour_bundle, host="0.0.0.0", allow_public=True)
    async with open_api(settings) as api:
        answer = await api.client.get("/", headers={"Host": "glimpse.lan"})
        assert answer.status_code == 200


# What browsers send with a request of a page at http://127.0.0.1:8080, of another page, and
# without Fetch Metadata.
OWN = [
    {},
    {"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8080"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": "http://127.0.0.1:8080"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://app.example"},  # CORS_ORIGINS
    {"Origin": "https://labels.example"},  # PUBLIC_URL, behind a proxy that changes Host
]
FOREIGN = [
    {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "http://127.0.0.1:8080"},
    {"Sec-Fetch-Site": "same-site", "Origin": "http://127.0.0.1:3000"},  # another port
    {"Origin": "https://evil.example"},
    {"Origin": "http://127.0.0.1"},  # another port
    {"Origin": "null"},  # a sandboxed frame
]


@pytest.fixture
async def with_origins(tmp_path: Path, colour_bundle: Path) -> AsyncIterator[Api]:
    settings = api_settings(
        tmp_path,
        colour_bundle,
        cors_origins=("https://app.example",),
        public_url="https://labels.example",
    )
    async with open_api(settings) as api:
        api.client.headers["Host"] = "127.0.0.1:8080"
        yield api


@pytest.mark.parametrize("headers", FOREIGN)
async def test_page_of_another_origin_changes_nothing(
    with_origins: Api, headers: dict[str, str]
) -> None:
    """Every route with an unsafe method, as a page could call it without asking first."""
    client = with_origins.client
    for method, path, _ in routes_of(with_origins.app):
        if method in ("GET", "HEAD"):
            continue
        address = re.sub(r"\{\w+\}", HASH, path)
        answer = await client.request(method, address, content=IMAGE, headers=headers)
        assert_problem(answer, 403, "cross_origin_request")
    assert with_origins.traces() == NOTHING
    assert (await client.get("/", headers=headers)).status_code == 200  # a link to the page


@pytest.mark.parametrize("headers", OWN)
async def test_own_and_allowed_pages_and_programs_may_upload(
    with_origins: Api, headers: dict[str, str]
) -> None:
    answer = await with_origins.client.post("/api/v1/images", content=IMAGE, headers=headers)
    assert answer.status_code == 202


async def test_page_of_another_origin_creates_no_webhook(with_origins: Api) -> None:
    """`text/plain` and no type need no preflight, also where a browser sends no Origin."""
    for headers in ({"Content-Type": "text/plain"}, {}, FOREIGN[0]):
        body = b'{"url": "https://93.184.215.14/hook"}'
        answer = await with_origins.client.post("/api/v1/webhooks", content=body, headers=headers)
        assert answer.status_code == (403 if "Origin" in headers else 415)
    assert (await with_origins.client.get("/api/v1/webhooks")).json() == {"webhooks": []}
