"""A pool of processes that classify images.

Processes instead of threads: a native decoder that hangs cannot be stopped in a thread, one that
crashes ends the whole process, and threads block each other on Python's global lock.
"""

import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import structlog

from core.bundles.python_bundle import AnyBundle
from core.child_process import bare_environment, without_network
from core.domain.records import MAX_LABELS, Annotation, Classification
from core.errors import Unavailable
from core.settings import Settings
from worker.errors import ClassifierLost
from worker.inference.protocol import EMBEDDING, ERRORS, FILE, IMAGE, LOAD, MAX_BATCH, REPLY, Frame
from worker.inference.steps import Step

log = structlog.get_logger(__name__)

LOAD_SECONDS = 120.0  # enough to read a large model from a slow disk and to warm it up
FIRST_PAUSE, LAST_PAUSE = 0.1, 5.0  # seconds before a process that ended is replaced
ENDED = "The process that classified the image ended."
ROOT = Path(__file__).resolve().parents[2]

Answer: TypeAlias = "asyncio.Future[Classification | bytes]"  # labels, or an embedding


class Process(Protocol):
    """A started classifier process."""

    def kill(self) -> None: ...

    def wait(self) -> int:
        """Return the exit status once it has ended. Blocks."""


# Starts a process that serves `worker.inference.protocol` on the socket, and duplicates the socket.
Spawn: TypeAlias = Callable[[Settings, socket.socket], Process]


@dataclass(slots=True, eq=False)
class _Request:
    """A frame that is kept until its answer, so that it can be sent to another process."""

    frame: Frame
    seconds: float
    answer: Answer
    steps: list[Step] = field(default_factory=list)  # filled before the answer is set


class ClassifierPool:
    """Sends images to `settings.classifier_processes` processes, and replaces those that end.

    Call `start` inside the event loop. A process that ends, or does not answer for longer than
    `settings.classify_seconds`, is replaced. The new process gets the images that the old one may
    have been working on, each alone. Only an image that ends a process while alone fails.
    """

    def __init__(self, settings: Settings, spawn: Spawn) -> None:
        self._settings = settings
        self._members = [_Member(settings, spawn) for _ in range(settings.classifier_processes)]

    async def start(self) -> None:
        """Start the processes. They load models on request."""
        await asyncio.gather(*(member.start() for member in self._members))

    async def load(self, bundle: AnyBundle) -> "RemoteClassifier":
        """Load `bundle` in every process. Raises BundleError or ClassifierLost."""
        folder = await asyncio.to_thread(bundle.folder.resolve)
        name = json.dumps([bundle.identity, str(folder)]).encode()
        answers = [member.ask(Frame(LOAD, name, b""), LOAD_SECONDS) for member in self._members]
        found = await asyncio.gather(*answers, return_exceptions=True)
        for outcome in found:
            if isinstance(outcome, BaseException):
                raise outcome
        return RemoteClassifier(self, bundle, name)

    def prefetch(self) -> int:
        """How many images the pool should hold so that no process waits for its next batch.

        That is two batches for each process: one in work and one waiting. A slow model has batches
        of one, so that urgent images do not wait behind many others.
        """
        return 2 * sum(member.batch_size for member in self._members)

    async def ask(self, frame: Frame, steps: list[Step]) -> Classification | bytes:
        """Send `frame` to the process with the fewest open requests."""
        least_busy = min(self._members, key=_Member.open_requests)
        return await least_busy.ask(frame, self._settings.classify_seconds, steps)

    async def close(self) -> None:
        """End all processes. Open requests raise Unavailable."""
        await asyncio.gather(*(member.close() for member in self._members))


