"""Kernels in Triton; importing a module here registers its operators."""
