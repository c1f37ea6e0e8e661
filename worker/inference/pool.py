"""The processes that classify, each with its own model in memory, and the work they have in hand.

Why processes and not threads: a native decoder that hangs cannot be stopped inside a thread, one
that crashes ends the whole process, and Python's lock lets threads get in each other's way.
"""

import asyncio
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

from core.bundles.bundle import Bundle
from core.domain.records import Annotation
from core.errors import Unavailable
from core.observability.tracing import Step
from core.settings import Settings
from worker.errors import ClassifierLost
from worker.inference.protocol import ERRORS, FILE, GROUP, IMAGE, LOAD, REPLY, Frame

log = structlog.get_logger(__name__)

LOAD_SECONDS = 120.0  # for reading and warming up a large model on a slow disk
FIRST_PAUSE, LAST_PAUSE = 0.1, 5.0  # seconds before a process that ended is replaced
ENDED = "The process that classified the image ended."
ROOT = Path(__file__).resolve().parents[2]

Answer: TypeAlias = "asyncio.Future[tuple[Annotation, ...]]"


class Process(Protocol):
    """A started classifier process."""

    def kill(self) -> None: ...

    def wait(self) -> int:
        """Return the exit status once it has ended. Blocks."""


# Starts a process that serves `worker.inference.protocol` on the socket, and duplicates the socket.
Spawn: TypeAlias = Callable[[Settings, socket.socket], Process]


@dataclass(slots=True, eq=False)
class _Request:
    """One frame, kept until it is answered so that another process can be given it."""

    frame: Frame
    seconds: float
    answer: Answer
    steps: list[Step] = field(default_factory=list)  # filled in before the answer comes


class ClassifierPool:
    """`count` processes; each has the next images at hand, and may take several together.

    Open inside the event loop with `start`. A process that ends, or gives no answer for longer than
    `settings.classify_seconds`, is replaced. What it may have been working on is given to the new
    one, each image alone: only the one with which a process ends again hears of it.
    """

    def __init__(self, settings: Settings, spawn: Spawn) -> None:
        self._settings = settings
        self._members = [_Member(settings, spawn) for _ in range(settings.classifier_processes)]

    async def start(self) -> None:
        """Return once the processes are started; they load their models when asked to."""
        await asyncio.gather(*(member.start() for member in self._members))

    async def load(self, bundle: Bundle) -> "RemoteClassifier":
        """Have every process load `bundle`. Raises BundleError, or ClassifierLost."""
        folder = await asyncio.to_thread(bundle.folder.resolve)
        name = json.dumps([bundle.identity, str(folder)]).encode()
        answers = [member.ask(Frame(LOAD, name, b""), LOAD_SECONDS) for member in self._members]
        found = await asyncio.gather(*answers, return_exceptions=True)
        for outcome in found:
            if isinstance(outcome, BaseException):
                raise outcome
        return RemoteClassifier(self, bundle, name)

    def at_hand(self) -> int:
        """How many images should be here, so that no process ever waits for its next ones.

        That is what it works on and as much again; for a slow model one and one more, so that the
        urgent are not kept behind what was let in before them.
        """
        return 2 * sum(member.together for member in self._members)

    async def annotate(self, frame: Frame, steps: list[Step]) -> tuple[Annotation, ...]:
        least = min(self._members, key=_Member.in_hand)
        return await least.ask(frame, self._settings.classify_seconds, steps)

    async def close(self) -> None:
        """End the processes, whatever they are doing; who waits for them hears Unavailable."""
        await asyncio.gather(*(member.close() for member in self._members))


class RemoteClassifier:
    """A model that every process of a pool has loaded."""

    def __init__(self, pool: ClassifierPool, bundle: Bundle, name: bytes) -> None:
        self.bundle = bundle
        self._pool = pool
        self._name = name

    async def annotate(
        self, image: bytes | Path, steps: list[Step] | None = None
    ) -> tuple[Annotation, ...]:
        """The most likely labels of an encoded image, or of the file of one; most likely first.

        What the process did, and when, is appended to `steps` if it answers at all. Raises
        UndecodableImage or InvalidImage for the image's faults, InferenceFailed for the model's,
        NotFound or Unavailable for the file's, and ClassifierLost where the process ended or had to
        be ended over it.
        """
        kind, data = (FILE, os.fsencode(image)) if isinstance(image, Path) else (IMAGE, image)
        frame = Frame(kind, self._name, data)
        return await self._pool.annotate(frame, [] if steps is None else steps)


