"""A collector of traces that receives OTLP over HTTP, as a real one does, and keeps the spans.

https://opentelemetry.io/docs/specs/otlp/#otlphttp
"""

import gzip
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

TIMEOUT = 60.0  # seconds


@dataclass(frozen=True)
class Seen:
    """A received span. Ids are hex; `parent` is empty for the first span of a trace."""

    service: str
    name: str
    kind: str
    trace: str
    id: str
    parent: str
    failed: bool
    attributes: dict[str, Any]
    links: tuple[str, ...]  # trace ids


class Collector:
    """A context in which the collector runs. `url` is for OTEL_EXPORTER_OTLP_ENDPOINT."""

    def __init__(self) -> None:
        self._spans: list[Seen] = []
        self._arrived = threading.Condition()
        self.headers: list[dict[str, str]] = []
        self.resources: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def spans(self) -> list[Seen]:
        with self._arrived:
            return list(self._spans)

    def wait(self, enough: Callable[[list[Seen]], bool]) -> list[Seen]:
        """Wait until there are `enough` spans, and return all."""
        ends = time.monotonic() + TIMEOUT
        with self._arrived:
            while not enough(self._spans):
                left = ends - time.monotonic()
                names = [(span.service, span.name) for span in self._spans]
                assert left > 0, f"still waiting for spans; there are {names}"
                self._arrived.wait(left)
            return list(self._spans)

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        with self._arrived:
            self.headers.append(headers)
            for group in request.resource_spans:
                resource = _attributes(group.resource.attributes)
                self.resources.append(resource)
                for scope in group.scope_spans:
                    self._spans += [_seen(str(resource["service.name"]), s) for s in scope.spans]
            self._arrived.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector._take(self.path, dict(self.headers.items()), body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        return Handler


def _seen(service: str, span: Span) -> Seen:
    return Seen(
        service=service,
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        attributes=_attributes(span.attributes),
        links=tuple(link.trace_id.hex() for link in span.links),
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in pairs}
