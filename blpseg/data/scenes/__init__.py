"""The built-in data set: procedural scenes with exact masks, any number of them from a seed.

A scene is a stack of layers painted back to front: a backdrop, clutter (background by definition),
a few objects, and thin blades of grass in front. Every layer takes its texture from one shared
bank, and the classes' hues overlap, so neither texture nor color alone tells the class.
"""

from blpseg.data.scenes.painting import CLASSES, Scene, render_scene
from blpseg.data.scenes.writing import write_scenes

__all__ = ["CLASSES", "Scene", "render_scene", "write_scenes"]
