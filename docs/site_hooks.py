"""mkdocs hooks: show the notebook as a page, and adapt what is written for other readers.

Links to files outside docs/ work in a checkout; on the site they become plain text. Sphinx roles
such as :func: serve editors; the site drops them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROLE = re.compile(r":(?:func|meth|mod|class):(?=<code>)")
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:\s]+)(?:#[^)]*)?\)")
NOTEBOOK = "tutorial.ipynb"


def on_files(files: Any, *, config: Any) -> Any:
    """Add the notebook as a page; its file stays, for download."""
    notebook = json.loads((Path(config.docs_dir) / NOTEBOOK).read_text())
    page = File.generated(config, NOTEBOOK.replace(".ipynb", ".md"), content=to_markdown(notebook))
    files.append(page)
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Rewrite a page's links; mkdocs calls this for every page."""
    docs = Path(config.docs_dir).resolve()
    folder = docs / Path(page.file.src_uri).parent

    def inside(link: re.Match[str]) -> str:
        path = (folder / link[2]).resolve()
        return link[1] if path.exists() and not path.is_relative_to(docs) else link[0]

    return LINK.sub(inside, markdown).replace(f"({NOTEBOOK})", "(tutorial.md)")


def on_page_content(html: str, **_: Any) -> str:
    """Drop Sphinx roles; mkdocs calls this for every rendered page."""
    return ROLE.sub("", html)


def to_markdown(notebook: dict[str, Any]) -> str:
    """Turn a notebook with its stored outputs into markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        language = "python"
        if source.startswith("%%bash\n"):
            language, source = "bash", source.removeprefix("%%bash\n")
        parts.append(f"```{language}\n{source}\n```")
        parts += [_output(output) for output in cell["outputs"]]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        encoded = "".join(data["image/png"]).replace("\n", "")
        return f'<img alt="output" src="data:image/png;base64,{encoded}">'
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```"
