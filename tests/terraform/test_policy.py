"""Terraform's delivery numbers are `DeliveryPolicy`'s, and what hangs on them follows from them."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from core import policy
from core.policy import DeliveryPolicy
from core.settings import Settings
from terraform.tools.tree import Module, nested, plain
from tests.support.terraform import outputs

PATHS = {
    "classify_path": policy.CLASSIFY_PATH,
    "dead_letter_path": policy.DEAD_LETTER_PATH,
    "reconcile_path": policy.RECONCILE_PATH,
}


def test_the_numbers_stand_in_the_module(modules: dict[str, Module]) -> None:
    """Read as text, so that it holds where Terraform is not installed."""
    stated = modules["policy"].locals
    assert {name: stated[name] for name in asdict(DeliveryPolicy())} == asdict(DeliveryPolicy())
    assert {name: plain(stated[name]) for name in PATHS} == PATHS


def test_terraform_gives_the_policy(modules: dict[str, Module], tmp_path: Path) -> None:
    given = outputs(
        tmp_path,
        f'module "policy" {{ source = "{modules["policy"].folder}" }}\n'
        'output "all" { value = module.policy }',
    )["all"]
    ours = DeliveryPolicy()
    assert {name: given[name] for name in asdict(ours)} == asdict(ours)
    assert given["reconcile_interval"] == ours.reconcile_interval
    assert given["reconcile_schedule"] == f"*/{ours.reconcile_interval / 60:g} * * * *"


def subscription(modules: dict[str, Module], name: str) -> dict[str, Any]:
    return modules["queue"].of("resource")[f"google_pubsub_subscription.{name}"].body


def test_both_subscriptions_obey_the_policy(modules: dict[str, Module]) -> None:
    for name in ("images", "dead_letters"):
        body = subscription(modules, name)
        blocks = dict(nested(body))
        assert body["ack_deadline_seconds"] == "${var.policy.ack_deadline}"
        assert plain(body["message_retention_duration"]) == "${var.policy.retention}s"
        assert plain(blocks["retry_policy"]["minimum_backoff"]) == "${var.policy.min_backoff}s"
        assert plain(blocks["retry_policy"]["maximum_backoff"]) == "${var.policy.max_backoff}s"
        assert plain(blocks["expiration_policy"]["ttl"]) == ""
    letters = dict(nested(subscription(modules, "images")))["dead_letter_policy"]
    assert letters["max_delivery_attempts"] == "${var.policy.attempts}"
    assert letters["dead_letter_topic"] == "${google_pubsub_topic.dead_letters.id}"


def test_nobody_waits_for_the_worker_longer_than_the_queue(modules: dict[str, Module]) -> None:
    worker = modules["example"].of("module")["worker"].body
    assert worker["timeout_seconds"] == "${module.policy.ack_deadline}"


def test_the_api_has_time_for_the_longest_wait(modules: dict[str, Module]) -> None:
    timeout = modules["example"].of("module")["api"].body["timeout_seconds"]
    settings = Settings(_env_file=None)
    assert timeout >= 2 * max(settings.max_wait_seconds, settings.slow_wait_seconds)
    assert timeout >= settings.stream_seconds + 60
