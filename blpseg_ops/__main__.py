"""``python -m blpseg_ops``: which kernels are built or why not, and the backends of each op."""

from __future__ import annotations

import platform

import torch

from blpseg_ops import __version__, _native, backends


def _status(problem: str | None, built: str) -> str:
    return f"ready ({built})" if problem is None else f"missing: {problem}"


def report() -> str:
    """Return the text that ``python -m blpseg_ops`` prints."""
    info = _native.build_info()
    lines = [
        f"blpseg_ops {__version__}, Python {platform.python_version()}, torch {torch.__version__}",
        f"CUDA device: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}",
        "",
        "native code",
    ]
    if info is None:
        lines.append(f"  none: {_native.CPU_PROBLEM}")
        lines.append(f"  to build it: {_native.remedy()}")
    else:
        archs = ", ".join(info["archs"])
        cpu = f"{info['compiler']}, built against torch {info['torch']}; {_native.cpu_capability()}"
        cuda = f"nvcc {info['cuda']}, for {archs}"
        lines.append(f"  CPU kernels   {_status(_native.CPU_PROBLEM, cpu)}")
        lines.append(f"  CUDA kernels  {_status(_native.CUDA_PROBLEM, cuda)}")
        if info["cuda"] is not None and _native.CUDA_PROBLEM is not None:
            lines.append(f"                ({cuda})")
    triton = _status(_native.TRITON_PROBLEM, "compiled at first use")
    lines.append(f"  Triton        {triton}")
    lines += ["", 'backends ("auto" runs the kernel, or without one the slow PyTorch fallback)']
    devices = ("cpu", "cuda")
    width = max(map(len, backends.OPS)) + 2
    lines.append(" " * (width + 2) + "".join(f"{device:20}" for device in devices).rstrip())
    for op in backends.OPS:
        cells = (", ".join(backends.available(op, device)) for device in devices)
        lines.append(f"  {op:{width}}" + "".join(f"{cell:20}" for cell in cells).rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
