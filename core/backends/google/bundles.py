"""Reads the files of model bundles in Cloud Storage. Blocks, each call for a bounded time.

It has no threads, because a process fetches models in threads of its start.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from google.api_core import exceptions as api
from google.cloud import storage

from core.backends.google.blobs import RETRY, TIMEOUT
from core.backends.google.endpoints import bucket_client
from core.backends.google.errors import VENDOR_ERRORS, translated, translation_of
from core.backends.google.objects import read_object
from core.bundles.cache import Sink
from core.bundles.location import BucketFolder
from core.errors import BundleError, BundleUnavailable, NotFound, Unavailable
from core.settings import Settings

PART = "model storage"
CONNECTIONS = 4
DEADLINE = 10.0  # seconds for a small file


class CloudBundleObjects:
    """`core.bundles.cache.BundleObjects`. The client is created when it is first needed."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: storage.Client | None = None
        self._creating = threading.Lock()

    def read(self, place: BucketFolder, name: str, most: int) -> bytes:
        with self._explained(place, name):
            until = time.monotonic() + DEADLINE
            data = read_object(self._opened(), place.bucket, place.object(name), most, until)
        if len(data) > most:
            raise BundleError(f"{place}/{name} has more than {most} bytes.")
        return data

    def fetch(self, place: BucketFolder, name: str, sink: Sink) -> None:
        with self._explained(place, name):
            blob = self._opened().bucket(place.bucket).blob(place.object(name))
            while True:
                begin = sink.tell()
                try:
                    blob.download_to_file(
                        sink,
                        start=begin or None,
                        raw_download=True,
                        checksum=None,  # the cache compares the SHA-256 of the whole file
                        timeout=TIMEOUT,
                        retry=RETRY,
                    )
                    return
                except VENDOR_ERRORS as error:
                    # A large file takes longer than any retry: resume while there is progress.
                    if translation_of(error) is not Unavailable or sink.tell() == begin:
                        raise

    def close(self) -> None:
        client = self._client
        if client is not None:
            client.close()

    def _opened(self) -> storage.Client:
        with self._creating:
            if self._client is None:
                self._client = bucket_client(self._settings, CONNECTIONS)
            return self._client

    @contextmanager
    def _explained(self, place: BucketFolder, name: str) -> Iterator[None]:
        """Raise BundleUnavailable that names the file, and what the operator can do."""
        file = f"{place}/{name}"
        try:
            with translated(PART, missing=file):
                try:
                    yield
                except api.Forbidden:
                    raise BundleUnavailable(
                        f"{file} cannot be read: the service's account needs "
                        f"roles/storage.objectViewer on the bucket {place.bucket}."
                    ) from None
        except NotFound:
            raise BundleUnavailable(self._missing(place, name)) from None
        except Unavailable as error:
            raise BundleUnavailable(f"{file} cannot be fetched. {error.detail}") from error

    def _missing(self, place: BucketFolder, name: str) -> str:
        """Says whether the bucket, the folder or the file is missing."""
        with suppress(*VENDOR_ERRORS):
            try:
                found = self._opened().list_blobs(
                    place.bucket,
                    prefix=place.object(""),
                    max_results=1,
                    timeout=TIMEOUT,
                    retry=RETRY,
                )
                if next(iter(found), None) is None:
                    return (
                        f"{place} is empty: the bucket has no object whose name starts like that."
                    )
            except api.NotFound:
                return f"{place} does not exist: there is no bucket {place.bucket}."
        return f"{place} has no {name}. A bundle in a bucket must have it."
