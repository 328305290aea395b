"""The CUDA kernels without a GPU: compiled for the host, they replace the CPU kernels.

cuda_on_host/cuda_runtime.h runs a block's threads in turns. That shows wrong indices, wrong sums
and deadlocks; test_cuda.py and test_losses_cuda.py need a device.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent
CSRC = TESTS.parents[1] / "csrc"
KERNELS = ("losses", "upsample_argmax")

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or not CSRC.exists(), reason="no g++, or no source of the kernels"
)

# Runs in a process of its own: the library replaces the CPU kernels.
RUN = """
import ctypes, sys, pytest, torch, blpseg_ops
library, *arguments = sys.argv[1:]
torch.ops.load_library(library)
code = pytest.main(["-q", "-p", "no:cacheprovider", *arguments])
assert ctypes.CDLL(library).launches_on_host() > 0, "no kernel was launched"
sys.exit(code)
"""


def _for_host(source: str) -> str:
    """Return a .cu file as C++: launches become calls, and the kernels register for the CPU."""
    launch = r"([\w:]+(?:<[^<>;()]*>)?)\s*<<<(.*?),([^,]*), 0, on\.stream>>>\((.*?)\);"
    call = r"cuda_on_host::launch(\2, \3, [&] { \1(\4); });"
    source, launches = re.subn(launch, call, source, flags=re.DOTALL)
    assert launches
    assert "<<<" not in source
    return source.replace("_IMPL(blpseg, CUDA,", "_IMPL(blpseg, CPU,")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the CUDA kernels into a library for the host."""
    folder = tmp_path_factory.mktemp("cuda_on_host")
    counter = folder / "launches.cpp"
    counter.write_text(
        '#include "cuda_runtime.h"\n'
        'extern "C" int64_t launches_on_host() { return cuda_on_host::launches; }\n'
    )
    sources = [counter]
    for name in KERNELS:
        sources.append(folder / f"{name}.cpp")
        sources[-1].write_text(_for_host((CSRC / f"cuda/{name}.cu").read_text()))
    torch_root = Path(torch.__path__[0])
    library = folder / "libcuda_on_host.so"
    subprocess.run(
        ["g++", "-std=c++17", "-O1", "-fPIC", "-shared", "-include", "cuda_runtime.h"]
        + ["-DBLPSEG_CUDA_ON_HOST", "-DTORCH_STABLE_ONLY"]
        + ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-isystem", str(torch_root / "include")]
        + [f"-I{path}" for path in (TESTS / "cuda_on_host", CSRC, CSRC / "cuda")]
        + [*map(str, sources), "-o", str(library)]
        + [f"-L{torch_root / 'lib'}", "-ltorch_cpu", f"-Wl,-rpath,{torch_root / 'lib'}"],
        check=True,
    )
    return library


@pytest.mark.parametrize(
    "selection",
    [
        ["test_golden.py", "-k", "not lam and auto"],
        ["test_gradients.py", "-k", "not lam"],
        ["test_losses.py", "-k", "float32 and (sizes or kinds or finite)"],
        ["test_upsample_argmax.py", "-k", "equals_the_reference or infinities"],
    ],
    ids=lambda selection: selection[0],
)
def test_passes_the_cpus_tests(library: Path, selection: list[str]) -> None:
    tests = [str(TESTS / selection[0]), *selection[1:]]
    subprocess.run([sys.executable, "-c", RUN, str(library), *tests], check=True)
