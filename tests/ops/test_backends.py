"""The choice of a backend, and what blpseg_ops reports with and without native code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import blpseg_ops
from blpseg_ops import _native, backends
from blpseg_ops.__main__ import report

NATIVE = _native.CPU_PROBLEM is None


def test_the_reference_is_everywhere_and_last() -> None:
    for op in backends.OPS:
        for device in ("cpu", "cuda", "mps"):
            assert backends.available(op, device)[-1] == "reference"


def test_auto_calls_the_operator_and_reference_does_not() -> None:
    called = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    f = torch.randn(1, 2, 2, 2)
    with Watch():
        blpseg_ops.lam(f, f)
    assert called == ["blpseg.lam.default"]
    called.clear()
    with Watch():
        blpseg_ops.lam(f, f, backend="reference")
    assert called
    assert not any(name.startswith("blpseg") for name in called)


def test_a_missing_backend_is_named_with_the_ones_there() -> None:
    f = torch.randn(1, 2, 2, 2)
    choices = ", ".join(map(repr, ("auto", *backends.available("lam", "cpu"))))
    with pytest.raises(ValueError, match=f"^lam: backend must be one of {choices} on cpu, got 'x'"):
        blpseg_ops.lam(f, f, backend="x")


def test_the_report_lists_every_op() -> None:
    text = report()
    for op in backends.OPS:
        line = next(line for line in text.splitlines() if line.split()[:1] == [op])
        assert ", ".join(backends.available(op, "cpu")) in line
    assert torch.__version__ in text
    assert ("ready" in text) == NATIVE


@pytest.mark.skipif(not NATIVE, reason="no native code was built")
def test_build_info() -> None:
    info = _native.build_info()
    assert info is not None
    assert set(info) == {"version", "compiler", "torch", "cuda", "archs"}
    assert info["version"] == blpseg_ops.__version__
    assert info["compiler"].split()[0] in {"GNU", "Clang", "AppleClang"}
    assert (info["cuda"] is None) == (info["archs"] == [])


def _run_copy(tmp_path: Path, report: dict[str, str | None] | None, program: str) -> str:
    """Run a program on a copy of the package without native code; return what it prints."""
    source = Path(blpseg_ops.__file__).parent
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "_native_build.json", "__pycache__")
    shutil.copytree(source, tmp_path / "blpseg_ops", ignore=ignore)
    if report is not None:
        (tmp_path / "blpseg_ops" / "_native_build.json").write_text(json.dumps(report))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


USE_TWICE = """
import sys, warnings
# The finder of an editable install would find missing modules of the copy in the source tree.
sys.meta_path = [finder for finder in sys.meta_path if "Editable" not in str(finder)]
import torch, blpseg_ops
from blpseg_ops.__main__ import report
x = torch.randn(1, 3, 4, 4)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first = blpseg_ops.upsample_argmax(x, (8, 8))
    second = blpseg_ops.upsample_argmax(x, (8, 8))
assert torch.equal(first, blpseg_ops.reference.upsample_argmax(x, (8, 8)))
print(len(caught), *(str(w.message) for w in caught))
print(report())
"""


@pytest.mark.parametrize(
    ("written", "cause"),
    [
        (None, "its native code was never built"),
        ({"cpu": "no C++ compiler", "cuda": "no C++ compiler"}, "no C++ compiler"),
        ({"cpu": None, "cuda": None}, "built, but it does not load: "),
    ],
    ids=["never installed", "failed build", "library gone"],
)
def test_without_native_code_it_works_and_says_why_once(
    tmp_path: Path, written: dict[str, str | None] | None, cause: str
) -> None:
    printed = _run_copy(tmp_path, written, USE_TWICE)
    first_line, rest = printed.split("\n", 1)
    assert first_line.startswith("1 blpseg_ops uses its slow PyTorch fallback because its CPU")
    assert cause in first_line
    assert "BLPSEG_NATIVE=1 pip install -v --force-reinstall --no-deps" in rest
    assert cause in rest.split("\nnative code\n")[1]


def test_who_asked_for_no_native_code_is_not_warned(tmp_path: Path) -> None:
    cause = "BLPSEG_NATIVE=0 was set when blpseg was installed"
    printed = _run_copy(tmp_path, {"cpu": cause, "cuda": cause}, USE_TWICE)
    assert printed.startswith("0\n")
    assert cause in printed
