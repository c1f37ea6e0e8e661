"""Every write of the Datastore stores, while the first answer of each commit is lost.

The write takes effect once, and its caller gets the same result as with the answer. A later attempt
may find that the commit has taken effect, or may meet it while it takes effect.
"""

import inspect
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from enum import Enum
from types import ModuleType
from typing import Any

import grpc.aio
import pytest

from core.backends.google import datastore
from core.backends.google.datastore import Datastore
from core.backends.google.dead_letters import DatastoreDeadLetterStore
from core.backends.google.jobs import DatastoreJobStore
from core.backends.google.keys import (
    DatastoreAllowanceStore,
    DatastoreKeyStore,
    DatastoreUsageStore,
)
from core.backends.google.models import DatastoreModelStore
from core.backends.google.queries import KEY as KEY_PROPERTY
from core.backends.google.records import DatastoreRecordStore
from core.backends.google.webhooks import DatastoreWebhookStore
from core.domain import api_keys, dead_letters, deletions, jobs, records, trained_models, webhooks
from core.domain.api_keys import ApiKey
from core.domain.dead_letters import DeadLetter, letter_id
from core.domain.jobs import Counts, JobItem, JobKey, JobWebhook, Training, new_job
from core.domain.principals import ALL_SCOPES
from core.domain.priority import Priority
from core.domain.rate_limits import Grant, Limit, Rate, TenantLimits
from core.domain.records import Annotation, RecordError, RecordKey, Status, new_record
from core.domain.transitions import Transition
from core.domain.usage import Usage, UsageBatch
from core.domain.webhooks import JOB_EVENTS, Change, Delivery, Event, Webhook
from tests.support.clock import MovableClock
from tests.support.scripted_datastore import ScriptedDatastore, served

TENANT = "acme"
KEY = RecordKey(TENANT, "ab" * 32, "colours@0123456789ab")
ERROR = RecordError("model_unavailable", "It failed.", retryable=True)
MINUTE = timedelta(minutes=1)
OWNER = "00000000000000aa"
# Methods that write nothing of their own.
READS = {
    *("get", "get_many", "list", "stale", "of_image", "deletion", "get_with_deletion"),
    *("due_deletions", "items", "due", "bases", "keys", "limits", "read", "ping"),
}


class Loss(Enum):
    """How a commit takes effect without an answer."""

    AT_ONCE = "at once"
    ABORTED = "at once, and the next attempt is aborted"
    LATE = "during the next attempt"


class LosingDatastore(ScriptedDatastore):
    """Loses the first answer of each commit, if a `loss` is set.

    Queries filter by kind, namespace, ancestor, keys, texts and times, as the stores need them.
    """

    def __init__(self, loss: Loss | None) -> None:
        super().__init__()
        self.loss = loss
        self.lost: set[tuple[bytes, ...]] = set()
        self._late: Any = None
        self._abort_next = False
        self._namespace = ""

    @property
    def stored(self) -> dict[bytes, Any]:
        """The entities, without the random name of a caller."""
        for entity in self.entities.values():
            entity.properties.pop("caller", None)
        return self.entities

    async def lookup(self, request: Any, context: Any) -> Any:
        await self._may_abort(request, context)
        return await super().lookup(request, context)

    async def run_query(self, request: Any, context: Any) -> Any:
        await self._may_abort(request, context)
        self._namespace = request.partition_id.namespace_id
        return await super().run_query(request, context)

    async def _may_abort(self, request: Any, context: Any) -> None:
        if self._abort_next and request.read_options.transaction:
            self._abort_next = False
            await context.abort(grpc.StatusCode.ABORTED, "as scripted")

    async def commit(self, request: Any, context: Any) -> Any:
        if self._late is not None:
            late, self._late = self._late, None
            await super().commit(late, context)
            if request.transaction:
                await context.abort(grpc.StatusCode.ABORTED, "the late commit has won")
        mutations = tuple(each.SerializeToString(deterministic=True) for each in request.mutations)
        if self.loss is None or mutations in self.lost:
            return await super().commit(request, context)
        self.lost.add(mutations)
        if self.loss is Loss.LATE:
            self._late = request
        else:
            await super().commit(request, context)
            self._abort_next = self.loss is Loss.ABORTED
        return await context.abort(grpc.StatusCode.UNAVAILABLE, "as scripted")

    def found_by(self, query: Any) -> list[Any]:
        found = [each for each in self.entities.values() if self._matches(each, query)]
        for order in query.order:
            name = order.property.name
            found = [each for each in found if name == KEY_PROPERTY or name in each.properties]
            found.sort(key=lambda each: _value_of(each, name), reverse=order.direction == 2)
        return found[: query.limit.value if query.HasField("limit") else None]

    def _matches(self, entity: Any, query: Any) -> bool:
        key = entity.key
        if key.partition_id.namespace_id != self._namespace:
            return False
        if key.path[-1].kind != query.kind[0].name:
            return False
        filters = query.filter.composite_filter.filters or [query.filter]
        return all(
            _meets(entity, each.property_filter)
            for each in filters
            if each.HasField("property_filter")
        )


