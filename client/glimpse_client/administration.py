"""Models, keys, webhooks, dead letters and usage."""

from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glimpse_client import training, webhook_signatures
from glimpse_client.drivers import AsyncDriver, BlockingDriver
from glimpse_client.flows import Flow, nothing, request
from glimpse_client.types import (
    DeadLetter,
    Job,
    Key,
    Model,
    Page,
    Usage,
    Webhook,
    WebhookEvent,
    dead_letter_of,
    key_of,
    model_of,
    usage_of,
    webhook_of,
)

MODELS, KEYS, WEBHOOKS = "/api/v1/models", "/api/v1/keys", "/api/v1/webhooks"
LETTERS, USAGE = "/api/v1/dead-letters", "/api/v1/usage"


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


# --- Flows. ---------------------------------------------------------------------------------------


def models_flow() -> Flow[list[Model]]:
    """Every model that the caller can use."""
    return (
        yield from request(
            "GET", MODELS, lambda found: [model_of(each) for each in found["models"]]
        )
    )


def model_flow(name: str) -> Flow[Model]:
    """One model."""
    return (yield from request("GET", f"{MODELS}/{name}", model_of))


def keys_flow() -> Flow[list[Key]]:
    """The keys of the tenant."""
    return (yield from request("GET", KEYS, lambda found: [key_of(each) for each in found["keys"]]))


def create_key_flow(body: Mapping[str, Any]) -> Flow[Key]:
    """A new key."""
    return (yield from request("POST", KEYS, key_of, json=dict(body), idempotent=False))


def rotate_key_flow(id_: str, overlap: int | None) -> Flow[Key]:
    """A new text of a key."""
    body = _given(overlap_seconds=overlap)
    return (yield from request("POST", f"{KEYS}/{id_}/rotate", key_of, json=body, idempotent=False))


def revoke_key_flow(id_: str) -> Flow[None]:
    """Revoke a key."""
    return (yield from request("DELETE", f"{KEYS}/{id_}", nothing))


def webhooks_flow() -> Flow[list[Webhook]]:
    """The webhooks of the tenant."""
    return (
        yield from request(
            "GET", WEBHOOKS, lambda found: [webhook_of(each) for each in found["webhooks"]]
        )
    )


def create_webhook_flow(body: Mapping[str, Any]) -> Flow[Webhook]:
    """A new webhook."""
    return (yield from request("POST", WEBHOOKS, webhook_of, json=dict(body), idempotent=False))


def change_webhook_flow(id_: str, changes: Mapping[str, Any]) -> Flow[Webhook]:
    """A merge patch (RFC 7396)."""
    headers = {"content-type": "application/merge-patch+json"}
    return (
        yield from request(
            "PATCH", f"{WEBHOOKS}/{id_}", webhook_of, json=dict(changes), headers=headers
        )
    )


def rotate_webhook_flow(id_: str, overlap: int | None) -> Flow[Webhook]:
    """A new secret of a webhook."""
    body = _given(overlap_seconds=overlap)
    return (
        yield from request(
            "POST", f"{WEBHOOKS}/{id_}/rotate", webhook_of, json=body, idempotent=False
        )
    )


def test_webhook_flow(id_: str) -> Flow[str]:
    """Send a test. Returns the id of its message."""
    return (
        yield from request(
            "POST",
            f"{WEBHOOKS}/{id_}/test",
            lambda found: str(found["message_id"]),
            idempotent=False,
        )
    )


def delete_webhook_flow(id_: str) -> Flow[None]:
    """Delete a webhook."""
    return (yield from request("DELETE", f"{WEBHOOKS}/{id_}", nothing))


def letters_flow(filters: Mapping[str, Any], cursor: str | None) -> Flow[Page[DeadLetter]]:
    """One page of dead letters."""

    def page(found: Any) -> Page[DeadLetter]:
        letters = [dead_letter_of(each) for each in found["dead_letters"]]
        return Page(letters, found.get("next_cursor"))

    return (yield from request("GET", LETTERS, page, params={**filters, "cursor": cursor}))


def replay_flow(id_: str) -> Flow[str]:
    """Replay a dead letter; the outcome."""
    return (
        yield from request("POST", f"{LETTERS}/{id_}/replay", lambda found: str(found["outcome"]))
    )