class RemoteClassifier:
    """A model that every process of a pool has loaded."""

    def __init__(self, pool: ClassifierPool, bundle: AnyBundle, name: bytes) -> None:
        self.bundle = bundle
        self._pool = pool
        self._name = name

    async def classify(
        self, image: bytes | Path, steps: list[Step] | None = None
    ) -> Classification:
        """The most likely labels and categories of an image.

        `image` is the encoded image or the path of its file. The steps that the process took are
        appended to `steps`. Raises UndecodableImage or InvalidImage for faults of the image,
        InferenceFailed for faults of the model, NotFound or Unavailable for the file, and
        ClassifierLost if the process ended or exceeded its time.
        """
        found = await self._pool.ask(self._frame(image), [] if steps is None else steps)
        assert isinstance(found, Classification)
        return found

    async def embed(self, image: bytes | Path, steps: list[Step]) -> bytes:
        """The embedding of an image: float32 in little-endian. Otherwise the same as `classify`."""
        found = await self._pool.ask(self._frame(image)._replace(embed=True), steps)
        assert isinstance(found, bytes)
        return found

    async def classify_embedding(
        self, model: str, head: Path, embedding: bytes, steps: list[Step]
    ) -> Classification:
        """What the trained model `model` says about an embedding; `head` is its head's file.

        Raises InferenceFailed, and ClassifierLost.
        """
        name = json.dumps([model, str(head)]).encode()
        found = await self._pool.ask(Frame(EMBEDDING, name, embedding), steps)
        assert isinstance(found, Classification)
        return found

    def _frame(self, image: bytes | Path) -> Frame:
        kind, data = (FILE, os.fsencode(image)) if isinstance(image, Path) else (IMAGE, image)
        return Frame(kind, self._name, data)


class _Member(asyncio.Protocol):
    """One process of the pool, the connection to it, and its open requests."""

    def __init__(self, settings: Settings, spawn: Spawn) -> None:
        self._settings = settings
        self._spawn = spawn
        self._open: deque[_Request] = deque()  # in the order in which the process answers them
        self._transport: asyncio.Transport | None = None
        self._process: Process | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._received = b""
        self._pause = FIRST_PAUSE
        self._warm: set[bytes] = set()  # the models that this process has loaded or will load
        self._reason = ENDED  # the reason to report if the process ends
        self._closed = False
        self.batch_size = 1  # as the process last reported it

    def open_requests(self) -> int:
        return len(self._open)

    def ask(self, frame: Frame, seconds: float, steps: list[Step] | None = None) -> Answer:
        """The answer to one frame. Cancelling it does not stop the process's work."""
        answer: Answer = asyncio.get_running_loop().create_future()
        if self._closed:
            answer.set_exception(_stopping())
            return answer
        self._warm_up(frame)
        self._add(_Request(frame, seconds, answer, [] if steps is None else steps))
        return answer

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        try:
            with theirs:
                self._process = await asyncio.to_thread(self._spawn, self._settings, theirs)
            transport, _ = await loop.create_connection(lambda: self, sock=ours)
        except BaseException:
            ours.close()
            raise
        self._transport = transport
        waiting, self._open = self._open, deque()
        self._warm.clear()
        for request in waiting:
            if request.answer.done():
                continue  # the caller has cancelled it
            self._warm_up(request.frame)
            self._add(request)

    async def close(self) -> None:
        self._closed = True
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.gather(self._replacing, return_exceptions=True)
        self._stop_timer()
        for request in self._open:
            _fail(request, error=_stopping())
        self._open.clear()
        if self._transport is not None:
            self._transport.close()
        await self._end()

    # --- asyncio.Protocol -------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= REPLY.size:
            size, more = REPLY.unpack_from(self._received)
            middle = REPLY.size + size
            if len(self._received) < middle + more:
                return
            document = json.loads(self._received[REPLY.size : middle])
            thumbnail = self._received[middle : middle + more]
            self._received = self._received[middle + more :]
            self._answered(document, thumbnail)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._received = b""
        if not self._closed:
            self._replacing = asyncio.ensure_future(self._replace())

    # --- Inside -----------------------------------------------------------------------------------

    def _warm_up(self, frame: Frame) -> None:
        """Load the frame's model by a request of its own, outside the image's time limit."""
        if frame.kind not in (LOAD, EMBEDDING) and frame.name not in self._warm:
            self._add(_loading(frame.name))

    def _add(self, request: _Request) -> None:
        self._open.append(request)
        self._warm.add(request.frame.name)
        if self._transport is not None:
            self._transport.writelines(request.frame.packed())
        if len(self._open) == 1:
            self._start_timer()

    def _answered(self, document: dict[str, Any], thumbnail: bytes) -> None:
        self._pause = FIRST_PAUSE
        request = self._open.popleft()
        self._start_timer()
        self.batch_size = document["batch_size"]
        request.steps.extend(Step(*step) for step in document["steps"])
        if "error" in document:
            code, detail, cause = document["error"]
            error = ERRORS[code](detail)
            if cause:
                error.add_note(cause)  # the traceback of the other process, for the log
            _fail(request, error=error)
            return
        if not request.answer.done():
            request.answer.set_result(_result(document, thumbnail))

    def _in_work(self) -> list[_Request]:
        """The requests that the process may be working on: one, or those of a batch."""
        first, *others = list(islice(self._open, MAX_BATCH))
        if first.frame.kind == LOAD or first.frame.alone:
            return [first]

        def same_batch(request: _Request) -> bool:
            frame = request.frame
            return frame.name == first.frame.name and frame.kind != LOAD and not frame.alone

        return [first, *takewhile(same_batch, others)]

    def _start_timer(self) -> None:
        """Start the time limit of the first open request."""
        self._stop_timer()
        if self._open:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._open[0].seconds, self._expired)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        """End the process: a native decoder cannot be stopped in any other way."""
        self._timer = None
        reason = f"The image took longer than {self._open[0].seconds:g} s."
        if self._process is not None and self._transport is not None:
            self._reason = reason
            self._process.kill()  # `connection_lost` follows
        else:
            _fail(self._open.popleft(), error=ClassifierLost(reason))
            self._start_timer()

    async def _replace(self) -> None:
        """Start a new process, and decide about the requests that the old one was working on."""
        self._stop_timer()
        status = await self._end()
        reason, self._reason = self._reason, ENDED
        if self._open:
            self._handle_loss(self._in_work(), reason)
        log.error("classifier process ended", status=status, waiting=len(self._open))
        while True:
            self._start_timer()
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LAST_PAUSE)
            try:
                await self.start()
            except OSError as error:
                log.error("classifier process not started", reason=str(error))
            else:
                return

    def _handle_loss(self, in_work: list[_Request], reason: str) -> None:
        """Fail the request that the process was working on; if there are several, try each alone.

        If a model cannot be loaded, all requests for it fail with Unavailable, because the images
        are not at fault.
        """
        first = in_work[0]
        if len(in_work) > 1:
            for request in in_work:
                request.frame = request.frame._replace(alone=True)
            return
        _fail(first, error=ClassifierLost(reason))
        ended = [first]
        if first.frame.kind == LOAD:
            for request in self._open:
                if request.frame.name == first.frame.name and request is not first:
                    _fail(request, error=Unavailable(f"The model was not loaded. {reason}"))
                    ended.append(request)
        self._open = deque(each for each in self._open if each not in ended)

    async def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        return await asyncio.to_thread(process.wait)


