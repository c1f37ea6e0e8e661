"""Model bundles by URI: a path or `gs://bucket/folder`, with any `BACKEND`.

All functions block. `open_bundles` chooses the implementation.
"""

from collections.abc import Iterator, Sequence

from core.bundles.bundle import Bundle
from core.bundles.cache import BundleCache
from core.bundles.location import BucketFolder
from core.bundles.python_bundle import AnyBundle, read_any_bundle
from core.settings import Settings


class Bundles:
    """Bundles as local folders. Threads may share it.

    Only URIs of buckets need `cache`.
    """

    def __init__(self, cache: BundleCache | None = None) -> None:
        self._cache = cache

    def manifest(self, uri: str) -> AnyBundle:
        """The bundle without its weights.

        Raises BundleUnavailable if it cannot be read now but may be later, and BundleError if it
        is invalid.
        """
        place = BucketFolder.of(uri)
        if place is None:
            return read_any_bundle(uri)
        return self._cached().manifest(place)

    def card(self, uri: str, bundle: AnyBundle) -> None:
        """Fetch the model card of `bundle`, which is that of `uri`, into `bundle.folder`.

        Does nothing for a local folder, and nothing if there is no card that can be read.
        """
        place = BucketFolder.of(uri)
        if place is not None:
            assert isinstance(bundle, Bundle), "bundles in buckets are not in Python"
            self._cached().card(place, bundle)

    def weights(self, uri: str, bundle: AnyBundle) -> None:
        """Fetch the weights of `bundle`, which is that of `uri`, into `bundle.folder`.

        Raises the errors of `manifest`. Loading the weights verifies them again.
        """
        place = BucketFolder.of(uri)
        if place is not None:
            assert isinstance(bundle, Bundle), "bundles in buckets are not in Python"
            self._cached().weights(place, bundle)

    def close(self) -> None:
        """Stop the fetches of all threads. Blocks for a moment."""
        if self._cache is not None:
            self._cache.close()

    def _cached(self) -> BundleCache:
        assert self._cache is not None, "the bundles were opened without the URI of a bucket"
        return self._cache


def open_bundles(settings: Settings, uris: Sequence[str]) -> Bundles:
    """The bundles at these URIs, which the caller closes. Sends no request."""
    if not any(map(BucketFolder.of, uris)):
        return Bundles()
    # Imported here so that Google's packages are loaded only where they are used.
    from core.backends.google.bundles import CloudBundleObjects

    return Bundles(BundleCache(settings.model_cache, CloudBundleObjects(settings)))


def retry_delays(first: float = 1.0, longest: float = 15.0) -> Iterator[float]:
    """Seconds to wait before each retry for a bundle that is unavailable. They double."""
    delay = first
    while True:
        yield delay
        delay = min(2 * delay, longest)
