"""Metrics of log lines find lines that the code writes; alerts lead to runbooks that exist."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from core.domain.channels import CHANNELS, IMAGES, NOTIFICATIONS
from core.domain.priority import Priority
from terraform.tools.tree import Module, code, nested, plain
from tests.support.settings import isolated_settings
from tests.support.stack import ROOT

LEVELS = {"debug", "info", "warning", "error", "exception", "log"}


def calls(*folders: str) -> Iterator[tuple[str, set[str], str]]:
    """Every `log.level("message", field=...)`: the message, its fields, the file's text.

    And every `log.log(level, "message", ...)` and `(log.a if b else log.c)("message", ...)`.
    """
    for folder in folders:
        for file in sorted((ROOT / folder).rglob("*.py")):
            if "embedded" in file.parts:  # runs nowhere on Google Cloud
                continue
            text = file.read_text()
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.Call):
                    continue
                method = node.func.body if isinstance(node.func, ast.IfExp) else node.func
                if not isinstance(method, ast.Attribute) or method.attr not in LEVELS:
                    continue
                place = 1 if method.attr == "log" else 0
                if len(node.args) <= place:
                    continue
                said = node.args[place]
                if isinstance(said, ast.Constant) and isinstance(said.value, str):
                    yield said.value, {each.arg or "**" for each in node.keywords}, text


@cache
def lines_of(service: str) -> list[tuple[str, set[str], str]]:
    """The lines that a service writes."""
    return [*calls("app" if service == "api" else service, "core")]


@pytest.fixture(scope="module")
def counted(modules: dict[str, Module]) -> dict[str, dict[str, Any]]:
    """The metrics that count lines, by name."""
    found: dict[str, dict[str, Any]] = modules["observability"].locals["counted"]
    return {name: metric for name, metric in found.items() if not name.startswith("__")}


def service_of(metric: dict[str, Any]) -> str:
    match = re.fullmatch(r"\$\{local\.(api|worker)(_\w+)?_lines\}", metric["lines"])
    assert match
    return match[1]


def test_every_message_is_one_that_the_service_writes(counted: dict[str, dict[str, Any]]) -> None:
    assert len(counted) >= 7
    for name, metric in counted.items():
        written = {message for message, _, _ in lines_of(service_of(metric))}
        assert plain(metric["message"]) in written, name


def test_every_label_is_a_field_of_its_line(counted: dict[str, dict[str, Any]]) -> None:
    labelled = {name: metric for name, metric in counted.items() if metric["label"] is not None}
    assert labelled
    for name, metric in labelled.items():
        message, label = plain(metric["message"]), plain(metric["label"])
        fields = [fields for said, fields, _ in lines_of(service_of(metric)) if said == message]
        assert any(label in each for each in fields), name


def message_and_field(modules: dict[str, Module], metric: str) -> tuple[str, str]:
    module = modules["observability"]
    body = module.of("resource")["google_logging_metric.measured"].body
    lines = module.locals["measured"][metric]["lines"]
    (message,) = re.findall(r'jsonPayload\.message=\\*"([^"\\]+)', lines)
    (field,) = re.findall(r"EXTRACT\(jsonPayload\.(\w+)\)", body["value_extractor"])
    return message, field


def test_the_time_of_a_classification_is_in_its_line(modules: dict[str, Module]) -> None:
    message, field = message_and_field(modules, "classification_time")
    (text,) = [text for said, _, text in lines_of("worker") if said == message]
    assert f'"{field}":' in text


def test_the_time_of_an_upload_is_in_its_line(modules: dict[str, Module]) -> None:
    """The line also has the fields that separate it from batches and reads."""
    message, field = message_and_field(modules, "upload_time")
    lines = modules["observability"].locals["measured"]["upload_time"]["lines"]
    filters = set(re.findall(r"jsonPayload\.(\w+)", lines)) - {"message"}
    (fields,) = [fields for said, fields, _ in lines_of("api") if said == message]
    assert filters == {"method", "path"}
    assert {field, *filters} <= fields
    (batches,) = re.findall(r'NOT jsonPayload\.path:\\*"([^"\\]+)', lines)
    assert batches in "/api/v1/jobs/batch-predict"
    assert not any(batches in path for path in ("/api/v1/images", "/what/fast", "/what/slow"))


def test_lines_have_the_names_that_filters_use() -> None:
    """`message` and fields at the top of the JSON: Cloud Logging makes jsonPayload of the rest."""
    assert (
        'event["message"] = event.pop("event"' in (ROOT / "core/observability/logs.py").read_text()
    )


def alerts(modules: dict[str, Module]) -> dict[str, dict[str, Any]]:
    """Each by its name; the one of every channel's backlog is there once."""
    found: dict[str, dict[str, Any]] = dict(modules["observability"].locals["alerts"])
    for name in ("oldest_message", "undelivered_letters"):
        found[name] = modules["observability"].locals[name]
    return {name: alert for name, alert in found.items() if not name.startswith("__")}


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


def test_every_alert_has_a_runbook_and_every_runbook_an_alert(modules: dict[str, Module]) -> None:
    wanted = set(re.findall(r"alert-[a-z-]+", str(alerts(modules))))
    there = anchors(ROOT / "docs/operations/alerts.md")
    assert {each for each in there if each.startswith("alert-")} == wanted


