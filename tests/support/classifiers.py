"""Classifiers in threads, for tests of a worker that need no classifier process."""

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator

from core.domain.records import MAX_LABELS
from core.settings import Settings
from worker.inference.process import Models, Reply, serve
from worker.inference.protocol import Frame

STOP_SECONDS = 30.0
_open = threading.Event()
_open.set()


@contextlib.contextmanager
def held_classifiers() -> Iterator[None]:
    """No classifier thread answers during the block."""
    _open.clear()
    try:
        yield
    finally:
        _open.set()


class HoldableModels(Models):
    def answers(self, frames: Iterable[Frame]) -> Iterator[list[Reply]]:
        _open.wait()
        return super().answers(frames)


class ClassifierThread:
    """Serves a classifier process's protocol, with the same code, in a thread of this process."""

    def __init__(self, settings: Settings, connection: socket.socket) -> None:
        self._connection = connection.dup()
        self._models = HoldableModels(
            settings.loaded_models,
            settings.pixel_limits,
            MAX_LABELS,
            thumbnails=settings.makes_thumbnails,
        )
        self._thread = threading.Thread(target=self._serve, name="classifier", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(ConnectionError):
            serve(self._connection, self._models)

    def kill(self) -> None:
        """Close the connection. The thread ends after the images that it is working on."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def wait(self) -> int:
        self._thread.join(STOP_SECONDS)
        assert not self._thread.is_alive(), "An inference in a thread cannot be stopped."
        return 0


def spawn_thread(settings: Settings, connection: socket.socket) -> ClassifierThread:
    """A `worker.inference.pool.Spawn` that starts no process."""
    return ClassifierThread(settings, connection)
