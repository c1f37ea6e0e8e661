"""Measures the memory of the processes of a stack while they work."""

import threading
from pathlib import Path

import psutil

PAUSE = 0.2  # seconds between two samples
MEBIBYTE = 2**20


class MemoryWatch(threading.Thread):
    """Peak resident memory in bytes, of each named process and of its largest child.

    Linux reports the peak of a process. Elsewhere it is the largest sample.
    """

    def __init__(self, processes: dict[str, int]) -> None:
        super().__init__(name="memory-watch", daemon=True)
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._over = threading.Event()
        self.peaks: dict[str, int] = {}
        self.children: dict[str, set[int]] = {name: set() for name in processes}

    def run(self) -> None:
        while not self._over.wait(PAUSE):
            self.look()

    def look(self) -> None:
        for name, process in self._processes.items():
            try:
                self._note(name, process)
                for child in process.children():
                    self.children[name].add(child.pid)
                    self._note(f"{name}'s children", child)
            except psutil.NoSuchProcess:
                continue

    def stop(self) -> None:
        self._over.set()
        self.join()
        self.look()

    def _note(self, name: str, process: psutil.Process) -> None:
        self.peaks[name] = max(self.peaks.get(name, 0), _peak(process))


def _peak(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status")
    try:
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return int(process.memory_info().rss)
