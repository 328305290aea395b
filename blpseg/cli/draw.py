"""Draw scribbles in the browser and see the segmentation in seconds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from blpseg.cli.arguments import make_parser
from blpseg.errors import UserError

_DESCRIPTION = f"""\
{__doc__}

FOLDER holds images, in FOLDER/images or directly. Scribbles are saved while you draw, as \
FOLDER/scribbles/NAME.png and FOLDER/classes.txt, so that `blpseg train FOLDER` can train on them. \
Nothing outside FOLDER is written.

The page is served on 127.0.0.1 only, and its address holds a secret token. Ctrl-C stops the \
program."""


def run(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    parser = make_parser("draw", "FOLDER [--classes=[a,b,...]] [--key=value ...]", _DESCRIPTION)
    parser.add_argument("folder", type=Path, help="Folder with images.")
    parser.add_argument(
        "--classes",
        type=list[str] | None,
        default=None,
        help="Class names for a folder without classes.txt; more can be added on the page. "
        "Default: background, object.",
    )
    parser.add_argument("--port", type=int, default=8765, help="Port of the page; 0: any free one.")
    parser.add_argument("--browser", type=bool, default=True, help="Open the page in a browser.")
    parser.add_argument(
        "--backbone",
        default="tf_efficientnet_lite0",
        help="timm name of the network that computes the features.",
    )
    options = parser.parse(argv)

    try:
        from blpseg.draw.app import DrawApp
        from blpseg.draw.server import bind, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UserError(
            f"blpseg draw needs the package {error.name}; pip install 'blpseg[draw]' installs it"
        ) from error
    from blpseg.draw.folder import DrawFolder
    from blpseg.draw.session import Segmenter
    from blpseg.draw.working_copy import WORKING_SIDE

    def make_segmenter(num_classes: int) -> Segmenter:
        from blpseg import ScribbleSegmenter  # takes seconds, in the segmenter's thread

        return ScribbleSegmenter(num_classes, options.backbone, max_side=WORKING_SIDE)

    # People draw one class after the other, and the page shows which have scribbles.
    warnings.filterwarnings("ignore", "no scribbles of class", UserWarning)
    folder = DrawFolder(options.folder, options.classes)
    listener = bind(options.port)

    def announce(address: str) -> None:
        count = len(folder.images)
        print(f"{count} image{'' if count == 1 else 's'} of {folder.root}")
        print(f"Draw at {address}")
        print("Ctrl-C stops the program; every stroke is saved as you draw it.", flush=True)

    app = DrawApp(folder, make_segmenter)
    with suppress(KeyboardInterrupt):
        serve(app, listener, open_browser=options.browser, announce=announce)
    print(f"\nStopped. The scribbles are in {folder.root / 'scribbles'}.")
    return 0
