"""Serve the page on 127.0.0.1."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from types import FrameType

import uvicorn

from blpseg.draw.app import DrawApp
from blpseg.errors import UserError

ADDRESS = "127.0.0.1"


class PageServer(uvicorn.Server):
    """A server that ends the pages' event streams when it is told to stop."""

    def __init__(self, app: DrawApp, token: str, port: int) -> None:
        self.draw_app = app
        super().__init__(
            uvicorn.Config(
                app.asgi(token, port),
                log_level="warning",
                access_log=False,
                ws="none",
                server_header=False,
                timeout_graceful_shutdown=2,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop on Ctrl-C and SIGTERM."""
        self.draw_app.hub.close()
        super().handle_exit(sig, frame)


def bind(port: int) -> socket.socket:
    """Listen on a port of 127.0.0.1; 0 takes any free one.

    Raises:
        UserError: The port is in use or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if sys.platform != "win32":  # a program that was just ended may be started again
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
        listener.listen(64)
    except (OSError, OverflowError) as error:
        listener.close()
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(
                f"--port: {port} is in use, perhaps by another blpseg draw; choose another, e.g. "
                f"--port={port + 1}, or --port=0 for any free one"
            ) from error
        raise UserError(f"--port: cannot listen on {port} ({error})") from error
    return listener


def serve(
    app: DrawApp,
    listener: socket.socket,
    *,
    open_browser: bool = False,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until Ctrl-C or SIGTERM.

    Args:
        app: The application.
        listener: Socket of `bind`.
        open_browser: Open the page in the user's browser.
        announce: Called with the address, which holds the token.
    """
    port = listener.getsockname()[1]
    token = secrets.token_urlsafe(24)
    address = f"http://{ADDRESS}:{port}/{token}/"
    announce(address)
    if open_browser and _has_display():
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    PageServer(app, token, port).run(sockets=[listener])


def _has_display() -> bool:
    # Without one, webbrowser would start a text browser in this terminal.
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
