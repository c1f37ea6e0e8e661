"""What the chaos experiment calls a change, and what only overlapped."""

import time

import httpx

from tests.chaos.load import Ledger

IMAGE = "0" * 64
QUEUED = httpx.Response(202, json={"status": "queued"})
SUCCESS = httpx.Response(200, json={"status": "success", "label": "cat"})


def test_reversed_terminal_status_is_a_violation() -> None:
    ledger = Ledger()
    ledger.note(SUCCESS, IMAGE, asked=time.monotonic())
    ledger.note(QUEUED, IMAGE, asked=time.monotonic())
    assert ledger.changed == [f"{IMAGE}: success, then queued"]


def test_an_answer_that_was_asked_for_before_the_end_was_seen_is_none() -> None:
    ledger = Ledger()
    asked = time.monotonic()
    ledger.note(SUCCESS, IMAGE, asked=time.monotonic())
    ledger.note(QUEUED, IMAGE, asked)
    assert ledger.changed == []
    assert IMAGE in ledger.accepted


def test_another_result_is_a_change_whenever_it_was_asked_for() -> None:
    ledger = Ledger()
    asked = time.monotonic()
    ledger.note(SUCCESS, IMAGE, asked=time.monotonic())
    ledger.note(httpx.Response(200, json={"status": "success", "label": "dog"}), IMAGE, asked)
    assert len(ledger.changed) == 1
