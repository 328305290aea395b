"""Let only the page itself speak to the server.

Any web page that the user visits can send requests to 127.0.0.1, and a domain of an attacker can
resolve to it. Four checks stop them: the address begins with a secret token, the Host header is
this server's, the Origin header is this server's, and no answer allows another origin.
"""

from __future__ import annotations

import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Gate:
    """ASGI middleware that refuses what does not come from the page.

    Args:
        app: The application; it sees paths without the token.
        token: The secret that the address begins with.
        port: The port of the server.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self.app = app
        self._token = token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        if port == 80:
            self._hosts |= {"127.0.0.1", "localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"expected HTTP, got {scope['type']}")
        refusal = self._refusal(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        if refusal is not None:
            answer = PlainTextResponse(refusal + "\n", status_code=403)
            await answer(scope, receive, send_with_headers)
            return
        rest = "/" + scope["path"].partition("/")[2].partition("/")[2]
        await self.app({**scope, "path": rest, "root_path": ""}, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._hosts:
            return "Refused: the Host header is not the address of this server."
        origin = headers.get("origin")
        if origin is None and scope["method"] not in ("GET", "HEAD"):
            return "Refused: requests that change something need an Origin header."
        if origin is not None and origin != f"http://{host}":
            return "Refused: the request comes from another origin."
        token = scope["path"].split("/")[1] if "/" in scope["path"] else ""
        if not secrets.compare_digest(token.encode(), self._token.encode()):
            return "Open the address that blpseg draw printed on its terminal; it holds a token."
        opened_by_link = (
            scope["path"] == f"/{token}/" and headers.get("sec-fetch-dest") == "document"
        )
        site = headers.get("sec-fetch-site", "same-origin")
        if site not in ("same-origin", "none") and not opened_by_link:
            return "Refused: the request comes from another site."
        return None
