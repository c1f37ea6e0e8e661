"""`/docs` with its assets, and `/openapi.json`.

The page is Swagger UI (app/http/swagger). It works without other hosts, under a content policy that
permits none.
"""

import asyncio
import gzip
import hashlib
import html
import json
from importlib.resources import files

from fastapi import APIRouter, Request, Response

from app.http.compression import accepts_gzip, compressed
from app.http.responses import etag_matches
from core.errors import NotFound
from core.http.route_access import public

_METHODS = ["GET", "HEAD"]
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "start.js": "text/javascript",
}
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


def docs_routes(title: str) -> APIRouter:
    """Return the routes. FastAPI's own load Swagger UI from another host."""
    router = APIRouter(include_in_schema=False)
    page = _PAGE.format(title=html.escape(title)).encode()
    folder = files("app.http") / "swagger"
    assets = {name: (folder / name).read_bytes() for name in _ASSETS}
    etags = {name: f'"{hashlib.sha256(body).hexdigest()[:32]}"' for name, body in assets.items()}
    zipped: dict[str, bytes] = {}
    encoded = b""

    @router.api_route("/docs", methods=_METHODS)
    @public
    async def docs() -> Response:
        return Response(
            page, media_type="text/html", headers={"Content-Security-Policy": CONTENT_POLICY}
        )

    @router.api_route("/docs/assets/{name}", methods=_METHODS)
    @public
    async def asset(request: Request, name: str) -> Response:
        body = assets.get(name)
        if body is None:
            raise NotFound("The documentation has no such file.")
        headers = {
            "ETag": f"W/{etags[name]}",  # weak: of the content, compressed or not
            "Cache-Control": "no-cache",
            "Vary": "Accept-Encoding",
        }
        if etag_matches(request.headers.get("if-none-match", ""), etags[name]):
            return Response(status_code=304, headers=headers)
        if accepts_gzip(request):
            headers["Content-Encoding"] = "gzip"
            if name not in zipped:
                zipped[name] = await asyncio.to_thread(gzip.compress, body)
            body = zipped[name]
        return Response(body, media_type=_ASSETS[name], headers=headers)

    @router.api_route("/openapi.json", methods=_METHODS)
    @public
    async def schema(request: Request) -> Response:
        nonlocal encoded
        encoded = encoded or json.dumps(request.app.openapi()).encode()
        return await compressed(request, Response(encoded, media_type="application/json"))

    return router