def _value_of(entity: Any, name: str) -> Any:
    return _plain(entity.properties[name]) if name != KEY_PROPERTY else _path(entity.key)


def _plain(value: Any) -> object:
    match value.WhichOneof("value_type"):
        case "timestamp_value":
            return value.timestamp_value.ToMicroseconds()
        case "key_value":
            return _path(value.key_value)
        case kind:
            return getattr(value, kind)


def _path(key: Any) -> tuple[tuple[str, str], ...]:
    return tuple((element.kind, element.name) for element in key.path)


def _meets(entity: Any, condition: Any) -> bool:
    name = condition.property.name
    limit: Any = _plain(condition.value)
    if name != KEY_PROPERTY and name not in entity.properties:
        return False
    value: Any = _value_of(entity, name)
    operator = type(condition).Operator.Name(condition.op)
    if operator == "HAS_ANCESTOR":
        assert isinstance(limit, tuple)
        return bool(value[: len(limit)] == limit)
    met: dict[str, bool] = {
        "LESS_THAN": value < limit,
        "LESS_THAN_OR_EQUAL": value <= limit,
        "GREATER_THAN": value > limit,
        "GREATER_THAN_OR_EQUAL": value >= limit,
        "EQUAL": value == limit,
    }
    return met[operator]


class Recorded:
    """A store whose calls are recorded: their results, and the names of methods and transitions."""

    def __init__(self, store: object) -> None:
        self.store = store
        self.results: list[object] = []
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.names.update([name, *(each.name for each in args if isinstance(each, Transition))])
            result = await method(*args, **kwargs)
            self.results.append((name, result))
            return result

        return call


Script = Callable[[Datastore, MovableClock], Awaitable[Recorded]]


async def write_records(database: Datastore, clock: MovableClock) -> Recorded:
    store = Recorded(DatastoreRecordStore(database, clock))
    assert await store.create(new_record(KEY, clock(), Priority.LOW, "a" * 32))
    assert await store.change(KEY, records.want(Priority.HIGH))
    assert await store.change(KEY, records.advance(Status.PENDING, Status.QUEUED))
    clock.move(1)
    assert await store.change(KEY, records.touch(clock()))
    clock.move(1)
    assert await store.change(KEY, records.republish(clock(), MINUTE))
    claim = records.claim_of(await store.change(KEY, records.claim(MINUTE)))
    assert await store.change(KEY, records.release(claim, ERROR))
    assert await store.change(KEY, records.fail_unleased(ERROR))
    assert await store.change(KEY, records.retry())
    claim = records.claim_of(await store.change(KEY, records.claim(MINUTE)))
    assert await store.change(KEY, records.fail(claim, ERROR))
    assert await store.change(KEY, records.retry())
    claim = records.claim_of(await store.change(KEY, records.claim(MINUTE)))
    assert await store.change(KEY, records.complete(claim, [Annotation(1, "red", 0.75)]))
    other = RecordKey(TENANT, "cd" * 32, KEY.model)
    assert await store.create(new_record(other, clock(), job="a" * 32))
    assert await store.discard(records.claim_of(await store.change(other, records.claim(MINUTE))))
    deletion = await store.begin_deletion(KEY.image, OWNER, has_blob=False)
    assert await store.get(KEY) is None
    assert await store.end_deletion(deletion)
    clock.move(deletions.CLEAN_UP_AFTER.total_seconds())
    assert len(await store.due_deletions(clock(), 10)) == 1
    deletion = await store.clean_up_deletion(KEY.image, OWNER)
    assert deletion.token == 2
    assert await store.end_deletion(deletion)
    clock.move(deletions.REMEMBER.total_seconds())
    assert await store.clean_up_deletion(KEY.image, OWNER) is None
    assert await store.deletion(KEY.image) is None
    assert await store.create(new_record(KEY, clock()))
    assert await store.delete_model(TENANT, KEY.model, 10) == 1
    assert await store.stale(clock.move(600), 10) == []
    return store


