"""The options of a job: query parameters, headers, or fields of the batch's JSON document."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from starlette.requests import Request

from app.batches.manifest import BatchManifest
from app.http.parameters import IDEMPOTENCY_KEY
from app.http.timestamps import parse_time
from core.domain.jobs import MAX_NAME
from core.domain.priority import Priority
from core.domain.webhooks import JobEvent
from core.errors import InvalidRequest
from core.outbound.mail_address import domain_of

MIN_CANCEL_AFTER, MAX_CANCEL_AFTER = timedelta(seconds=5), timedelta(days=7)
MAX_DELAY = timedelta(days=30)
# 1h30m, 1h 30m and 2h0m0s, as Go writes it; PT1H30M, as ISO 8601, Java and Temporal write it.
_NUMBER = r"(\d{1,6}(?:\.\d{1,9})?)"
_DURATION = re.compile(
    rf"(?:P(?=.))?(?:{_NUMBER}D)? ?(?:T(?=.))?(?:{_NUMBER}H)? ?(?:{_NUMBER}M)? ?(?:{_NUMBER}S)?",
    re.ASCII,
)
_IN_QUERY = ("model", "priority", "not_before", "notify_email", "name", "webhook")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class JobOptions:
    """None or empty: the client has not set the option. `model` is a name or an id."""

    priority: Priority | None = None
    not_before: datetime | None = None
    notify_email: str = ""
    cancel_after: timedelta | None = None
    idempotency_key: str = ""
    name: str = ""
    model: str = ""
    webhook: str = ""
    webhook_events: frozenset[JobEvent] | None = None


def options_of(request: Request, now: datetime) -> JobOptions:
    """The options in the query and the headers. Raises InvalidRequest."""
    query = request.query_params
    model, priority, moment, email, name, webhook = (
        _once(query.getlist(each), each) for each in _IN_QUERY
    )
    events = query.getlist("webhook_events")
    cancel_after = _once(request.headers.getlist("cancel-after"), "Cancel-After")
    return JobOptions(
        model=model or "",
        priority=None if priority is None else _priority(priority),
        not_before=None if moment is None else _moment(moment, now),
        notify_email="" if email is None else _email(email),
        cancel_after=None if cancel_after is None else _duration(cancel_after),
        idempotency_key=_idempotency_key(request),
        name="" if name is None else _name(name),
        webhook=webhook or "",
        webhook_events=_events(events) if events else None,
    )


def webhook_options(request: Request) -> JobOptions | None:
    """The options of an upload with a webhook; None without one. Raises InvalidRequest."""
    query = request.query_params
    webhook = _once(query.getlist("webhook"), "webhook")
    events = query.getlist("webhook_events")
    if webhook is None and not events:
        return None
    if not webhook:
        raise _invalid("webhook_events", "needs the parameter webhook")
    return JobOptions(
        model=_once(query.getlist("model"), "model") or "",
        idempotency_key=_idempotency_key(request),
        webhook=webhook,
        webhook_events=_events(events) if events else None,
    )


def _idempotency_key(request: Request) -> str:
    key = _once(request.headers.getlist("idempotency-key"), "Idempotency-Key")
    if key is not None and not IDEMPOTENCY_KEY.fullmatch(key):
        raise _invalid("Idempotency-Key", "must have 1 to 255 printable ASCII characters")
    return key or ""


def with_manifest(options: JobOptions, manifest: BatchManifest, now: datetime) -> JobOptions:
    """`options` with those of the manifest.

    Raises InvalidRequest, also for an option that is set in both.
    """
    values = {name: getattr(manifest, name) for name in (*_IN_QUERY, "webhook_events")}
    values = {name: value for name, value in values.items() if value is not None}
    for name in values:
        if getattr(options, name) not in (None, ""):
            raise _invalid(name, "is given twice, as a parameter and in the document")
    parsers: dict[str, Callable[[str], Any]] = {
        "not_before": partial(_moment, now=now),
        "notify_email": _email,
        "name": _name,
    }
    for name, parse in parsers.items():
        if name in values:
            values[name] = parse(values[name])
    options = replace(options, **values)
    if options.webhook_events is not None and not options.webhook:
        raise _invalid("webhook_events", "needs the parameter webhook")
    delay = timedelta(0) if options.not_before is None else options.not_before - now
    if options.cancel_after is not None and options.cancel_after <= delay:
        raise _invalid("Cancel-After", "ends before the job may begin")
    return options


def _once(values: list[str], name: str) -> str | None:
    if len(values) > 1:
        raise _invalid(name, "is given twice")
    return values[0] if values else None


def _priority(text: str) -> Priority:
    if text not in list(Priority):
        raise _invalid("priority", f"must be one of {', '.join(Priority)}")
    return Priority(text)


def _moment(text: str, now: datetime) -> datetime:
    try:
        moment = parse_time(text)
        if moment.tzinfo is None:
            raise _invalid("not_before", "must have an offset from UTC, as in 2026-11-21T09:30:00Z")
        moment = moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _invalid("not_before", "must be a time such as 2026-11-21T09:30:00Z") from None
    if moment - now > MAX_DELAY:
        raise _invalid("not_before", f"must be at most {MAX_DELAY.days} days in the future")
    return moment


def _email(text: str) -> str:
    try:
        domain_of(text)
    except ValueError:
        raise _invalid("notify_email", "must be one e-mail address without a name") from None
    return text


def _name(text: str) -> str:
    name = text.strip()
    if not 1 <= len(name) <= MAX_NAME or _CONTROL.search(name):
        raise _invalid("name", f"must have 1 to {MAX_NAME} characters, without line breaks")
    return name


def _events(values: list[str]) -> frozenset[JobEvent]:
    """Parse events that are given several times, or separated by commas."""
    names = [name.strip() for value in values for name in value.split(",")]
    if not names or any(name not in list(JobEvent) for name in names):
        raise _invalid("webhook_events", f"must be some of {', '.join(JobEvent)}")
    return frozenset(map(JobEvent, names))


def _duration(text: str) -> timedelta:
    """Parse days, hours, minutes and seconds such as `1h30m` or `PT1H30M`.

    A number alone is refused: it may have been meant as minutes, or as milliseconds.
    """
    found = _DURATION.fullmatch(text.strip().upper())
    if found is None or not any(found.groups()):
        unit = ", with its unit" if text.strip().isdigit() else ""
        raise _invalid("Cancel-After", f"must be a duration such as 90s, 15m or 1h30m{unit}")
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    duration = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    if not MIN_CANCEL_AFTER <= duration <= MAX_CANCEL_AFTER:
        raise _invalid("Cancel-After", "must be between 5 seconds and 7 days")
    return duration


def _invalid(name: str, rule: str) -> InvalidRequest:
    return InvalidRequest(f"{name} {rule}.", extra={"field": name})
