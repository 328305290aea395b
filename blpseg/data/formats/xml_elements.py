"""Read untrusted XML into elements that know their line.

Python's parser (expat) reports lines, which ElementTree drops. Entities make untrusted XML
dangerous: nested ones expand without bound, external ones read other files. Scribble files need
none, so a file that declares one is refused, as defusedxml does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from blpseg.data.images import MAX_PIXELS
from blpseg.errors import UserError


@dataclass
class Element:
    """An element with its attributes, children and text."""

    tag: str
    attributes: dict[str, str]
    file: Path
    line: int
    children: list[Element] = field(default_factory=list)
    text: str = ""

    @property
    def where(self) -> str:
        """FILE:LINE, for messages."""
        return f"{self.file}:{self.line}"

    def all(self, tag: str) -> Iterator[Element]:
        """Iterate over the children with a tag."""
        return (child for child in self.children if child.tag == tag)

    def within(self, tag: str) -> Iterator[Element]:
        """Iterate over the descendants with a tag, in the order of the file."""
        for child in self.children:
            if child.tag == tag:
                yield child
            yield from child.within(tag)

    def first(self, tag: str) -> Element:
        """Return the first child with a tag.

        Raises:
            UserError: There is no such child.
        """
        for child in self.all(tag):
            return child
        raise UserError(f"{self.where}: expected <{tag}> in <{self.tag}>, found none")

    def attribute(self, name: str) -> str:
        """Return an attribute.

        Raises:
            UserError: The attribute is missing.
        """
        if name not in self.attributes:
            raise UserError(f"{self.where}: expected the attribute {name} in <{self.tag}>")
        return self.attributes[name]

    def number(self) -> float:
        """Return the text as a number.

        Raises:
            UserError: The text is not a finite number.
        """
        return parse_number(self.text, f"<{self.tag}>", self.where)


def parse_number(text: str, what: str, where: str) -> float:
    """Turn text into a finite number.

    Raises:
        UserError: The text is not a finite number.
    """
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise UserError(f"{where}: expected {what} to be a number, got {text.strip()!r}")
    return number


def parse_size(width: float, height: float, where: str) -> tuple[int, int]:
    """Check the width and height of an image.

    Raises:
        UserError: They are not whole numbers above 0, or make more pixels than Pillow accepts.
    """
    if not (width >= 1 and height >= 1 and width % 1 == height % 1 == 0):
        raise UserError(
            f"{where}: expected a width and height of whole pixels, got {width:g} x {height:g}"
        )
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{where}: expected at most {MAX_PIXELS} pixels, got {width:.0f} x {height:.0f}"
        )
    return int(width), int(height)


def read_xml(path: Path) -> Element:
    """Read a file and return its outermost element.

    Raises:
        UserError: The file cannot be read, is not well-formed, or declares entities; the message
            names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return parse_xml(content, path)


def parse_xml(content: bytes, path: Path) -> Element:
    """Turn XML into its outermost element.

    Args:
        content: The XML.
        path: Where it comes from, for messages.

    Raises:
        UserError: The content is not well-formed, or declares entities; the message names the line.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    top = Element("", {}, path, 0)
    open_elements = [top]

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, path, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(tag: str) -> None:
        open_elements.pop()

    def text(data: str) -> None:
        open_elements[-1].text += data

    def entity(name: str, *declaration: object) -> NoReturn:
        raise UserError(
            f"{path}:{parser.CurrentLineNumber}: declares the entity {name!r}; expected a file "
            "without entities, which can expand without bound"
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise UserError(f"{path}:{error.lineno}: expected well-formed XML ({reason})") from error
    return top.children[0]