class _Member(asyncio.Protocol):
    """One place in the pool: its process, the connection to it, and what it has been asked."""

    def __init__(self, settings: Settings, spawn: Spawn) -> None:
        self._settings = settings
        self._spawn = spawn
        self._asked: deque[_Request] = deque()  # `_in_work` says which are being worked on
        self._transport: asyncio.Transport | None = None
        self._process: Process | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._replacing: asyncio.Task[None] | None = None
        self._received = b""
        self._pause = FIRST_PAUSE
        self._warm: set[bytes] = set()  # the models that this process was told to load
        self._reason = ENDED  # why the process ended, should it end
        self._closed = False
        self.together = 1  # the images that the process takes together, as it said last

    def in_hand(self) -> int:
        return len(self._asked)

    def ask(self, frame: Frame, seconds: float, steps: list[Step] | None = None) -> Answer:
        """The answer to one frame. Cancelling it leaves the process to finish for nobody."""
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
        waiting, self._asked = self._asked, deque()
        self._warm.clear()
        for request in waiting:
            if request.answer.done():
                continue  # its caller has gone away
            self._warm_up(request.frame)
            self._add(request)

    async def close(self) -> None:
        self._closed = True
        if self._replacing is not None:
            self._replacing.cancel()
            await asyncio.gather(self._replacing, return_exceptions=True)
        self._unwatch()
        for request in self._asked:
            _settle(request, error=_stopping())
        self._asked.clear()
        if self._transport is not None:
            self._transport.close()
        await self._end()

    # --- What the connection tells ----------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= REPLY.size:
            (size,) = REPLY.unpack_from(self._received)
            if len(self._received) < REPLY.size + size:
                return
            document = json.loads(self._received[REPLY.size : REPLY.size + size])
            self._received = self._received[REPLY.size + size :]
            self._answered(document)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._received = b""
        if not self._closed:
            self._replacing = asyncio.ensure_future(self._replace())

    # --- Inside -----------------------------------------------------------------------------------

    def _warm_up(self, frame: Frame) -> None:
        """Have the frame's model loaded apart, so that it takes nothing of an image's time."""
        if frame.kind != LOAD and frame.name not in self._warm:
            self._add(_loading(frame.name))

    def _add(self, request: _Request) -> None:
        self._asked.append(request)
        self._warm.add(request.frame.name)
        if self._transport is not None:
            self._transport.writelines(request.frame.packed())
        if len(self._asked) == 1:
            self._watch()

    def _answered(self, document: dict[str, Any]) -> None:
        self._pause = FIRST_PAUSE
        request = self._asked.popleft()
        self._watch()
        self.together = document["together"]
        request.steps.extend(Step(*step) for step in document["steps"])
        if "error" in document:
            code, detail, cause = document["error"]
            error = ERRORS[code](detail)
            if cause:
                error.add_note(cause)  # for the log: the traceback of the other process
            _settle(request, error=error)
            return
        notes = enumerate(document["annotations"], start=1)
        found = tuple(Annotation(index, label, score) for index, (label, score) in notes)
        if not request.answer.done():
            request.answer.set_result(found)

    def _in_work(self) -> list[_Request]:
        """What the process may be working on: one request, or a group that it took together."""
        first, *others = list(islice(self._asked, GROUP))
        if first.frame.kind == LOAD or first.frame.alone:
            return [first]

        def beside(request: _Request) -> bool:
            frame = request.frame
            return frame.name == first.frame.name and frame.kind != LOAD and not frame.alone

        return [first, *takewhile(beside, others)]

    def _watch(self) -> None:
        """Give the first request its time from now on."""
        self._unwatch()
        if self._asked:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._asked[0].seconds, self._expired)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        """Too long over one image: nothing but its end stops a native decoder."""
        self._timer = None
        reason = f"The image took longer than {self._asked[0].seconds:g} s."
        if self._process is not None and self._transport is not None:
            self._reason = reason
            self._process.kill()  # and `connection_lost` follows
        else:
            _settle(self._asked.popleft(), error=ClassifierLost(reason))
            self._watch()

    async def _replace(self) -> None:
        """A new process, and what becomes of what the old one was working on."""
        self._unwatch()
        status = await self._end()
        reason, self._reason = self._reason, ENDED
        if self._asked:
            self._hold_to_account(self._in_work(), reason)
        log.error("classifier process ended", status=status, waiting=len(self._asked))
        while True:
            self._watch()
            await asyncio.sleep(self._pause)
            self._pause = min(2 * self._pause, LAST_PAUSE)
            try:
                await self.start()
            except OSError as error:
                log.error("classifier process not started", reason=str(error))
            else:
                return

    def _hold_to_account(self, in_work: list[_Request], reason: str) -> None:
        """Fail the one request that the process ended over; of several, each is tried alone.

        With a model that does not load, all fail that wait for it: that is not the images' doing,
        so nobody is blamed for it.
        """
        first = in_work[0]
        if len(in_work) > 1:
            for request in in_work:
                request.frame = request.frame._replace(alone=True)
            return
        _settle(first, error=ClassifierLost(reason))
        ended = [first]
        if first.frame.kind == LOAD:
            for request in self._asked:
                if request.frame.name == first.frame.name and request is not first:
                    _settle(request, error=Unavailable(f"The model was not loaded. {reason}"))
                    ended.append(request)
        self._asked = deque(each for each in self._asked if each not in ended)

    async def _end(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.kill()
        return await asyncio.to_thread(process.wait)


def spawn_process(settings: Settings, connection: socket.socket) -> Process:
    """The `Spawn` of a service: `worker.inference.process`, which inherits the socket."""
    descriptor = connection.fileno()
    command = [
        *(sys.executable, "-m", "worker.inference.process", str(descriptor)),
        *("--capacity", str(settings.loaded_models)),
        *("--max-pixels", str(settings.max_image_pixels)),
        *("--labels-per-image", str(settings.labels_per_image)),
    ]
    # Our own interpreter and numbers of our own settings.
    return subprocess.Popen(  # noqa: S603
        command, cwd=ROOT, pass_fds=[descriptor], stdin=subprocess.DEVNULL
    )


def _loading(name: bytes) -> _Request:
    """To load a model beforehand; should it fail, the image behind it hears why."""
    answer: Answer = asyncio.get_running_loop().create_future()
    answer.add_done_callback(_heard)
    return _Request(Frame(LOAD, name, b""), LOAD_SECONDS, answer)


def _heard(answer: Answer) -> None:
    if not answer.cancelled():
        answer.exception()


def _settle(request: _Request, *, error: Exception) -> None:
    if not request.answer.done():  # its caller may have gone away
        request.answer.set_exception(error)


def _stopping() -> Unavailable:
    return Unavailable("The worker is stopping.")
