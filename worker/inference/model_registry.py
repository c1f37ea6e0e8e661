"""The bundles this worker can reach, and the few of them that are in memory."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog
from cachetools import LRUCache

from core.backends.bundles import Bundles, pauses
from core.bundles.bundle import Bundle
from core.errors import BundleError, BundleUnavailable, GlimpseError, ModelUnavailable
from worker.inference.pool import RemoteClassifier

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Retries:
    """Seconds. A pause doubles with each failure that follows, up to the longest.

    `look` is before looking again for a bundle that cannot be read; `load` before loading one again
    that failed to, which may be to fetch gigabytes, and is not done for every message.
    """

    look: float = 1.0
    longest_look: float = 15.0
    load: float = 10.0
    longest_load: float = 300.0


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a bundle did not load, for which time in a row, and when it may be tried again."""

    reason: str
    count: int
    until: float  # on the monotonic clock


class ModelRegistry:
    """Finds the model a message names. Loads it once, however many ask.

    The first of `uris` is the default model, loaded by `open`; the others load when first asked
    for. At most `capacity` stay in memory, the least recently used one goes. What could not be read
    is looked for again until it is there, and so is a default model that did not load.
    """

    def __init__(
        self,
        uris: Sequence[str],
        bundles: Bundles,
        capacity: int,
        load: Callable[[Bundle], Awaitable[RemoteClassifier]],
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
        self._found: dict[str, Bundle | BundleError] = {
            uri: BundleUnavailable(f"{uri} is not read yet.") for uri in uris
        }
        self._loaded: LRUCache[str, RemoteClassifier] = LRUCache(capacity)
        self._loading: dict[str, asyncio.Task[RemoteClassifier]] = {}
        self._failed: dict[str, _Failure] = {}
        self._trying: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read every manifest and load the default model. Bad bundles are logged, not raised."""
        await self._read(self._found)
        if not await self._complete():
            self._trying = asyncio.create_task(self._try_again())

    async def close(self) -> None:
        """Look for nothing any more. What is being fetched ends when `bundles` is closed."""
        tasks = [*self._loading.values(), *([self._trying] if self._trying else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def identities(self) -> tuple[str, ...]:
        """The models that this worker has bundles for, the default one first if it is readable."""
        bundles = (found for found in self._found.values() if isinstance(found, Bundle))
        return tuple(dict.fromkeys(bundle.identity for bundle in bundles))

    async def classifier(self, model: str) -> RemoteClassifier:
        """The loaded model, loading it if need be. Raises ModelUnavailable."""
        loaded = self._loaded.get(model)
        if loaded is not None:
            return loaded
        for uri, found in self._found.items():
            if isinstance(found, Bundle) and found.identity == model:
                try:
                    return await self._load_once(uri, found)
                except BundleError as error:
                    raise ModelUnavailable(f"The model {model} could not be loaded.") from error
        raise ModelUnavailable(f"This worker has no bundle for the model {model}.")

    async def check(self) -> None:
        """Return if the default model can be used, else raise BundleError or ModelUnavailable."""
        found = self._found[self._default]
        if isinstance(found, BundleError):
            # A new one: raising it again and again would make its traceback longer each time.
            raise type(found)(found.detail)
        await self.classifier(found.identity)

    async def _try_again(self) -> None:
        for pause in pauses(self._retries.look, self._retries.longest_look):
            await asyncio.sleep(pause)
            # What did not load may have been mended meanwhile, and be another model by that.
            await self._read(
                uri
                for uri, found in self._found.items()
                if not isinstance(found, Bundle) or found.identity in self._failed
            )
            if await self._complete():
                return

    async def _complete(self) -> bool:
        """Whether nothing is left to look for: all is read, and the default model loaded."""
        # A failure is logged where it happens, and `check` keeps the worker from being ready.
        with contextlib.suppress(GlimpseError):
            await self.check()
            return all(isinstance(found, Bundle) for found in self._found.values())
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

    async def _load_once(self, uri: str, bundle: Bundle) -> RemoteClassifier:
        failed = self._failed.get(bundle.identity)
        if failed is not None and self._monotonic() < failed.until:
            raise BundleError(failed.reason)
        task = self._loading.get(bundle.identity)
        if task is None:
            task = asyncio.create_task(self._load_anew(uri, bundle))
            task.add_done_callback(_retrieved)
            self._loading[bundle.identity] = task
        # One waiter that goes away must not take the load from the others.
        return await asyncio.shield(task)

    async def _load_anew(self, uri: str, bundle: Bundle) -> RemoteClassifier:
        began, fetched = time.perf_counter(), False
        try:
            await asyncio.to_thread(self._bundles.weights, uri, bundle)
            fetched = True
            classifier = await self._load(bundle)
        except Exception as error:
            reason = error.detail if isinstance(error, BundleError) else "Loading it failed."
            # Of the fetching, the reason says all. The loading's own process has more, as a note.
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

    def _failure(self, bundle: Bundle, reason: str, error: Exception) -> _Failure:
        before = self._failed.get(bundle.identity)
        # A storage that is down costs nothing, and should be used as soon as it is back.
        count = 0 if before is None or isinstance(error, BundleUnavailable) else before.count
        pause = min(self._retries.load * 2**count, self._retries.longest_load)
        return _Failure(reason, count + 1, self._monotonic() + pause)


def _retrieved(task: "asyncio.Task[RemoteClassifier]") -> None:
    """Take note of a failure that nobody waits for any more (it is logged already)."""
    if not task.cancelled():
        task.exception()
