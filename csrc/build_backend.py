"""PEP 517 backend: setuptools', with one addition, a torch for the native code to build against.

pip builds in an isolated environment that hides the packages already installed. A torch that is
installed is the right one to build against (and 5 GB not downloaded twice), so it is made visible
again; only where there is none, torch becomes a build requirement. That keeps a plain
``pip install .`` enough to get native code.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from importlib import metadata

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)

OLDEST_TORCH = (2, 10)  # the first with every stable-ABI call that csrc/ makes


def _has_torch() -> bool:
    try:
        version = metadata.version("torch")
    except metadata.PackageNotFoundError:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) >= OLDEST_TORCH


# The isolated build runs the same interpreter, so "purelib" still names the outer environment.
# Appended, not prepended: the build's own packages win over the outer ones.
if not _has_torch():
    sys.path.append(sysconfig.get_path("purelib"))


def _build_requirements() -> list[str]:
    if _has_torch() or os.environ.get("BLPSEG_NATIVE") == "0":
        return []
    return ["torch>={}.{}".format(*OLDEST_TORCH)]


def get_requires_for_build_wheel(config_settings=None):
    return build_meta.get_requires_for_build_wheel(config_settings) + _build_requirements()


def get_requires_for_build_editable(config_settings=None):
    return build_meta.get_requires_for_build_editable(config_settings) + _build_requirements()
