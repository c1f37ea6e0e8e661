"""Notifies receivers of job events by webhook and by e-mail.

A message without a target becomes one message for each receiver, and the queue delivers each of
those as often as its receiver needs. All deliveries of one notification have the same id and
content.
"""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parseaddr
from typing import NoReturn
from urllib.parse import urlsplit

import structlog

from core.backends import Backend
from core.clock import Clock, rfc3339, utc_now
from core.domain.job_document import job_document
from core.domain.jobs import Job, JobKey, note_webhook
from core.domain.messages import Notify
from core.domain.policy import NOTIFICATION_CONCURRENCY
from core.domain.webhooks import (
    WEBHOOK_ID,
    Delivery,
    Event,
    Webhook,
    WebhookKey,
    disable,
    message_id,
    note_delivery,
    parse_secret,
    signed_by,
    signed_headers,
)
from core.errors import GlimpseError, InvalidRequest, MalformedEnvelope, Unavailable
from core.outbound.http_client import (
    NoResponse,
    PrivateAddress,
    PublicClient,
    open_public_client,
)
from core.outbound.mail_address import check_address, domain_of
from core.services.publishing import publish
from core.settings import Settings
from worker.metrics import WorkerMetrics
from worker.notifications.job_email import job_email
from worker.notifications.mailer import SECONDS as MAIL_SECONDS
from worker.notifications.mailer import EmailRefused, Mailer
from worker.notifications.receiver_limits import WAIT_SECONDS, ReceiverLimits

log = structlog.get_logger(__name__)

EMAIL, WEBHOOK = "email", "webhook"  # labels of a metric, and targets of messages
DELIVERED, DROPPED, REFUSED, FAILED, GONE = "delivered", "dropped", "refused", "failed", "gone"
NO_RESPONSE = "no_answer"  # the public error code of a delivery that failed in the network
WEBHOOK_SECONDS = 15.0  # time limit for the answer of a receiver
USER_AGENT = "Glimpse-Webhooks/1"


