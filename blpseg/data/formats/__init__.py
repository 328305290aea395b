"""Files of annotation programs: one module for each format, all give `blpseg.data.shapes`."""
