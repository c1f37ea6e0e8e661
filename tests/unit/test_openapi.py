"""The OpenAPI document: names, schemas, and examples that match what the service answers."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from app.http.openapi import DETAILS
from app.images.events import ViewedRecord, image_event
from app.images.view import View
from app.jobs.events import job_event
from app.jobs.representation import accepted_document
from app.main import create_app
from core import errors
from core.domain.jobs import Counts, Job, JobKey, new_job, seal, start, update_counts
from core.domain.principals import Scope
from core.domain.records import (
    PUBLIC_TENANT,
    Annotation,
    RecordError,
    RecordKey,
    claim,
    claim_of,
    complete,
    fail,
    new_record,
)
from core.errors import UndecodableImage
from core.outbound.http_client import PrivateAddress
from tests.support.api import Api, api_settings, bearer, open_api, routes_of
from tests.support.clock import MovableClock
from tests.support.pictures import picture, png_header
from tests.support.problems import assert_problem
from tests.support.settings import isolated_settings
from tests.unit.test_preprocessing import preprocessor

ROOT = Path(__file__).resolve().parents[2]
ORIGIN = "http://127.0.0.1:8080"
VIEW = View(5, 0)
TIMES = ("created_at", "updated_at")
V1 = "/api/v1/images"
OPERATIONS = {
    ("GET", V1): "list_images",
    ("POST", V1): "upload_image",
    ("POST", f"{V1}/from-url"): "classify_url",
    ("GET", f"{V1}/{{image_hash}}"): "get_image",
    ("PUT", f"{V1}/{{image_hash}}"): "put_image",
    ("DELETE", f"{V1}/{{image_hash}}"): "delete_image",
    ("GET", f"{V1}/{{image_hash}}/content"): "get_image_content",
    ("GET", f"{V1}/{{image_hash}}/stream"): "stream_image",
    ("POST", f"{V1}/{{image_hash}}/classify"): "classify_image",
    ("POST", f"{V1}/lookup"): "look_up_images",
    ("POST", "/what/fast"): "upload_fast",
    ("POST", "/what/slow"): "upload_slow",
    ("GET", "/what/status/{image_hash}"): "get_status",
    ("POST", "/api/v1/jobs/batch-predict"): "create_job",
    ("POST", "/api/v1/jobs/batch-predict/zip"): "create_zip_job",
    ("POST", "/api/v1/jobs/batch-predict/hashes"): "create_hashes_job",
    ("GET", "/api/v1/jobs"): "list_jobs",
    ("GET", "/api/v1/jobs/{job_id}"): "get_job",
    ("DELETE", "/api/v1/jobs/{job_id}"): "cancel_job",
    ("GET", "/api/v1/jobs/{job_id}/results"): "get_job_results",
    ("GET", "/api/v1/jobs/{job_id}/results/csv"): "get_results_csv",
    ("GET", "/api/v1/jobs/{job_id}/results/ndjson"): "get_results_ndjson",
    ("POST", "/api/v1/jobs/{job_id}/retry"): "retry_job",
    ("POST", "/api/v1/tickets"): "create_ticket",
    ("GET", f"{V1}/{{image_hash}}/thumbnail"): "get_thumbnail",
    ("GET", "/api/v1/jobs/{job_id}/stream"): "stream_job",
    ("GET", "/api/v1/dead-letters"): "list_dead_letters",
    ("POST", "/api/v1/dead-letters/replay"): "replay_dead_letters",
    ("GET", "/api/v1/dead-letters/{id}"): "get_dead_letter",
    ("DELETE", "/api/v1/dead-letters/{id}"): "delete_dead_letter",
    ("POST", "/api/v1/dead-letters/{id}/replay"): "replay_dead_letter",
    ("GET", "/api/v1/keys"): "list_keys",
    ("POST", "/api/v1/keys"): "create_key",
    ("DELETE", "/api/v1/keys/{key_id}"): "revoke_key",
    ("POST", "/api/v1/keys/{key_id}/rotate"): "rotate_key",
    ("GET", "/api/v1/usage"): "get_usage",
    ("GET", "/api/v1/webhooks"): "list_webhooks",
    ("POST", "/api/v1/webhooks"): "create_webhook",
    ("GET", "/api/v1/webhooks/{webhook_id}"): "get_webhook",
    ("PATCH", "/api/v1/webhooks/{webhook_id}"): "update_webhook",
    ("DELETE", "/api/v1/webhooks/{webhook_id}"): "delete_webhook",
    ("POST", "/api/v1/webhooks/{webhook_id}/rotate"): "rotate_webhook_secret",
    ("POST", "/api/v1/webhooks/{webhook_id}/test"): "test_webhook",
    ("POST", "/api/v1/webhooks/{webhook_id}/enable"): "enable_webhook",
    ("GET", "/api/v1/models"): "list_models",
    ("GET", "/api/v1/models/{model_id}"): "get_model",
    ("DELETE", "/api/v1/models/{model_id}"): "delete_model",
    ("POST", "/api/v1/models/{model_id}/activate"): "activate_model",
    ("POST", "/api/v1/models/{model_id}/corrections"): "correct_model",
    ("POST", "/api/v1/jobs/train-model"): "train_model",
    ("POST", "/api/v1/jobs/train-model/zip"): "train_model_zip",
    ("GET", "/health"): "get_health",
    ("GET", "/ready"): "get_readiness",
    ("GET", "/started"): "get_startup",
}
PROBES = ("GET /started", "GET /ready")
# Bytes, and formats that JSON Schema does not describe.
UNNAMED = (
    *("application/octet-stream", "application/zip", "application/x-ndjson"),
    *("text/", "image/"),
)


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    # As it is sent: null members, which FastAPI removes from a model, are a difference.
    document: dict[str, Any] = json.loads(json.dumps(create_app(isolated_settings()).openapi()))
    return document


def operations(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def every(node: Any, name: str) -> Iterator[Any]:
    """Yield the value of every member `name`, however deep."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == name:
                yield value
            yield from every(value, name)
    elif isinstance(node, list):
        for value in node:
            yield from every(value, name)


