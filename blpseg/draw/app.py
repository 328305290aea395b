"""The routes of the page's server; paths follow the token, which `blpseg.draw.security` checks.

Images are named by their index in the folder's sorted list, never by a path.
"""

from __future__ import annotations

import errno
import gzip
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import sha256
from importlib.resources import files
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from blpseg.draw.colors import class_color
from blpseg.draw.events import Hub
from blpseg.draw.export import KINDS
from blpseg.draw.folder import Conflict, DrawFolder
from blpseg.draw.pictures import TILE_SIDE, VIEW_SIDE, Pictures
from blpseg.draw.scribbles import ScribbleStore
from blpseg.draw.security import Gate
from blpseg.draw.session import Segmenter, Session
from blpseg.draw.strokes import parse_edit
from blpseg.errors import UserError

_MAX_BODY = 32 << 20  # bytes; a patch of a 20-megapixel image has a fraction of it
_MAX_EDITS = 1000
_COLORS = 254
_PAGE = files("blpseg.draw").joinpath("page")
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_log = logging.getLogger(__name__)


class DrawApp:
    """The server's parts and its routes.

    Args:
        folder: The folder to draw on.
        make_segmenter: Makes a segmenter for a number of classes.
    """

    def __init__(self, folder: DrawFolder, make_segmenter: Callable[[int], Segmenter]) -> None:
        self.folder = folder
        self.store = ScribbleStore(folder)
        self.pictures = Pictures(folder)
        self.hub = Hub()
        self.session = Session(folder, self.store, make_segmenter, self.hub.publish)
        self._page = {
            item.name: item.read_bytes()
            for item in _PAGE.iterdir()
            if item.name.endswith(tuple(_TYPES))
        }

    def asgi(self, token: str, port: int) -> ASGIApp:
        """Return the application behind its `Gate`."""
        image = "/api/images/{index:int}"
        routes = [
            Route("/api/state", self.state),
            Route("/api/events", self.events),
            Route("/api/focus", self.focus, methods=["POST"]),
            Route("/api/classes", self.classes, methods=["POST"]),
            Route("/api/export", self.export, methods=["POST"]),
            Route("/api/export/cancel", self.cancel_export, methods=["POST"]),
            Route(image, self.image),
            Route(f"{image}/thumbnail", self.thumbnail),
            Route(f"{image}/view", self.view),
            Route(f"{image}/tiles/{{column:int}}/{{row:int}}", self.tile),
            Route(f"{image}/scribbles", self.scribbles),
            Route(f"{image}/labels", self.labels),
            Route(f"{image}/small_labels", self.small_labels),
            Route(f"{image}/hints", self.hints),
            Route(f"{image}/edits", self.edits, methods=["POST"]),
            Route("/", self.page_file),
            Route("/{name}", self.page_file),
        ]
        app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={
                HTTPException: _http_problem,
                UserError: _wrong,
                Conflict: _conflict,
                OSError: _disk,
                Exception: _bug,
            },
        )
        return Gate(app, token, port)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.hub.start()
        self.session.start()
        yield
        self.session.close()

    def page_file(self, request: Request) -> Response:
        """Send a file of the page."""
        name = request.path_params.get("name", "index.html")
        if name not in self._page:
            raise HTTPException(404, "There is no such page.")
        return Response(self._page[name], media_type=_TYPES["." + name.rpartition(".")[2]])

    def state(self, request: Request) -> Response:
        """Send what the page needs at its start."""
        drawn = self.folder.drawn
        return JSONResponse(
            {
                "folder": str(self.folder.root),
                "folder_id": sha256(str(self.folder.root).encode()).hexdigest()[:16],
                "images": [
                    {"name": name, "file": path.name, "drawn": name in drawn}
                    for name, path in zip(self.folder.names, self.folder.images, strict=True)
                ],
                "own_list": not self.folder.list_is_ours,
                "colors": [class_color(label) for label in range(_COLORS)],
                "view_side": VIEW_SIDE,
                "tile_side": TILE_SIDE,
                "status": self.session.status,
                "version": self.session.version,
                **self._class_state(),
            }
        )

    async def events(self, request: Request) -> Response:
        """Stream the events of `Hub`."""
        return StreamingResponse(self.hub.stream(), media_type="text/event-stream")

    async def focus(self, request: Request) -> Response:
        """Note which images are on the page."""
        body = await _json(request)
        visible = body.get("visible", [])
        indices = [body.get("image"), *(visible if isinstance(visible, list) else [None])]
        for index in indices:
            self._check_index(index)
        self.session.focus(indices[0], indices[1:])
        return JSONResponse({})

    async def classes(self, request: Request) -> Response:
        """Rename or add classes."""
        body = await _json(request)
        names, revision = body.get("classes"), body.get("revision")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError("classes: expected a list of names")
        await run_in_threadpool(self.folder.set_classes, names, revision)
        self.session.classes_changed()
        self.hub.publish({"type": "classes", **self._class_state()})
        return JSONResponse(self._class_state())

    async def export(self, request: Request) -> Response:
        """Start an export; its progress comes as events."""
        kinds = (await _json(request)).get("kinds")
        if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
            raise UserError(f"kinds: expected some of {', '.join(KINDS)}")
        self.session.start_export(kinds)
        return JSONResponse({}, status_code=202)

    async def cancel_export(self, request: Request) -> Response:
        """Stop the export."""
        self.session.cancel_export()
        return JSONResponse({}, status_code=202)

    def image(self, request: Request) -> Response:
        """Send the size and revision of an image."""
        scribbles = self.store.load(self._index(request))
        height, width = scribbles.labels.shape
        return JSONResponse({"width": width, "height": height, "revision": scribbles.revision})

    def thumbnail(self, request: Request) -> Response:
        """Send a small picture."""
        return _picture(self.pictures.thumbnail(self._index(request)))

    def view(self, request: Request) -> Response:
        """Send the picture, downsized if it is large."""
        return _picture(self.pictures.view(self._index(request)))

    def tile(self, request: Request) -> Response:
        """Send a part of the picture in full resolution."""
        column, row = request.path_params["column"], request.path_params["row"]
        try:
            return _picture(self.pictures.tile(self._index(request), column, row))
        except IndexError as error:
            raise HTTPException(404, "There is no such tile.") from error

    def scribbles(self, request: Request) -> Response:
        """Send the scribbles of an image."""
        scribbles = self.store.load(self._index(request))
        content = gzip.compress(scribbles.labels.tobytes(), 1)
        return _raw(content, scribbles.labels.shape, {"X-Revision": scribbles.revision})

    def labels(self, request: Request) -> Response:
        """Send the segmentation of an image."""
        result = self._result(request)
        return _raw(result.labels, result.shape, {"X-Version": str(result.version)})

    def small_labels(self, request: Request) -> Response:
        """Send the segmentation for a thumbnail."""
        result = self._result(request)
        return _raw(result.small_labels, result.small_shape, {"X-Version": str(result.version)})

    def hints(self, request: Request) -> Response:
        """Send where a scribble would teach most, 0 to 255."""
        result = self._result(request)
        return _raw(result.hints, result.shape, {"X-Version": str(result.version)})

    async def edits(self, request: Request) -> Response:
        """Apply edits to the scribbles of an image and save them."""
        body = await _json(request)
        edits = body.get("edits")
        if not isinstance(edits, list) or not 0 < len(edits) <= _MAX_EDITS:
            raise UserError(f"edits: expected a list of 1 to {_MAX_EDITS} edits")
        index = self._index(request)
        return await run_in_threadpool(self._save, index, body, [parse_edit(one) for one in edits])

    def _save(self, index: int, body: dict[str, Any], edits: list[Any]) -> Response:
        saved = self.store.apply(index, body.get("revision", ""), edits)
        drawn, notice = bool((saved.labels != 255).any()), None
        try:
            self.folder.set_drawn(index, drawn)
        except (OSError, UserError) as error:
            notice = f"The scribbles are saved, but splits/train.txt is not: {error}"
        if body.get("finished", True):
            self.session.scribbles_changed(index)
        self.hub.publish(
            {
                "type": "scribbles",
                "image": index,
                "revision": saved.revision,
                "drawn": drawn,
                "tab": body.get("tab"),
            }
        )
        return JSONResponse({"revision": saved.revision, "drawn": drawn, "notice": notice})

    def _class_state(self) -> dict[str, Any]:
        return {
            "classes": self.folder.classes,
            "classes_revision": self.folder.classes_revision,
        }

    def _result(self, request: Request) -> Any:
        result = self.session.result(self._index(request))
        if result is None:
            raise HTTPException(404, "This image is not segmented yet.")
        return result

    def _index(self, request: Request) -> int:
        return self._check_index(request.path_params["index"])

    def _check_index(self, index: Any) -> int:
        if not isinstance(index, int) or not 0 <= index < len(self.folder.images):
            raise HTTPException(404, "There is no such image.")
        return index


