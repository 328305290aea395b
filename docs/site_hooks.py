"""mkdocs hooks for what is written for other readers than the site's.

Links to files of the repository outside docs/ work in a checkout; here they become their text.
Roles such as :func: are Sphinx's, and editors'; here they go.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROLE = re.compile(r":(?:func|meth|mod|class):(?=<code>)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(?:#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Called by mkdocs for every page."""
    docs = Path(config.docs_dir).resolve()
    folder = Path(page.file.abs_src_path).parent

    def inside(link: re.Match[str]) -> str:
        path = (folder / link[2]).resolve()
        return link[1] if path.exists() and not path.is_relative_to(docs) else link[0]

    return LINK.sub(inside, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Called by mkdocs for every rendered page."""
    return ROLE.sub("", html)
