"""Send events from any thread to every open page."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

_HEARTBEAT = 10.0  # seconds; a page that hears nothing for longer knows that the program died


class Hub:
    """Server-sent events for the pages that are open."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[dict[str, Any] | None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Use the running event loop."""
        self._loop = asyncio.get_running_loop()

    def publish(self, event: dict[str, Any]) -> None:
        """Send an event to every page; call it from any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._put, event)

    def close(self) -> None:
        """End all streams; call it from the event loop's thread or from a signal handler."""
        self._put(None)

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield the events for one page until it leaves or `close` is called."""
        queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._queues.add(queue)
        self._tell_count()
        try:
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), _HEARTBEAT)
                except asyncio.TimeoutError:
                    yield b'data: {"type": "alive"}\n\n'
                    continue
                if event is None:
                    return
                yield f"data: {json.dumps(event)}\n\n".encode()
        finally:
            self._queues.discard(queue)
            self._tell_count()

    def _tell_count(self) -> None:
        self._put({"type": "tabs", "count": len(self._queues)})

    def _put(self, event: dict[str, Any] | None) -> None:
        for queue in self._queues:
            queue.put_nowait(event)
