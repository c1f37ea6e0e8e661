"""Query parameters that a route does not declare are refused: a typing error would have no effect.

A route declares parameters to FastAPI, or in `openapi_extra`.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qsl

from fastapi._compat import ModelField
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.types import Scope

from core.errors import InvalidRequest

_PRINTABLE = re.compile(r"[A-Za-z0-9_.\[\]-]{1,40}")
CUTOFF = 0.6  # similarity of a suggestion, from 0 to 1


@dataclass(frozen=True, slots=True)
class DeclaredParameters:
    """The names of the parameters that a route takes in the query, and in headers."""

    query: frozenset[str]
    headers: frozenset[str] = frozenset()


def declared_parameters(route: APIRoute) -> DeclaredParameters:
    """Return what `route` declares."""
    query: set[str] = set()
    headers: set[str] = set()
    for dependant in _with_dependencies(route.dependant):
        query.update(_names(dependant.query_params))
        headers.update(_names(dependant.header_params))
    for parameter in (route.openapi_extra or {}).get("parameters", ()):
        if parameter["in"] == "query":
            query.add(parameter["name"])
        elif parameter["in"] == "header":
            headers.add(parameter["name"])
    return DeclaredParameters(frozenset(query), frozenset(headers))


def _names(fields: Iterable[ModelField]) -> Iterator[str]:
    """Yield the names of parameters, also of those that a model declares together."""
    for field in fields:
        model = field.field_info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from (each.alias or name for name, each in model.model_fields.items())
        else:
            yield field.alias


def _with_dependencies(dependant: Dependant) -> Iterator[Dependant]:
    yield dependant
    for each in dependant.dependencies:
        yield from _with_dependencies(each)


def check_query(scope: Scope) -> None:
    """Check the query of a request or a WebSocket against what its route declares.

    Routes without `parameters` accept every query. Raises InvalidRequest.
    """
    declared: DeclaredParameters | None = getattr(scope.get("route"), "parameters", None)
    if declared is None:
        return
    text = scope["query_string"].decode("latin-1")
    for name, _ in parse_qsl(text, keep_blank_values=True):
        if name not in declared.query:
            raise unknown_parameter(name, declared)


def unknown_parameter(name: str, declared: DeclaredParameters) -> InvalidRequest:
    """Return the error for a parameter that is not declared, with a suggestion."""
    if not _PRINTABLE.fullmatch(name):
        return InvalidRequest(
            f"The query has an unknown parameter. {_known(declared)}", extra={"field": "query"}
        )
    hint = _suggestion(name, declared) or _known(declared)
    return InvalidRequest(f"There is no query parameter {name!r}. {hint}", extra={"field": name})


def _suggestion(name: str, declared: DeclaredParameters) -> str:
    plain = _plain(name)
    headers = {_plain(each): each for each in declared.headers}
    query = {_plain(each): each for each in declared.query}
    if plain in headers and plain not in query:
        return f"Send the header {headers[plain]}."
    close = difflib.get_close_matches(plain, query, 1, CUTOFF)
    return f"Did you mean {query[close[0]]!r}?" if close else ""


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _known(declared: DeclaredParameters) -> str:
    if not declared.query:
        return "This route takes none."
    return f"This route takes {', '.join(sorted(declared.query))}."
