"""Kernels in Triton. Importing a module here registers its operators; only backends.py does so."""
