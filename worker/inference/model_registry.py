"""The model bundles that this worker knows, and those of them that are loaded."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog
from cachetools import LRUCache

from core.backends.bundles import Bundles, retry_delays
from core.bundles.python_bundle import AnyBundle
from core.errors import BundleError, BundleUnavailable, GlimpseError, ModelUnavailable
from worker.inference.pool import RemoteClassifier

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Retries:
    """Pauses in seconds. Each pause doubles after another failure, up to its maximum.

    `read` is the pause before the registry reads the manifest of an unreadable bundle again, `load`
    before it loads a bundle again. A load may download gigabytes, so it must not happen for every
    message.
    """

    read: float = 1.0
    max_read: float = 15.0
    load: float = 10.0
    max_load: float = 300.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a bundle did not load, how many times in a row, and when to load it again."""

    reason: str
    count: int
    retry_at: float  # on the monotonic clock


class ModelRegistry:
    """Finds the model that a message names, and loads it once for all concurrent requests.

    The first of `uris` is the default model, which `open` loads. The others load on first use. At
    most `capacity` models stay loaded; the least recently used one is unloaded first. The registry
    repeats reading unreadable bundles, and loading the default model, until it succeeds.
    """

    def __init__(
        self,
        uris: Sequence[str],
        bundles: Bundles,
        capacity: int,
        load: Callable[[AnyBundle], Awaitable[RemoteClassifier]],
        *,
        retries: Retries = Retries(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._retries = retries
        self._monotonic = monotonic
        self._default = uris[0]
        self._bundles = bundles
        self._load = load
        # By URI, in their order.
        self._found: dict[str, AnyBundle | BundleError] = {
            uri: BundleUnavailable(f"{uri} has not been read yet.") for uri in uris
        }
        self._loaded: LRUCache[str, RemoteClassifier] = LRUCache(capacity)
        self._loading: dict[str, asyncio.Task[RemoteClassifier]] = {}
        self._failed: dict[str, _Failure] = {}
        self._retrying: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read every manifest and load the default model. Bad bundles are logged, not raised."""
        await self._read(self._found)
        if not await self._complete():
            self._retrying = asyncio.create_task(self._retry())

    async def close(self) -> None:
        """Stop reading and loading. Downloads end when `bundles` is closed."""
        tasks = [*self._loading.values(), *([self._retrying] if self._retrying else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def identities(self) -> tuple[str, ...]:
        """The models with a readable bundle, the default model first."""
        bundles = (found for found in self._found.values() if isinstance(found, AnyBundle))
        return tuple(dict.fromkeys(bundle.identity for bundle in bundles))

    async def classifier(self, model: str) -> RemoteClassifier:
        """The model, loaded. Raises ModelUnavailable."""
        loaded = self._loaded.get(model)
        if loaded is not None:
            return loaded
        for uri, found in self._found.items():
            if isinstance(found, AnyBundle) and found.identity == model:
                try:
                    return await self._load_shared(uri, found)
                except BundleError as error:
                    raise ModelUnavailable(f"The model {model} could not be loaded.") from error
        raise ModelUnavailable(f"This worker has no bundle for the model {model}.")

    async def check(self) -> None:
        """Raise BundleError or ModelUnavailable unless the default model is usable."""
        found = self._found[self._default]
        if isinstance(found, BundleError):
            # A new exception, because the traceback of a stored one grows with every raise.
            raise type(found)(found.detail)
        await self.classifier(found.identity)

    async def _retry(self) -> None:
        for pause in retry_delays(self._retries.read, self._retries.max_read):
            await asyncio.sleep(pause)
            # A bundle that did not load may have been replaced, and then has another identity.
            await self._read(
                uri
                for uri, found in self._found.items()
                if not isinstance(found, AnyBundle) or found.identity in self._failed
            )
            if await self._complete():
                return

    async def _complete(self) -> bool:
        """Whether every manifest is read and the default model is loaded."""
        # The failure is logged where it happens, and `check` keeps the worker from being ready.
        with contextlib.suppress(GlimpseError):
            await self.check()
            return all(isinstance(found, AnyBundle) for found in self._found.values())
        return False

    async def _read(self, uris: Iterable[str]) -> None:
        await asyncio.gather(*(self._read_one(uri) for uri in list(uris)))

    async def _read_one(self, uri: str) -> None:
        before = self._found[uri]
        try:
            found = await asyncio.to_thread(self._bundles.manifest, uri)
        except BundleError as error:
            self._found[uri] = error
            if not isinstance(before, BundleError) or before.detail != error.detail:
                log.error("bundle unreadable", uri=uri, reason=error.detail)
            return
        self._found[uri] = found
        if isinstance(before, BundleError):
            log.info("bundle read", uri=uri, model=found.identity)

    async def _load_shared(self, uri: str, bundle: AnyBundle) -> RemoteClassifier:
        failed = self._failed.get(bundle.identity)
        if failed is not None and self._monotonic() < failed.retry_at:
            raise BundleError(failed.reason)
        task = self._loading.get(bundle.identity)
        if task is None:
            task = asyncio.create_task(self._load_bundle(uri, bundle))
            task.add_done_callback(_retrieve_error)
            self._loading[bundle.identity] = task
        # The cancellation of one request must not cancel the load for the others.
        return await asyncio.shield(task)

    async def _load_bundle(self, uri: str, bundle: AnyBundle) -> RemoteClassifier:
        began, fetched = time.perf_counter(), False
        try:
            await asyncio.to_thread(self._bundles.weights, uri, bundle)
            fetched = True
            classifier = await self._load(bundle)
        except Exception as error:
            reason = error.detail if isinstance(error, BundleError) else "Loading it failed."
            # The traceback of a download adds nothing. That of a load has the process's own in it.
            log.error("model refused", model=bundle.identity, reason=reason, exc_info=fetched)
            self._failed[bundle.identity] = self._failure(bundle, reason, error)
            raise BundleError(reason) from error
        finally:
            del self._loading[bundle.identity]
        self._failed.pop(bundle.identity, None)
        self._loaded[bundle.identity] = classifier
        milliseconds = round(1000 * (time.perf_counter() - began))
        log.info("model loaded", model=bundle.identity, milliseconds=milliseconds)
        return classifier

    def _failure(self, bundle: AnyBundle, reason: str, error: Exception) -> _Failure:
        before = self._failed.get(bundle.identity)
        # An unavailable storage costs nothing, and should be used as soon as it is available.
        count = 0 if before is None or isinstance(error, BundleUnavailable) else before.count
        pause = min(self._retries.load * 2**count, self._retries.max_load)
        return _Failure(reason, count + 1, self._monotonic() + pause)


def _retrieve_error(task: "asyncio.Task[RemoteClassifier]") -> None:
    """Keep asyncio from logging an error that no request awaits. It is logged already."""
    if not task.cancelled():
        task.exception()
