"""The counting of benchmarks/gpu_model*.py on code and lists that can be counted by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

if not (Path(__file__).parents[2] / "benchmarks").exists():
    pytest.skip("benchmarks/ is not here", allow_module_level=True)
sys.path.append(str(Path(__file__).parents[2]))  # `pytest` does not add it, `python -m pytest` does

from benchmarks import gpu_model_peers
from benchmarks.gpu_model_chip import LATENCY, ctas_per_sm
from benchmarks.gpu_model_loops import Chain, identify, is_behind, total_cost
from benchmarks.gpu_model_sass import cost, loops, parse
from benchmarks.lam_cuda_cases import Case

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("registers", "shared_memory", "threads", "ctas"),
    [
        (255, 88 << 10, 128, 2),  # 2 x 89 KiB of 228
        (128, 0, 128, 4),  # 65536 / (128 x 128)
        (168, 0, 256, 1),  # 12 warps of 168 registers: one CTA of 8
        (32, 0, 1024, 2),  # 2048 threads
        (16, 0, 32, 32),  # no SM holds more CTAs
    ],
)
def test_ctas_per_sm(registers: int, shared_memory: int, threads: int, ctas: int) -> None:
    assert ctas_per_sm(registers, shared_memory, threads) == ctas


def _code(address: int, text: str, stall: int = 1, sets: int = 7, waits: int = 0) -> str:
    """One instruction as nvdisasm -hex prints it."""
    control = stall << 41 | sets << 46 | 7 << 49 | waits << 52
    return f"        /*{address:04x}*/  {text} ; /* 0x{0:016x} */\n  /* 0x{control:016x} */\n"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A kernel with a loop in a loop; its folder has a name that is taken for ours."""
    file = tmp_path / "blpseg.py"
    file.write_text(
        "def kernel():\n    for i in x:\n        a\n        for j in y:\n            b\n    c\n"
    )
    return file


@pytest.fixture
def listing(source: Path) -> str:
    """Six instructions: one before the loops, the outer loop of 4 and in it the inner one of 2."""

    def at(line: int) -> str:
        return f'\t//## File "{source}", line {line}\n'

    code = [
        "\t.section\t.text.kernel\n.text.kernel:\n",
        at(1) + _code(0x00, "MOV R1, c[0x0][0x28]"),
        ".L_x_0:\n" + at(3) + _code(0x10, "LDG.E.128 R4, [R2]", sets=0),
        ".L_x_1:\n" + at(5) + _code(0x20, "@!P0 FFMA R4, R4, R5, R6", stall=4, waits=1),
        _code(0x30, "@P0 BRA `(.L_x_1)"),
        at(3) + _code(0x40, "HGMMA.64x64x8.F32.TF32 R24, R68, gdesc[UR28], RZ", stall=2),
        _code(0x50, "@P1 BRA `(.L_x_0)"),
        at(6) + _code(0x60, "EXIT"),
        ".L_x_2:\n" + _code(0x70, "BRA `(.L_x_2)") + _code(0x80, "NOP"),
        "\t.section\t.debug\n" + _code(0x90, "NOP"),
    ]
    return "".join(code)


def test_loops_are_found(listing: str, source: Path) -> None:
    (instructions,) = parse(listing).values()
    assert [one.name for one in instructions] == [
        "MOV",
        "LDG",
        "FFMA",
        "BRA",
        "HGMMA",
        "BRA",
        "EXIT",
    ]
    whole = loops(instructions)
    (outer,) = whole.inner
    (inner,) = outer.inner
    assert [len(loop.own) for loop in (whole, outer, inner)] == [2, 3, 2]
    file = str(source)
    assert identify(outer, ()) == ((file, 2),)
    assert identify(inner, (((file, 2),),)) == ((file, 4),)


def test_costs_are_multiplied(listing: str) -> None:
    (instructions,) = parse(listing).values()

    def trips(chain: Chain, around: float) -> float:
        return 10.0 if chain[0][1] == 2 else 30.0

    total = total_cost(loops(instructions), trips)
    assert total.instructions == 2 + 10 * 3 + 30 * 2
    assert total.global_bytes == 10 * 32 * 16
    assert total.flops == 10 * 2 * 64 * 64 * 8 / 4  # a warp has a quarter of the product
    assert total.busy["fma"] == 30
    assert total.busy["tensor"] == pytest.approx(10 * 32, rel=1e-3)  # N / 2 cycles


def test_latency_waits_for_loads(listing: str) -> None:
    (instructions,) = parse(listing).values()
    load, use = instructions[1:3]
    # In each iteration the load is issued, waited for and used: 1 cycle passes meanwhile.
    assert cost([load, use]).latency == LATENCY["global"] + use.stall
    assert cost([use]).latency == use.stall


def test_code_behind_a_continue(tmp_path: Path) -> None:
    file = tmp_path / "csrc.cuh"
    file.write_text("for (;;) {\n  if (none) continue;\n  work();\n}\nrest();\n")
    behind = [line for line in range(1, 6) if is_behind(((str(file), line),), r"none\) continue")]
    assert behind == [3]


def test_peers_are_counted() -> None:
    n, size, width = 3, 40, 24
    a, b = (torch.empty(n, x, y, device="meta") for x, y in ((size, width), (width, size)))
    used = gpu_model_peers.count(lambda: (a @ b).exp())
    pairs = n * size * size
    assert used.flops == 2 * pairs * width
    assert used.bytes == 4 * (a.numel() + b.numel() + pairs) + 4 * 2 * pairs


PROGRAM = """
import json, sys
from triton.runtime.interpreter import InterpretedFunction
from benchmarks import gpu_model_launches as model

lengths, run = [], InterpretedFunction.run
def keep(kernel, *given, **named):
    if kernel.fn.__name__ == "forward_kernel":
        lengths.append(named["list_lengths"][0].tolist())  # of near keys; eps 0 has no others
    return run(kernel, *given, **named)
InterpretedFunction.run = keep
case = model.Case(*json.loads(sys.argv[1]))
print(json.dumps([model.launches(case), lengths]))
"""


def test_kept_pairs_are_those_of_the_lists() -> None:
    pytest.importorskip("triton", reason="no Triton for this platform")
    case = Case("random, |f| 4", n=1, dims=40, h=16, w=40, sigma=1.5, backward=False)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(case)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "only 0-dimensional arrays can be converted" in done.stderr:
        pytest.skip("this Triton's interpreter does not work with this numpy")
    assert done.returncode == 0, done.stderr
    launches, (lengths,) = json.loads(done.stdout.splitlines()[-1])
    forward = next(one for one in launches if one[2] == "forward_kernel")
    (steps,) = (count for _, count, outermost in forward[6] if outermost)
    mean = sum(map(sum, lengths)) / sum(map(len, lengths))
    assert 1 <= mean < 10  # of 10 tiles, some are left out
    assert steps == mean * 64 / forward[4]["KEYS"]
