"""Data sets: folders of images and scribbles, built-in scenes and the scribble simulator."""
