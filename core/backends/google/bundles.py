"""The files of model bundles in Cloud Storage: read, no more. Blocks, each call in a bounded time.

The threads that call are few and the caller's own: fetching a model happens at a start.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from google.api_core import exceptions as api
from google.cloud import storage

from core.backends.google.blobs import RETRY, TIMEOUT
from core.backends.google.endpoints import bucket_client
from core.backends.google.errors import VENDOR_ERRORS, ours, translated
from core.backends.google.objects import read_object
from core.bundles.cache import Sink
from core.bundles.location import BucketFolder
from core.errors import BundleError, BundleUnavailable, NotFound, Unavailable
from core.settings import Settings

PART = "model storage"
CONNECTIONS = 4
PATIENCE = 10.0  # seconds for a small file in all


class CloudBundleObjects:
    """`core.bundles.cache.BundleObjects`. The client is made when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._made: storage.Client | None = None
        self._making = threading.Lock()

    def read(self, place: BucketFolder, name: str, most: int) -> bytes:
        with self._explained(place, name):
            until = time.monotonic() + PATIENCE
            data = read_object(self._client(), place.bucket, place.object(name), most, until)
        if len(data) > most:
            raise BundleError(f"{place}/{name} has more than {most} bytes.")
        return data

    def fetch(self, place: BucketFolder, name: str, sink: Sink) -> None:
        with self._explained(place, name):
            blob = self._client().bucket(place.bucket).blob(place.object(name))
            while True:
                begin = sink.tell()
                try:
                    blob.download_to_file(
                        sink,
                        start=begin or None,
                        raw_download=True,
                        checksum=None,  # the whole file's SHA-256 is known, and compared
                        timeout=TIMEOUT,
                        retry=RETRY,
                    )
                    return
                except VENDOR_ERRORS as error:
                    # Gigabytes take longer than any retry: what breaks off goes on where it was.
                    if ours(error) is not Unavailable or sink.tell() == begin:
                        raise

    def close(self) -> None:
        made = self._made
        if made is not None:
            made.close()

    def _client(self) -> storage.Client:
        with self._making:
            if self._made is None:
                self._made = bucket_client(self._settings, CONNECTIONS)
            return self._made

    @contextmanager
    def _explained(self, place: BucketFolder, name: str) -> Iterator[None]:
        """Say of every failure which file it was about, and what to do."""
        file = f"{place}/{name}"
        try:
            with translated(PART, missing=file):
                try:
                    yield
                except api.Forbidden:
                    raise BundleUnavailable(
                        f"{file} is not ours to read: the service's account needs "
                        f"roles/storage.objectViewer on the bucket {place.bucket}."
                    ) from None
        except NotFound:
            raise BundleUnavailable(self._missing(place, name)) from None
        except Unavailable as error:
            raise BundleUnavailable(f"{file} cannot be fetched. {error.detail}") from error

    def _missing(self, place: BucketFolder, name: str) -> str:
        """Whether it is the bucket, the folder or the file that is not there."""
        with suppress(*VENDOR_ERRORS):
            try:
                found = self._client().list_blobs(
                    place.bucket,
                    prefix=place.object(""),
                    max_results=1,
                    timeout=TIMEOUT,
                    retry=RETRY,
                )
                if next(iter(found), None) is None:
                    return f"{place} is empty: the bucket has nothing of that name."
            except api.NotFound:
                return f"{place} is not there: there is no bucket {place.bucket}."
        return f"{place} has no {name}, which a bundle in a bucket must have."