class Undeliverable(Exception):
    """No further delivery of this message can succeed; `code` and `detail` say why."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail


@dataclass(frozen=True)
class Notifier:
    """One for each worker process. `mailer` is None if the service sends no e-mail."""

    settings: Settings
    backend: Backend
    client: PublicClient
    mailer: Mailer | None
    limits: ReceiverLimits
    metrics: WorkerMetrics
    clock: Clock = utc_now

    async def notify(self, message: Notify) -> None:
        """Deliver the notification, or publish one message for each receiver of the event.

        Raises Unavailable to ask for another delivery, Undeliverable if that cannot help, and
        MalformedEnvelope for an unknown event or target.
        """
        if message.event not in list(Event):
            raise MalformedEnvelope("The attribute event is unknown.")
        if not message.target:
            await self._fan_out(message)
        elif message.target == EMAIL:
            await self._deliver_email(message)
        elif message.target == WEBHOOK:
            await self._deliver_to_own_webhook(message)
        elif WEBHOOK_ID.fullmatch(message.target):
            await self._deliver_webhook(message)
        else:
            raise MalformedEnvelope("The attribute target names no receiver.")

    async def _fan_out(self, message: Notify) -> None:
        job = await self._job(message)
        if job is None:
            return
        event = Event(message.event)
        webhooks = await self.backend.webhooks.list(message.tenant)
        targets = [webhook.id for webhook in webhooks if webhook.wants(event)]
        if job.notify_email:
            targets.append(EMAIL)
        if job.webhook is not None and job.webhook.wants(event):
            targets.append(WEBHOOK)  # the job's own
        for target in targets:
            await publish(self.backend.publisher, replace(message, target=target))
        log.info("notifications published", event_=event.value, receivers=len(targets))

    async def _job(self, message: Notify) -> Job | None:
        job = await self.backend.jobs.get(JobKey(message.tenant, message.job))
        if job is None:
            log.warning("notification dropped", reason="the job was deleted")
        return job

    # --- Webhooks ---------------------------------------------------------------------------------

    async def _deliver_webhook(self, message: Notify) -> None:
        event, store = Event(message.event), self.backend.webhooks
        webhook = await store.get(WebhookKey(message.tenant, message.target))
        if webhook is None or not webhook.enabled:
            reason = "the webhook was deleted or disabled"
            log.info("notification dropped", reason=reason, webhook=message.target)
            self.metrics.notified(WEBHOOK, DROPPED)
            return
        if event is Event.TEST:
            body = _body(event, rfc3339(self.clock()), {"webhook_id": webhook.id})
        else:
            job = await self._job(message)
            if job is None:
                self.metrics.notified(WEBHOOK, DROPPED)
                return
            ended = rfc3339(job.completed_at or job.updated_at)
            body = _body(event, ended, job_document(job, self.settings.public_url))
        async with self.limits.slot(webhook.id):
            status = await self._post(webhook, event, message_id(message.job, event), body)
            delivery = Delivery(self.clock(), event, status)
            if status == 410:
                self.metrics.notified(WEBHOOK, GONE)
                reason = "It answered 410 Gone."
                if await store.change(webhook.key, disable(webhook.url, delivery, reason)):
                    log.warning("webhook disabled", reason=reason, webhook=webhook.id)
                return
            await self._note(webhook, delivery)
            if delivery.succeeded:
                self.metrics.notified(WEBHOOK, DELIVERED)
                log.info("webhook delivered", webhook=webhook.id, status=status)
            else:
                self._fail(f"it answered {status}", webhook=webhook.id)

    async def _deliver_to_own_webhook(self, message: Notify) -> None:
        """Deliver the event of a job to the job's own webhook."""
        job = await self._job(message)
        if job is None or job.webhook is None:
            self.metrics.notified(WEBHOOK, DROPPED)
            return
        event = Event(message.event)
        ended = rfc3339(job.completed_at or job.updated_at)
        body = _body(event, ended, job_document(job, self.settings.public_url))
        id_, now = message_id(message.job, event), self.clock()
        headers = {
            "Content-Type": "application/json",
            **signed_by([parse_secret(job.webhook.secret)], id_, body, now),
        }
        status = None
        async with self.limits.slot(f"{WEBHOOK}:{urlsplit(job.webhook.url).netloc}"):
            try:
                status = await self.client.post(job.webhook.url, body, headers)
                reason = f"it answered {status}"
            except NoResponse as error:
                reason = str(error)
            except (PrivateAddress, InvalidRequest) as error:
                self._refuse(error, job=job.key.id)
        await self._note_status(job, status)
        if status is not None and 200 <= status < 300:
            self.metrics.notified(WEBHOOK, DELIVERED)
            log.info("webhook delivered", job=job.key.id, status=status)
            return
        if status == 410:
            self.metrics.notified(WEBHOOK, GONE)
            raise Undeliverable("receiver_gone", "The receiver answered 410 Gone.")
        self._fail(reason, job=job.key.id)

    async def _note_status(self, job: Job, status: int | None) -> None:
        try:
            await self.backend.jobs.change(job.key, note_webhook(status))
        except Unavailable as error:
            # The answer to the queue depends on the delivery alone.
            log.warning("delivery not stored", job=job.key.id, reason=error.detail)

    async def _post(self, webhook: Webhook, event: Event, id_: str, body: bytes) -> int:
        """The response's status."""
        headers = {
            "Content-Type": "application/json",
            **signed_headers(webhook, id_, body, self.clock()),
        }
        try:
            return await self.client.post(webhook.url, body, headers)
        except NoResponse as error:
            await self._note(webhook, Delivery(self.clock(), event, error=NO_RESPONSE))
            self._fail(str(error), webhook=webhook.id)
        except (PrivateAddress, InvalidRequest) as error:
            await self._note(webhook, Delivery(self.clock(), event, error=error.code))
            self._refuse(error, webhook=webhook.id)

    async def _note(self, webhook: Webhook, delivery: Delivery) -> None:
        """Store the delivery for the webhook's owner, unless it repeats what is stored."""
        note = note_delivery(webhook.url, delivery)
        if note(webhook, self.clock()) is None:
            return
        try:
            await self.backend.webhooks.change(webhook.key, note)
        except Unavailable as error:
            # The answer to the queue depends on the delivery alone.
            log.warning("delivery not stored", webhook=webhook.id, reason=error.detail)

    def _fail(self, reason: str, **receiver: str) -> NoReturn:
        self.metrics.notified(WEBHOOK, FAILED)
        log.warning("webhook not delivered", reason=reason, **receiver)
        raise Unavailable(f"The webhook was not delivered: {reason}.")

    def _refuse(self, error: GlimpseError, **receiver: str) -> NoReturn:
        self.metrics.notified(WEBHOOK, REFUSED)
        log.error("webhook refused", code=error.code, detail=error.detail, **receiver)
        raise Undeliverable(error.code, error.detail) from None

    # --- E-mail -----------------------------------------------------------------------------------

    async def _deliver_email(self, message: Notify) -> None:
        job = await self._job(message)
        if job is None or not job.notify_email:
            self.metrics.notified(EMAIL, DROPPED)
            return
        settings = self.settings
        try:
            check_address(job.notify_email, settings.email_domains)
        except InvalidRequest as error:
            self._refuse_email(error.detail)
        assert self.mailer is not None, "there are domains only if there is a server"
        mail = job_email(
            job, message.event, settings.email_from, settings.public_url, page=settings.page
        )
        try:
            # By domain, so that a domain that delays e-mail (greylisting) delays no other domain.
            async with self.limits.slot(f"{EMAIL}:{domain_of(job.notify_email)}"):
                await self.mailer.send(mail)
        except EmailRefused as error:
            self._refuse_email(error.detail)
        except Unavailable:
            self.metrics.notified(EMAIL, FAILED)
            raise
        self.metrics.notified(EMAIL, DELIVERED)
        log.info("e-mail sent")

    def _refuse_email(self, detail: str) -> NoReturn:
        self.metrics.notified(EMAIL, REFUSED)
        log.error("e-mail refused", detail=detail)
        raise Undeliverable(EmailRefused.code, detail) from None


def _body(event: Event, timestamp: str, data: dict[str, object]) -> bytes:
    """The JSON document that Standard Webhooks recommends."""
    document = {"type": event.value, "timestamp": timestamp, "data": data}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


@asynccontextmanager
async def open_notifier(
    settings: Settings, backend: Backend, metrics: WorkerMetrics, clock: Clock
) -> AsyncIterator[Notifier]:
    """The notifier, with its own HTTP client."""
    # The wait for a slot and the delivery together end before the queue's deadline.
    deadline = settings.delivery.ack_deadline
    longest, wait = deadline / 2, deadline / 4
    mailer = None
    if settings.mail_server is not None:
        greeting = domain_of(parseaddr(settings.email_from)[1])
        mailer = Mailer(settings.mail_server, greeting, seconds=min(MAIL_SECONDS, longest))
    limits = ReceiverLimits(NOTIFICATION_CONCURRENCY, wait_seconds=min(WAIT_SECONDS, wait))
    async with open_public_client(
        min(WEBHOOK_SECONDS, longest),
        allow_private=settings.webhook_allow_private,
        user_agent=USER_AGENT,
    ) as client:
        yield Notifier(settings, backend, client, mailer, limits, metrics, clock)
