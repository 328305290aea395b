"""The public functions, one file per op: checks, dispatch and registration with torch."""
