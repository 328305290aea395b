"""The commands of `blpseg scribbles`, one module per command."""
