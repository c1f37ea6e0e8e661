"""`/docs` with its assets, and `/openapi.json`.

The page is Swagger UI (app/http/swagger). It works without other hosts, under a content policy that
permits none.
"""

import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from app.http.compression import compressed
from app.http.static_files import StaticFile
from core.errors import NotFound
from core.http.route_access import public

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css", "start.js")
# Paths are relative: PUBLIC_URL may have a path.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/assets/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/assets/swagger-ui-bundle.js"></script>
<script src="docs/assets/start.js"></script>
</body>
</html>
"""
CONTENT_POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)


@cache
def _read_assets() -> Mapping[str, StaticFile]:
    """The files of Swagger UI by name. Blocks in the first call."""
    folder = files("app.http") / "swagger"
    return {name: StaticFile((folder / name).read_bytes(), name) for name in _ASSETS}


def docs_routes(title: str) -> APIRouter:
    """Return the routes. FastAPI's own load Swagger UI from another host."""
    router = APIRouter(include_in_schema=False)
    page = _PAGE.format(title=html.escape(title)).encode()
    assets = _read_assets()
    encoded = b""

    @router.get("/docs")
    @public
    async def docs() -> Response:
        return Response(
            page, media_type="text/html", headers={"Content-Security-Policy": CONTENT_POLICY}
        )

    @router.get("/docs/assets/{name}")
    @public
    async def asset(request: Request, name: str) -> Response:
        found = assets.get(name)
        if found is None:
            raise NotFound("The documentation has no such file.")
        return await found.response(request, {})

    @router.get("/openapi.json")
    @public
    async def schema(request: Request) -> Response:
        nonlocal encoded
        encoded = encoded or json.dumps(request.app.openapi()).encode()
        return await compressed(request, Response(encoded, media_type="application/json"))

    return router
