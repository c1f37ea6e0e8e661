"""`/`: the page, and `/page/…`: its files.

The page has a content policy of its own (https://www.w3.org/TR/CSP3/): scripts, styles and requests
of this origin only, and the one inline script, the import map, by its hash.
"""

import base64
import gzip
import hashlib
import mimetypes
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response

from app.http.compression import accepts_gzip
from app.http.responses import etag_matches
from core.errors import NotFound
from core.http.route_access import public

_METHODS = ["GET", "HEAD"]
_INLINE = re.compile(rb"<script type=\"importmap\">(.*?)</script>", re.DOTALL)
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file of the page, in memory."""

    body: bytes
    zipped: bytes
    media_type: str
    etag: str


def _asset(body: bytes, name: str) -> Asset:
    suffix = name[name.rfind(".") :]
    kind = _TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "text/plain"
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'  # weak: of the content, compressed or not
    return Asset(body, gzip.compress(body), kind, etag)


def read_assets() -> dict[str, Asset]:
    """Every file of the page, by its path below `/page/`. Blocks; called once at the start."""
    found: dict[str, Asset] = {}

    def walk(folder: Traversable, above: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{above}{entry.name}/")
            else:
                found[above + entry.name] = _asset(entry.read_bytes(), entry.name)

    walk(files("app.page") / "static", "")
    return found


def content_policy(index: bytes) -> str:
    """The policy of the page. `blob:` is for previews of files that were chosen in the page."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in _INLINE.findall(index)
    )
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' {hashes}",
            "style-src 'self'",
            "img-src 'self' blob: data:",
            "media-src 'self' blob:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )


def page_routes() -> APIRouter:
    """The page's routes."""
    router = APIRouter(include_in_schema=False)
    assets = read_assets()
    index = assets.pop("index.html")
    policy = content_policy(index.body)

    def answer(request: Request, asset: Asset, headers: dict[str, str]) -> Response:
        # A file is checked with each visit: an update of the service is an update of the page.
        headers = {
            "ETag": asset.etag,
            "Cache-Control": "no-cache",
            "Vary": "Accept-Encoding",
            **headers,
        }
        if etag_matches(request.headers.get("if-none-match", ""), asset.etag.removeprefix("W/")):
            return Response(status_code=304, headers=headers)
        if not accepts_gzip(request):
            return Response(asset.body, media_type=asset.media_type, headers=headers)
        headers["Content-Encoding"] = "gzip"
        return Response(asset.zipped, media_type=asset.media_type, headers=headers)

    @router.api_route("/", methods=_METHODS)
    @public
    async def page(request: Request) -> Response:
        headers = {"Content-Security-Policy": policy, "Permissions-Policy": "camera=(self)"}
        return answer(request, index, headers)

    @router.api_route("/page/{path:path}", methods=_METHODS)
    @public
    async def asset(request: Request, path: str) -> Response:
        found = assets.get(path)
        if found is None:
            raise NotFound("The page has no such file.")
        return answer(request, found, {})

    return router
