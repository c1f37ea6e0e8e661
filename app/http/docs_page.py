"""`/docs` and `/openapi.json`."""

import base64
import hashlib
import json
import re

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html

from app.http.compression import compressed
from core.http.route_access import public

_ASSETS = "https://cdn.jsdelivr.net"
_ICON = "https://fastapi.tiangolo.com"
_METHODS = ["GET", "HEAD"]
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def docs_routes(title: str) -> APIRouter:
    """Return the routes. FastAPI's own do not send a content security policy."""
    router = APIRouter(include_in_schema=False)
    page = get_swagger_ui_html(
        openapi_url="openapi.json",  # relative: PUBLIC_URL may have a path
        title=title,
        swagger_ui_parameters={"persistAuthorization": False},
    )
    policy = content_policy(bytes(page.body))
    encoded = b""

    @router.api_route("/docs", methods=_METHODS)
    @public
    async def docs() -> Response:
        return Response(
            page.body, media_type="text/html", headers={"Content-Security-Policy": policy}
        )

    @router.api_route("/openapi.json", methods=_METHODS)
    @public
    async def schema(request: Request) -> Response:
        nonlocal encoded
        encoded = encoded or json.dumps(request.app.openapi()).encode()
        return await compressed(request, Response(encoded, media_type="application/json"))

    return router


def content_policy(page: bytes) -> str:
    """Return a policy that allows Swagger UI and, by its hash, the page's inline script."""
    scripts = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'"
        for script in _INLINE_SCRIPT.findall(page)
    ]
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {_ASSETS} {' '.join(scripts)}",
            f"style-src {_ASSETS} 'unsafe-inline'",
            f"img-src 'self' data: {_ICON}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ]
    )
