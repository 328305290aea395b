"""PASCAL VOC 2012 with scribbles: ScribbleSup's, drawn by people, or s4Pascal's, generated.

VOCdevkit/VOC2012/                       the root
  JPEGImages/NAME.jpg
  SegmentationClass/NAME.png             the official masks
  SegmentationClassAug/NAME.png          masks of the larger training set (SBD)
  ImageSets/Segmentation/{train,trainaug,val}.txt
VOCdevkit/scribble_annotation/           ScribbleSup, as its archive unpacks
  pascal_2012/NAME.xml
  pascal_2012_label/NAME.png             ... drawn by the authors' program
VOCdevkit/s4Pascal/scribble/VOCScribble_aug_auto/NAME.png

A mask of SegmentationClass goes before one of SegmentationClassAug: the latter may lack the void
outlines that scores leave out.
"""

from __future__ import annotations

from dataclasses import replace

from blpseg.data.layouts.listed import ListedLayout

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
)
VOC_CLASSES = tuple(_NAMES.split())

VOC = ListedLayout(
    VOC_CLASSES,
    scribbles=(
        "../scribble_annotation/pascal_2012_label",
        "../scribble_annotation/pascal_2012",
        "pascal_2012_scribble",
        "scribbles",
    ),
    masks=("SegmentationClass", "SegmentationClassAug"),
    train_split="trainaug",
)

S4PASCAL = replace(
    VOC,
    scribbles=tuple(
        f"{place}scribble/VOCScribble_aug_auto" for place in ("../s4Pascal/", "s4Pascal/", "")
    ),
)
