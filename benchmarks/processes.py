"""Measures and stops process trees."""

import signal
import subprocess

import psutil

STOP_SECONDS = 15.0


def family(pid: int) -> list[psutil.Process]:
    """A process and its descendants."""
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def family_memory(pid: int) -> float:
    """The megabytes of a process tree. Shared pages count once (PSS, Linux)."""
    total = 0
    for process in family(pid):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:  # a process that was forked for a task, and has ended
            continue
    return total / 1e6


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM, then SIGKILL to the processes that are left."""
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
    """Send SIGKILL to the whole tree. It stops the parents first, so none starts a replacement."""
    _kill(family(process.pid))
    process.wait()


def _kill(everyone: list[psutil.Process]) -> None:
    for each in everyone:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