def check(schema: dict[str, Any], part: dict[str, Any], value: Any) -> None:
    """Validate `value` against `part` of the document."""
    whole = part | {"components": schema["components"]}
    jsonschema_rs.Draft202012Validator(whole, validate_formats=True).validate(value)


# --- Names ----------------------------------------------------------------------------------------


def test_operation_ids_are_short_verbs(schema: dict[str, Any]) -> None:
    found = {
        (method.upper(), path): operation["operationId"]
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    }
    assert found == OPERATIONS
    assert len(set(found.values())) == len(found)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+){1,2}", each) for each in found.values())


async def test_every_route_is_documented(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        routes = {(m, path) for m, path, _ in routes_of(api.app) if m != "HEAD"}
    undocumented = routes - set(OPERATIONS)
    assert undocumented == {
        *(
            ("GET", path)
            for path in ("/", "/docs", "/openapi.json", "/metrics", "/page/{path:path}")
        ),
        ("GET", "/docs/assets/{name}"),
        ("GET", "/local/blobs/{tenant}/{image_hash}"),
    }


def test_operations_have_a_summary_a_description_and_a_tag(schema: dict[str, Any]) -> None:
    tags = {tag["name"] for tag in schema["tags"]}
    for where, operation in operations(schema):
        assert set(operation["tags"]) <= tags and operation["tags"], where
        assert operation["summary"], where
        assert operation.get("description") or where in ("GET /health", "GET /ready"), where
        in_path = set(re.findall(r"{(\w+)}", where))
        parameters = {p["name"] for p in operation.get("parameters", []) if p["in"] == "path"}
        assert parameters == in_path, where


def test_bodies_are_named_schemas(schema: dict[str, Any]) -> None:
    for where, operation in operations(schema):
        contents = [response.get("content", {}) for response in operation["responses"].values()]
        contents.append(operation.get("requestBody", {}).get("content", {}))
        for content in contents:
            for media_type, body in content.items():
                if not media_type.startswith(UNNAMED):
                    assert set(body["schema"]) == {"$ref"}, f"{where} {media_type}"


def test_references_are_resolved_and_no_schema_is_left_over(schema: dict[str, Any]) -> None:
    referenced = set(every(schema, "$ref"))
    for kind in ("schemas", "examples"):
        here = {f"#/components/{kind}/{name}" for name in schema["components"][kind]}
        assert {each for each in referenced if each.startswith(f"#/components/{kind}/")} == here


def test_times_have_the_format_date_time(schema: dict[str, Any]) -> None:
    times = {"at", "not_before", "deadline", "before"}
    found = 0
    parameters = [p for _, o in operations(schema) for p in o.get("parameters", [])]
    named = [(p["name"], p["schema"]) for p in parameters]
    for properties in every(schema["components"]["schemas"], "properties"):
        named += properties.items()
    for name, part in named:
        if name in times or name.endswith("_at"):
            assert "date-time" in every(part, "format") or name == "not_before", name
            found += 1
    assert found > 25


def test_errors_are_problems_with_a_known_code(schema: dict[str, Any]) -> None:
    codes = set(schema["components"]["schemas"]["ProblemCode"]["enum"])
    for where, operation in operations(schema):
        for status, response in operation["responses"].items():
            if int(status) < 400:
                continue
            content = response["content"]["application/problem+json"]
            name = "NotReady" if where in PROBES else "Problem"
            assert content["schema"] == {"$ref": f"#/components/schemas/{name}"}, where
            for code, example in content.get("examples", {}).items():
                assert code in codes
                assert (example["value"]["code"], example["value"]["status"]) == (code, int(status))
            assert content.get("examples") or where in PROBES, where
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ours = {kind.code for kind in kinds if issubclass(kind, errors.GlimpseError)}
    assert codes >= ours | {PrivateAddress.code}


def literal_codes() -> set[str]:
    """The codes of problems in the source that no error class has."""
    sources = [*ROOT.glob("app/**/*.py"), *ROOT.glob("core/http/*.py")]
    literal = re.compile(r"\b[45]\d\d,\s*\"([a-z_]+)\"")
    return {code for path in sources for code in literal.findall(path.read_text())}


async def test_codes_of_the_server_and_the_framework_are_known(
    schema: dict[str, Any], tmp_path: Path, colour_bundle: Path
) -> None:
    used = literal_codes()
    assert {"not_ready", "internal_error", "headers_too_slow", "malformed_request"} <= used
    codes = set(schema["components"]["schemas"]["ProblemCode"]["enum"])
    assert used <= codes
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        for method, path in (("PUT", V1), ("GET", "/nowhere"), ("GET", "/api/v1/ws/jobs/1")):
            assert (await api.client.request(method, path)).json()["code"] in codes


# --- Examples -------------------------------------------------------------------------------------


def test_examples_are_valid(schema: dict[str, Any]) -> None:
    checked = 0
    for _, operation in operations(schema):
        contents = [response.get("content", {}) for response in operation["responses"].values()]
        contents.append(operation.get("requestBody", {}).get("content", {}))
        for body in (body for content in contents for body in content.values()):
            for example in body.get("examples", {}).values():
                shared = schema["components"]["examples"].get(
                    example.get("$ref", "").split("/")[-1]
                )
                check(schema, body["schema"], (shared or example)["value"])
                checked += 1
        for parameter in operation.get("parameters", []):
            if "example" in parameter:
                check(schema, parameter["schema"], parameter["example"])
                checked += 1
    assert checked > 150
    for part in _with_examples(schema):
        for example in part["examples"]:
            check(schema, part, example)


def _with_examples(node: Any) -> Iterator[dict[str, Any]]:
    """Yield every schema that has examples."""
    if isinstance(node, dict):
        if isinstance(node.get("examples"), list):
            yield node
        for value in node.values():
            yield from _with_examples(value)
    elif isinstance(node, list):
        for value in node:
            yield from _with_examples(value)


def test_examples_of_images_are_what_the_service_encodes(schema: dict[str, Any]) -> None:
    examples = {name: each["value"] for name, each in schema["components"]["examples"].items()}
    success, error = examples["success"], RecordError(**examples["error"]["error"])
    created, updated = (datetime.fromisoformat(success[name]) for name in TIMES)
    key = RecordKey(PUBLIC_TENANT, success["image_hash"], success["model"])
    record = new_record(key, created)
    claimed = claim(timedelta(seconds=30))(record, created)
    assert claimed is not None
    holder = claim_of(claimed)
    annotations, categories = (
        [Annotation(**each) for each in success[name]] for name in ("annotations", "categories")
    )
    completed = complete(holder, annotations, categories=categories, confident=True)
    for name, state in (
        ("pending", record),
        ("success", completed(claimed, updated)),
        ("error", fail(holder, error)(claimed, updated)),
    ):
        assert state is not None
        assert json.loads(image_event(ViewedRecord(state, VIEW), ORIGIN).data) == examples[name], (
            name
        )


def test_example_of_an_image_error_is_what_the_worker_reports(schema: dict[str, Any]) -> None:
    error = schema["components"]["examples"]["error"]["value"]["error"]
    with pytest.raises(UndecodableImage) as raised:
        preprocessor().tensor(picture(size=(64, 64))[:-200])
    assert (raised.value.code, raised.value.detail) == (error["code"], error["detail"])


def test_events_in_examples_are_those_of_the_service(schema: dict[str, Any]) -> None:
    images = events_in(schema, f"{V1}/{{image_hash}}/stream")
    examples = schema["components"]["examples"]
    assert [event["data"] for event in images] == [
        examples[name]["value"] for name in ("pending", "success")
    ]
    for event in images:
        updated = datetime.fromisoformat(event["data"]["updated_at"])
        assert int(event["id"]) == round(updated.timestamp() * 1_000_000)
    jobs = events_in(schema, "/api/v1/jobs/{job_id}/stream")
    document = jobs[-1]["data"]
    created, begun, ended = (
        datetime.fromisoformat(document[name])
        for name in ("created_at", "started_at", "completed_at")
    )
    job = new_job(
        JobKey(PUBLIC_TENANT, document["job_id"]),
        "",
        document["model"],
        2,
        created,
        name=document["name"],
    )
    accepted = there(seal()(job, created))
    half = there(update_counts(Counts(2, 1))(there(start()(accepted, begun)), begun))
    whole = there(update_counts(Counts(2, 2))(half, ended))
    assert jobs == [
        {"id": str(event.id), "event": event.kind, "data": json.loads(event.data)}
        for event in (job_event(half, ORIGIN), job_event(whole, ORIGIN))
    ]
    message = schema["components"]["schemas"]["AcceptedJob"]["properties"]["message"]
    assert accepted_document(accepted, ORIGIN)["message"] in message["examples"]


def there(job: Job | None) -> Job:
    assert job is not None
    return job


def events_in(schema: dict[str, Any], path: str) -> list[dict[str, Any]]:
    content = schema["paths"][path]["get"]["responses"]["200"]["content"]
    events = content["text/event-stream"]["example"].strip().split("\n\n")
    retry, _, events[0] = events[0].partition("\n")
    assert re.fullmatch(r"retry: \d+", retry)
    found = [dict(line.split(": ", 1) for line in event.splitlines()) for event in events]
    return [{**event, "data": json.loads(event["data"])} for event in found]


# --- Examples of errors ---------------------------------------------------------------------------

Provoke = Callable[[Api], Awaitable[httpx.Response]]


async def _stalled(started: asyncio.Event) -> AsyncIterator[bytes]:
    yield b"\xff\xd8"
    started.set()
    await asyncio.get_running_loop().create_future()


async def upload_too_slow(api: Api) -> httpx.Response:
    api.services.uploads.limits = replace(api.services.uploads.limits, grace_seconds=0.05)
    return await api.client.post(V1, content=_stalled(asyncio.Event()))


async def overloaded(api: Api) -> httpx.Response:
    api.services.uploads.limits = replace(api.services.uploads.limits, max_uploads=1)
    begun = asyncio.Event()
    first = asyncio.create_task(api.client.post(V1, content=_stalled(begun)))
    await begun.wait()
    try:
        return await api.client.post(V1, content=picture())
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)