async def write_jobs(database: Datastore, clock: MovableClock) -> Recorded:
    store = Recorded(DatastoreJobStore(database, clock))
    keys = [JobKey(TENANT, f"{number:032x}") for number in range(4)]
    for key in keys:
        training = Training("pets") if key == keys[2] else None
        webhook = JobWebhook("https://example.org/") if training else None
        job = new_job(key, "", KEY.model, 3, clock(), training=training, webhook=webhook)
        assert await store.create(job)
        await store.add_items(key, [JobItem(n, f"{n:064x}") for n in range(3)])
        assert await store.change(key, jobs.seal())
    running, cancelled, fitting, failing = keys
    assert await store.change(running, jobs.start())
    clock.move(2)
    assert await store.complete_item(running, 0, None, timedelta(0))
    await store.complete_items(running, {1: ERROR, 2: None})
    assert await store.refresh_counts(running)
    assert await store.change(running, jobs.mark_announced())
    assert await store.change(cancelled, jobs.update_counts(Counts(3, 1)))
    job = await store.get(cancelled)
    clock.now = job.wake_at
    assert await store.change(cancelled, jobs.reschedule(job.wake_at))
    assert await store.change(cancelled, jobs.cancel())
    assert await store.change(failing, jobs.fail(ERROR))
    assert await store.change(failing, jobs.retry())
    assert await store.change(fitting, jobs.start())
    assert await store.change(fitting, jobs.decide_model("pets@0123456789ab", 0.9))
    assert await store.change(fitting, jobs.note_webhook(500))
    clock.move(timedelta(days=1).total_seconds())
    assert await store.due(clock(), 10)
    assert await store.delete(running)
    assert await store.items(running, 10) == []
    return store


async def write_keys(database: Datastore, clock: MovableClock) -> Recorded:
    store = Recorded(DatastoreKeyStore(database, clock))
    key = ApiKey("key000000001", TENANT, "laptop", ALL_SCOPES, bytes(32), clock())
    assert await store.create(key)
    assert await store.change(key.id, api_keys.note_use(clock()))
    rotated = await store.change(key.id, api_keys.rotate(bytes([1]) * 32, MINUTE))
    assert rotated.previous_digest == key.digest  # not the lost one
    assert await store.change(key.id, api_keys.revoke())
    await store.set_limits(TENANT, TenantLimits(Rate(10, 1), 100))
    return store


async def write_allowances(database: Datastore, clock: MovableClock) -> Recorded:
    store = Recorded(DatastoreAllowanceStore(database, clock))
    limit = Limit("daily", 80, 86_400)
    for spent in (0, 3):
        assert not (await store.reserve(TENANT, limit, spent)).refused
    return store


async def write_usage(database: Datastore, clock: MovableClock) -> Recorded:
    store = Recorded(DatastoreUsageStore(database, clock))
    day = clock().date()
    for number in range(2):
        usage = Usage(TENANT, "key000000001", day, 1, 2, 3, 4)
        await store.add(UsageBatch(usage, f"batch{number}"))
    (total,) = await store.read(TENANT, day)
    assert total.requests == 2
    clock.move(timedelta(days=2).total_seconds())
    assert await store.purge(clock().date(), 10) == 1
    return store


async def write_webhooks(database: Datastore, clock: MovableClock) -> Recorded:
    store = Recorded(DatastoreWebhookStore(database, clock))
    secret, url = bytes(32), "https://example.com/hooks"
    webhook = Webhook(f"wh_{1:024x}", TENANT, "", url, JOB_EVENTS, secret, clock())
    assert await store.create(webhook, 1)
    rotated = await store.change(webhook.key, webhooks.rotate(bytes([1]) * 32, MINUTE))
    assert rotated.previous_secret == secret
    done, gone = Delivery(clock(), Event.JOB_FAILED, 200), Delivery(clock(), Event.TEST, 410)
    assert await store.change(webhook.key, webhooks.note_delivery(url, done))
    assert await store.change(webhook.key, webhooks.disable(url, gone, "It answered 410."))
    assert await store.change(webhook.key, webhooks.update(Change(enabled=True)))
    assert await store.delete(webhook.key)
    return store