def test_the_issues_alerts_are_there(modules: dict[str, Module]) -> None:
    found = alerts(modules)
    filters = {name: str(alert.get("filter", "")) for name, alert in found.items()}
    assert "dead_letter_message_count" in filters["dead_letters"]
    assert found["dead_letters"]["threshold"] == 0
    assert "5xx" in filters["api_errors"]
    assert found["api_errors"]["denominator"] is not None
    assert "upload_time" in filters["api_latency"]
    assert plain(found["api_latency"]["aligner"]) == "ALIGN_PERCENTILE_99"
    assert found["worker_errors"]["denominator"] is not None


def test_every_channel_has_an_alert_the_urgent_ones_a_strict_one(
    modules: dict[str, Module],
) -> None:
    module = modules["observability"]
    assert "oldest_unacked_message_age" in module.locals["backlogs"]
    assert "for channel, filter in local.subscription_is" in code(module.locals["backlogs"])
    policy = module.of("resource")["google_monitoring_alert_policy.this"].body
    assert policy["for_each"] == "${local.policies}"
    assert code(module.locals["policies"]) == (
        "merge(local.alerts, local.undelivered_letters, local.backlogs)"
    )
    stated = re.findall(r"([\w-]+) = (\d+)", code(module.locals["oldest_message_seconds"]))
    seconds = {name: int(number) for name, number in stated}
    assert seconds.keys() == {channel.name for channel in CHANNELS}
    images = [seconds[IMAGES[priority].name] for priority in Priority]
    assert images == sorted(images)
    assert len(set(images)) == 3
    # A receiver that is down for all deliveries of its message is no backlog of ours.
    delivery = isolated_settings().notification_delivery
    assert seconds[NOTIFICATIONS.name] > sum(map(delivery.backoff, range(1, delivery.attempts)))


def test_unreachable_receiver_raises_no_alert_about_images(modules: dict[str, Module]) -> None:
    found = alerts(modules)
    for name in ("dead_letters", "worker_errors"):
        assert "${local.work_is}" in found[name]["filter"]
    work = modules["observability"].locals["work_is"]
    assert re.search(r'if channel != \\*"notifications\\*"', work)


def user_metrics(text: str) -> set[str]:
    return set(re.findall(r"local\.user_metric\}/(\w+)", text))


def test_alerts_and_charts_use_metrics_that_exist(
    modules: dict[str, Module], counted: dict[str, dict[str, Any]]
) -> None:
    measured = {name for name in modules["observability"].locals["measured"] if name[:2] != "__"}
    made = {*counted, *measured} | {
        plain(block.body["name"]).rpartition("/")[2]
        for name, block in modules["observability"].of("resource").items()
        if name.startswith("google_logging_metric.") and "for_each" not in block.body
    }
    module = modules["observability"]
    used = user_metrics(str(module.locals["charts"])) | user_metrics(str(module.locals["alerts"]))
    assert used <= made
    assert made <= used, "a metric that is not used"


def test_the_dashboard_follows_an_image(modules: dict[str, Module]) -> None:
    charts = modules["observability"].locals["charts"]
    assert len(charts) == 15
    stations = [" ".join(map(str, charts[start : start + 3])) for start in range(0, 15, 3)]
    signs = ["api_is", "messages_to", "worker_is", "classified", "jobs_ended"]
    for station, sign in zip(stations, signs, strict=True):
        assert sign in station
    resource = modules["observability"].of("resource")["google_monitoring_dashboard.this"]
    assert "jsonencode" in code(resource.body["dashboard_json"])


def test_alerts_notify_the_addresses_of_the_variable(modules: dict[str, Module]) -> None:
    policy = modules["observability"].of("resource")["google_monitoring_alert_policy.this"].body
    assert policy["notification_channels"] == "${local.channels}"
    assert "documentation" in dict(nested(policy))


def test_alert_watches_the_subscription_of_dead_letters(modules: dict[str, Module]) -> None:
    """Pub/Sub gives up no dead letter, so no other alert reports one that is not recorded."""
    letters = str(modules["observability"].locals["undelivered_letters"])
    assert "local.letters_are" in letters
    assert "oldest_unacked_message_age" in letters


def test_the_dashboard_leaves_out_what_monitoring_omits(modules: dict[str, Module]) -> None:
    """Zeros and empty values would be a change in every plan."""
    resource = modules["observability"].of("resource")["google_monitoring_dashboard.this"]
    document = resource.body["dashboard_json"]
    assert "if position != 0" in document
    assert 'line.name == \\"\\" ? {}' in document or 'line.name == "" ? {}' in document
    assert "length(line.by) == 0 ? {}" in document


def test_policies_change_before_their_channel_is_deleted(modules: dict[str, Module]) -> None:
    """Monitoring refuses to delete a channel that a policy names."""
    channel = modules["observability"].of("resource")[
        "google_monitoring_notification_channel.email"
    ]
    assert dict(nested(channel.body))["lifecycle"]["create_before_destroy"] is True
