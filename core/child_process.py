"""Ends a child process with its parent, and restricts its privileges and memory."""

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
from functools import cache

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # prctl(2)
_TRY_SECONDS = 10.0
# The search paths of the dynamic loader. Without them, an interpreter in an unusual folder, or the
# libraries of a GPU, may not be found.
_LIBRARY_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


def end_with_parent(number: int = signal.SIGTERM) -> None:
    """Call this in the child: the kernel sends it the signal when its parent ends (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def restrict_process(address_space: int) -> None:
    """Call this in a child that reads files of strangers. Linux only, except for the core dumps.

    The process can gain no privileges, not even by a program with the set-user-ID bit
    (`no_new_privs`). It can map at most `address_space` bytes (RLIMIT_AS), and leaves no core dump,
    which would contain images.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        address_space = min(address_space, hard)
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def bare_environment() -> dict[str, str]:
    """The environment of a child that reads files of strangers: only where libraries are."""
    return {name: os.environ[name] for name in _LIBRARY_PATHS if name in os.environ}


@cache
def without_network() -> tuple[str, ...]:
    """The beginning of a command that runs without a network; empty if that is impossible. Blocks.

    The child gets a network namespace of its own, which has no interface, by `unshare` of
    util-linux. That needs user namespaces, which some kernels and containers forbid.
    """
    unshare = shutil.which("unshare") if sys.platform == "linux" else None
    if unshare is None:
        return ()
    command = (unshare, "--user", "--map-current-user", "--net")
    try:
        # The command is constant.
        done = subprocess.run(  # noqa: S603
            [*command, sys.executable, "-c", ""],
            env=bare_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRY_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return command if done.returncode == 0 else ()
