"""A stand-in for the part of Google's control plane that `terraform apply` calls.

It checks each request against Google's discovery documents, which google-api-python-client ships:
path, method, query and body. A request that these do not allow is an answer 400 and an entry in
`refused`. Then it keeps resources in memory. Beyond that it has only the rules that Terraform code
can break: references that protect a resource from deletion, names that stay reserved, limits, APIs
and metrics that need time, and values that a proto3 API omits.

It is no evidence of what Google does otherwise.
"""

import copy
import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote, urlsplit

Body = dict[str, Any]
PROJECT, NUMBER = "example-project", "123456789012"
# Path, Terraform's environment variable GOOGLE_..._CUSTOM_ENDPOINT (several names across versions),
# document, and the API that has to be enabled.
APIS = (
    ("serviceusage/v1/", "SERVICE_USAGE", "serviceusage.v1", "serviceusage"),
    ("crm/v1/", "RESOURCE_MANAGER", "cloudresourcemanager.v1", "cloudresourcemanager"),
    ("crm3/v3/", "RESOURCE_MANAGER_V3", "cloudresourcemanager.v3", "cloudresourcemanager"),
    ("iam/v1/", "IAM", "iam.v1", "iam"),
    ("iam/v1/", "IAM_BETA", "iam.v1", "iam"),
    ("artifactregistry/v1/", "ARTIFACT_REGISTRY", "artifactregistry.v1", "artifactregistry"),
    ("cloudbilling/v1/", "CLOUD_BILLING", "cloudbilling.v1", "cloudbilling"),
    ("billingbudgets/v1/", "BILLING", "billingbudgets.v1", "billingbudgets"),
    ("run/v2/", "CLOUD_RUN_V2", "run.v2", "run"),
    ("cloudscheduler/v1/", "CLOUD_SCHEDULER", "cloudscheduler.v1", "cloudscheduler"),
    ("compute/compute/v1/", "COMPUTE", "compute.v1", "compute"),
    ("firestore/v1/", "FIRESTORE", "firestore.v1", "firestore"),
    ("logging/v2/", "LOGGING", "logging.v2", "logging"),
    ("monitoring/", "MONITORING", "monitoring.v3 monitoring.v1", "monitoring"),
    ("pubsub/v1/", "PUBSUB", "pubsub.v1", "pubsub"),
    ("secretmanager/v1/", "SECRET_MANAGER", "secretmanager.v1", "secretmanager"),
    ("storage/storage/v1/", "STORAGE", "storage.v1", "storage"),
)
# What docs/operations/google-cloud.md enables by hand.
ENABLED = ("serviceusage.googleapis.com", "cloudresourcemanager.googleapis.com")
# Parameters of every method.
COMMON = {"alt", "prettyPrint", "fields", "key", "quotaUser", "userIp", "uploadType"}