async def key_reused(api: Api) -> httpx.Response:
    headers = {"Idempotency-Key": "once"}
    for image_hash in ("0" * 64, "1" * 64):
        batch = {"image_hashes": [image_hash]}
        answer = await api.client.post(BATCH, json=batch, headers=headers)
    return answer


async def unavailable(api: Api) -> httpx.Response:
    api.execute("ALTER TABLE records RENAME TO elsewhere")
    return await api.client.get(f"{V1}/{'0' * 64}")


async def forbidden(api: Api) -> httpx.Response:
    key = await api.issue("acme", Scope.READ)
    return await api.client.get("/api/v1/keys", headers=bearer(key))


async def rate_limited(api: Api) -> httpx.Response:
    key = bearer(await api.issue("acme"))
    for _ in range(601):
        answer = await api.client.get(f"{V1}/{'0' * 64}", headers=key)
    return answer


BATCH = "/api/v1/jobs/batch-predict"
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\nx\r\n'
CASES: dict[type[errors.GlimpseError], tuple[Provoke, dict[str, Any]]] = {
    errors.MalformedBody: (
        lambda api: api.client.post("/what/fast", content=PART % b"img", headers=FORM),
        {},
    ),
    errors.NotFound: (lambda api: api.client.get(f"{V1}/{'0' * 64}"), {}),
    errors.UnknownModel: (lambda api: api.client.post(f"{V1}?model=cats", content=b""), {}),
    errors.UploadTooSlow: (upload_too_slow, {}),
    errors.Overloaded: (overloaded, {}),
    errors.ImageTooLarge: (
        lambda api: api.client.post(V1, content=b"", headers={"Content-Length": str(2**30)}),
        {},
    ),
    errors.UnsupportedImage: (lambda api: api.client.post(V1, content=b"text"), {}),
    errors.BatchTooLarge: (
        lambda api: api.client.post(BATCH, json={"image_hashes": ["0" * 64] * 1001}),
        {},
    ),
    errors.BodyTooLarge: (
        lambda api: api.client.post(
            "/api/v1/webhooks",
            content=b" " * 16_385,
            headers={"Content-Type": "application/json"},
        ),
        {},
    ),
    errors.UnsupportedMediaType: (
        lambda api: api.client.post(BATCH, content=b"x", headers={"Content-Type": "text/plain"}),
        {},
    ),
    errors.IdempotencyKeyReused: (key_reused, {}),
    errors.HashMismatch: (lambda api: api.client.put(f"{V1}/{'0' * 64}", content=picture()), {}),
    errors.InvalidImage: (
        lambda api: api.client.post(V1, content=png_header(20_000, 20_000)),
        {},
    ),
    errors.InvalidRequest: (
        lambda api: api.client.post("/what/fast", files={"other": b"x"}),
        {},
    ),
    errors.Unauthenticated: (
        lambda api: api.client.get("/api/v1/keys", headers={"X-API-Key": "glp_no"}),
        {"api_keys": "required"},
    ),
    errors.Forbidden: (forbidden, {"api_keys": "required"}),
    errors.RateLimited: (rate_limited, {"api_keys": "required"}),
    errors.Conflict: (lambda api: api.client.get("/api/v1/keys"), {}),
    errors.Unavailable: (unavailable, {}),
    PrivateAddress: (
        lambda api: api.client.post("/api/v1/webhooks", json={"url": "https://127.0.0.1/"}),
        {},
    ),
}


