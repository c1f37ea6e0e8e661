"""Pauses the garbage collector while the main module of a process imports other modules.

What imports create stays as long as the process. Without a pause, the collector scans it again and
again, which takes a tenth of the CPU time of a start.
"""

import gc


def begin_gc_pause() -> None:
    gc.disable()


def end_gc_pause() -> None:
    """Collect garbage from now on, without the objects that exist already.

    A full collection would visit all of them, and pause an event loop for 50 ms:
    https://docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.freeze()
    gc.enable()
