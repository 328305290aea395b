"""Load the native kernels at import; record why one failed to load.

``blpseg_ops._C`` (CPU kernels), ``libblpseg_cuda.so`` and ``blpseg_ops.triton`` register their
kernels with torch's dispatcher when they are loaded. An op without a kernel runs its fallback. The
first such call warns and names the cause; ``python -m blpseg_ops`` prints all causes.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from blpseg_ops import _schemas  # noqa: F401  (kernels attach to the schemas)

if TYPE_CHECKING:
    from blpseg_ops._C import BuildInfo

PACKAGE = Path(__file__).parent
CUDA_LIBRARY = PACKAGE / "libblpseg_cuda.so"


def _read_report() -> dict[str, str | None]:
    """Return what setup.py recorded about the build; empty if blpseg_ops was never installed."""
    try:
        report: dict[str, str | None] = json.loads((PACKAGE / "_native_build.json").read_text())
    except FileNotFoundError:
        return {}
    return report


def _load_cpu() -> str | None:
    """Load the CPU kernels; return why they are missing, or None."""
    report = _read_report()
    if not report:
        return "blpseg was not installed, so its native code was never built"
    if report["cpu"] is not None:
        return report["cpu"]
    try:
        importlib.import_module("blpseg_ops._C")
    except ImportError as error:
        return f"built, but it does not load: {error}"
    return None


def _load_cuda() -> str | None:
    """Load the CUDA kernels if torch has CUDA; return why they are missing, or None."""
    if CPU_PROBLEM is not None:
        return CPU_PROBLEM
    problem = _read_report()["cuda"]
    if problem is not None:
        return problem
    if not torch.backends.cuda.is_built():
        return f"built, but not loaded: {_no_cuda()}"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
    except OSError as error:
        return f"built, but it does not load: {error}"
    return None


def _load_triton() -> str | None:
    """Load the Triton kernels if torch has CUDA; return why they are missing, or None."""
    if not torch.backends.cuda.is_built():  # also true of a torch for AMD GPUs
        return f"not loaded: {_no_cuda()}"
    try:
        for operator in ("lam", "lam_two_grids"):
            importlib.import_module(f"blpseg_ops.triton.{operator}")
    except ImportError as error:
        return f"Triton does not load: {error}"
    return None


def _no_cuda() -> str:
    return f"this torch ({torch.__version__}) is built without CUDA"


CPU_PROBLEM: str | None = _load_cpu()
CUDA_PROBLEM: str | None = _load_cuda()
TRITON_PROBLEM: str | None = _load_triton()


def build_info() -> BuildInfo | None:
    """Return how the native code was built (``blpseg_ops._C.build_info``), or None without it."""
    if CPU_PROBLEM is not None:
        return None
    from blpseg_ops import _C

    return _C.build_info()


def cpu_capability() -> str:
    """Return the capability in use ("avx512", "avx2", "portable"), or "none" without kernels."""
    if CPU_PROBLEM is not None:
        return "none"
    from blpseg_ops import _C

    return _C.cpu_capability()


def remedy() -> str:
    """Return the command that builds the native code again and fails if that fails."""
    source = PACKAGE.parent  # a checkout, or site-packages
    what = f"-e {source}" if (source / "setup.py").exists() else "blpseg"
    return f"BLPSEG_NATIVE=1 pip install -v --force-reinstall --no-deps {what}"


_noticed = False


def notice_missing(device_type: str) -> None:
    """Warn, once per process, that ops run their slow fallback because kernels are missing.

    Do not warn if the user turned native code off (BLPSEG_NATIVE=0, BLPSEG_CUDA=0).
    """
    global _noticed
    problem = {"cpu": CPU_PROBLEM, "cuda": CUDA_PROBLEM}.get(device_type)
    if _noticed or problem is None or "=0 was set" in problem or torch.compiler.is_compiling():
        return
    _noticed = True
    warnings.warn(
        f"blpseg_ops uses its slow PyTorch fallback because its {device_type.upper()} kernels are "
        f"missing: {problem}\nTo fix it: {remedy()}\nDetails: python -m blpseg_ops",
        RuntimeWarning,
        stacklevel=4,
    )
