"""Models, keys, webhooks, dead letters and usage."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from glimpse_client import training, webhook_signatures
from glimpse_client.flows import Flow, nothing, request
from glimpse_client.methods import (
    AsyncResource,
    Pages,
    Resource,
    async_blocking,
    async_paged,
    blocking,
    paged,
)
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


def usage_flow(days: int | None, all_keys: bool) -> Flow[list[Usage]]:
    """The counts by key and day."""
    params = {"days": days, "keys": "all" if all_keys else None}
    return request(
        "GET", USAGE, lambda found: [usage_of(each) for each in found["usage"]], params=params
    )


class Models(Resource):
    """`client.models`."""

    @blocking
    def list(self) -> Flow[list[Model]]:
        """Every model that the caller can use."""
        return request("GET", MODELS, lambda found: [model_of(each) for each in found["models"]])

    @blocking
    def get(self, name: str) -> Flow[Model]:
        """A model with its labels; `raw` has the versions of a trained one."""
        return request("GET", f"{MODELS}/{name}", model_of)

    @blocking
    def train(
        self,
        folder: str | Path,
        name: str,
        *,
        base: str | None = None,
        activate: bool = True,
        idempotency_key: str | None = None,
    ) -> Flow[Job]:
        """Train a version of the model `name` on the folders of `folder`, which are the labels.

        Returns the job; `client.jobs.wait` waits for it. Raises ApiError, ConnectionFailed,
        OSError, and ValueError if there are no folders.
        """
        return training.train_flow(Path(folder), name, base, activate, idempotency_key)

    @blocking
    def activate(self, version: str) -> Flow[None]:
        """Let the name of a trained model mean the version with this id."""
        name = version.partition("@")[0]
        return request("POST", f"{MODELS}/{name}/activate", nothing, json={"version": version})

    @blocking
    def delete(self, name: str) -> Flow[None]:
        """Delete a trained model, or a version by its id, with its results."""
        return request("DELETE", f"{MODELS}/{name}", nothing)


class AsyncModels(AsyncResource):
    """`client.models` of the asynchronous client."""

    list = async_blocking(Models.list)
    get = async_blocking(Models.get)
    train = async_blocking(Models.train)
    activate = async_blocking(Models.activate)
    delete = async_blocking(Models.delete)


class Keys(Resource):
    """`client.keys`: needs a key with the scope `admin`."""

    @blocking
    def list(self) -> Flow[list[Key]]:
        """The keys of the tenant."""
        return request("GET", KEYS, lambda found: [key_of(each) for each in found["keys"]])

    @blocking
    def create(
        self,
        name: str,
        *,
        scopes: Sequence[str] | None = None,
        expires: str | None = None,
        rate_limit: str | None = None,
        daily_quota: int | None = None,
    ) -> Flow[Key]:
        """A new key with its `text`. `expires` is a time, or a duration such as `90d`."""
        body = _given(
            name=name,
            scopes=None if scopes is None else list(scopes),
            expires=expires,
            rate_limit=rate_limit,
            daily_quota=daily_quota,
        )
        return request("POST", KEYS, key_of, json=body, idempotent=False)

    @blocking
    def rotate(self, id_: str, *, overlap_seconds: int | None = None) -> Flow[Key]:
        """A new text; the old one stays valid for `overlap_seconds`."""
        body = _given(overlap_seconds=overlap_seconds)
        return request("POST", f"{KEYS}/{id_}/rotate", key_of, json=body, idempotent=False)

    @blocking
    def revoke(self, id_: str) -> Flow[None]:
        """Revoke a key."""
        return request("DELETE", f"{KEYS}/{id_}", nothing)


class AsyncKeys(AsyncResource):
    """`client.keys` of the asynchronous client."""

    list = async_blocking(Keys.list)
    create = async_blocking(Keys.create)
    rotate = async_blocking(Keys.rotate)
    revoke = async_blocking(Keys.revoke)


class Webhooks(Resource):
    """`client.webhooks`: needs a key with the scope `admin`, except for `verify`."""

    @blocking
    def list(self) -> Flow[list[Webhook]]:
        """The webhooks of the tenant."""
        return request(
            "GET", WEBHOOKS, lambda found: [webhook_of(each) for each in found["webhooks"]]
        )

    @blocking
    def create(
        self, url: str, *, events: Sequence[str] | None = None, description: str | None = None
    ) -> Flow[Webhook]:
        """A new webhook with its `secret`, which the service shows only here."""
        body = _given(
            url=url, events=None if events is None else list(events), description=description
        )
        return request("POST", WEBHOOKS, webhook_of, json=body, idempotent=False)

    @blocking
    def change(self, /, id_: str, **changes: Any) -> Flow[Webhook]:
        """Change `url`, `events`, `description` or `enabled`; None restores a default."""
        headers = {"content-type": "application/merge-patch+json"}  # RFC 7396
        return request("PATCH", f"{WEBHOOKS}/{id_}", webhook_of, json=changes, headers=headers)

    @blocking
    def rotate(self, id_: str, *, overlap_seconds: int | None = None) -> Flow[Webhook]:
        """A new secret; both sign for `overlap_seconds`."""
        body = _given(overlap_seconds=overlap_seconds)
        path = f"{WEBHOOKS}/{id_}/rotate"
        return request("POST", path, webhook_of, json=body, idempotent=False)

    @blocking
    def test(self, id_: str) -> Flow[str]:
        """Send a test delivery. Returns the id of its message."""
        path = f"{WEBHOOKS}/{id_}/test"
        return request("POST", path, lambda found: str(found["message_id"]), idempotent=False)

    @blocking
    def delete(self, id_: str) -> Flow[None]:
        """Delete a webhook."""
        return request("DELETE", f"{WEBHOOKS}/{id_}", nothing)

    @staticmethod
    def verify(
        secrets: str | Iterable[str], headers: Mapping[str, str], body: bytes | str
    ) -> WebhookEvent:
        """The event of a delivery. Raises InvalidSignature."""
        return webhook_signatures.verify(secrets, headers, body)


class AsyncWebhooks(AsyncResource):
    """`client.webhooks` of the asynchronous client."""

    list = async_blocking(Webhooks.list)
    create = async_blocking(Webhooks.create)
    change = async_blocking(Webhooks.change)
    rotate = async_blocking(Webhooks.rotate)
    test = async_blocking(Webhooks.test)
    delete = async_blocking(Webhooks.delete)
    verify = staticmethod(Webhooks.verify)


def _letters_flow(filters: Mapping[str, Any], cursor: str | None) -> Flow[Page[DeadLetter]]:
    """One page of dead letters."""

    def page(found: Any) -> Page[DeadLetter]:
        letters = [dead_letter_of(each) for each in found["dead_letters"]]
        return Page(letters, found.get("next_cursor"))

    return request("GET", LETTERS, page, params={**filters, "cursor": cursor})


class DeadLetters(Resource):
    """`client.dead_letters`: needs a key with the scope `admin`."""

    @paged
    def list(self, /, **filters: Any) -> Pages[DeadLetter]:
        """Dead letters, newest first. Filters: `code`, `resolved`."""
        return [partial(_letters_flow, filters)]

    @blocking
    def replay(self, id_: str) -> Flow[str]:
        """Publish the message again; `replayed`, `resolved` or `busy`."""
        path = f"{LETTERS}/{id_}/replay"
        return request("POST", path, lambda found: str(found["outcome"]))

    @blocking
    def delete(self, id_: str) -> Flow[None]:
        """Delete a dead letter."""
        return request("DELETE", f"{LETTERS}/{id_}", nothing)


class AsyncDeadLetters(AsyncResource):
    """`client.dead_letters` of the asynchronous client."""

    list = async_paged(DeadLetters.list)
    replay = async_blocking(DeadLetters.replay)
    delete = async_blocking(DeadLetters.delete)
