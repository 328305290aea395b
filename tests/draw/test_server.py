"""The server: who may speak to it, what it refuses, and how it ends."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from blpseg.cli import main
from blpseg.draw.security import HEADERS

from ._program import TOKEN, Running, running

STROKE = {"kind": "stroke", "points": [[5, 5], [50, 9]], "radius": 2, "label": 1}


@pytest.fixture
def client(program: Running) -> Iterator[httpx.Client]:
    """Return a client that behaves as the page does."""
    with httpx.Client(base_url=program.address, headers={"Origin": program.root}) as client:
        client.get("")  # the server is up
        yield client


def edit(client: httpx.Client, image: int = 0, **changes: Any) -> httpx.Response:
    body = {"revision": "none", "edits": [STROKE]} | changes
    return client.post(f"api/images/{image}/edits", json=body)


def test_page_is_served_with_its_files(client: httpx.Client) -> None:
    page = client.get("")
    assert "<title>blpseg draw</title>" in page.text
    for name, content_type in (
        ("main.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
    ):
        answer = client.get(name)
        assert answer.status_code == 200 and answer.headers["content-type"] == content_type
        assert HEADERS.items() <= {name: answer.headers.get(name) for name in HEADERS}.items()
        assert "access-control-allow-origin" not in answer.headers


def test_page_names_no_other_address() -> None:
    import re
    from importlib.resources import files

    for file in files("blpseg.draw").joinpath("page").iterdir():
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text())
        assert set(found) <= {"http://www.w3.org"}, file.name  # SVG's namespace, never fetched


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/wrong/", {}),
        (f"/{TOKEN}x/api/state", {}),
        (f"/{TOKEN}/api/state", {"Host": "evil.example"}),
        (f"/{TOKEN}/api/state", {"Host": "evil.example:{port}"}),
        (f"/{TOKEN}/api/state", {"Origin": "http://evil.example"}),
        (f"/{TOKEN}/api/state", {"Origin": "null"}),
        (f"/{TOKEN}/api/state", {"Origin": "http://localhost:{port}"}),
        (f"/{TOKEN}/api/state", {"Sec-Fetch-Site": "cross-site"}),
        (f"/{TOKEN}/api/images/0/view", {"Sec-Fetch-Site": "same-site"}),
        (f"/{TOKEN}/", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "iframe"}),
    ],
)
def test_strangers_read_nothing(
    program: Running, client: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    headers = {name: value.format(port=program.port) for name, value in headers.items()}
    answer = httpx.get(program.root + path, headers=headers)
    assert answer.status_code == 403 and "disc0" not in answer.text


def test_a_link_may_open_the_page(program: Running, client: httpx.Client) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
    assert httpx.get(program.address, headers=headers).status_code == 200


@pytest.mark.parametrize("origin", [None, "http://evil.example", "http://127.0.0.1:1"])
def test_strangers_change_nothing(
    program: Running, client: httpx.Client, root: Path, origin: str | None
) -> None:
    answer = httpx.post(
        f"{program.address}api/images/0/edits",
        json={"revision": "none", "edits": [STROKE]},
        headers={} if origin is None else {"Origin": origin},
    )
    assert answer.status_code == 403 and not (root / "scribbles").exists()


def test_forms_change_nothing(client: httpx.Client, root: Path) -> None:
    """A form of another site can post text without asking, but no JSON."""
    body = '{"revision": "none", "edits": []}'
    answer = client.post("api/images/0/edits", content=body, headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415 and not (root / "scribbles").exists()


@pytest.mark.parametrize(
    "path",
    [
        "../fruit/classes.txt",
        "..%2f..%2fapp.py",
        "%2e%2e/app.py",
        "app.py",
        "api/images/..%2f0/view",
        "api/images/3/view",
        "api/images/-1/view",
        "api/images/0/tiles/9/9",
        "api/images/0/labels",
    ],
)
def test_paths_lead_nowhere_else(program: Running, client: httpx.Client, path: str) -> None:
    with socket.create_connection(("127.0.0.1", program.port)) as raw:  # httpx would tidy the path
        request = f"GET /{TOKEN}/{path} HTTP/1.0\r\nHost: 127.0.0.1:{program.port}\r\n\r\n"
        raw.sendall(request.encode())
        status = raw.makefile("rb").readline().split()[1]
    assert status in (b"404", b"403")


def test_strokes_are_saved_and_read_back(client: httpx.Client, root: Path) -> None:
    saved = edit(client).json()
    assert saved["drawn"] and saved["notice"] is None
    answer = client.get("api/images/0/scribbles")
    assert answer.headers["X-Revision"] == saved["revision"]
    labels = np.frombuffer(answer.content, np.uint8).reshape(120, 160)
    with Image.open(root / "scribbles" / "disc0.png") as file:
        assert np.array_equal(labels, np.asarray(file))
    assert edit(client).status_code == 409
    again = edit(client, revision=saved["revision"], edits=[STROKE | {"label": 0}])
    assert again.status_code == 200 and again.json()["revision"] != saved["revision"]


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({"edits": []}, 422, "edits: expected a list of 1 to 1000 edits"),
        ({"edits": [STROKE, {"kind": "?"}]}, 422, "kind: expected"),
        ({"edits": [STROKE, STROKE | {"label": 2}]}, 422, "expected a class 0 to 1"),
        ({"image": 7}, 404, "There is no such image"),
    ],
)
def test_wrong_edits_change_nothing(
    client: httpx.Client, root: Path, changes: dict[str, Any], status: int, text: str
) -> None:
    answer = edit(client, **changes)
    assert answer.status_code == status and text in answer.json()["error"]
    assert not (root / "scribbles").exists()


def test_huge_body_is_refused(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blpseg.draw.app._MAX_BODY", 1000)
    assert edit(client, edits=[STROKE] * 100).status_code == 413


def test_full_disk_is_told(
    client: httpx.Client, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    answer = edit(client)
    assert answer.status_code == 507 and "No space left on device" in answer.json()["error"]
    monkeypatch.undo()
    assert edit(client).status_code == 200


def test_list_that_cannot_be_written_is_a_notice(
    client: httpx.Client, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "splits" / "train.txt.part").mkdir(parents=True)
    answer = edit(client)
    assert answer.status_code == 200
    assert "The scribbles are saved, but splits/train.txt is not" in answer.json()["notice"]


def test_classes_of_one_name_are_refused(client: httpx.Client) -> None:
    revision = client.get("api/state").json()["classes_revision"]
    body = {"classes": ["object", "object"], "revision": revision}
    answer = client.post("api/classes", json=body)
    assert answer.status_code == 422 and 'a class "object" already' in answer.json()["error"]
    body = {"classes": ["ground", "fruit", "leaf"], "revision": revision}
    assert client.post("api/classes", json=body).json()["classes"] == ["ground", "fruit", "leaf"]
    assert client.post("api/classes", json=body).status_code == 409


def test_unreadable_image_is_named(root: Path) -> None:
    (root / "images" / "disc1.png").write_bytes(b"no image")
    with running(root) as program, httpx.Client(base_url=program.address) as client:
        for part in ("", "/view", "/thumbnail", "/scribbles"):
            answer = client.get(f"api/images/1{part}")
            assert answer.status_code == 422 and "disc1.png" in answer.json()["error"]
        assert client.get("api/images/0/view").status_code == 200


def test_image_of_20_megapixels(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    picture = Image.linear_gradient("L").resize((5480, 3650))
    picture.save(tmp_path / "large" / "field.jpg")
    with (
        running(tmp_path / "large") as program,
        httpx.Client(base_url=program.address, headers={"Origin": program.root}) as client,
    ):
        view = client.get("api/images/0/view").content
        assert max(_open(view).size) == 2048 and len(view) < 2e6
        assert _open(client.get("api/images/0/tiles/5/3").content).size == (360, 578)
        stroke = STROKE | {"points": [[5400, 3600]], "radius": 20}
        assert edit(client, edits=[stroke]).status_code == 200
    with Image.open(tmp_path / "large" / "scribbles" / "field.png") as file:
        assert file.size == (5480, 3650) and file.getpixel((5400, 3600)) == 1


def _open(content: bytes) -> Image.Image:
    import io

    return Image.open(io.BytesIO(content))


def test_port_in_use_is_told(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["draw", str(root), f"--port={port}"]) == 2
    message = capsys.readouterr().err
    assert f"--port: {port} is in use, perhaps by another blpseg draw; choose another" in message


def test_missing_package_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    for name in [name for name in sys.modules if name.startswith(("blpseg.draw", "uvicorn"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["draw", str(root)]) == 2
    assert "needs the package uvicorn; pip install 'blpseg[draw]'" in capsys.readouterr().err
