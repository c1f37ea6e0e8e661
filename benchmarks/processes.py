"""Process trees: their memory, and their end."""

import signal
import subprocess

import psutil

STOP_SECONDS = 15.0


def family(pid: int) -> list[psutil.Process]:
    """A process and all that descend from it."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def family_memory(pid: int) -> float:
    """Megabytes of a process tree, pages that several share counted once (PSS, Linux)."""
    total = 0
    for process in family(pid):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:  # one that was forked for a task that is over
            continue
    return total / 1e6


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, then SIGKILL for whoever of the tree is left."""
    if process.poll() is not None:
        return
    everyone = family(process.pid)
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _kill(everyone[1:])


def kill(process: "subprocess.Popen[bytes]") -> None:
    """`kill -9` of the whole tree: nobody can say goodbye, or start another in their place."""
    _kill(family(process.pid))
    process.wait()


def _kill(everyone: list[psutil.Process]) -> None:
    for each in everyone:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
