"""What `deploy.preflight` says about an address before a release."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import trustme

from deploy.cloud_run import Service
from deploy.preflight import PUBLIC, address_problems, api_problems
from deploy.smoke import Target


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(204 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of a server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_address_that_answers_has_no_problem() -> None:
    with serving() as port:
        assert list(address_problems(f"http://127.0.0.1:{port}")) == []


def test_certificate_of_an_unknown_authority_is_named() -> None:
    """Such as the one of a load balancer before Google has issued the real one."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(tls)
    with serving(tls) as port:
        (problem,) = address_problems(f"https://127.0.0.1:{port}")
    assert "has no valid certificate yet" in problem


def test_address_that_does_not_answer_is_named() -> None:
    with serving() as port:
        pass
    (problem,) = address_problems(f"http://127.0.0.1:{port}")
    assert problem.startswith(f"http://127.0.0.1:{port} does not answer")


@pytest.mark.parametrize(("token", "missing"), [("", True), ("token", False)])
def test_api_that_is_not_public_needs_an_identity_token(token: str, missing: bool) -> None:
    url = "https://glimpse-api.example"
    service = Service("glimpse-api", url, "image", {"one": 100}, {"one": 100})
    target = Target(url, identity_token=token)
    assert bool(list(api_problems(service, "", target))) is missing
    public = Service(
        "glimpse-api", url, "image", {"one": 100}, {"one": 100}, annotations={PUBLIC: "true"}
    )
    assert list(api_problems(public, "", Target(url))) == []
