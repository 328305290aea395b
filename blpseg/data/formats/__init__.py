"""Files of annotation programs: one module per format; all return `blpseg.data.shapes`."""
