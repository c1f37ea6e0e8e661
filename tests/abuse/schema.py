"""Requests that schemathesis draws from a service's OpenAPI document, right ones and wrong ones.

An answer is wrong where the document does not have its status, its content type, its headers or
its body, and where it is a server error other than 503 with `Retry-After`.
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
REAL_IMAGES = 0.3  # share of raw bodies that are a picture; those drawn never are


@dataclass
class Outcome:
    """What was asked and answered. `wrong` is empty where every answer was as documented."""

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
    """Ask every operation of a running service `examples` times, half of it wrongly."""
    port = {"api": stack.api_port, "worker": stack.worker_port}[service]
    document = schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    outcome, draw = Outcome(), random.Random(seed_)
    with requests.Session() as session:
        for found in document.get_all_operations():
            assert isinstance(found, Ok), found
            operation = found.ok()
            outcome.operations += 1
            for mode in MODES:
                _ask(operation, mode, examples // len(MODES), session, outcome, draw, progress)
    return outcome


def _ask(
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
        problem = _answered(case, session, outcome)
        if problem and problem not in outcome.wrong:
            outcome.wrong.append(problem)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            each()
    except Unsatisfiable:
        pass  # nothing that is wrong can be asked where nothing is to be given


def _answered(case: "Case[Any]", session: requests.Session, outcome: Outcome) -> str:
    """What is wrong with the answer; empty where nothing is."""
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
