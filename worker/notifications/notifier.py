"""Telling those who want to hear of it what became of a job: by webhook, and by e-mail.

A message without a target becomes one for each receiver; each of those is delivered by itself, as
often as its receiver needs. Every delivery of one is the same to its receiver: same id, same words.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parseaddr
from typing import NoReturn

import structlog

from core.backends import Backend
from core.clock import Clock, rfc3339, utc_now
from core.domain.job_document import job_document
from core.domain.jobs import Job, JobKey
from core.domain.messages import Notify
from core.domain.policy import NOTIFICATION_CONCURRENCY
from core.domain.webhooks import (
    WEBHOOK_ID,
    Delivery,
    Event,
    Webhook,
    message_id,
    noted,
    signed_headers,
)
from core.errors import InvalidRequest, MalformedEnvelope, Unavailable
from core.outbound.http_client import NoAnswer, PrivateAddress, PublicClient
from core.outbound.mail_address import check_address, domain_of
from core.services.publishing import publish
from core.settings import Settings
from worker.metrics import WorkerMetrics
from worker.notifications.job_email import job_email
from worker.notifications.mailer import SECONDS as MAIL_SECONDS
from worker.notifications.mailer import EmailRefused, Mailer
from worker.notifications.receiver_limits import WAIT_SECONDS, ReceiverPlaces

log = structlog.get_logger(__name__)

EMAIL, WEBHOOK = "email", "webhook"  # the first is a target, both are labels of a metric
DELIVERED, DROPPED, REFUSED, FAILED, GONE = "delivered", "dropped", "refused", "failed", "gone"
NO_ANSWER = "no_answer"  # what a note of a delivery says of the network's failures
WEBHOOK_SECONDS = 15.0  # how long a receiver may take to answer
USER_AGENT = "Glimpse-Webhooks/1"


class Undeliverable(Exception):
    """No further delivery of this message would end otherwise; `code` and `detail` say why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class Notifier:
    """One worker process's. `mailer` is None where no e-mail is sent."""

    settings: Settings
    backend: Backend
    client: PublicClient
    mailer: Mailer | None
    places: ReceiverPlaces
    metrics: WorkerMetrics
    clock: Clock = utc_now

    async def notify(self, message: Notify) -> None:
        """Deliver it, or send one message to each who wants to hear of it.

        Raises Unavailable where it should come again, Undeliverable where that would not help, and
        MalformedEnvelope for an event or a target that there is not.
        """
        if message.event not in list(Event):
            raise MalformedEnvelope("The attribute event names none that there is.")
        if not message.target:
            await self._fan_out(message)
        elif message.target == EMAIL:
            await self._email(message)
        elif WEBHOOK_ID.fullmatch(message.target):
            await self._webhook(message)
        else:
            raise MalformedEnvelope("The attribute target names no receiver.")

    async def _fan_out(self, message: Notify) -> None:
        job = await self._job(message)
        if job is None:
            return
        event = Event(message.event)
        hooks = await self.backend.webhooks.list(message.tenant)
        targets = [hook.id for hook in hooks if hook.wants(event)]
        if job.notify_email:
            targets.append(EMAIL)
        for target in targets:
            await publish(self.backend.publisher, replace(message, target=target))
        log.info("notifications sent on their way", event_=event.value, receivers=len(targets))

    async def _job(self, message: Notify) -> Job | None:
        job = await self.backend.jobs.get(JobKey(message.tenant, message.job))
        if job is None:
            log.warning("notification dropped: its job is gone")
        return job

    # --- Webhooks ---------------------------------------------------------------------------------

    async def _webhook(self, message: Notify) -> None:
        event = Event(message.event)
        hook = await self.backend.webhooks.get(message.tenant, message.target)
        if hook is None or not hook.enabled:
            log.info(
                "notification dropped: its webhook is gone or disabled", webhook=message.target
            )
            self.metrics.notified(WEBHOOK, DROPPED)
            return
        if event is Event.TEST:
            body = _body(event, rfc3339(self.clock()), {"webhook_id": hook.id})
        else:
            job = await self._job(message)
            if job is None:
                self.metrics.notified(WEBHOOK, DROPPED)
                return
            ended = rfc3339(job.completed_at or job.updated_at)
            body = _body(event, ended, job_document(job, self.settings.public_url))
        async with self.places.at(hook.id):
            status = await self._post(hook, event, message_id(message.job, event), body)
            told = Delivery(self.clock(), event, status)
            if status == 410:
                self.metrics.notified(WEBHOOK, GONE)
                why, store = "It answered 410 Gone.", self.backend.webhooks
                if await store.note(hook.tenant, hook.id, hook.url, told, gone=why):
                    log.warning("webhook disabled: it answered 410", webhook=hook.id)
                return
            await self._note(hook, told)
            if told.succeeded:
                self.metrics.notified(WEBHOOK, DELIVERED)
                log.info("webhook told", webhook=hook.id, status=status)
            else:
                self._failed(hook, f"it answered {status}")

    async def _post(self, hook: Webhook, event: Event, id_: str, body: bytes) -> int:
        headers = {
            "Content-Type": "application/json",
            **signed_headers(hook, id_, body, self.clock()),
        }
        try:
            return await self.client.post(hook.url, body, headers)
        except NoAnswer as error:
            await self._note(hook, Delivery(self.clock(), event, error=NO_ANSWER))
            self._failed(hook, str(error))
        except (PrivateAddress, InvalidRequest) as refusal:
            await self._note(hook, Delivery(self.clock(), event, error=refusal.code))
            self.metrics.notified(WEBHOOK, REFUSED)
            log.error("webhook refused", webhook=hook.id, code=refusal.code, detail=refusal.detail)
            raise Undeliverable(refusal.code, refusal.detail) from None

    async def _note(self, hook: Webhook, told: Delivery) -> None:
        """For its owner to see. Most say what is known: they cost no look at the store."""
        if noted(hook, hook.url, told) is None:
            return
        try:
            await self.backend.webhooks.note(hook.tenant, hook.id, hook.url, told)
        except Unavailable as error:
            # The receiver has been told, or has not: that is what the queue must hear.
            log.warning("delivery not noted", webhook=hook.id, reason=error.detail)

    def _failed(self, hook: Webhook, why: str) -> NoReturn:
        self.metrics.notified(WEBHOOK, FAILED)
        log.warning("webhook not told", webhook=hook.id, reason=why)
        raise Unavailable(f"The receiver was not told: {why}.")

    # --- E-mail -----------------------------------------------------------------------------------

    async def _email(self, message: Notify) -> None:
        job = await self._job(message)
        if job is None or not job.notify_email:
            self.metrics.notified(EMAIL, DROPPED)
            return
        try:
            check_address(job.notify_email, self.settings.email_domains)
        except InvalidRequest as refusal:
            self.metrics.notified(EMAIL, REFUSED)
            log.error("e-mail refused", detail=refusal.detail)
            raise Undeliverable(EmailRefused.code, refusal.detail) from None
        assert self.mailer is not None, "there are domains only where there is a server"
        settings = self.settings
        mail = job_email(job, message.event, settings.email_from, settings.public_url)
        try:
            # By domain: one that puts us off (greylisting) puts nobody else off.
            async with self.places.at(f"{EMAIL}:{domain_of(job.notify_email)}"):
                await self.mailer.send(mail)
        except EmailRefused as refusal:
            self.metrics.notified(EMAIL, REFUSED)
            log.error("e-mail refused", detail=refusal.detail)
            raise Undeliverable(refusal.code, refusal.detail) from None
        except Unavailable:
            self.metrics.notified(EMAIL, FAILED)
            raise
        self.metrics.notified(EMAIL, DELIVERED)
        log.info("e-mail sent")


def _body(event: Event, timestamp: str, data: dict[str, object]) -> bytes:
    """As Standard Webhooks has it: what happened, when, and to what."""
    document = {"type": event.value, "timestamp": timestamp, "data": data}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


@asynccontextmanager
async def open_notifier(
    settings: Settings, backend: Backend, metrics: WorkerMetrics, clock: Clock = utc_now
) -> AsyncIterator[Notifier]:
    """The notifier, with a client of its own."""
    # Whoever waits for a place and then for a receiver has answered before the queue gives up.
    longest, wait = settings.ack_deadline_seconds / 2, settings.ack_deadline_seconds / 4
    mailer = None
    if settings.mail_server is not None:
        greeting = domain_of(parseaddr(settings.email_from)[1])
        mailer = Mailer(settings.mail_server, greeting, seconds=min(MAIL_SECONDS, longest))
    places = ReceiverPlaces(NOTIFICATION_CONCURRENCY, wait_seconds=min(WAIT_SECONDS, wait))
    async with PublicClient(
        min(WEBHOOK_SECONDS, longest),
        allow_private=settings.webhook_allow_private,
        user_agent=USER_AGENT,
    ) as client:
        yield Notifier(settings, backend, client, mailer, places, metrics, clock)
