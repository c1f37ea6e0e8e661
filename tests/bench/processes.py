"""The processes of a stack: their settings, processor time and memory."""

import contextlib
import threading
import time
from typing import Self

import psutil

from tests.support.stack import Stack

SAMPLE_SECONDS = 0.05


def family(pid: int) -> list[psutil.Process]:
    """A process and its children."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def processor_seconds(stack: Stack) -> dict[str, float]:
    """User and system seconds of each process of the stack, with its children so far."""
    return {
        name: sum(_seconds(each) for each in family(process.pid))
        + sum(psutil.Process(process.pid).cpu_times()[2:4])
        for name, process in stack.processes.items()
    }


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class WorkerWatch:
    """Samples the worker and its children in a thread, while the context is open.

    `usual` and `peak` are their memory in bytes, before and at most, where each page that several
    processes share counts once (PSS). `fit_began` is when the process of a fit was first seen, in
    `time.perf_counter` seconds, and `fit_seconds` its processor time.
    """

    def __init__(self, stack: Stack) -> None:
        self._pid = stack.processes["worker"].pid
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._fits: set[int] = set()
        self._known: set[int] = set()
        self.usual = self.peak = 0
        self.fit_began = 0.0
        self.fit_seconds = 0.0

    def __enter__(self) -> Self:
        self.usual = self._sample()
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> int:
        used = 0
        for process in family(self._pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                used += process.memory_full_info().pss
                if self._fits_model(process):
                    self.fit_began = self.fit_began or time.perf_counter()
                    self.fit_seconds = max(self.fit_seconds, _seconds(process))
        self.peak = max(self.peak, used)
        return used

    def _fits_model(self, process: psutil.Process) -> bool:
        # A new child has the command of its parent until it starts its own.
        if process.pid not in self._known and time.time() - process.create_time() > 0.1:
            self._known.add(process.pid)
            if "worker.training.process" in process.cmdline():
                self._fits.add(process.pid)
        return process.pid in self._fits
