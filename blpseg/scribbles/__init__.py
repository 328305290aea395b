"""What `blpseg scribbles` does: one module for each of its commands."""
