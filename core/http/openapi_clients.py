"""Adapts an OpenAPI document to generators of clients.

Each step says which generators need it. `make clients` generates, compiles and runs clients.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]

_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+")
_NULL = {"type": "null"}


def adapt_to_generators(document: Schema) -> None:
    """Change `document` in place."""
    schemas: Schema = document["components"]["schemas"]
    for part in (*schemas.values(), *_parameters(document)):
        _drop_titles(part)
        _name_limits(part)
        _drop_default_lists(part)
    for parameter in _parameters(document):
        _drop_null(parameter["schema"])
    bodies = set(_request_bodies(document))
    for name, each in schemas.items():
        if name not in bodies:
            _allow_new_members(each)
    _drop_unused(document)
    _name_parameter_enums(document)
    _name_enum_values(schemas)


def _parameters(document: Schema) -> Iterator[Schema]:
    for methods in document["paths"].values():
        for operation in methods.values():
            yield from operation.get("parameters", ())


def _request_bodies(document: Schema) -> Iterator[str]:
    """Yield the names of the schemas of request bodies."""
    for methods in document["paths"].values():
        for operation in methods.values():
            for body in operation.get("requestBody", {}).get("content", {}).values():
                yield body["schema"].get("$ref", "").rpartition("/")[2]


def _parts(node: object) -> Iterator[Schema]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _parts(value)
    elif isinstance(node, list):
        for value in node:
            yield from _parts(value)


def _drop_titles(part: Schema) -> None:
    """openapi-generator names inline schemas after the titles that pydantic derives for members."""
    for each in list(_parts(part)):
        for member in _members(each):
            if isinstance(member.get("title"), str):
                del member["title"]


def _members(part: Schema) -> Iterator[Schema]:
    properties = part.get("properties")
    if isinstance(properties, dict):
        yield from (each for each in properties.values() if isinstance(each, dict))
    if isinstance(part.get("schema"), dict):  # the schema of a parameter
        yield part["schema"]


def _name_limits(part: Schema) -> None:
    """Limits behind a pydantic validator keep pydantic's names, which no generator knows."""
    names = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
    for each in _parts(part):
        for ours, theirs in names.items():
            if isinstance(each.get(ours), (int, float)):
                each[theirs] = each.pop(ours)


def _drop_default_lists(part: Schema) -> None:
    """openapi-generator's Java client does not compile with a default of a list of enumerations."""
    for each in _parts(part):
        for member in _members(each):
            if isinstance(member.get("default"), list):
                del member["default"]


def _drop_null(schema: Schema) -> None:
    """A parameter has no null. Its absence is not a value."""
    choices = schema.get("anyOf")
    if isinstance(choices, list) and _NULL in choices:
        others = [each for each in choices if each != _NULL]
        if len(others) == 1:
            del schema["anyOf"]
            schema.update(others[0])
    if schema.get("default", "") in (None, ""):
        schema.pop("default", None)


def _allow_new_members(schema: Schema) -> None:
    """Without this, openapi-generator's Go and Java clients refuse members that they do not know.

    A later release may add members to responses. Bodies of requests say that they allow none.
    """
    if schema.get("type") == "object":
        schema.setdefault("additionalProperties", True)


def _drop_unused(document: Schema) -> None:
    """FastAPI defines the types of parameters that are not documented. Clients would have them."""
    schemas: Schema = document["components"]["schemas"]
    used = {part["$ref"] for part in _parts(document) if isinstance(part.get("$ref"), str)}
    for name in [each for each in schemas if f"#/components/schemas/{each}" not in used]:
        del schemas[name]


def _name_parameter_enums(document: Schema) -> None:
    """Generators name inline enumerations by rules of their own, which a new one may change."""
    schemas: Schema = document["components"]["schemas"]
    for methods in document["paths"].values():
        for operation in methods.values():
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                if "enum" in schema:
                    words = f"{operation['operationId']}_{parameter['name']}".split("_")
                    name = "".join(map(str.capitalize, words))
                    schemas[name] = {"type": schema.pop("type"), "enum": schema.pop("enum")}
                    schema["$ref"] = f"#/components/schemas/{name}"


def _name_enum_values(schemas: Schema) -> None:
    """Go has one name space for the constants of all enumerations of a package.

    Values that several enumerations have get the name of the enumeration as their prefix.
    """
    enums = {name: each for name, each in schemas.items() if "enum" in each}
    used = Counter(_constant(value) for each in enums.values() for value in each["enum"])
    for name, each in enums.items():
        if any(used[_constant(value)] > 1 for value in each["enum"]):
            prefix = "_".join(_WORDS.findall(name)).upper()
            each["x-enum-varnames"] = [f"{prefix}_{_constant(value)}" for value in each["enum"]]


def _constant(value: str) -> str:
    return re.sub(r"\W", "_", value).upper()
