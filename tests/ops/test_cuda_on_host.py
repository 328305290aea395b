"""The CUDA kernels without a GPU: compiled for the host, they replace the CPU kernels.

cuda_on_host/cuda_runtime.h runs a block's threads in turns. That shows wrong indices, wrong sums
and deadlocks; test_cuda.py and test_losses_cuda.py need a device.
"""

from __future__ import annotations

import json
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

# Which of the CPU's tests run, by file: pytest's -k.
SELECTIONS = {
    "test_golden.py": "not lam and auto",
    "test_gradients.py": "not lam",
    "test_losses.py": "float32 and (sizes or kinds or finite)",
    "test_upsample_argmax.py": "equals_the_reference or infinities",
}

# Runs in a process of its own: the library replaces the CPU kernels. One process runs all files,
# since each start imports torch.
RUN = """
import ctypes, json, sys, pytest, torch, blpseg_ops
library, selections = sys.argv[1:]
torch.ops.load_library(library)
launches = ctypes.CDLL(library).launches_on_host
for file, selected in json.loads(selections).items():
    before = launches()
    assert pytest.main(["-q", "-n0", "-p", "no:cacheprovider", file, "-k", selected]) == 0, file
    assert launches() > before, f"{file}: no kernel was launched"
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


def test_passes_the_cpus_tests(library: Path) -> None:
    selections = json.dumps({str(TESTS / file): one for file, one in SELECTIONS.items()})
    subprocess.run([sys.executable, "-c", RUN, str(library), selections], check=True)
