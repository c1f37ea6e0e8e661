"""The bundles this worker can reach, and the few of them that are in memory."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

import structlog
from cachetools import LRUCache

from core.errors import BundleError, ModelUnavailable
from core.model_bundle import Bundle, read_bundle
from worker.classifier_pool import RemoteClassifier

log = structlog.get_logger(__name__)

LOAD_RETRY_SECONDS = 10.0  # a bundle that failed to load is not read again for every message


class ModelRegistry:
    """Finds the model a message names. Loads it once, however many ask.

    The first of `uris` is the default model, loaded by `open`; the others load when first asked
    for. At most `capacity` stay in memory, the least recently used one goes.
    """

    def __init__(
        self,
        uris: Sequence[str],
        capacity: int,
        load: Callable[[Bundle], Awaitable[RemoteClassifier]],
    ) -> None:
        self._uris = tuple(dict.fromkeys(uris))
        self._load = load
        self._bundles: dict[str, Bundle] = {}
        self._default: Bundle | BundleError = BundleError("The default model is not loaded yet.")
        self._loaded: LRUCache[str, RemoteClassifier] = LRUCache(capacity)
        self._loading: dict[str, asyncio.Task[RemoteClassifier]] = {}
        self._failed: dict[str, tuple[float, str]] = {}  # when, and why

    async def open(self) -> None:
        """Read every manifest and load the default model. Bad bundles are logged, not raised."""
        found = await asyncio.gather(*(asyncio.to_thread(_read, uri) for uri in self._uris))
        self._default = found[0]
        for uri, bundle in zip(self._uris, found, strict=True):
            if isinstance(bundle, BundleError):
                log.error("bundle unreadable", uri=uri, reason=bundle.detail)
            else:
                self._bundles.setdefault(bundle.identity, bundle)
        if isinstance(self._default, Bundle):
            # A failure is logged where it happens, and `check` keeps the worker from being ready.
            with contextlib.suppress(ModelUnavailable):
                await self.classifier(self._default.identity)

    @property
    def identities(self) -> tuple[str, ...]:
        """The models that this worker has bundles for, the default one first if it is readable."""
        return tuple(self._bundles)

    async def classifier(self, model: str) -> RemoteClassifier:
        """The loaded model, loading it if need be. Raises ModelUnavailable."""
        loaded = self._loaded.get(model)
        if loaded is not None:
            return loaded
        bundle = self._bundles.get(model)
        if bundle is None:
            raise ModelUnavailable(f"This worker has no bundle for the model {model}.")
        try:
            return await self._load_once(bundle)
        except BundleError as error:
            raise ModelUnavailable(f"The model {model} could not be loaded.") from error

    async def check(self) -> None:
        """Return if the default model can be used, else raise BundleError or ModelUnavailable."""
        if isinstance(self._default, BundleError):
            raise self._default
        await self.classifier(self._default.identity)

    async def _load_once(self, bundle: Bundle) -> RemoteClassifier:
        failed = self._failed.get(bundle.identity)
        if failed is not None and time.monotonic() - failed[0] < LOAD_RETRY_SECONDS:
            raise BundleError(failed[1])
        task = self._loading.get(bundle.identity)
        if task is None:
            task = asyncio.create_task(self._load_anew(bundle))
            task.add_done_callback(_retrieved)
            self._loading[bundle.identity] = task
        # One waiter that goes away must not take the load from the others.
        return await asyncio.shield(task)

    async def _load_anew(self, bundle: Bundle) -> RemoteClassifier:
        began = time.perf_counter()
        try:
            classifier = await self._load(bundle)
        except Exception as error:
            reason = error.detail if isinstance(error, BundleError) else "Loading it failed."
            log.exception("model refused", model=bundle.identity, reason=reason)
            self._failed[bundle.identity] = (time.monotonic(), reason)
            raise BundleError(reason) from error
        finally:
            del self._loading[bundle.identity]
        self._failed.pop(bundle.identity, None)
        self._loaded[bundle.identity] = classifier
        milliseconds = round(1000 * (time.perf_counter() - began))
        log.info("model loaded", model=bundle.identity, milliseconds=milliseconds)
        return classifier


def _read(uri: str) -> Bundle | BundleError:
    try:
        return read_bundle(uri)
    except BundleError as error:
        return error


def _retrieved(task: "asyncio.Task[RemoteClassifier]") -> None:
    """Take note of a failure that nobody waits for any more (it is logged already)."""
    if not task.cancelled():
        task.exception()