@pytest.mark.parametrize("kind", DETAILS, ids=lambda kind: kind.code)
async def test_example_of_an_error_is_what_the_service_answers(
    tmp_path: Path, colour_bundle: Path, kind: type[errors.GlimpseError]
) -> None:
    provoke, settings = CASES[kind]
    clock = MovableClock()
    clock.now = datetime(2026, 11, 21, 9, 30, 43, tzinfo=UTC)  # 17 seconds before a new window
    async with open_api(api_settings(tmp_path, colour_bundle, **settings), clock) as api:
        answer = await provoke(api)
    problem = assert_problem(answer, kind.status, kind.code)
    assert problem["detail"] == DETAILS[kind]


# Of a route, what it answers there: method, path as documented, request, status, code.
ROUTE_EXAMPLES: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("GET", f"{V1}/{{image_hash}}", {"url": f"{V1}/cat"}, 422, "invalid_request"),
    ("GET", f"{V1}/{{image_hash}}", {}, 404, "not_found"),
    ("PUT", f"{V1}/{{image_hash}}", {"url": f"{V1}/cat", "content": b"x"}, 422, "invalid_request"),
    ("GET", "/what/status/{image_hash}", {"url": "/what/status/x"}, 422, "invalid_request"),
    ("GET", V1, {"params": {"limit": 500}}, 422, "invalid_request"),
    ("POST", V1, {"files": {"other": b"x"}}, 422, "invalid_request"),
    ("POST", f"{V1}/lookup", {"json": {}}, 422, "invalid_request"),
    ("GET", "/api/v1/jobs", {"params": {"limit": 500}}, 422, "invalid_request"),
    ("GET", "/api/v1/jobs/{job_id}", {}, 404, "not_found"),
    ("GET", "/api/v1/jobs/{job_id}/results", {}, 404, "not_found"),
    ("GET", "/api/v1/jobs/{job_id}/stream", {}, 404, "not_found"),
    ("DELETE", "/api/v1/jobs/{job_id}", {}, 404, "not_found"),
    ("POST", "/api/v1/jobs/batch-predict", {"json": {}}, 422, "invalid_request"),
    ("POST", "/api/v1/jobs/batch-predict/hashes", {"json": {}}, 422, "invalid_request"),
    ("GET", "/api/v1/webhooks/{webhook_id}", {}, 404, "not_found"),
    ("POST", "/api/v1/webhooks", {"json": {}}, 422, "invalid_request"),
    ("GET", "/api/v1/dead-letters/{id}", {}, 404, "not_found"),
    (
        "GET",
        "/api/v1/dead-letters/{id}",
        {"url": "/api/v1/dead-letters/x"},
        422,
        "invalid_request",
    ),
    ("GET", "/api/v1/dead-letters", {"params": {"limit": 0}}, 422, "invalid_request"),
    ("GET", "/api/v1/models/{model_id}", {}, 404, "not_found"),
]


