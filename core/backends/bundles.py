"""Model bundles by their URI: a path, or `gs://bucket/folder`, whatever BACKEND is.

Everything here blocks, and knows no vendor. `open_bundles` is the one place that chooses.
"""

from collections.abc import Iterator, Sequence

from core.bundles.bundle import Bundle, read_bundle
from core.bundles.cache import BundleCache
from core.bundles.location import BucketFolder
from core.settings import Settings


class Bundles:
    """Bundles as folders of this machine. Threads may share it.

    `cache` is needed for URIs of buckets alone.
    """

    def __init__(self, cache: BundleCache | None = None) -> None:
        self._cache = cache

    def manifest(self, uri: str) -> Bundle:
        """The bundle without its weights.

        Raises BundleUnavailable where it cannot be read for now and may be later, BundleError
        where it is wrong, or no bundle.
        """
        place = BucketFolder.of(uri)
        if place is None:
            return read_bundle(uri)
        return self._cached().manifest(place)

    def weights(self, uri: str, bundle: Bundle) -> None:
        """See to it that `bundle.folder` has the weights of `bundle`, which is that of `uri`.

        Raises as `manifest` does. They are checked again by whoever loads them.
        """
        place = BucketFolder.of(uri)
        if place is not None:
            self._cached().weights(place, bundle)

    def close(self) -> None:
        """Stop what is being fetched, in whichever thread. Blocks, for a moment."""
        if self._cache is not None:
            self._cache.close()

    def _cached(self) -> BundleCache:
        assert self._cache is not None, "these bundles were opened without a bucket among them"
        return self._cache


def open_bundles(settings: Settings, uris: Sequence[str]) -> Bundles:
    """Bundles at these URIs, to be closed. Nothing is contacted yet."""
    if not any(map(BucketFolder.of, uris)):
        return Bundles()
    # Imported here so that Google's packages are loaded only where they are used.
    from core.backends.google.bundles import CloudBundleObjects

    return Bundles(BundleCache(settings.model_cache, CloudBundleObjects(settings)))


def pauses(first: float = 1.0, longest: float = 15.0) -> Iterator[float]:
    """Seconds to wait before each further look for a bundle that was not there; they double."""
    pause = first
    while True:
        yield pause
        pause = min(2 * pause, longest)
