"""Stopping a training run between two iterations, when the system asks for it."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class TrainingStopped(Exception):  # noqa: N818, nothing went wrong
    """A training run was asked to stop, and its state is saved. The message says how it goes on."""


class StopRequest:
    """Notes SIGTERM while it is entered, instead of dying of it.

    Batch systems send it some time before they kill. Only the main thread can listen to signals;
    in others nothing is noted.
    """

    def __init__(self) -> None:
        self.made = False

    def __enter__(self) -> StopRequest:
        self._listens = threading.current_thread() is threading.main_thread()
        if self._listens:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        if self._listens:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.made = True


def outlive_sigterm(worker: int) -> None:
    """Let a loader process leave SIGTERM, which often goes to all processes, to the training one.

    Args:
        worker: Number of the loader process, as `worker_init_fn` is told.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