@pytest.mark.parametrize(("method", "path", "request_", "status", "code"), ROUTE_EXAMPLES)
async def test_example_of_an_error_belongs_to_its_route(
    schema: dict[str, Any],
    tmp_path: Path,
    colour_bundle: Path,
    method: str,
    path: str,
    request_: dict[str, Any],
    status: int,
    code: str,
) -> None:
    url = re.sub(r"\{(\w+)\}", lambda found: "0" * (64 if "hash" in found[1] else 32), path)
    options = {"url": url, **request_}
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        answer = await api.client.request(method, **options)
    detail = assert_problem(answer, status, code)["detail"]
    operation = schema["paths"][path][method.lower()]
    examples = operation["responses"][str(status)]["content"]["application/problem+json"]
    assert examples["examples"][code]["value"]["detail"] == detail


async def test_example_of_a_missing_scope_names_the_scope_of_the_route(
    schema: dict[str, Any], tmp_path: Path, colour_bundle: Path
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle, api_keys="required")) as api:
        for path, scope in ((f"{V1}/{{image_hash}}", "read"), ("/api/v1/keys", "admin")):
            key = await api.issue("acme", Scope.JOBS)
            url = path.replace("{image_hash}", "0" * 64)
            answer = await api.client.get(url, headers=bearer(key))
            examples = schema["paths"][path]["get"]["responses"]["403"]["content"]
            example = examples["application/problem+json"]["examples"]["forbidden"]["value"]
            assert example["detail"] == answer.json()["detail"]
            assert repr(scope) in example["detail"]


