"""Queries of Datastore, as raw protocol buffers."""

from datetime import datetime
from typing import Any

from google.cloud.datastore_v1.types import (
    CompositeFilter,
    Filter,
    PropertyFilter,
    PropertyOrder,
    Query,
)

from core.backends.google.entities import RawValue

KEY = "__key__"
_Operator = PropertyFilter.Operator
_OPERATORS = {
    "=": _Operator.EQUAL,
    "<": _Operator.LESS_THAN,
    "<=": _Operator.LESS_THAN_OR_EQUAL,
    ">": _Operator.GREATER_THAN,
    ">=": _Operator.GREATER_THAN_OR_EQUAL,
    "ancestor": _Operator.HAS_ANCESTOR,
}
_RawFilter, _RawQuery = Filter.pb(), Query.pb()


def query_for(
    kind: str,
    *conditions: tuple[str, str, Any],
    order: str = "",
    descending: bool = False,
    limit: int | None = None,
    keys_only: bool = False,
) -> Any:
    """The query for entities of `kind` that meet all conditions, sorted by `order`.

    A condition is a property, an operator (see `_OPERATORS`) and a value: a text, a time or a key.
    With `keys_only`, the entities found have no properties.
    """
    query = _RawQuery(kind=[{"name": kind}])
    filters = [_condition(*condition) for condition in conditions]
    if len(filters) == 1:
        query.filter.CopyFrom(filters[0])
    elif filters:
        every = CompositeFilter.pb()(op=CompositeFilter.Operator.AND, filters=filters)
        query.filter.CopyFrom(_RawFilter(composite_filter=every))
    if order:
        directions = PropertyOrder.Direction
        direction = directions.DESCENDING if descending else directions.ASCENDING
        query.order.add(property={"name": order}, direction=direction)
    if limit is not None:
        query.limit.value = limit
    if keys_only:
        query.projection.add(property={"name": KEY})
    return query


def _condition(name: str, operator: str, value: Any) -> Any:
    raw = RawValue()
    if isinstance(value, str):
        raw.string_value = value
    elif isinstance(value, datetime):
        raw.timestamp_value.FromDatetime(value)
    else:
        raw.key_value.CopyFrom(value)
    return _RawFilter(
        property_filter=PropertyFilter.pb()(
            property={"name": name}, op=_OPERATORS[operator], value=raw
        )
    )