async def write_models(database: Datastore, clock: MovableClock) -> Recorded:
    store = Recorded(DatastoreModelStore(database, clock))
    model = trained_models.new_model(trained_models.ModelKey(TENANT, "birds"), clock())
    id_, base = "birds@0123456789ab", "base@0123456789ab"
    version = trained_models.ModelVersion(id_, "a" * 32, base, clock(), 10, 2, 0.9, (0.8, 1.0), 0.9)
    assert await store.create(model)
    await store.add_base(TENANT, base)
    assert await store.change(model.key, trained_models.add_version(version, activate=True))
    assert await store.change(model.key, trained_models.activate(id_))
    assert await store.change(model.key, trained_models.correct({"a" * 64: "owl"}))
    assert await store.change(model.key, trained_models.begin_deletion(id_))
    assert await store.change(model.key, trained_models.end_deletion(id_))
    assert await store.delete(model.key)
    return store


async def write_dead_letters(database: Datastore, clock: MovableClock) -> Recorded:
    store = Recorded(DatastoreDeadLetterStore(database, clock))
    attributes = {"image_hash": KEY.image_hash, "model": KEY.model, "tenant": TENANT}
    id_ = letter_id(attributes, b"", "1")
    letter = DeadLetter(
        id_, TENANT, attributes, b"", 0, 10, "inference_failed", "It failed.", clock(), clock()
    )
    assert await store.add(letter)
    assert await store.change(letter.key, dead_letters.resolve())
    assert await store.delete(letter.key)
    assert await store.add(letter)
    assert await store.purge(clock.move(1), 10) == 1
    return store


WRITES: dict[Script, ModuleType | None] = {
    write_records: records,
    write_jobs: jobs,
    write_keys: api_keys,
    write_allowances: None,
    write_usage: None,
    write_webhooks: webhooks,
    write_models: trained_models,
    write_dead_letters: dead_letters,
}


async def run(script: Script, loss: Loss | None) -> tuple[Recorded, LosingDatastore]:
    random.seed(1)  # the shard of a usage count
    scripted = LosingDatastore(loss)
    async with served(scripted) as database:
        return await script(database, MovableClock()), scripted


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datastore, "FIRST_PAUSE", 0.0)


@pytest.mark.parametrize("loss", Loss)
@pytest.mark.parametrize("script", WRITES)
async def test_write_without_an_answer_takes_effect_once(script: Script, loss: Loss) -> None:
    expected, answering = await run(script, None)
    found, losing = await run(script, loss)
    assert found.results == expected.results
    assert losing.stored == answering.stored
    assert len(losing.lost) > 1


@pytest.mark.parametrize("script", WRITES)
async def test_every_write_and_every_transition_is_tried(script: Script) -> None:
    recorded, _ = await run(script, None)
    public = inspect.getmembers(type(recorded.store), inspect.iscoroutinefunction)
    methods = {name for name, _ in public if not name.startswith("_")}
    module = WRITES[script]
    defined = {} if module is None else vars(module)
    transitions = {name for name, each in defined.items() if hasattr(each, "__wrapped__")}
    assert (methods - READS) | transitions <= recorded.names


class FailingOnce(ScriptedDatastore):
    """The first commit has no effect and no answer. `meanwhile` runs before its error."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], Awaitable[object]] | None = None

    async def commit(self, request: Any, context: Any) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is None:
            return await super().commit(request, context)
        await meanwhile()
        return await context.abort(grpc.StatusCode.UNAVAILABLE, "as scripted")


async def test_equal_reservation_of_another_process_is_not_taken_for_its_own() -> None:
    """Otherwise, both processes would spend the same share, and the key exceed its limit."""
    scripted, limit, clock = FailingOnce(), Limit("daily", 80, 86_400), MovableClock()
    async with served(scripted) as first, served(scripted) as second:
        other = DatastoreAllowanceStore(second, clock)
        others: list[Grant] = []

        async def reserve() -> None:
            others.append(await other.reserve(TENANT, limit))

        scripted.meanwhile = reserve
        own = await DatastoreAllowanceStore(first, clock).reserve(TENANT, limit)
    (entity,) = scripted.entities.values()
    assert own.count > 0
    assert own.count + others[0].count == entity.properties["taken"].integer_value
