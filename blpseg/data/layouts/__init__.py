"""Layouts of known data sets; each module shows its folders as a tree."""

from blpseg.data.layouts.ade20k import S4ADE20K
from blpseg.data.layouts.base import Layout
from blpseg.data.layouts.cityscapes import S4CITYSCAPES
from blpseg.data.layouts.context import CONTEXT
from blpseg.data.layouts.folder import FolderLayout, read_classes
from blpseg.data.layouts.lookup import Files, Labels
from blpseg.data.layouts.scribblecoco import SCRIBBLECOCO
from blpseg.data.layouts.voc import S4PASCAL, VOC

LAYOUTS: dict[str, Layout] = {
    "folder": FolderLayout(),
    "voc": VOC,
    "context": CONTEXT,
    "s4pascal": S4PASCAL,
    "s4cityscapes": S4CITYSCAPES,
    "s4ade20k": S4ADE20K,
    "scribblecoco": SCRIBBLECOCO,
}

__all__ = ["LAYOUTS", "Files", "Labels", "Layout", "read_classes"]