class Refused(Exception):
    """What Google answers instead of doing it."""

    def __init__(self, status: int, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.reason = status, message, reason


def camel(name: str) -> str:
    return re.sub(r"_([a-z0-9])", lambda match: match[1].upper(), name)


def documents() -> Path | None:
    """The folder of the discovery documents; None without the package."""
    spec = find_spec("googleapiclient")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "discovery_cache/documents"


@dataclass
class Method:
    id: str
    verb: str
    path: re.Pattern[str]
    parameters: Body
    request: str
    response: str


class Api:
    """One discovery document."""

    def __init__(self, name: str) -> None:
        folder = documents()
        assert folder is not None
        document = json.loads((folder / f"{name}.json").read_text())
        self.schemas: Body = document["schemas"]
        self.proto3 = not name.startswith(("compute", "storage"))
        self.methods = [
            _method(document, each)
            for each in _methods(document)
            if "flatPath" in each or "path" in each
        ]

    def find(self, verb: str, path: str) -> Method | None:
        found = [m for m in self.methods if m.verb == verb and m.path.fullmatch(path)]
        return max(found, key=lambda method: len(method.path.pattern), default=None)

    def problems(self, schema: Body, value: Any, where: str) -> Iterator[str]:
        """What the schema does not allow. Keys become camelCase, as Google accepts both forms."""
        if "$ref" in schema:
            schema = self.schemas[schema["$ref"]]
        kind = schema.get("type")
        if value is None:
            return
        if kind == "object":
            if not isinstance(value, dict):
                yield f"{where}: {value!r} is no object"
                return
            properties = schema.get("properties", {})
            extra = schema.get("additionalProperties")
            for key in list(value):
                real = key if key in properties or extra else camel(key)
                if real not in properties and not extra:
                    if value[key] is not None:
                        yield f'Unknown name "{key}" at {where}'
                    continue
                value[real] = value.pop(key)
                yield from self.problems(
                    properties.get(real, extra), value[real], f"{where}.{real}"
                )
        elif kind == "array":
            for index, item in enumerate(value):
                yield from self.problems(schema["items"], item, f"{where}[{index}]")
        elif kind == "string":
            number = schema.get("format") in ("int64", "uint64")
            if not isinstance(value, str) and not (number and isinstance(value, int)):
                yield f"{where}: {value!r} is no string"
            elif "enum" in schema and value not in schema["enum"]:
                yield f"{where}: {value!r} is none of {schema['enum']}"
        elif kind == "boolean" and not isinstance(value, bool):
            yield f"{where}: {value!r} is no boolean"
        elif kind in ("integer", "number") and not isinstance(value, int | float):
            yield f"{where}: {value!r} is no number"

    def rendered(self, schema: Body, value: Any) -> Any:
        """As Google sends it. A proto3 API omits zeros, empty values and first enum members."""
        reference = schema.get("$ref")
        if reference:
            schema = self.schemas[reference]
        if isinstance(value, dict) and schema.get("type") == "object":
            properties = schema.get("properties", {})
            extra = schema.get("additionalProperties")
            out = {}
            for key, item in value.items():
                inner = properties.get(key, extra)
                if inner is None or item is None:
                    continue
                shown = self.rendered(inner, item)
                if not (self.proto3 and inner is not extra and _omitted(inner, key, shown)):
                    out[key] = shown
            return out
        if isinstance(value, list) and schema.get("type") == "array":
            return [self.rendered(schema["items"], item) for item in value]
        if schema.get("format") in ("int64", "uint64"):
            return str(value)
        return value


def _omitted(schema: Body, key: str, value: Any) -> bool:
    if key == "enabled":  # a wrapper, which tells false from absent
        return False
    if schema.get("enum") and value == schema["enum"][0]:
        return bool(value.endswith("_UNSPECIFIED"))
    return value in ("", 0, False, []) or (value == {} and "$ref" not in schema) or value == "0"


def _methods(node: Body) -> Iterator[Body]:
    yield from node.get("methods", {}).values()
    for inner in node.get("resources", {}).values():
        yield from _methods(inner)


def _method(document: Body, method: Body) -> Method:
    path = document.get("servicePath", "") + (method.get("flatPath") or method["path"])
    pattern = re.sub(r"\\\{[^}]*\\\}", "([^/]+?)", re.escape(path).replace(r"\{\+", r"\{"))
    return Method(
        method["id"],
        method["httpMethod"],
        re.compile(pattern),
        method.get("parameters", {}),
        method.get("request", {}).get("$ref", ""),
        method.get("response", {}).get("$ref", ""),
    )


@cache
def api(name: str) -> Api:
    return Api(name)


@dataclass
class Call:
    """A request that the discovery document allows."""

    api: Api
    method: Method
    path: str  # without version and verb, such as projects/p/topics/t
    query: dict[str, str]
    body: Body

    @property
    def verb(self) -> str:
        return self.method.id.rpartition(".")[2]

    def shown(self, resource: Body) -> Body:
        shown: Body = self.api.rendered({"$ref": self.method.response}, resource)
        return shown


@dataclass
class ControlPlane:
    """`api_seconds` and `metric_seconds` pass until a new API or metric can be used."""

    api_seconds: float = 0
    metric_seconds: float = 0
    resources: dict[str, Body] = field(default_factory=dict)
    policies: dict[str, Body] = field(default_factory=dict)
    enabled: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ENABLED, 0.0))
    metrics: dict[str, float] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.counter = 1000
        handler = type("Bound", (_Handler,), {"plane": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        base = f"http://127.0.0.1:{self.server.server_address[1]}"
        endpoints = {f"GOOGLE_{n}_CUSTOM_ENDPOINT": f"{base}/{path}" for path, n, _, _ in APIS}
        endpoints["GOOGLE_BILLING_BUDGETS_CUSTOM_ENDPOINT"] = endpoints[
            "GOOGLE_BILLING_CUSTOM_ENDPOINT"
        ]
        return {**endpoints, "GOOGLE_OAUTH_ACCESS_TOKEN": "none"}

    def named(self, part: str) -> list[str]:
        return [name for name in self.resources if part in name]

    # --- One request ------------------------------------------------------------------------------
    def answer(self, verb: str, target: str, text: bytes) -> tuple[int, Any]:
        parts = urlsplit(target)
        try:
            return 200, self._answer(
                verb, parts.path.lstrip("/"), dict(parse_qsl(parts.query)), text
            )
        except Refused as refusal:
            if refusal.status == 400:
                self.refused.append(f"{verb} {target}: {refusal.message} {text[:2000]!r}")
            error = {"code": refusal.status, "message": refusal.message, "status": refusal.reason}
            if refusal.reason:
                error["errors"] = [{"reason": refusal.reason, "message": refusal.message}]
            return refusal.status, {"error": error}

    def _answer(self, verb: str, path: str, query: dict[str, str], text: bytes) -> Any:
        prefix, names, service = next(
            (
                (p, names, service)
                for p, _, names, service in APIS
                if path.startswith(p.split("/")[0] + "/")
            ),
            ("", "", ""),
        )
        if not prefix:
            raise Refused(400, "no such API")
        # Some of the provider's clients add the version to the endpoint, others expect it there.
        rest = path.split("/", 1)[1]
        rest = re.sub(r"^(v\d+)/(?=v\d+/)", "", rest)
        body = json.loads(text) if text else {}
        for name in names.split():
            method = api(name).find(verb, rest)
            if method is not None:
                break
        else:
            raise Refused(400, f"the discovery documents have no {verb} {rest}")
        known = {k for k, p in method.parameters.items() if p["location"] == "query"} | COMMON
        problems = [
            f"unknown parameter {key}"
            for key in query
            if camel(key) not in known and key not in known
        ]
        if method.request:
            problems += api(name).problems({"$ref": method.request}, body, "resource")
        if problems:
            raise Refused(400, "; ".join(problems))
        since = self.enabled.get(f"{service}.googleapis.com")
        if since is None or time.monotonic() < since + self.api_seconds:
            raise Refused(
                403,
                f"{service}.googleapis.com has not been used in this project",
                "accessNotConfigured",
            )
        if service != "storage":  # where a null clears a value
            body = _without_nulls(body)
        plain = unquote(re.sub(r"^(v\d+|compute/v1|storage/v1)/", "", rest))
        call = Call(api(name), method, plain, {camel(k): v for k, v in query.items()}, body)
        with self.lock:
            return self._handle(call)

    def _handle(self, call: Call) -> Any:
        call.path = re.sub(r":\w+$", "", call.path)
        if call.verb in ("getIamPolicy", "setIamPolicy"):
            return self._policy(call)
        special = HANDLERS.get(call.method.id) or HANDLERS.get(call.verb)
        if special is not None:
            return special(self, call)
        if call.verb in ("create", "insert"):
            return self._create(call)
        if call.verb in ("patch", "update", "updateDatabase"):
            return self._update(call)
        raise Refused(400, f"{call.method.id} is not known here")

    def get(self, path: str) -> Body:
        if path not in self.resources:
            raise Refused(404, f"Resource not found: {path}", "notFound")
        return self.resources[path]

    def number(self) -> int:
        self.counter += 1
        return self.counter

    def _create(self, call: Call) -> Any:
        name = self._name(call)
        if name in self.resources or f"deleted {name}" in self.resources:
            raise Refused(409, f"Resource '{name}' already exists.", "alreadyExists")
        self.resources[name] = self._filled(call, name, copy.deepcopy(_inner(call.body)), {})
        return self._done(call, name)

    def _update(self, call: Call) -> Any:
        name = call.path
        old = self.get(name)
        body = copy.deepcopy(_inner(call.body))
        mask = call.query.get("updateMask") or call.body.get("updateMask") or ""
        if call.method.verb == "PUT":
            new = body
        elif mask and mask != "*":
            new = copy.deepcopy(old)
            for path in mask.split(","):
                _set(new, body, [camel(part) for part in path.split(".")])
        elif call.method.id.startswith(("compute.", "storage.")):
            new = {**old, **body}
        else:  # without a mask, the body is the whole resource
            new = {**body, "generation": old.get("generation", 0)}
        self.resources[name] = self._filled(call, name, new, old)
        return self._done(call, name)

    def _done(self, call: Call, name: str) -> Any:
        """The resource, or an operation that has ended."""
        resource = self.resources[name]
        if call.method.response in (
            "Operation",
            "GoogleLongrunningOperation",
            "GoogleLongrunning__Operation",
        ):
            if "compute/v1" in call.method.path.pattern.replace("\\", ""):
                return _compute_operation(name)
            return {
                "name": f"{name}/operations/{self.number()}",
                "done": True,
                "response": self._typed(call, resource),
            }
        return call.shown(resource)

    def _typed(self, call: Call, resource: Body) -> Body:
        types = {
            "run": "GoogleCloudRunV2Service",
            "artifactregistry": "Repository",
            "firestore": "GoogleFirestoreAdminV1Database",
        }
        kind = types.get(call.method.id.split(".")[0])
        if kind is None:
            kind = (
                "WorkloadIdentityPoolProvider"
                if "providers" in call.method.id
                else "WorkloadIdentityPool"
            )
        shown: Body = call.api.rendered({"$ref": kind}, resource)
        return {"@type": f"type.googleapis.com/{kind}", **shown}

    def _name(self, call: Call) -> str:
        """The full name of a resource that a request creates."""
        ids = (
            "workloadIdentityPoolProviderId",
            "workloadIdentityPoolId",
            "repositoryId",
            "serviceId",
            "databaseId",
            "secretId",
        )
        for key in ids:
            if key in call.query:
                if key == "databaseId" or "/" not in call.path:
                    return f"{call.path}/{call.query[key]}"
                return f"{call.path}/{call.query[key]}"
        if call.method.id == "iam.projects.serviceAccounts.create":
            return f"{call.path}/{call.body['accountId']}@{PROJECT}.iam.gserviceaccount.com"
        if call.method.verb == "PUT":
            return call.path
        if call.method.id == "cloudscheduler.projects.locations.jobs.create":
            return str(call.body["name"])
        if call.method.id == "storage.buckets.insert":
            return f"b/{call.body['name']}"
        if "name" in call.body:
            return f"{call.path}/{call.body['name']}"
        return f"{call.path}/{10**15 + self.number()}"

    # --- What Google adds -------------------------------------------------------------------------
    def _filled(self, call: Call, name: str, new: Body, old: Body) -> Body:
        kind = call.method.id.rpartition(".")[0].replace("projects.", "").replace("locations.", "")
        checked = CHECKS.get(kind)
        if checked is not None:
            checked(self, new)
        if fill := DEFAULTS.get(kind):
            new = {**fill(self, name, new), **new}
        if kind.startswith("compute."):
            keep = ("id", "creationTimestamp")
            new |= {
                "selfLink": LINK + name,
                "id": str(self.number()),
                **{k: old[k] for k in keep if k in old},
            }
            new["fingerprint"] = new["labelFingerprint"] = "abcd"
            if "/regions/" in name:
                new["region"] = LINK + "/".join(name.split("/")[:4])
            return new
        if kind not in ("storage.buckets", "logging.metrics"):
            new["name"] = name
        if (
            "etag" in call.api.schemas.get(call.method.request, {}).get("properties", {})
            or kind == "firestore.databases"
        ):
            new["etag"] = secrets.token_hex(4)
        return new

    def _policy(self, call: Call) -> Body:
        name = re.sub(r"/iam$", "", call.path)
        if not name.startswith("projects/") or name.count("/") > 1:
            if name.startswith("b/") and name not in self.resources:
                self.resources.setdefault(name, {"name": name[2:]})  # a bucket of another project
            if "/secrets/" in name:
                name = name.replace(f"projects/{NUMBER}/", f"projects/{PROJECT}/")
            if "/secrets/" not in name:
                self.get(name)
        current = self.policies.setdefault(name, {"version": 1, "etag": "0", "bindings": []})
        if call.verb == "setIamPolicy":
            new = call.body.get("policy", call.body)
            if new.get("etag") and new["etag"] != current["etag"]:
                raise Refused(409, "There were concurrent policy changes.", "ABORTED")
            for binding in new.get("bindings") or []:
                for member in binding["members"]:
                    self._check_member(member)
            bindings = [b for b in new.get("bindings") or [] if b["members"]]
            current |= {"bindings": bindings, "etag": str(self.number()), "version": 3}
        return {key: value for key, value in copy.deepcopy(current).items() if value != []}

    def _check_member(self, member: str) -> None:
        email = member.removeprefix("serviceAccount:")
        own = f"@{PROJECT}.iam.gserviceaccount.com"
        if (
            email.endswith(own)
            and f"projects/{PROJECT}/serviceAccounts/{email}" not in self.resources
        ):
            raise Refused(400, f"Service account {email} does not exist.")


LINK = "https://www.googleapis.com/compute/v1/"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def _inner(body: Body) -> Body:
    """The resource in a request that wraps it."""
    for key in ("topic", "subscription", "serviceAccount"):
        if isinstance(body.get(key), dict):
            return dict(body[key])
    return body


def _set(target: Body, source: Body, path: list[str]) -> None:
    for part in path[:-1]:
        source = source.get(part) or {}
        if not isinstance(target.get(part), dict):
            target[part] = {}
        target = target[part]
    if path[-1] in source:
        target[path[-1]] = source[path[-1]]
    else:
        target.pop(path[-1], None)


def _compute_operation(name: str) -> Body:
    scope = "/".join(name.split("/")[2:4]) if "/regions/" in name else "global"
    link = f"{LINK}projects/{PROJECT}/{scope}/operations/op"
    operation = {
        "kind": "compute#operation",
        "id": "1",
        "name": "op",
        "status": "DONE",
        "progress": 100,
    }
    region = {"region": f"{LINK}projects/{PROJECT}/{scope}"} if scope != "global" else {}
    return {**operation, "selfLink": link, "targetLink": LINK + name, **region}


# --- Requests that are not simply create, read, update, delete ------------------------------------
def _get(plane: ControlPlane, call: Call) -> Any:
    path = call.path
    if "/operations/" in path:
        name = path.rsplit("/operations/", 1)[0]
        if call.method.id.startswith("compute."):
            return _compute_operation(name)
        return {"name": path, "done": True, "response": {}}
    if call.method.id == "cloudresourcemanager.projects.get":
        if "v3" in call.method.path.pattern:
            return {"name": f"projects/{NUMBER}", "projectId": PROJECT, "state": "ACTIVE"}
        return {
            "projectId": PROJECT,
            "projectNumber": NUMBER,
            "name": PROJECT,
            "lifecycleState": "ACTIVE",
        }
    if call.method.id.startswith("serviceusage."):
        return _service(plane, path.rpartition("/")[2])
    path = path.replace(f"projects/{NUMBER}/", f"projects/{PROJECT}/")
    return call.shown(plane.get(path))


def _service(plane: ControlPlane, name: str) -> Body:
    state = "ENABLED" if name in plane.enabled else "DISABLED"
    return {
        "name": f"projects/{NUMBER}/services/{name}",
        "parent": f"projects/{NUMBER}",
        "state": state,
        "config": {"name": name},
    }


def _enable(plane: ControlPlane, call: Call) -> Body:
    names = call.body.get("serviceIds") or [call.path.rpartition("/")[2]]
    for name in names:
        plane.enabled.setdefault(name, time.monotonic())
    return {
        "name": "operations/enable",
        "done": True,
        "response": {"services": [_service(plane, n) for n in names]},
    }


def _list(plane: ControlPlane, call: Call) -> Body:
    if call.method.id.startswith("storage."):
        return {"kind": "storage#objects"}
    return {"services": [_service(plane, name) for name in plane.enabled]}


def _delete(plane: ControlPlane, call: Call) -> Any:
    name = call.path.replace(f"projects/{NUMBER}/", f"projects/{PROJECT}/")
    resource = plane.get(name)
    if "/notificationChannels/" in name and call.query.get("force") != "true":
        users = [
            key
            for key, each in plane.resources.items()
            if name in (each.get("notificationChannels") or [])
        ]
        if users:
            raise Refused(
                400, f"Cannot delete {name}: {users[0]} still uses it", "FAILED_PRECONDITION"
            )
    if call.method.id.startswith("compute."):
        text = json.dumps(LINK + name)
        for key, each in plane.resources.items():
            if key != name and text in json.dumps(each):
                raise Refused(
                    400, f"{name} is already being used by {key}", "resourceInUseByAnotherResource"
                )
    del plane.resources[name]
    plane.policies.pop(name, None)
    if "/workloadIdentityPools/" in name:
        plane.resources[f"deleted {name}"] = resource  # reserved for 30 days
    if call.method.id.startswith("compute."):
        return _compute_operation(name)
    if call.method.response in ("Operation", "GoogleLongrunningOperation"):
        return {"name": f"{name}/operations/1", "done": True, "response": {}}
    return {}


def _add_version(plane: ControlPlane, call: Call) -> Body:
    number = len(plane.named(f"{call.path}/versions/")) + 1
    name = f"{call.path}/versions/{number}"
    plane.resources[name] = {"name": name, "state": "ENABLED", "createTime": "2026-11-30T00:00:00Z"}
    return call.shown(plane.resources[name])


def _set_on(plane: ControlPlane, call: Call) -> Body:
    """setLabels, setSecurityPolicy and others of Compute."""
    name = call.path.rpartition("/")[0]
    if "/global/" not in name and "/regions/" not in name:
        name = name.replace(f"projects/{PROJECT}/", f"projects/{PROJECT}/global/")
    plane.get(name).update({k: v for k, v in call.body.items() if k != "labelFingerprint"})
    return _compute_operation(name)


HANDLERS: dict[str, Callable[[ControlPlane, Call], Any]] = {
    "get": _get,
    "getBillingInfo": lambda plane, call: {"billingEnabled": True},
    "wait": _get,
    "batchGet": lambda plane, call: {"services": []},
    "batchEnable": _enable,
    "enable": _enable,
    "list": _list,
    "listAttestationRules": lambda plane, call: {},
    "delete": _delete,
    "addVersion": _add_version,
    "resume": lambda plane, call: call.shown(plane.get(call.path)),
    "pause": lambda plane, call: call.shown(plane.get(call.path)),
    "setSecurityPolicy": _set_on,
    "setLabels": _set_on,
    "setSslCertificates": _set_on,
    "setSslPolicy": _set_on,
    "setUrlMap": _set_on,
    "setTarget": _set_on,
}


# --- Limits and references ------------------------------------------------------------------------
def _check_budget(plane: ControlPlane, body: Body) -> None:
    channels = body.get("notificationsRule", {}).get("monitoringNotificationChannels") or []
    if len(channels) > 5:
        raise Refused(400, "at most 5 notification channels")
    for channel in channels:
        if plane.get(channel)["type"] != "email":
            raise Refused(400, f"{channel}: a budget takes only channels of type email")


def _check_alert(plane: ControlPlane, body: Body) -> None:
    for channel in body.get("notificationChannels") or []:
        plane.get(channel)
    for metric in re.findall(r'logging\.googleapis\.com/user/([^"\\]+)', json.dumps(body)):
        made = plane.metrics.get(metric)
        if made is None or time.monotonic() < made + plane.metric_seconds:
            raise Refused(404, f"Cannot find metric(s) that match type {metric}.")


def _check_metric(plane: ControlPlane, body: Body) -> None:
    plane.metrics.setdefault(body["name"], time.monotonic())


def _check_subscription(plane: ControlPlane, body: Body) -> None:
    plane.get(body["topic"])
    letters = body.get("deadLetterPolicy", {}).get("deadLetterTopic")
    if letters:
        plane.get(letters)


def _check_run(plane: ControlPlane, body: Body) -> None:
    template = body["template"]
    plane._check_member(f"serviceAccount:{template['serviceAccount']}")
    for container in template["containers"]:
        for variable in container.get("env") or []:
            reference = variable.get("valueSource", {}).get("secretKeyRef")
            if reference:
                secret = f"projects/{PROJECT}/secrets/{reference['secret'].rpartition('/')[2]}"
                if template["serviceAccount"] not in json.dumps(plane.policies.get(secret, {})):
                    raise Refused(
                        400, f"{template['serviceAccount']} may not read {reference['secret']}"
                    )
                version = f"{secret}/versions/{reference['version']}"
                if reference["version"] != "latest" and version not in plane.resources:
                    raise Refused(400, f"Secret {version} was not found")


CHECKS: dict[str, Callable[[ControlPlane, Body], None]] = {
    "billingbudgets.billingAccounts.budgets": _check_budget,
    "monitoring.alertPolicies": _check_alert,
    "logging.metrics": _check_metric,
    "pubsub.subscriptions": _check_subscription,
    "run.services": _check_run,
}


# --- Values that Google fills in ------------------------------------------------------------------
def _fill_run(plane: ControlPlane, name: str, body: Body) -> Body:
    for container in body["template"]["containers"]:
        for port in container.get("ports") or []:
            port.setdefault("name", "http1")
        for probe in ("startupProbe", "livenessProbe"):
            container[probe]["httpGet"].setdefault("port", 8080)
    uri = f"https://{name.rpartition('/')[2]}-1.a.run.app"
    ready = {"type": "Ready", "state": "CONDITION_SUCCEEDED"}
    body["generation"] = str(int(body.get("generation", 0)) + 1)
    body["observedGeneration"] = body["generation"]
    target = {"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 100}
    return {
        "uri": uri,
        "urls": [uri],
        "launchStage": "GA",
        "terminalCondition": ready,
        "traffic": [target],
    }


def _fill_job(plane: ControlPlane, name: str, body: Body) -> Body:
    retry = body.setdefault("retryConfig", {})
    for key, value in (
        ("maxRetryDuration", "0s"),
        ("maxBackoffDuration", "3600s"),
        ("maxDoublings", 5),
    ):
        retry.setdefault(key, value)
    body["httpTarget"].setdefault("headers", {})["User-Agent"] = "Google-Cloud-Scheduler"
    return {"state": "ENABLED"}


def _fill_budget(plane: ControlPlane, name: str, body: Body) -> Body:
    body["budgetFilter"] = {
        "creditTypesTreatment": "INCLUDE_ALL_CREDITS",
        "calendarPeriod": "MONTH",
        **body["budgetFilter"],
    }
    body["amount"]["specifiedAmount"].setdefault("currencyCode", "EUR")
    for rule in body["thresholdRules"]:
        rule.setdefault("spendBasis", "CURRENT_SPEND")
    return {}


def _fill_alert(plane: ControlPlane, name: str, body: Body) -> Body:
    for index, condition in enumerate(body["conditions"]):
        condition.setdefault("name", f"{name}/conditions/{index}")
    return {"enabled": True, "creationRecord": {"mutateTime": "2026-11-30T00:00:00Z"}}


def _fill_bucket(plane: ControlPlane, name: str, body: Body) -> Body:
    body["location"] = body["location"].upper()
    body["iamConfiguration"]["uniformBucketLevelAccess"]["lockedTime"] = "2027-02-28T00:00:00Z"
    return {
        "id": body["name"],
        "selfLink": f"https://www.googleapis.com/storage/v1/b/{body['name']}",
        "projectNumber": NUMBER,
        "storageClass": "STANDARD",
        "locationType": "region",
        "timeCreated": "2026-11-30T00:00:00Z",
        "updated": "2026-11-30T00:00:00Z",
        "rpo": None,
    }


def _fill_account(plane: ControlPlane, name: str, body: Body) -> Body:
    return {
        "projectId": PROJECT,
        "email": name.rpartition("/")[2],
        "uniqueId": str(10**20 + plane.number()),
    }


def _fill_subscription(plane: ControlPlane, name: str, body: Body) -> Body:
    body.setdefault("expirationPolicy", {})
    topic = plane.get(body["topic"])
    kept = topic.get("messageRetentionDuration")
    return {"state": "ACTIVE", **({"topicMessageRetentionDuration": kept} if kept else {})}


def _fill_forwarding(plane: ControlPlane, name: str, body: Body) -> Body:
    address = re.search(r"projects/.*", body["IPAddress"])
    if address:
        body["IPAddress"] = plane.get(address[0])["address"]
    body["portRange"] = (
        f"{body['portRange']}-{body['portRange']}"
        if "-" not in body["portRange"]
        else body["portRange"]
    )
    body["target"] = LINK + re.sub(r".*(?=projects/)", "", body["target"])
    return {"IPProtocol": "TCP", "networkTier": "PREMIUM"}


def _fill_links(plane: ControlPlane, name: str, body: Body) -> Body:
    """Compute answers with full links, and refuses those that lead nowhere."""
    for key in ("urlMap", "defaultService", "sslPolicy", "securityPolicy"):
        if body.get(key):
            body[key] = _link(plane, body[key])
    if body.get("sslCertificates"):
        body["sslCertificates"] = [_link(plane, each) for each in body["sslCertificates"]]
    for backend in body.get("backends") or []:
        backend["group"] = _link(plane, backend["group"])
        backend |= {"balancingMode": "UTILIZATION", "capacityScaler": 1, **backend}
    return {}


def _link(plane: ControlPlane, value: str) -> str:
    name = re.sub(r".*(?=projects/)", "", value)
    plane.get(name)
    return LINK + name


def _fill_backend(plane: ControlPlane, name: str, body: Body) -> Body:
    _fill_links(plane, name, body)
    return {
        "timeoutSec": 30,
        "port": 80,
        "portName": "http",
        "sessionAffinity": "NONE",
        "affinityCookieTtlSec": 0,
        "connectionDraining": {"drainingTimeoutSec": 0},
    }


def _fill_armor(plane: ControlPlane, name: str, body: Body) -> Body:
    for rule in body.get("rules") or []:
        rule.setdefault("preview", False)
    return {"type": "CLOUD_ARMOR"}


def _fill_certificate(plane: ControlPlane, name: str, body: Body) -> Body:
    body["managed"] |= {"status": "PROVISIONING"}
    return {"type": "MANAGED"}


def _fill_secret_dates(plane: ControlPlane, name: str, body: Body) -> Body:
    return {"createTime": "2026-11-30T00:00:00Z"}


def _fill_database(plane: ControlPlane, name: str, body: Body) -> Body:
    return {"uid": "1", "createTime": "2026-11-30T00:00:00Z", "databaseEdition": "STANDARD"}


DEFAULTS: dict[str, Callable[[ControlPlane, str, Body], Body]] = {
    "run.services": _fill_run,
    "cloudscheduler.jobs": _fill_job,
    "billingbudgets.billingAccounts.budgets": _fill_budget,
    "monitoring.alertPolicies": _fill_alert,
    "monitoring.notificationChannels": lambda plane, name, body: {"enabled": True},
    "storage.buckets": _fill_bucket,
    "iam.serviceAccounts": _fill_account,
    "iam.workloadIdentityPools": lambda plane, name, body: {
        "state": "ACTIVE",
        "mode": "FEDERATION_ONLY",
    },
    "iam.workloadIdentityPools.providers": lambda plane, name, body: {"state": "ACTIVE"},
    "artifactregistry.repositories": lambda plane, name, body: {
        "mode": "STANDARD_REPOSITORY",
        "createTime": "2026-11-30T00:00:00Z",
    },
    "pubsub.topics": lambda plane, name, body: {"state": "ACTIVE"},
    "pubsub.subscriptions": _fill_subscription,
    "secretmanager.secrets": _fill_secret_dates,
    "firestore.databases": _fill_database,
    "compute.globalAddresses": lambda plane, name, body: {
        "address": "203.0.113.7",
        "addressType": "EXTERNAL",
        "networkTier": "PREMIUM",
        "ipVersion": "IPV4",
        "status": "RESERVED",
    },
    "compute.globalForwardingRules": _fill_forwarding,
    "compute.targetHttpProxies": _fill_links,
    "compute.targetHttpsProxies": lambda plane, name, body: {
        **_fill_links(plane, name, body),
        "quicOverride": "NONE",
        "tlsEarlyData": "DISABLED",
    },
    "compute.urlMaps": _fill_links,
    "compute.backendServices": _fill_backend,
    "compute.securityPolicies": _fill_armor,
    "compute.sslCertificates": _fill_certificate,
    "compute.sslPolicies": lambda plane, name, body: {
        "enabledFeatures": ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
    },
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plane: ClassVar[ControlPlane]

    def log_message(self, *args: object) -> None:
        """Nothing: tests read `ControlPlane.refused`."""

    def do_GET(self) -> None:
        text = self.rfile.read(int(self.headers.get("content-length") or 0))
        try:
            status, document = self.plane.answer(self.command, self.path, text)
        except Exception as error:  # noqa: BLE001  (a fault of this stand-in fails the test)
            self.plane.refused.append(f"broken: {self.command} {self.path}: {error!r}")
            status, document = 400, {"error": {"code": 400, "message": repr(error)}}
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815
