"""SIGTERM: the run finishes the iteration, saves and exits 143."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """Record SIGTERM while the context is entered, instead of ending the process.

    Batch systems send SIGTERM some time before they kill. Python delivers signals to the main
    thread only; entered in another thread, this records nothing.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopRequest:
        self._installed = threading.current_thread() is threading.main_thread()
        if self._installed:
            self._previous_handler = signal.signal(signal.SIGTERM, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        if self._installed:
            signal.signal(signal.SIGTERM, self._previous_handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.requested = True


def ignore_sigterm(worker: int) -> None:
    """Ignore SIGTERM in a data-loader worker; the training process handles it.

    Batch systems often signal all processes of a job. A worker that died would end the run before
    it is saved.

    Args:
        worker: Index of the worker, as `worker_init_fn` passes it.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