def delete_letter_flow(id_: str) -> Flow[None]:
    """Delete a dead letter."""
    return (yield from request("DELETE", f"{LETTERS}/{id_}", nothing))


def usage_flow(days: int | None, all_keys: bool) -> Flow[list[Usage]]:
    """The counts by key and day."""
    params = {"days": days, "keys": "all" if all_keys else None}
    return (
        yield from request(
            "GET", USAGE, lambda found: [usage_of(each) for each in found["usage"]], params=params
        )
    )


# --- Blocking. ------------------------------------------------------------------------------------


class Models:
    """`client.models`."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver

    def list(self) -> list[Model]:
        """Every model that the caller can use."""
        return self._driver.run(models_flow())

    def get(self, name: str) -> Model:
        """A model with its labels; `raw` has the versions of a trained one."""
        return self._driver.run(model_flow(name))

    def train(
        self,
        folder: str | Path,
        name: str,
        *,
        base: str | None = None,
        activate: bool = True,
        idempotency_key: str | None = None,
    ) -> Job:
        """Train a version of the model `name` on the folders of `folder`, which are the labels.

        Returns the job; `client.jobs.wait` waits for it. Raises ApiError, ConnectionFailed,
        OSError, and ValueError if there are no folders.
        """
        flow = training.train_flow(Path(folder), name, base, activate, idempotency_key)
        return self._driver.run(flow)

    def activate(self, version: str) -> None:
        """Let the name of a trained model mean the version with this id."""
        self._driver.run(training.activate_flow(version))

    def delete(self, name: str) -> None:
        """Delete a trained model, or a version by its id, with its results."""
        self._driver.run(training.delete_flow(name))


class Keys:
    """`client.keys`: needs a key with the scope `admin`."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver

    def list(self) -> list[Key]:
        """The keys of the tenant."""
        return self._driver.run(keys_flow())

    def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        expires: str | None = None,
        rate_limit: str | None = None,
        daily_quota: int | None = None,
    ) -> Key:
        """A new key with its `text`. `expires` is a time, or a duration such as `90d`."""
        body = _given(
            name=name,
            scopes=None if scopes is None else list(scopes),
            expires=expires,
            rate_limit=rate_limit,
            daily_quota=daily_quota,
        )
        return self._driver.run(create_key_flow(body))

    def rotate(self, id_: str, *, overlap_seconds: int | None = None) -> Key:
        """A new text; the old one stays valid for `overlap_seconds`."""
        return self._driver.run(rotate_key_flow(id_, overlap_seconds))

    def revoke(self, id_: str) -> None:
        """Revoke a key."""
        self._driver.run(revoke_key_flow(id_))


class Webhooks:
    """`client.webhooks`: needs a key with the scope `admin`, except for `verify`."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver

    def list(self) -> list[Webhook]:
        """The webhooks of the tenant."""
        return self._driver.run(webhooks_flow())

    def create(
        self, url: str, *, events: Sequence[str] | None = None, description: str | None = None
    ) -> Webhook:
        """A new webhook with its `secret`, which the service shows only here."""
        body = _given(
            url=url, events=None if events is None else list(events), description=description
        )
        return self._driver.run(create_webhook_flow(body))

    def change(self, id_: str, **changes: Any) -> Webhook:
        """Change `url`, `events`, `description` or `enabled`; None restores a default."""
        return self._driver.run(change_webhook_flow(id_, changes))

    def rotate(self, id_: str, *, overlap_seconds: int | None = None) -> Webhook:
        """A new secret; both sign for `overlap_seconds`."""
        return self._driver.run(rotate_webhook_flow(id_, overlap_seconds))

    def test(self, id_: str) -> str:
        """Send a test delivery. Returns the id of its message."""
        return self._driver.run(test_webhook_flow(id_))

    def delete(self, id_: str) -> None:
        """Delete a webhook."""
        self._driver.run(delete_webhook_flow(id_))

    @staticmethod
    def verify(
        secrets: str | Iterable[str], headers: Mapping[str, str], body: bytes | str
    ) -> WebhookEvent:
        """The event of a delivery. Raises InvalidSignature."""
        return webhook_signatures.verify(secrets, headers, body)


class DeadLetters:
    """`client.dead_letters`: needs a key with the scope `admin`."""

    def __init__(self, driver: BlockingDriver) -> None:
        self._driver = driver

    def list(self, **filters: Any) -> Iterator[DeadLetter]:
        """Dead letters, newest first. Filters: `code`, `resolved`."""
        cursor = None
        while True:
            page = self._driver.run(letters_flow(filters, cursor))
            yield from page.items
            cursor = page.next_cursor
            if cursor is None:
                return

    def replay(self, id_: str) -> str:
        """Publish the message again; `replayed`, `resolved` or `busy`."""
        return self._driver.run(replay_flow(id_))

    def delete(self, id_: str) -> None:
        """Delete a dead letter."""
        self._driver.run(delete_letter_flow(id_))


# --- Asynchronous. --------------------------------------------------------------------------------


class AsyncModels:
    """As `Models`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def list(self) -> list[Model]:
        """As `Models.list`."""
        return await self._driver.run(models_flow())

    async def get(self, name: str) -> Model:
        """As `Models.get`."""
        return await self._driver.run(model_flow(name))

    async def train(
        self,
        folder: str | Path,
        name: str,
        *,
        base: str | None = None,
        activate: bool = True,
        idempotency_key: str | None = None,
    ) -> Job:
        """As `Models.train`."""
        flow = training.train_flow(Path(folder), name, base, activate, idempotency_key)
        return await self._driver.run(flow)

    async def activate(self, version: str) -> None:
        """As `Models.activate`."""
        await self._driver.run(training.activate_flow(version))

    async def delete(self, name: str) -> None:
        """As `Models.delete`."""
        await self._driver.run(training.delete_flow(name))