def _result(document: dict[str, Any], thumbnail: bytes) -> Classification | bytes:
    if "embedding" in document:
        return base64.b64decode(document["embedding"])
    return Classification(
        _annotations(document["annotations"]),
        _annotations(document["categories"]),
        document["confident"],
        thumbnail,
        document["output"],
    )


def _annotations(pairs: list[tuple[str, float]]) -> tuple[Annotation, ...]:
    return tuple(Annotation(index, *pair) for index, pair in enumerate(pairs, start=1))


def spawn_process(settings: Settings, connection: socket.socket) -> Process:
    """The `Spawn` of a service: `worker.inference.process`, which inherits the socket.

    A decoder that a hostile image takes over finds no secrets in its environment, and no network
    if the system allows that (`core.child_process`).
    """
    descriptor = connection.fileno()
    isolation = without_network()
    if not isolation:
        log.warning("classifier process has a network", reason="user namespaces are not available")
    command = [
        *isolation,
        *(sys.executable, "-m", "worker.inference.process", str(descriptor)),
        *("--capacity", str(settings.loaded_models)),
        *("--max-pixels", str(settings.max_image_pixels)),
        *("--labels-per-image", str(MAX_LABELS)),
        *(("--thumbnails",) if settings.makes_thumbnails else ()),
    ]
    # The arguments are this interpreter and numbers from the settings.
    return subprocess.Popen(  # noqa: S603
        command,
        cwd=ROOT,
        env=bare_environment(),
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
    )


def _loading(name: bytes) -> _Request:
    """A request that loads a model. If it fails, the image request after it reports why."""
    answer: Answer = asyncio.get_running_loop().create_future()
    answer.add_done_callback(_retrieve)
    return _Request(Frame(LOAD, name, b""), LOAD_SECONDS, answer)


def _retrieve(answer: Answer) -> None:
    """Mark the exception as retrieved, so that asyncio does not log it."""
    if not answer.cancelled():
        answer.exception()


def _fail(request: _Request, *, error: Exception) -> None:
    if not request.answer.done():  # the caller may have cancelled it
        request.answer.set_exception(error)


def _stopping() -> Unavailable:
    return Unavailable("The worker is stopping.")
