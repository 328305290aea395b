"""A local web page to draw scribbles on, with the segmentation in seconds: `blpseg draw`."""
