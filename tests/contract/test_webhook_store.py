"""Every method of the WebhookStore port, each change and each refusal."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from core.backends import Backend, open_backend
from core.domain import webhooks
from core.domain.webhooks import (
    DISABLED_BY_OWNER,
    JOB_EVENTS,
    MAX_WEBHOOKS,
    Change,
    Delivery,
    Event,
    Webhook,
    WebhookKey,
)
from core.ports import WebhookStore
from core.settings import Settings
from tests.support.clock import MovableClock

HOUR = timedelta(hours=1)
URL = "https://example.com/hooks?a=é"
FIRST, SECOND, THIRD = bytes([1]) * 32, bytes([2]) * 32, bytes([0]) * 64


@pytest.fixture
def store(backend: Backend) -> WebhookStore:
    return backend.webhooks


def new_webhook(clock: MovableClock, number: int = 1, **changes: object) -> Webhook:
    plain = Webhook(
        id=f"wh_{number:024x}",
        tenant="acme",
        owner="key000000001",
        url=URL,
        events=JOB_EVENTS,
        secret=FIRST,
        created_at=clock(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


async def stored(store: WebhookStore, webhook: Webhook) -> Webhook:
    found = await store.get(webhook.key)
    assert found is not None
    return found


async def test_unknown_webhook_is_none_and_refuses_changes(
    store: WebhookStore, clock: MovableClock
) -> None:
    unknown = WebhookKey("acme", f"wh_{1:024x}")
    assert await store.get(unknown) is None
    assert await store.list("acme") == []
    assert await store.change(unknown, webhooks.rotate(SECOND, HOUR)) is None
    assert await store.change(unknown, webhooks.update(Change(enabled=False))) is None
    delivery = Delivery(clock(), Event.TEST, 410)
    assert not await store.change(unknown, webhooks.disable(URL, delivery, "It answered 410."))
    assert not await store.delete(unknown)


async def test_webhook_is_returned_unchanged(store: WebhookStore, clock: MovableClock) -> None:
    plain = new_webhook(clock)
    full = new_webhook(
        clock,
        2,
        owner="",
        events=frozenset({Event.JOB_FAILED}),
        description="Orders, é",
        secret=THIRD,
        rotated_at=clock() + HOUR,
        previous_secret=SECOND,
        previous_expires_at=clock() + 2 * HOUR,
        disabled_at=clock() + 3 * HOUR,
        disabled_reason="It answered 410.",
        last_delivery=Delivery(clock() + 3 * HOUR, Event.JOB_FAILED, 410),
    )
    failing = replace(plain, id=f"wh_{3:024x}")
    failing = replace(failing, last_delivery=Delivery(clock(), Event.TEST, error="no_answer"))
    for webhook in (plain, full, failing):
        assert await store.create(webhook, MAX_WEBHOOKS)
        assert await store.get(webhook.key) == webhook


async def test_tenant_lists_its_webhooks_oldest_first(
    store: WebhookStore, clock: MovableClock
) -> None:
    made = []
    for number, tenant in ((3, "acme"), (1, "other"), (2, "acme")):
        made.append(new_webhook(clock, number, tenant=tenant))
        assert await store.create(made[-1], MAX_WEBHOOKS)
        clock.move(1)
    assert await store.list("acme") == [made[0], made[2]]
    assert await store.list("other") == [made[1]]
    unknown = WebhookKey("other", made[0].id)
    assert await store.get(unknown) is None
    assert not await store.delete(unknown)
    assert await store.change(unknown, webhooks.update(Change(enabled=False))) is None
    assert await store.change(unknown, webhooks.rotate(SECOND, HOUR)) is None
    assert await store.list("acme") == [made[0], made[2]]


async def test_create_does_not_overwrite_a_webhook(
    store: WebhookStore, clock: MovableClock
) -> None:
    assert await store.create(new_webhook(clock), MAX_WEBHOOKS)
    again = new_webhook(clock, url="https://example.org/")
    assert not await store.create(again, MAX_WEBHOOKS)
    assert await store.list("acme") == [new_webhook(clock)]


async def test_concurrent_creates_do_not_exceed_the_maximum(
    store: WebhookStore, clock: MovableClock
) -> None:
    contenders = [new_webhook(clock, number) for number in range(5)]
    made = await asyncio.gather(*(store.create(each, 3) for each in contenders))
    assert made.count(True) == 3
    assert len(await store.list("acme")) == 3
    assert await store.create(new_webhook(clock, 9, tenant="other"), 3)
    assert await store.delete((await store.list("acme"))[0].key)
    assert await store.create(new_webhook(clock, 10), 3)


async def test_both_secrets_sign_during_the_overlap(
    store: WebhookStore, clock: MovableClock
) -> None:
    webhook = new_webhook(clock)
    await store.create(webhook, MAX_WEBHOOKS)
    rotated_at = clock.move(10)
    after = await store.change(webhook.key, webhooks.rotate(SECOND, HOUR))
    assert after == await stored(store, webhook)
    assert after is not None and after.rotated_at == rotated_at
    assert after.secrets_at(clock()) == (SECOND, FIRST)
    assert after.secrets_at(clock.move(3599.999)) == (SECOND, FIRST)
    assert after.secrets_at(clock.move(0.001)) == (SECOND,)
    again = await store.change(webhook.key, webhooks.rotate(THIRD, timedelta()))
    assert again == await stored(store, webhook)
    assert again is not None and again.secrets_at(clock()) == (THIRD,)
    assert again.previous_secret is None


async def test_update_changes_only_the_named_fields(
    store: WebhookStore, clock: MovableClock
) -> None:
    webhook = new_webhook(clock)
    await store.create(webhook, MAX_WEBHOOKS)
    expected = webhook
    steps: tuple[dict[str, Any], ...] = (
        {},
        {"events": frozenset({Event.JOB_FAILED})},
        {"description": "é"},
        {"url": URL + "b"},
        {"url": URL, "events": JOB_EVENTS, "description": ""},
    )
    for fields in steps:
        expected = replace(expected, **fields)
        assert await store.change(webhook.key, webhooks.update(Change(**fields))) == expected
        assert await stored(store, webhook) == expected
    assert expected == webhook


async def test_first_reason_to_disable_is_kept(store: WebhookStore, clock: MovableClock) -> None:
    webhook = new_webhook(clock)
    await store.create(webhook, MAX_WEBHOOKS)
    delivery = Delivery(clock.move(1), Event.JOB_COMPLETED, 410)
    assert await store.change(webhook.key, webhooks.disable(URL, delivery, "It answered 410."))
    clock.move(1)
    assert await store.change(webhook.key, webhooks.update(Change(enabled=False))) is not None
    after = await stored(store, webhook)
    assert (after.disabled_at, after.disabled_reason) == (delivery.at, "It answered 410.")
    assert after.last_delivery == delivery
    assert not after.wants(Event.JOB_COMPLETED)
    for _ in range(2):
        enabled = await store.change(webhook.key, webhooks.update(Change(enabled=True)))
        assert enabled == replace(webhook, last_delivery=delivery)
        assert await stored(store, webhook) == enabled
    disabled_at = clock.move(1)
    await store.change(webhook.key, webhooks.update(Change(enabled=False)))
    after = await stored(store, webhook)
    assert (after.disabled_at, after.disabled_reason) == (disabled_at, DISABLED_BY_OWNER)


async def test_delivery_is_noted_if_its_outcome_is_news(
    store: WebhookStore, clock: MovableClock
) -> None:
    webhook = new_webhook(clock)
    await store.create(webhook, MAX_WEBHOOKS)

    async def noted(status: int | None, error: str = "") -> bool:
        delivery = Delivery(clock(), Event.JOB_COMPLETED, status, error)
        done = await store.change(webhook.key, webhooks.note_delivery(URL, delivery)) is not None
        assert (await stored(store, webhook) == replace(webhook, last_delivery=delivery)) == done
        return done

    assert await noted(200)
    clock.move(59)
    assert not await noted(204)
    assert await noted(None, "no_answer")
    clock.move(59)
    assert not await noted(500)
    clock.move(1)
    assert await noted(500)
    assert await noted(200)


async def test_delivery_to_an_earlier_url_is_not_noted(
    store: WebhookStore, clock: MovableClock
) -> None:
    webhook = new_webhook(clock)
    await store.create(webhook, MAX_WEBHOOKS)
    delivery = Delivery(clock(), Event.JOB_COMPLETED, 200)
    assert await store.change(webhook.key, webhooks.note_delivery(URL, delivery))
    moved = await store.change(webhook.key, webhooks.update(Change(url="https://example.com/new")))
    assert moved is not None and moved.last_delivery is None
    gone = Delivery(clock.move(1), Event.JOB_COMPLETED, 410)
    assert not await store.change(webhook.key, webhooks.disable(URL, gone, "It answered 410."))
    assert await stored(store, webhook) == moved


async def test_concurrent_rotation_and_update_are_both_stored(
    store: WebhookStore, clock: MovableClock
) -> None:
    webhook = new_webhook(clock)
    await store.create(webhook, MAX_WEBHOOKS)
    await asyncio.gather(
        store.change(webhook.key, webhooks.rotate(SECOND, HOUR)),
        store.change(webhook.key, webhooks.update(Change(enabled=False))),
    )
    after = await stored(store, webhook)
    assert after.secret == SECOND and not after.enabled


async def test_deleted_webhook_is_gone(store: WebhookStore, clock: MovableClock) -> None:
    webhook = new_webhook(clock)
    await store.create(webhook, MAX_WEBHOOKS)
    assert await store.delete(webhook.key)
    assert not await store.delete(webhook.key)
    assert await store.list("acme") == []
    assert await store.change(webhook.key, webhooks.rotate(SECOND, HOUR)) is None


async def test_two_processes_share_one_store(
    store: WebhookStore, settings: Settings, clock: MovableClock
) -> None:
    webhook = new_webhook(clock)
    async with open_backend(settings, clock) as other:
        await store.create(webhook, MAX_WEBHOOKS)
        assert await other.webhooks.get(webhook.key) == webhook
        await other.webhooks.change(webhook.key, webhooks.update(Change(enabled=False)))
        assert not (await stored(store, webhook)).enabled
