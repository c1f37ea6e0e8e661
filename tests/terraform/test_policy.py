"""Terraform's delivery numbers are `DeliveryPolicy`'s, and what hangs on them follows from them."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from app.images.routes import MAX_WAIT_SECONDS
from app.images.what_routes import SLOW_WAIT_SECONDS
from app.streams.registry import STREAM_SECONDS
from core.domain import policy
from core.domain.channels import (
    ALL_CHANNELS,
    CHANNELS,
    DEAD_LETTERS,
    IMAGES,
    JOBS,
    NOTIFICATIONS,
    Channel,
    Lane,
)
from core.domain.policy import NOTIFICATION_CONCURRENCY, DeliveryPolicy
from core.domain.priority import Priority
from terraform.tools.tree import Module, code, nested, plain
from tests.support.settings import isolated_settings
from tests.support.terraform import outputs
from worker.notifications.notifier import WEBHOOK_SECONDS

PATHS = {
    "classify_path": policy.CLASSIFY_PATH,
    "jobs_path": policy.JOBS_PATH,
    "notifications_path": policy.NOTIFICATIONS_PATH,
    "dead_letter_path": policy.DEAD_LETTER_PATH,
    "reconcile_path": policy.RECONCILE_PATH,
    "schedule_path": policy.SCHEDULE_PATH,
}


# Without the retention of dead letters: the services have the default of RETENTION_DAYS.
DELIVERY = {
    name: value
    for name, value in asdict(DeliveryPolicy()).items()
    if name != "dead_letter_retention"
}


def test_policy_numbers_are_in_the_module(modules: dict[str, Module]) -> None:
    """Read as text, so that it holds where Terraform is not installed."""
    stated = modules["policy"].locals
    assert {name: stated[name] for name in DELIVERY} == DELIVERY
    assert {name: plain(stated[name]) for name in PATHS} == PATHS


def test_terraform_gives_the_policy(modules: dict[str, Module], tmp_path: Path) -> None:
    given = outputs(
        tmp_path,
        f'module "policy" {{ source = "{modules["policy"].folder}" }}\n'
        'output "all" { value = module.policy }',
    )["all"]
    ours = DeliveryPolicy()
    assert {name: given[name] for name in DELIVERY} == DELIVERY
    assert given["reconcile_interval"] == ours.reconcile_interval
    assert given["reconcile_schedule"] == f"*/{ours.reconcile_interval / 60:g} * * * *"


# The Cloud Run service that gets each channel's messages: no kind of work waits for another.
SERVICES = {
    IMAGES[Priority.HIGH]: "interactive",
    IMAGES[Priority.NORMAL]: "batch",
    IMAGES[Priority.LOW]: "batch",
    JOBS: "batch",
    NOTIFICATIONS: "notify",
    DEAD_LETTERS: "interactive",
}


def deliveries() -> dict[str, dict[str, Any]]:
    """What each channel's subscription must have, dead letters among them."""
    settings = isolated_settings()
    numbers = ("attempts", "min_backoff", "max_backoff", "ack_deadline", "retention")
    return {
        channel.name: {
            "path": channel.path,
            "service": SERVICES[channel],
            **{name: getattr(settings.channel_delivery(channel), name) for name in numbers},
        }
        for channel in ALL_CHANNELS
    }


def test_terraform_has_the_channels(modules: dict[str, Module], tmp_path: Path) -> None:
    given = outputs(
        tmp_path,
        f'module "policy" {{ source = "{modules["policy"].folder}" }}\n'
        'output "channels" { value = module.policy.channels }\n'
        'output "dead_letters" { value = module.policy.dead_letters }',
    )
    wanted = deliveries()
    last = wanted.pop(DEAD_LETTERS.name)
    assert given["channels"] == wanted
    assert given["dead_letters"] == {"name": DEAD_LETTERS.name, **last}


def test_the_channels_are_stated(modules: dict[str, Module]) -> None:
    """Read as text, so that it holds where Terraform is not installed."""
    stated = modules["policy"].locals
    paths = {
        name: re.findall(r"path = local\.(\w+)", code(value))
        for name, value in stated["channels"].items()
        if not name.startswith("__")
    }
    assert {name: [PATHS[path] for path in found] for name, found in paths.items()} == {
        channel.name: [channel.path] for channel in CHANNELS
    }
    patient = [name for name, value in stated["channels"].items() if "notification_d" in str(value)]
    assert patient == [NOTIFICATIONS.name]


def resource(modules: dict[str, Module], name: str) -> dict[str, Any]:
    return modules["queue"].of("resource")[name].body


def test_topics_and_subscriptions_have_the_codes_names(modules: dict[str, Module]) -> None:
    """With `TOPIC_PREFIX` as the prefix, and the channel's name as the key."""
    prefix, key = "${var.names.prefix}", "${each.key}"
    channel = Channel(key, "/", Lane.JOBS)
    topic = resource(modules, "google_pubsub_topic.channel")
    assert plain(topic["name"]) == channel.topic(prefix)
    subscription = resource(modules, "google_pubsub_subscription.channel")
    assert plain(subscription["name"]) == channel.subscription(prefix)
    letters = replace(channel, name="${var.policy.dead_letters.name}")
    local = plain(modules["queue"].locals["dead_letters"])
    assert local == letters.topic(prefix)
    assert plain(resource(modules, "google_pubsub_topic.dead_letters")["name"]) == (
        "${local.dead_letters}"
    )
    name = plain(resource(modules, "google_pubsub_subscription.dead_letters")["name"])
    assert name.replace("${local.dead_letters}", local) == letters.subscription(prefix)
    assert "module.queue.topic_prefix" in str(modules["example"].of("module")["settings"].body)
    given = modules["queue"].of("output")["topic_prefix"].body
    assert given["value"] == prefix


