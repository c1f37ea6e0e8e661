"""The details of errors in the examples of routes for which those of other routes do not fit.

`tests/unit/test_openapi.py` provokes them. `app.http.openapi.DETAILS` has those of all routes.
"""

import copy
import re
from typing import Any

from app.images.service import check_hash
from app.jobs.service import NO_SUCH_JOB
from core.domain.principals import Scope
from core.errors import Conflict, Forbidden, GlimpseError, InvalidRequest, NotFound

_WEBHOOKS, _LETTERS = "/api/v1/webhooks", "/api/v1/dead-letters"


def _bad_hash() -> str:
    try:
        check_hash("")
    except InvalidRequest as error:
        return error.detail
    raise AssertionError


# (method and path, as a regular expression), error -> detail. Later ones take precedence.
ROUTE_DETAILS: tuple[tuple[str, dict[type[GlimpseError], str]], ...] = (
    (r"(GET|PUT|DELETE) (/api/v1/images|/what/status)/\{", {InvalidRequest: _bad_hash()}),
    (r"GET /api/v1/images$", {InvalidRequest: "limit: must be at most 200"}),
    (r"POST /api/v1/images/lookup", {InvalidRequest: "image_hashes: is required"}),
    (
        r"\w+ /api/v1/jobs",
        {
            NotFound: NO_SUCH_JOB,
            Forbidden: "The job belongs to another key.",
            Conflict: "The job has ended. Its status is completed.",
            InvalidRequest: "limit: must be at most 200",
        },
    ),
    (r"POST /api/v1/jobs/batch-predict", {InvalidRequest: "The batch has no images."}),
    (r"POST .*/retry", {Conflict: "The job has not ended. Its status is pending."}),
    (
        rf"\w+ {_WEBHOOKS}",
        {
            NotFound: "There is no such webhook.",
            InvalidRequest: "url: is required",
            Conflict: "The tenant already has 20 webhooks, the maximum.",
        },
    ),
    (rf"POST {_WEBHOOKS}/.*/test", {Conflict: "The webhook is disabled. Enable it first."}),
    (
        rf"\w+ {_LETTERS}",
        {
            NotFound: "There is no such dead letter.",
            InvalidRequest: "limit: must be at least 1",
            Conflict: "A worker is processing the image. Retry later.",
        },
    ),
    (rf"\w+ {_LETTERS}/\{{", {InvalidRequest: "id: must be the id of a dead letter"}),
    (r"\w+ /api/v1/keys", {NotFound: "There is no such key.", InvalidRequest: "name: is required"}),
    (r"GET /api/v1/models/", {NotFound: "There is no such model."}),
    (r"GET /api/v1/usage", {InvalidRequest: "days: must be at least 1"}),
)


def set_details(where: str, operation: dict[str, Any], scope: Scope) -> None:
    """Set the details in the examples of the operation at `where`, such as `GET /ready`."""
    details = {Forbidden.code: f"This needs a key with the scope {scope.value!r}."}
    for pattern, of_route in ROUTE_DETAILS:
        if re.match(pattern, where):
            details |= {kind.code: detail for kind, detail in of_route.items()}
    # A copy: routes share the descriptions of their refusals.
    operation["responses"] = copy.deepcopy(operation["responses"])
    for response in operation["responses"].values():
        for content in response.get("content", {}).values():
            for code, example in content.get("examples", {}).items():
                if code in details and "value" in example:
                    example["value"]["detail"] = details[code]