# --- Generators of clients ------------------------------------------------------------------------


def test_operations_take_one_kind_of_body(schema: dict[str, Any]) -> None:
    """Generated clients send the first of several, whatever their user has."""
    kinds = {
        where: list(operation["requestBody"]["content"])
        for where, operation in operations(schema)
        if "requestBody" in operation
    }
    assert all(len(each) == 1 for each in kinds.values()), kinds
    assert len(kinds) >= 12


def test_operations_with_a_body_document_its_limit_and_its_type(schema: dict[str, Any]) -> None:
    missing = {
        where: {"413", "415"} - operation["responses"].keys()
        for where, operation in operations(schema)
        if "requestBody" in operation
    }
    assert not any(missing.values()), missing


def test_responses_allow_new_members_and_requests_do_not(schema: dict[str, Any]) -> None:
    bodies = {
        content["schema"]["$ref"].rpartition("/")[2]
        for _, operation in operations(schema)
        for content in operation.get("requestBody", {}).get("content", {}).values()
        if "$ref" in content["schema"]
    }
    schemas = schema["components"]["schemas"]
    forms = {"ImageUpload", "BatchUpload"}
    inner = {ref.rpartition("/")[2] for name in bodies for ref in every(schemas[name], "$ref")}
    for name, each in schema["components"]["schemas"].items():
        if each.get("type") == "object" and name not in forms | (inner - bodies):
            assert each.get("additionalProperties") is (name not in bodies), name