class AsyncKeys:
    """As `Keys`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def list(self) -> list[Key]:
        """As `Keys.list`."""
        return await self._driver.run(keys_flow())

    async def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        expires: str | None = None,
        rate_limit: str | None = None,
        daily_quota: int | None = None,
    ) -> Key:
        """As `Keys.create`."""
        body = _given(
            name=name,
            scopes=None if scopes is None else list(scopes),
            expires=expires,
            rate_limit=rate_limit,
            daily_quota=daily_quota,
        )
        return await self._driver.run(create_key_flow(body))

    async def rotate(self, id_: str, *, overlap_seconds: int | None = None) -> Key:
        """As `Keys.rotate`."""
        return await self._driver.run(rotate_key_flow(id_, overlap_seconds))

    async def revoke(self, id_: str) -> None:
        """As `Keys.revoke`."""
        await self._driver.run(revoke_key_flow(id_))


class AsyncWebhooks:
    """As `Webhooks`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def list(self) -> list[Webhook]:
        """As `Webhooks.list`."""
        return await self._driver.run(webhooks_flow())

    async def create(
        self, url: str, *, events: Sequence[str] | None = None, description: str | None = None
    ) -> Webhook:
        """As `Webhooks.create`."""
        body = _given(
            url=url, events=None if events is None else list(events), description=description
        )
        return await self._driver.run(create_webhook_flow(body))

    async def change(self, id_: str, **changes: Any) -> Webhook:
        """As `Webhooks.change`."""
        return await self._driver.run(change_webhook_flow(id_, changes))

    async def rotate(self, id_: str, *, overlap_seconds: int | None = None) -> Webhook:
        """As `Webhooks.rotate`."""
        return await self._driver.run(rotate_webhook_flow(id_, overlap_seconds))

    async def test(self, id_: str) -> str:
        """As `Webhooks.test`."""
        return await self._driver.run(test_webhook_flow(id_))

    async def delete(self, id_: str) -> None:
        """As `Webhooks.delete`."""
        await self._driver.run(delete_webhook_flow(id_))

    verify = staticmethod(Webhooks.verify)


class AsyncDeadLetters:
    """As `DeadLetters`."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver

    async def list(self, **filters: Any) -> AsyncIterator[DeadLetter]:
        """As `DeadLetters.list`."""
        cursor = None
        while True:
            page = await self._driver.run(letters_flow(filters, cursor))
            for each in page.items:
                yield each
            cursor = page.next_cursor
            if cursor is None:
                return

    async def replay(self, id_: str) -> str:
        """As `DeadLetters.replay`."""
        return await self._driver.run(replay_flow(id_))

    async def delete(self, id_: str) -> None:
        """As `DeadLetters.delete`."""
        await self._driver.run(delete_letter_flow(id_))
