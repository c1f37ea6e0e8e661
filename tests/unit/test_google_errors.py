"""Every exception of Google's libraries that can reach a port is translated to one of ours."""

import inspect
from types import SimpleNamespace

import google.api_core.exceptions as api
import google.auth.exceptions as auth
import grpc
import grpc.aio
import pytest
import requests.exceptions
import urllib3.exceptions
from google.cloud.storage import exceptions as storage

from core.backends.google.errors import translated, translation_of
from core.errors import Conflict, GlimpseError, NotFound, Unavailable

CONFLICTS = {"Aborted", "AlreadyExists", "Conflict", "PreconditionFailed"}


def subclasses(base: type[BaseException]) -> list[type[BaseException]]:
    return [base, *(each for sub in base.__subclasses__() for each in subclasses(sub))]


def instance_of(kind: type[BaseException]) -> BaseException:
    """An instance, without a call of its constructor."""
    error = kind.__new__(kind)
    error.args = ("the message",)
    return error


API = sorted(set(subclasses(api.GoogleAPIError)), key=lambda kind: kind.__name__)
OTHERS = [
    kind
    for base in (
        auth.GoogleAuthError,
        requests.exceptions.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
    )
    for kind in subclasses(base)
    if kind.__module__.split(".")[0] in ("google", "requests", "urllib3", "builtins")
]


def test_the_lists_of_exceptions_are_not_empty() -> None:
    assert len(API) > 30
    assert len(OTHERS) > 30


@pytest.mark.parametrize("kind", API, ids=lambda kind: kind.__name__)
def test_api_exceptions_are_translated(kind: type[BaseException]) -> None:
    expected: type[GlimpseError] = Unavailable
    if kind.__name__ == "NotFound":
        expected = NotFound
    elif kind.__name__ in CONFLICTS:
        expected = Conflict
    assert translation_of(instance_of(kind)) is expected


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_transport_and_credential_exceptions_are_unavailable(kind: type[BaseException]) -> None:
    assert translation_of(instance_of(kind)) is Unavailable


@pytest.mark.parametrize("code", list(grpc.StatusCode), ids=lambda code: code.name)
def test_grpc_errors_are_translated_by_their_status(code: grpc.StatusCode) -> None:
    nothing = grpc.aio.Metadata()
    error = grpc.aio.AioRpcError(code, nothing, nothing, "details")
    expected = {"NOT_FOUND": NotFound, "ALREADY_EXISTS": Conflict, "ABORTED": Conflict}
    assert translation_of(error) is expected.get(code.name, Unavailable)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 409, 412, 429, 500, 502, 503, 504])
def test_storage_errors_are_translated_by_their_status(status: int) -> None:
    error = storage.InvalidResponse(SimpleNamespace(status_code=status), "refused")
    expected = {404: NotFound, 409: Conflict, 412: Conflict}
    assert translation_of(error) is expected.get(status, Unavailable)


@pytest.mark.parametrize(
    "error",
    [
        storage.DataCorruption(SimpleNamespace(status_code=200), "checksum"),
        grpc.aio.UsageError("Channel is closed."),
        TimeoutError(),
        ConnectionResetError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_other_failures_are_unavailable(error: Exception) -> None:
    assert translation_of(error) is Unavailable


def test_programming_errors_are_not_translated() -> None:
    for error in (ValueError("x"), KeyError("x"), TypeError("x"), AssertionError()):
        assert translation_of(error) is None
        with pytest.raises(type(error)), translated("part"):
            raise error


def test_our_own_errors_are_not_translated() -> None:
    for kind in (NotFound, Conflict, Unavailable):
        with pytest.raises(kind, match="as it was"), translated("part"):
            raise kind("as it was")


def test_error_details_contain_nothing_from_google() -> None:
    secret = "projects/secret-project/databases/secret does not exist"
    with pytest.raises(Unavailable) as raised, translated("record store"):
        raise api.PermissionDenied(secret)
    assert raised.value.detail == "The record store does not answer."
    assert raised.value.retry_after == 1


def test_a_missing_resource_is_404_only_if_the_caller_names_it() -> None:
    with pytest.raises(Unavailable), translated("message queue"):
        raise api.NotFound("Topic not found")
    with pytest.raises(NotFound, match="no such image"), translated("x", missing="no such image"):
        raise api.NotFound("No such object")


def test_all_public_api_exceptions_are_tested() -> None:
    exported = {
        kind
        for _, kind in inspect.getmembers(api, inspect.isclass)
        if issubclass(kind, api.GoogleAPIError)
    }
    assert exported <= set(API)
