"""The public functions, one file an op: checks, dispatch, and what torch must know of the op."""
