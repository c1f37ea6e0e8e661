"""The part of Cloud Run's v1 API that `gcloud run` uses, and the addresses of its services.

It keeps the rules that a release depends on: a change names the version that it read, or is refused
with 409; a revision becomes ready later or never; traffic follows only when every revision that it
names is ready; a service whose newest revision failed is not ready, whatever its traffic is.
https://cloud.google.com/run/docs/reference/rest/v1/namespaces.services
"""

import copy
import http.client
import json
import re
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

Document = dict[str, Any]
FAILED = "The user-provided container failed to start and listen on the port."
STATUS = {401: "UNAUTHENTICATED", 409: "ABORTED", 429: "RESOURCE_EXHAUSTED", 503: "UNAVAILABLE"}


class Refused(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


@dataclass
class Fault:
    """Answers `times` requests with `status`; `after` answers so once the change took effect."""

    method: str
    path: str
    status: int
    times: int = 1
    after: bool = False


@dataclass
class Revision:
    service: str
    template: Document
    ready: bool | None = None  # None: not yet known

    @property
    def image(self) -> str:
        return str(self.template["spec"]["containers"][0]["image"])


@dataclass
class CloudRun:
    """`backends` says which address each image answers at; an image without one never starts."""

    folder: Path
    backends: dict[str, str] = field(default_factory=dict)
    ready_seconds: float = 0.1
    token: str = "good"
    # Starts the process of an image before requests go to it, and adds it to `backends`.
    start: Callable[[str], None] | None = None
    # Stops the process of an image that no longer gets requests. Cloud Run does so minutes later.
    stop: Callable[[str], None] | None = None
    faults: list[Fault] = field(default_factory=list)
    # Called before each request with method, path and body.
    on_request: Callable[[str, str, Document | None], None] | None = None
    # Addresses that answer 503 although their backend works: (service, tag or "").
    down: set[tuple[str, str]] = field(default_factory=set)
    services: dict[str, Document] = field(default_factory=dict)
    revisions: dict[str, Revision] = field(default_factory=dict)
    operations: dict[str, Document] = field(default_factory=dict)
    calls: list[tuple[str, str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.servers: list[ThreadingHTTPServer] = []
        self.urls: dict[tuple[str, str], str] = {}
        self.port = self._serve(_Api)
        (self.folder / "token").write_text(self.token)

    def close(self) -> None:
        for server in self.servers:
            server.shutdown()
            server.server_close()

    @property
    def environment(self) -> dict[str, str]:
        """Leads gcloud here. It puts the region before the host's name, so a proxy is needed."""
        return {
            "CLOUDSDK_CONFIG": str(self.folder / "gcloud"),
            "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": str(self.folder / "token"),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_RUN": "http://run.googleapis.test/",
            "CLOUDSDK_PROXY_TYPE": "http",
            "CLOUDSDK_PROXY_ADDRESS": "127.0.0.1",
            "CLOUDSDK_PROXY_PORT": str(self.port),
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
        }

    def create(self, name: str, image: str, ingress: str = "all", **env: str) -> None:
        """A service as Terraform leaves it, with its first revision."""
        first = f"{name}-00001-abc"
        template = {
            "metadata": {"annotations": {"autoscaling.knative.dev/maxScale": "10"}},
            "spec": {
                "containers": [
                    {"image": image, "env": [{"name": k, "value": v} for k, v in env.items()]}
                ]
            },
        }
        self.revisions[first] = Revision(name, template, True)
        url = self._address(name, "")
        self.services[name] = {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": "1",
                "generation": 1,
                "resourceVersion": secrets.token_hex(6),
                "annotations": {
                    "run.googleapis.com/ingress": ingress,
                    "run.googleapis.com/invoker-iam-disabled": "true",
                },
                "labels": {"cloud.googleapis.com/location": "europe-west1"},
            },
            "spec": {"template": template, "traffic": [{"percent": 100, "latestRevision": True}]},
            "status": {
                "observedGeneration": 1,
                "url": url,
                "address": {"url": url},
                "latestReadyRevisionName": first,
                "latestCreatedRevisionName": first,
                "traffic": [{"revisionName": first, "percent": 100, "latestRevision": True}],
                "conditions": [],
            },
        }
        self._conclude(name)

    def traffic(self, name: str) -> dict[str, int]:
        """Percent by the number of the revision, such as {"00001": 100}."""
        targets = self.services[name]["status"]["traffic"]
        return {t["revisionName"].split("-")[-2]: t["percent"] for t in targets if t.get("percent")}

    def tags(self, name: str) -> list[str]:
        return [t["tag"] for t in self.services[name]["status"]["traffic"] if t.get("tag")]

    def image(self, name: str) -> str:
        """The image of the template, which the next `terraform apply` starts."""
        return str(self.services[name]["spec"]["template"]["spec"]["containers"][0]["image"])

    def move(self, name: str, revision: str) -> None:
        """Another person moves the traffic."""
        with self.lock:
            service = self.services[name]
            service["metadata"]["resourceVersion"] = secrets.token_hex(6)
            service["spec"]["traffic"] = [{"revisionName": revision, "percent": 100}]
            self._conclude(name)

    # --- The API ----------------------------------------------------------------------------------
    def answer(
        self, method: str, path: str, body: Document | None, token: str
    ) -> tuple[int, Document]:
        if self.on_request is not None:
            self.on_request(method, path, body)
        fault = self._fault(method, path)
        try:
            if fault is not None and not fault.after:
                raise Refused(fault.status, f"fault {fault.status}")
            if token != f"Bearer {self.token}":
                raise Refused(401, "Request had invalid authentication credentials.")
            answer = self._route(method, path, body)
            if fault is not None:
                raise Refused(fault.status, f"fault {fault.status}")
        except Refused as refusal:
            code, status = refusal.code, STATUS.get(refusal.code, "NOT_FOUND")
            self.calls.append((method, path, code))
            return code, {"error": {"code": code, "message": refusal.message, "status": status}}
        self.calls.append((method, path, 200))
        return 200, answer

    def _fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def _route(self, method: str, path: str, body: Document | None) -> Document:
        name = path.rpartition("/")[2]
        if method == "POST" and name.endswith(":wait"):
            return self._wait(name.removesuffix(":wait"))
        with self.lock:
            if "/services/" in path and name in self.services:
                if method == "PUT" and body is not None:
                    return self._replace(name, body)
                return copy.deepcopy(self.services[name])
            if "/revisions/" in path and name in self.revisions:
                return self._revision(name)
        raise Refused(404, f"Resource '{name}' does not exist.")

    def _wait(self, name: str) -> Document:
        deadline = time.monotonic() + 30
        while not self.operations[name].get("done") and time.monotonic() < deadline:
            time.sleep(0.02)
        return copy.deepcopy(self.operations[name])

    def _revision(self, name: str) -> Document:
        revision = self.revisions[name]
        states = {True: "True", False: "False", None: "Unknown"}
        condition = {"type": "Ready", "status": states[revision.ready]}
        if revision.ready is False:
            condition["message"] = FAILED
        return {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Revision",
            "metadata": {"name": name, "namespace": "1"},
            "spec": revision.template["spec"],
            "status": {"conditions": [condition]},
        }

    def _replace(self, name: str, new: Document) -> Document:
        service = self.services[name]
        metadata = service["metadata"]
        read = new["metadata"].get("resourceVersion")
        if read and read != metadata["resourceVersion"]:
            raise Refused(409, f"Conflict for resource '{name}': version '{read}' was specified.")
        traffic = new["spec"].get("traffic") or [{"percent": 100, "latestRevision": True}]
        if sum(target.get("percent", 0) for target in traffic) != 100:
            raise Refused(400, "Traffic percents must sum to 100.")
        template = new["spec"]["template"]
        changed = _named(template) or _plain(template) != _plain(service["spec"]["template"])
        metadata["generation"] += 1
        metadata["resourceVersion"] = secrets.token_hex(6)
        metadata["annotations"] = dict(new["metadata"].get("annotations", {}))
        operation = secrets.token_hex(8)
        metadata["annotations"]["run.googleapis.com/operation-id"] = operation
        service["spec"] = {"template": copy.deepcopy(template), "traffic": copy.deepcopy(traffic)}
        service["status"]["observedGeneration"] = metadata["generation"]
        self.operations[operation] = {"name": f"projects/p/locations/l/operations/{operation}"}
        revision = None
        if changed:
            number = sum(each.service == name for each in self.revisions.values()) + 1
            revision = _named(template) or f"{name}-{number:05d}-{secrets.token_hex(2)}"
            self.revisions[revision] = Revision(name, _plain(template))
            service["status"]["latestCreatedRevisionName"] = revision
        _condition(service, "Ready", "Unknown")
        timer = threading.Timer(self.ready_seconds, self._finish, (name, revision, operation))
        timer.daemon = True
        timer.start()
        return copy.deepcopy(service)

    def _finish(self, name: str, revision: str | None, operation: str) -> None:
        self._start(name, revision)
        with self.lock:
            before = self._serving(name)
            if revision is not None:
                ready = self.revisions[revision].ready = (
                    self.revisions[revision].image in self.backends
                )
                if ready:
                    self.services[name]["status"]["latestReadyRevisionName"] = revision
            problem = self._conclude(name)
            self.operations[operation] |= {"done": True} | (
                {"error": {"code": 9, "message": problem}}
                if problem
                else {"response": copy.deepcopy(self.services[name])}
            )
            idle = before - self._serving(name)
        for image in idle:
            if self.stop is not None:
                self.stop(image)

    def _start(self, name: str, revision: str | None) -> None:
        """Start a new revision, and those that the specification sends requests to."""
        if self.start is None:
            return
        with self.lock:
            traffic = self.services[name]["spec"]["traffic"]
            names = {revision, *(target.get("revisionName") for target in traffic)} - {None}
            images = {self.revisions[each].image for each in names if each in self.revisions}
        for image in images:
            self.start(image)

    def _serving(self, name: str) -> set[str]:
        """The images of the revisions that get requests at the address of the service."""
        traffic = self.services[name]["status"]["traffic"]
        return {self.revisions[t["revisionName"]].image for t in traffic if t.get("percent")}

    def _conclude(self, name: str) -> str | None:
        """Let the status follow the specification as far as it can. Returns what is wrong."""
        service = self.services[name]
        status = service["status"]
        targets, problem = [], None
        for target in service["spec"]["traffic"]:
            revision = target.get("revisionName") or status["latestReadyRevisionName"]
            found = self.revisions.get(revision)
            if found is None or not found.ready:
                problem = f"Revision '{revision}' is not ready and cannot serve traffic. {FAILED}"
            shown = {**target, "revisionName": revision}
            if target.get("tag"):
                shown["url"] = self._address(name, target["tag"])
            targets.append(shown)
        if problem is None:
            status["traffic"] = targets
        _condition(service, "RoutesReady", "False" if problem else "True", problem)
        newest = status["latestCreatedRevisionName"]
        if self.revisions[newest].ready is False:
            failed = f"Revision '{newest}' is not ready and cannot serve traffic. {FAILED}"
            _condition(service, "ConfigurationsReady", "False", failed)
            problem = problem or failed
        else:
            _condition(service, "ConfigurationsReady", "True")
        _condition(service, "Ready", "False" if problem else "True", problem)
        return problem

    # --- Addresses --------------------------------------------------------------------------------
    def _address(self, name: str, tag: str) -> str:
        """The address of a service, or of one of its tags."""
        if (name, tag) not in self.urls:
            handler = type("Front", (_Front,), {"service": name, "tag": tag})
            self.urls[name, tag] = f"http://127.0.0.1:{self._serve(handler)}"
        return self.urls[name, tag]

    def backend(self, name: str, tag: str) -> str:
        """Where a request to an address goes; empty if nothing answers."""
        with self.lock:
            if (name, tag) in self.down:
                return ""
            for target in self.services[name]["status"]["traffic"]:
                if target.get("tag", "") == tag if tag else target.get("percent"):
                    return self.backends.get(self.revisions[target["revisionName"]].image, "")
        return ""

    def _serve(self, handler: type[BaseHTTPRequestHandler]) -> int:
        bound = type(handler.__name__, (handler,), {"cloud": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), bound)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self.servers.append(server)
        return int(server.server_address[1])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cloud: ClassVar[CloudRun]

    def log_message(self, *args: object) -> None:
        """Nothing: a test reads `CloudRun.calls`."""

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def reply(self, status: int, kind: str, data: bytes, location: str = "") -> None:
        self.send_response(status)
        if location:
            self.send_header("location", location)
        if status != 204:
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Api(_Handler):
    def do_GET(self) -> None:
        raw = self.body()
        body = json.loads(raw) if raw.startswith(b"{") else None
        path = urlsplit(self.path).path
        token = self.headers.get("authorization", "")
        status, document = self.cloud.answer(self.command, path, body, token)
        self.reply(status, "application/json; charset=UTF-8", json.dumps(document).encode())

    do_PUT = do_POST = do_GET  # noqa: N815


class _Front(_Handler):
    service: ClassVar[str]
    tag: ClassVar[str]

    def do_GET(self) -> None:
        body = self.body()
        backend = self.cloud.backend(self.service, self.tag)
        if not backend:
            return self.reply(503, "text/plain", b"Service Unavailable")
        if backend == "placeholder":
            return self.reply(200, "text/html", b"<html>Congratulations</html>")
        parts = urlsplit(backend)
        line = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        headers = {"host": parts.netloc}
        for name in ("content-type", "authorization", "x-serverless-authorization", "prefer"):
            if value := self.headers.get(name):
                headers[name] = value
        try:
            line.request(self.command, self.path, body, headers)
            answer = line.getresponse()
            kind = answer.getheader("content-type") or "application/json"
            location = answer.getheader("location") or ""
            return self.reply(answer.status, kind, answer.read(), location)
        except (OSError, http.client.HTTPException) as error:
            return self.reply(503, "text/plain", str(error).encode())
        finally:
            line.close()

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815


def _named(template: Document) -> str:
    return str(template.get("metadata", {}).get("name") or "")


def _plain(template: Document) -> Document:
    plain = copy.deepcopy(template)
    plain.get("metadata", {}).pop("name", None)
    return plain


def _condition(service: Document, kind: str, status: str, message: str | None = None) -> None:
    conditions = service["status"]["conditions"]
    conditions[:] = [each for each in conditions if each["type"] != kind]
    conditions.append({"type": kind, "status": status, **({"message": message} if message else {})})
    conditions.sort(key=lambda each: each["type"] != "Ready")