async def _json(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise HTTPException(415, "Expected JSON.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise HTTPException(413, f"Expected at most {_MAX_BODY >> 20} MiB.")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "Expected JSON.") from error
    if not isinstance(content, dict):
        raise HTTPException(400, "Expected a JSON object.")
    return content


def _picture(content: bytes) -> Response:
    media_type = "image/png" if content.startswith(b"\x89PNG") else "image/jpeg"
    headers = {"Cache-Control": "private, max-age=3600"}
    return Response(content, media_type=media_type, headers=headers)


def _raw(content: bytes, shape: tuple[int, ...], headers: dict[str, str]) -> Response:
    """Send a gzipped map [H, W] of bytes."""
    size = {"X-Height": str(shape[0]), "X-Width": str(shape[1])}
    return Response(
        content,
        media_type="application/octet-stream",
        headers={"Content-Encoding": "gzip", **size, **headers},
    )


def _problem(status: int, kind: str, text: str) -> Response:
    return JSONResponse({"error": text, "kind": kind}, status_code=status)


def _http_problem(request: Request, error: HTTPException) -> Response:
    return _problem(error.status_code, "request", error.detail)


def _wrong(request: Request, error: UserError) -> Response:
    return _problem(422, "wrong", str(error))


def _conflict(request: Request, error: Conflict) -> Response:
    return _problem(409, "conflict", str(error))


def _disk(request: Request, error: OSError) -> Response:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
    text = f"{str(error).rstrip('.')}."
    if full:
        return _problem(507, "disk", f"the disk is full. {text}")
    return _problem(500, "disk", text)


def _bug(request: Request, error: Exception) -> Response:
    _log.error("a request failed", exc_info=error)
    return _problem(500, "bug", f"The program failed: {error or type(error).__name__}")
