"""ScribbleCOCO: COCO 2014 with simulated scribbles, as its authors lay it out.

ScribbleCOCO/                            the root
  JPEGImages/NAME.jpg
  SegmentationClassAug/NAME.png
  ImageSets/SegmentationAug/{train,val}.txt
  coco2014_train_scribble_r1/NAME.png    and r2, r3: data.scribbles names another than r1

0 is background, 1 to 80 are COCO's classes in the order of their category ids, 255 is unlabeled in
scribbles and void in masks.
"""

from __future__ import annotations

from blpseg.data.layouts.listed import ListedLayout

_NAMES = (
    "background,person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,"
    "fire hydrant,stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,"
    "giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,"
    "baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,"
    "knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,"
    "couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,"
    "microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
)
COCO_CLASSES = tuple(_NAMES.split(","))

SCRIBBLECOCO = ListedLayout(
    COCO_CLASSES,
    scribbles=("coco2014_train_scribble_r1",),
    masks=("SegmentationClassAug",),
    lists="ImageSets/SegmentationAug",
)
