"""Views: which labels of a stored result a response has. A request selects them by its query."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.datastructures import QueryParams

from core.domain.records import MAX_LABELS, Annotation
from core.errors import InvalidRequest
from core.settings import Settings

_COUNT = re.compile(r"[0-9]{1,3}")
# A decimal number, with an exponent or without.
_NUMBER = re.compile(r"(?:[0-9]{1,20}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})(?:[eE][+-]?[0-9]{1,3})?")


@dataclass(frozen=True, slots=True)
class View:
    """At most `labels` labels; labels and categories with at least `min_confidence`."""

    labels: int
    min_confidence: float

    @classmethod
    def default(cls, settings: Settings) -> "View":
        """The view of requests that select none."""
        return cls(settings.labels_per_image, settings.min_confidence)

    def of_labels(self, annotations: Iterable[Annotation]) -> list[Annotation]:
        """The labels in the view; `annotations` are ordered by their index."""
        return self.of_categories(each for each in annotations if each.index <= self.labels)

    def of_categories(self, categories: Iterable[Annotation]) -> list[Annotation]:
        """The categories in the view."""
        return [each for each in categories if each.confidence >= self.min_confidence]


def view_of(query: QueryParams, default: View) -> View:
    """The view that `labels` and `min_confidence` select; `default` itself if it is equal.

    Raises InvalidRequest.
    """
    labels, least = query.getlist("labels"), query.getlist("min_confidence")
    view = View(
        _labels(labels) if labels else default.labels,
        _confidence(least) if least else default.min_confidence,
    )
    return default if view == default else view


def _labels(values: list[str]) -> int:
    (text,) = values if len(values) == 1 else ("",)
    if not _COUNT.fullmatch(text) or not 1 <= int(text) <= MAX_LABELS:
        raise _invalid("labels", f"a whole number from 1 to {MAX_LABELS}")
    return int(text)


def _confidence(values: list[str]) -> float:
    (text,) = values if len(values) == 1 else ("",)
    if not _NUMBER.fullmatch(text) or not 0 <= float(text) <= 1:
        raise _invalid("min_confidence", "a number from 0 to 1")
    return float(text)


def _invalid(name: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"Give the parameter {name} once, as {rule}.", extra={"field": name})
