"""Errors of the client, by the problem codes of the service."""

import json
from collections.abc import Iterator
from pathlib import Path

from glimpse_client import errors

from app.main import create_app
from core.errors import GlimpseError
from tests.support.api import api_settings

# Requests that are no HTTP of this API, which the client never sends, and codes of the worker.
OF_OTHERS = {
    *("bad_request", "head_too_large", "headers_too_slow", "malformed_request"),
    *("method_not_allowed", "upgrade_required", "not_ready"),
    *("malformed_envelope", "invalid_bundle", "bundle_unavailable"),
}
OWN = ("app", "core")


def kinds_of(kind: type[GlimpseError]) -> Iterator[type[GlimpseError]]:
    for each in kind.__subclasses__():
        yield each
        yield from kinds_of(each)


def test_each_problem_code_of_the_service_has_a_class(tmp_path: Path, colour_bundle: Path) -> None:
    schema = create_app(api_settings(tmp_path, colour_bundle)).openapi()
    # The document has the codes of every class that this process knows. Other tests import more.
    foreign = {
        kind.code for kind in kinds_of(GlimpseError) if kind.__module__.split(".")[0] not in OWN
    }
    codes = set(schema["components"]["schemas"]["ProblemCode"]["enum"]) - foreign
    assert len(codes) > 20, json.dumps(sorted(codes))
    for code in sorted(codes - OF_OTHERS):
        kind = type(errors.error_for(418, {"code": code}))
        assert kind is not errors.BadRequest, code


def test_code_decides_before_the_status() -> None:
    error = errors.error_for(422, {"code": "unknown_model", "detail": "No."}, retry_after=2.0)
    assert type(error) is errors.UnknownModel
    assert isinstance(error, errors.Invalid)
    assert (str(error), error.retry_after) == ("422 unknown_model: No.", 2.0)
    assert type(errors.error_for(422, {"code": "of_tomorrow"})) is errors.Invalid
    assert type(errors.error_for(599, {})) is errors.ServiceUnavailable
