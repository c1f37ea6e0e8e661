"""`/`: the page, and `/page/…`: its files.

The page has a content policy of its own (https://www.w3.org/TR/CSP3/): scripts, styles and requests
of this origin only, and the one inline script, the import map, by its hash.
"""

import base64
import hashlib
import re
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import APIRouter, Request, Response

from app.http.static_files import StaticFile
from core.errors import NotFound
from core.http.route_access import public

_INLINE = re.compile(rb"<script type=\"importmap\">(.*?)</script>", re.DOTALL)


@cache
def read_assets() -> Mapping[str, StaticFile]:
    """Every file of the page, by its path below `/page/`. Blocks in the first call."""
    found: dict[str, StaticFile] = {}

    def walk(folder: Traversable, above: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{above}{entry.name}/")
            else:
                found[above + entry.name] = StaticFile(entry.read_bytes(), entry.name)

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
    assets = dict(read_assets())
    index = assets.pop("index.html")
    policy = content_policy(index.body)

    @router.get("/")
    @public
    async def page(request: Request) -> Response:
        headers = {"Content-Security-Policy": policy, "Permissions-Policy": "camera=(self)"}
        return await index.response(request, headers)

    @router.get("/page/{path:path}")
    @public
    async def asset(request: Request, path: str) -> Response:
        found = assets.get(path)
        if found is None:
            raise NotFound("The page has no such file.")
        return await found.response(request, {})

    return router
