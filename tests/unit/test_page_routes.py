"""The page: its files, its policy, and that it needs nothing from other hosts."""

import gzip
import hashlib
import re
from pathlib import Path

from app.page import routes
from tests.support.api import Api, api_settings, open_api
from tests.support.problems import assert_problem

STATIC = Path(routes.__file__).parent / "static"
MODULES = sorted(STATIC.glob("*.js"))
# Of the packages that vendor/README.md names.
VENDORED = {
    "preact.js": "bdcbd9abdf2c77c5c45326eab42191e949222d479d0d5f69467387a77040cb55",
    "preact-hooks.js": "e862ab2973aa6455eaa0f77c5d832d2157d6be59a17c8ba546550a575b58c6b4",
    "htm.js": "ab33dd3f38059b9be4d5f5350128eefb2356639c4e0bbe9d9e8b3ba75847e9e4",
}
FIRST_LOAD = 60_000  # bytes, compressed, without pictures
_IMPORT = re.compile(r"""(?:from|import)\s*\(?["']([^"']+)["']""")


def imports_of(module: Path) -> set[str]:
    return set(_IMPORT.findall(module.read_text()))


async def test_page_has_a_separate_content_security_policy(api: Api) -> None:
    answer = await api.client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy, "no other host"
    (inline,) = re.findall(rb"<script[^>]*>(.+?)</script>", answer.content, re.DOTALL)
    assert routes.content_policy(b'<script type="importmap">' + inline + b"</script>") == policy
    assert "'sha256-" in policy
    assert b"onclick" not in answer.content
    assert b"style=" not in answer.content


async def test_every_file_that_the_page_names_is_served(api: Api) -> None:
    page = (await api.client.get("/")).text
    named = set(re.findall(r'(?:href|src)="(page/[^"]+)"', page))
    named |= {"page" + each[6:] for each in re.findall(r'"(\./page/[^"]+)"', page)}
    for module in MODULES:
        for each in imports_of(module):
            if each.startswith("./"):
                named.add(f"page/{each[2:]}")
            else:
                assert f'"{each}":' in page, f"{module.name} imports {each}, which the map lacks"
    assert len(named) > 10
    for each in named:
        answer = await api.client.get(f"/{each}")
        assert answer.status_code == 200, each
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        assert answer.headers["content-type"].startswith(kind[each.rpartition(".")[2]])


async def test_a_file_is_sent_once_and_confirmed_after_that(api: Api) -> None:
    first = await api.client.get("/page/style.css")
    etag = first.headers["etag"]
    again = await api.client.get("/page/style.css", headers={"If-None-Match": etag})
    assert (again.status_code, again.content) == (304, b"")
    plain = await api.client.get("/page/style.css", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert (first.headers["content-encoding"], first.content) == ("gzip", plain.content)
    assert int(first.headers["content-length"]) < len(plain.content) / 2
    other = await api.client.get("/page/style.css", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200
    head = await api.client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    for path in ("/page/nothing.js", "/page/", "/page/%2e%2e/routes.py"):
        assert_problem(await api.client.get(path), 404, "not_found")
    assert_problem(await api.client.get("/page/../routes.py"), 404, "unknown_path")


async def test_the_page_can_be_left_out(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle, page=False)) as api:
        for path in ("/", "/page/style.css"):
            assert_problem(await api.client.get(path), 404, "unknown_path")
        assert (await api.client.get("/docs")).status_code == 200


def test_page_loads_nothing_from_other_hosts() -> None:
    for file in (*MODULES, STATIC / "style.css", STATIC / "index.html"):
        for address in re.findall(r"https?://[^\s\"'`)]+", file.read_text()):
            said = ("https://example.com", "https://w3c.github.io/", "http://www.w3.org/")
            assert address.startswith(said), f"{file.name}: {address}"


def test_vendored_modules_are_those_of_their_packages() -> None:
    for name, digest in VENDORED.items():
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest
        assert f"`{name}`" in (STATIC / "vendor/README.md").read_text()


def test_types_are_those_of_the_vendored_modules() -> None:
    vendored = re.findall(r"(\w+) (\d[\d.]+), `dist", (STATIC / "vendor/README.md").read_text())
    assert {name for name, _ in vendored} == {"preact", "htm"}
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert all(f" {name}@{version}" in makefile for name, version in vendored)


def test_the_first_load_is_small() -> None:
    seen: set[Path] = set()

    def load(module: Path) -> None:
        if module in seen:
            return
        seen.add(module)
        text = module.read_text()
        for each in _IMPORT.findall(re.sub(r"import\(.*?\)", "", text)):
            if each.startswith("./"):
                load(STATIC / each[2:])

    load(STATIC / "main.js")
    files = [*seen, *(STATIC / "vendor").glob("*.js"), STATIC / "style.css", STATIC / "index.html"]
    assert sum(len(gzip.compress(file.read_bytes())) for file in files) < FIRST_LOAD


async def test_models_are_listed_and_read(api: Api) -> None:
    (model,) = (await api.client.get("/api/v1/models")).json()["models"]
    assert model["id"] == api.services.model
    assert model["default"] is True
    assert "labels" not in model
    for name in (model["id"], model["name"]):
        found = (await api.client.get(f"/api/v1/models/{name}")).json()
        assert found["labels"] == list(api.services.bundle.labels)
        assert found["label_count"] == len(found["labels"])
    refused = assert_problem(await api.client.get("/api/v1/models/other"), 404, "not_found")
    assert refused["known"] == [model["id"]]
