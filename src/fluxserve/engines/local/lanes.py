"""Threads that work beside the denoising: encoding before it, decoding after it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread

import torch

log = logging.getLogger(__name__)

Work = Callable[[], None]


class Lane:
    """One thread that does what it is given, in order; on a GPU in a stream of low priority."""

    def __init__(self, name: str, device: torch.device, threads: int) -> None:
        self._work: SimpleQueue[Work | None] = SimpleQueue()
        self._device = device
        self._threads = threads
        self._thread = Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what was given and end."""
        self._work.put(None)
        self._thread.join()

    def give(self, work: Work) -> None:
        """`work` handles its own errors."""
        self._work.put(work)

    def _run(self) -> None:
        if self._device.type == "cpu":
            torch.set_num_threads(self._threads)  # counted for each thread
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            # The lowest priority: the steps of everybody else come first.
            torch.cuda.set_stream(stream_of(self._device, priority=0))
        while (work := self._work.get()) is not None:
            try:
                work()
                if self._device.type == "cuda":
                    torch.cuda.current_stream().synchronize()
            except Exception:
                log.exception("%s: an error that nobody handled", self._thread.name)


def stream_of(device: torch.device, *, priority: int) -> torch.cuda.Stream:
    """A stream of its own; of two that wait, that with the lower number goes first."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device, priority=priority)  # type: ignore[no-untyped-call]
    return stream
