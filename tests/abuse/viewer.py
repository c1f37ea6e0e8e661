"""Uploads odd pictures to real processes, and compares their labels with what viewers show."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.abuse.odd import Odd
from tests.support.pictures import encode
from tests.support.stack import Stack

WAIT_SECONDS = 30
SAME = 0.08  # the largest difference of a label's confidence


@dataclass
class Outcome:
    """The outcomes of the odd pictures. `wrong` is empty if each was seen or refused rightly."""

    seen: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


def compare(
    stack: Stack, pictures: Iterable[Odd], progress: Callable[[int], None] = lambda sent: None
) -> Outcome:
    """Calls `progress` with the number of pictures that were sent."""
    outcome = Outcome()
    for number, odd in enumerate(pictures, start=1):
        response = _upload(stack.api, odd.make())
        document = response.json()
        if odd.shown is None:
            outcome.refused += 1
            if response.status_code != odd.status:
                outcome.wrong.append(f"{odd}: {response.status_code}, not {odd.status}")
        else:
            outcome.seen += 1
            expected = _upload(stack.api, encode(odd.shown(), "PNG")).json()
            if difference := _difference(document, expected):
                outcome.wrong.append(f"{odd}: {difference}")
        progress(number)
    return outcome


def _upload(api: httpx.Client, data: bytes) -> httpx.Response:
    headers = {"Content-Type": "image/jpeg", "Prefer": f"wait={WAIT_SECONDS}"}
    return api.post("/api/v1/images", content=data, headers=headers, params={"labels": 20})


def _difference(document: dict[str, Any], expected: dict[str, Any]) -> str:
    """What differs, or an empty text."""
    if document.get("status") != "success":
        return str(document.get("error") or document.get("detail") or document.get("status"))
    labels = {each["label"]: each["confidence"] for each in expected["annotations"]}
    for each in document["annotations"]:
        shown = labels.get(each["label"], 0.0)
        if abs(each["confidence"] - shown) > SAME:
            return f"{each['label']} {each['confidence']:.2f}, but a viewer's is {shown:.2f}"
    return ""
