"""Valid and invalid requests, which schemathesis generates from a service's OpenAPI document.

A response is wrong if the document does not describe its status, content type, headers or body, and
if it is a server error other than 503 with `Retry-After`.
"""

import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode, checks
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi import checks as openapi

from tests.abuse.hostile import FORMATS, sample
from tests.support.stack import Stack

SERVICES = ("api", "worker")
ANSWER_SECONDS = 60.0
MODES = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
CHECKS = [
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_headers_conformance,
    openapi.response_schema_conformance,
    openapi.allow_header_conformance,
    openapi.unsupported_method,
]
REAL_IMAGES = 0.3  # share of raw bodies that are images; generated ones are not


@dataclass
class Outcome:
    """The requests and their statuses. `wrong` is empty if every response was as documented."""

    operations: int = 0
    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def attack(
    stack: Stack,
    service: str,
    examples: int,
    seed_: int,
    progress: Callable[[int], None] = lambda sent: None,
) -> Outcome:
    """Send `examples` requests to every operation of a running service, half of them invalid."""
    port = {"api": stack.api_port, "worker": stack.worker_port}[service]
    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    outcome, draw = Outcome(), random.Random(seed_)
    with requests.Session() as session:
        if service == "worker":
            session.headers.update(stack.push_headers())
        for found in document.get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()
            outcome.operations += 1
            for mode in MODES:
                if mode is GenerationMode.NEGATIVE and not _has_invalid_requests(operation):
                    continue
                _attack_operation(
                    operation, mode, examples // len(MODES), session, outcome, draw, progress
                )
    return outcome


def _has_invalid_requests(operation: "APIOperation[Any, Any, Any, Any]") -> bool:
    """Whether requests can be invalid: not if the only input is any text in the path.

    Hypothesis would draw hundreds of requests before it gives up.
    """
    description = operation.definition.raw
    inputs = [(each["in"], each["schema"].keys()) for each in description.get("parameters", [])]
    return "requestBody" in description or any(
        place != "path" or keys - {"type", "title", "description", "examples"}
        for place, keys in inputs
    )


def _attack_operation(
    operation: "APIOperation[Any, Any, Any, Any]",
    mode: GenerationMode,
    examples: int,
    session: requests.Session,
    outcome: Outcome,
    draw: random.Random,
    progress: Callable[[int], None],
) -> None:
    @seed(draw.randrange(2**32))
    @settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(operation.as_strategy(generation_mode=mode))
    def each(case: "Case[Any]") -> None:
        body = case.media_type or ""
        if body.startswith("image/") and draw.random() < REAL_IMAGES:
            case.body = sample(draw.choice(FORMATS), draw.choice((8, 16, 32)))
        outcome.requests += 1
        progress(outcome.requests)
        problem = _send(case, session, outcome)
        if problem and problem not in outcome.wrong:
            outcome.wrong.append(problem)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            each()
    except Unsatisfiable:
        pass  # an operation without input has no invalid request


def _send(case: "Case[Any]", session: requests.Session, outcome: Outcome) -> str:
    """Send the request; return what is wrong with the response, or an empty text."""
    where = f"{case.method} {case.path}"
    try:
        answer = case.call(session=session, timeout=ANSWER_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return f"{where}: no answer: {error!r}"
    outcome.statuses[answer.status_code] += 1
    asked = [*CHECKS]
    if answer.status_code != 503 or "retry-after" not in answer.headers:
        asked.append(checks.not_a_server_error)
    try:
        case.validate_response(answer, checks=asked)
    except FailureGroup as failures:
        titles = "; ".join(f"{each.title}: {each.message}" for each in failures.exceptions)
        return f"{where}: {answer.status_code}: {titles}"[:500]
    except Failure as failure:
        return f"{where}: {answer.status_code}: {failure.title}: {failure.message}"[:500]
    return ""