def test_enumerations_are_named_and_their_constants_are_unique(schema: dict[str, Any]) -> None:
    """Go has one name space for the constants of a package."""
    schemas = schema["components"]["schemas"]
    constants = [
        name
        for each in schemas.values()
        for name in each.get("x-enum-varnames", [str(v).upper() for v in each.get("enum", ())])
    ]
    assert len(set(constants)) == len(constants) > 30
    assert "JOB_STATUS_PENDING" in constants
    named = len([each for each in schemas.values() if "enum" in each])
    assert len(list(every(schema, "enum"))) == named


def test_members_and_parameters_have_what_generators_understand(schema: dict[str, Any]) -> None:
    """No title, which would name an inline schema, no list as a default, no name of pydantic's."""

    def members(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            yield from (each for each in node.get("properties", {}).values())
            if isinstance(node.get("schema"), dict):
                yield node["schema"]
            node = list(node.values())
        for each in node if isinstance(node, list) else ():
            yield from members(each)

    found = list(members(schema))
    assert len(found) > 200
    assert not [each for each in found if isinstance(each.get("title"), str)]
    assert not [each for each in found if isinstance(each.get("default"), list)]
    assert not [each for each in found if {"ge", "le", "gt", "lt"} & each.keys()]
    assert [each for each in found if "maximum" in each]


def test_no_schema_is_named_like_the_constructor_of_another(schema: dict[str, Any]) -> None:
    """Go's clients have a function NewKey for a schema Key."""
    names = set(schema["components"]["schemas"])
    assert not {f"New{name}" for name in names} & names


def test_problem_declares_the_members_that_the_service_sends(schema: dict[str, Any]) -> None:
    """Missing members are missing, never null: generated clients would refuse null."""
    members = schema["components"]["schemas"]["Problem"]["properties"]
    sources = [*ROOT.glob("app/**/*.py"), *ROOT.glob("core/http/*.py"), *ROOT.glob("core/**/*.py")]
    extra = re.compile(r"\bextra=\{(.*?)\}", re.DOTALL)
    sent = {
        name
        for path in sources
        for found in extra.findall(path.read_text())
        for name in re.findall(r'"([a-z_-]+)":', found)
    }
    assert sent - {"checks"} <= set(members)
    assert {"max_bytes", "accepted", "violated-policies", "computed_hash"} <= sent
    assert not list(every(schema["components"]["schemas"]["Problem"], "anyOf"))


def test_security_servers_and_headers_are_declared(schema: dict[str, Any]) -> None:
    assert schema["servers"] == [{"url": "/"}]
    public = {where for where, operation in operations(schema) if operation["security"] == []}
    assert public == {"GET /health", "GET /ready", "GET /started"}
    headers = set(schema["components"]["headers"])
    assert headers == {"RateLimit", "RateLimit-Policy", "Preference-Applied"}
    for where, operation in operations(schema):
        if where in public:
            continue
        responses = operation["responses"]
        assert "WWW-Authenticate" in responses["401"]["headers"], where
        for status, response in responses.items():
            assert ("RateLimit" in response["headers"]) is (status != "401"), where
        waits = any(each["name"] == "Prefer" for each in operation.get("parameters", ()))
        assert ("Preference-Applied" in responses.get("200", {}).get("headers", ())) is waits