@pytest.mark.parametrize(
    ("name", "policy"), [("channel", "each.value"), ("dead_letters", "var.policy.dead_letters")]
)
def test_subscriptions_follow_the_policy(
    modules: dict[str, Module], name: str, policy: str
) -> None:
    body = resource(modules, f"google_pubsub_subscription.{name}")
    blocks = dict(nested(body))
    assert body["ack_deadline_seconds"] == f"${{{policy}.ack_deadline}}"
    assert plain(body["message_retention_duration"]) == f"${{{policy}.retention}}s"
    assert plain(blocks["retry_policy"]["minimum_backoff"]) == f"${{{policy}.min_backoff}}s"
    assert plain(blocks["retry_policy"]["maximum_backoff"]) == f"${{{policy}.max_backoff}}s"
    assert plain(blocks["expiration_policy"]["ttl"]) == ""
    endpoint = plain(blocks["push_config"]["push_endpoint"])
    assert endpoint == f"${{var.worker_urls[{policy}.service]}}${{{policy}.path}}"


def test_every_channel_has_a_dead_letter_topic(modules: dict[str, Module]) -> None:
    for part in ("topic.channel", "subscription.channel", "subscription_iam_member.agent"):
        each = resource(modules, f"google_pubsub_{part}")["for_each"]
        assert each == "${var.policy.channels}"
    body = resource(modules, "google_pubsub_subscription.channel")
    letters = dict(nested(body))["dead_letter_policy"]
    assert letters["max_delivery_attempts"] == "${each.value.attempts}"
    assert letters["dead_letter_topic"] == "${google_pubsub_topic.dead_letters.id}"
    agent = resource(modules, "google_pubsub_subscription_iam_member.agent")
    assert agent["subscription"] == "${google_pubsub_subscription.channel[each.key].name}"


def test_all_services_publish_to_every_channel(modules: dict[str, Module]) -> None:
    """The API too: it tells of jobs that their owners cancel."""
    publishers = str(modules["queue"].locals["publishers"])
    assert "setproduct(keys(var.policy.channels), keys(var.publishers))" in publishers
    given = modules["example"].of("module")["queue"].body["publishers"]
    assert code(given) == "merge({api = module.api.account}, local.worker_accounts)"
    assert worker_services(modules) == set(modules["example"].locals["worker_accounts"]) - NOTES
    for part in ("publisher", "viewer"):
        grant = resource(modules, f"google_pubsub_topic_iam_member.{part}")
        assert grant["for_each"] == "${local.publishers}"
        assert grant["topic"] == "${google_pubsub_topic.channel[each.value.channel].name}"


def test_the_scheduler_calls_both_paths(modules: dict[str, Module]) -> None:
    calls = modules["queue"].locals["calls"]
    wanted = {"reconcile": "reconcile", "schedule": "schedule"}
    for name, path in wanted.items():
        assert code(calls[name]["path"]) == f"var.policy.{path}_path"
    assert code(calls["reconcile"]["schedule"]) == "var.policy.reconcile_schedule"
    assert code(calls["schedule"]["schedule"]) == "var.policy.schedule"
    schedule = modules["policy"].of("output")["schedule"].body["value"]
    assert plain(schedule) == "* * * * *"


def test_a_notification_fits_in_a_delivery() -> None:
    """Its receiver is waited for, and then the answer goes to Pub/Sub."""
    settings = isolated_settings()
    assert settings.notification_delivery.ack_deadline >= 2 * WEBHOOK_SECONDS


NOTES = {"__is_block__", "__comments__", "__inline_comments__", "__start_line__", "__end_line__"}


def worker_services(modules: dict[str, Module]) -> set[str]:
    return set(modules["example"].locals["workers"]) - NOTES


def test_every_channel_has_a_service(modules: dict[str, Module]) -> None:
    assert worker_services(modules) == set(SERVICES.values())
    for service in worker_services(modules):
        assert f"var.worker.{service}" in str(modules["example"].locals["workers"][service])


def test_notify_has_more_slots_than_notifications_that_wait(modules: dict[str, Module]) -> None:
    """Otherwise slow receivers would hold every request of an instance."""
    worker = modules["example"].of("variable")["worker"].body
    conditions = json.dumps(worker["validation"])
    (least,) = re.findall(r"var\.worker\.notify\.concurrency > (\d+)", conditions)
    assert int(least) == NOTIFICATION_CONCURRENCY
    body = modules["example"].of("module")["worker"].body
    assert body["concurrency"] == "${each.value.concurrency}"
    assert body["for_each"] == "${local.workers}"


def test_worker_timeout_is_the_ack_deadline(modules: dict[str, Module]) -> None:
    worker = modules["example"].of("module")["worker"].body
    assert worker["timeout_seconds"] == "${module.policy.ack_deadline}"


def test_the_api_has_time_and_room_for_its_streams(modules: dict[str, Module]) -> None:
    api = modules["example"].of("module")["api"].body
    longest = max(MAX_WAIT_SECONDS, SLOW_WAIT_SECONDS)
    assert max(2 * longest, STREAM_SECONDS + 60) <= api["timeout_seconds"] <= 3600
    assert code(api["concurrency"]) == "var.api.concurrency + var.api.streams"
    environment = modules["example"].of("module")["settings"].body
    assert environment["api_streams"] == "${var.api.streams}"
