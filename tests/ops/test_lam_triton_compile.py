"""LAM's Triton kernels, as the table launches them, fit the chips that they are for.

Compiled with the Triton at hand; CI runs this with the oldest that is supported and the newest.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from itertools import product
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this platform")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter does not compile", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_config import Launch

from ._lam_aot import SHARED_MEMORY, compile_kernel, preparations, resources, spill_limit


def _launches(family: str) -> list[tuple[str, torch.dtype, Launch]]:
    """Return the launches with eps, without a window and, for one family, with a window.

    Forward in float16 is left out: it takes the resources of bfloat16's. Backward scales its score
    gradients in addition.
    """
    largest = [
        (name, dtype, launch)
        for name, dtype, launch in lam_config.every(family)
        if launch.constants["HAS_EPS"]
        and (dtype != torch.float16 or name == "backward")
        and (not launch.constants["WINDOW"] or family == "sm_90")
    ]
    return [*largest, *preparations(family)]


CASES = [(family, *case) for family in lam_config.FAMILIES for case in _launches(family)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "name", "dtype", "launch"),
    CASES,
    ids=[f"{family}-{name}-{dtype}-{i}" for i, (family, name, dtype, _) in enumerate(CASES)],
)
def test_fits(family: str, name: str, dtype: torch.dtype, launch: Launch) -> None:
    used = resources(name, dtype, launch, family)
    assert used.shared_memory <= SHARED_MEMORY[family]
    assert used.registers * launch.num_warps * 32 <= 2**16
    assert used.spilled <= spill_limit(dtype)


# D and C of packed maps: the module's, and DINOv2-S's in the precision in which it needs most.
TWO_GRIDS_SIZES = [(torch.float32, 64, 32), (torch.float32, 128, 384), (torch.float16, 256, 64)]


def _launches_of_two_grids(family: str) -> list[tuple[str, torch.dtype, Launch]]:
    """Return launches with eps and a window."""
    launches: list[tuple[str, torch.dtype, Launch]] = [
        ("two_grids_describe", torch.float32, lam_config.describe(family, True, False, True)),
        ("two_grids_list", torch.float32, lam_config.two_grids_list(2, True, True)),
        ("two_grids_refine", torch.float32, lam_config.two_grids_refine(family, 2, True, True)),
    ]
    for dtype, *sizes in TWO_GRIDS_SIZES:
        options = family, dtype, *sizes, True, True
        launches += [
            ("two_grids_forward", dtype, lam_config.two_grids_forward(*options)),
            ("two_grids_queries", dtype, lam_config.two_grids_queries(*options)),
        ]
        launches += [
            ("two_grids_keys", dtype, launch) for launch in lam_config.two_grids_keys(*options)
        ]
    return launches


TWO_GRIDS_CASES = [
    (family, *case) for family in ("sm_80", "sm_90") for case in _launches_of_two_grids(family)
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "name", "dtype", "launch"),
    TWO_GRIDS_CASES,
    ids=[f"{family}-{name}-{i}" for i, (family, name, _, _) in enumerate(TWO_GRIDS_CASES)],
)
def test_two_grids_fit(family: str, name: str, dtype: torch.dtype, launch: Launch) -> None:
    test_fits(family, name, dtype, launch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dims", [64, 256])
@pytest.mark.parametrize("name", lam_config.KERNELS)
def test_scores_do_not_depend_on_the_order_of_operands(name: str, dims: int) -> None:
    """Triton rewrites a b + c d as one accumulator, where c d would be rounded on top of a b."""
    launch = lam_config.KERNELS[name]("sm_90", torch.float32, dims, 32, True, False)
    code = compile_kernel(name, torch.float32, launch, "sm_90").asm["ttir"]
    dot = r"(%\S+) = tt\.dot %\S+, %\S+, (%\S+), inputPrecision = tf32 :"
    starts = dict(re.findall(dot, code))  # product -> what it is added to
    sums = re.findall(r"math\.fma (%\S+), %\S+, (%\S+) :", code)
    sums = [(a, b) for a, b in sums if a in starts and b in starts]
    assert len(sums) == 2  # of near and of far tiles
    assert all(starts[low_high] == starts[high_low] for low_high, high_low in sums)  # both are 0


def test_scores_of_both_passes_have_the_same_blocks() -> None:
    options = product(
        lam_config.FAMILIES, lam_config.DTYPES, range(64, lam_config.MAX_DIMS + 1, 64)
    )
    for family, dtype, dims in options:
        packed = lam_config.packed_dims(dims)
        for channels in (32, 64):
            blocks = {
                choose(family, dtype, packed, channels, False, False).constants["BLOCK_D"]
                for choose in lam_config.KERNELS.values()
            }
            assert len(blocks) == 1


def test_every_size_has_an_entry() -> None:
    for family in lam_config.FAMILIES:
        for dims in range(1, lam_config.MAX_DIMS + 1):
            packed = lam_config.packed_dims(dims)
            assert packed >= dims
            for choose in lam_config.KERNELS.values():
                constants = choose(family, torch.float32, packed, 32, False, False).constants
                block = constants["BLOCK_D"]
                assert packed % block == packed % constants.get("SLICE_D", 1) == 0


def test_chips_of_a_family() -> None:
    chips = {"sm_86": "sm_80", "sm_120": "sm_80", "sm_90": "sm_90", "sm_103": "sm_100"}
    assert {chip: lam_config.family_of(chip) for chip in chips} == chips
    assert lam_config.family_of("gfx950:sramecc+:xnack-") == "gfx942"


class _Variants:
    """Records how Triton would specialize each launch, and launches nothing."""

    def __init__(self) -> None:
        # kernel and constants -> all other arguments' types and specializations
        self.seen: dict[tuple[Any, ...], set[tuple[Any, ...]]] = defaultdict(set)
        self._backend = make_backend(GPUTarget("cuda", 90, 32))

    def record(self, kernel: JITFunction[Any], *args: Any, **kwargs: Any) -> None:
        del kwargs["grid"], kwargs["warmup"]
        bind = create_function_from_signature(kernel.signature, kernel.params, self._backend)
        _, specializations, _ = bind(*args, debug=False, instrumentation_mode="", **kwargs)
        constants, others = [kernel.__name__], []
        for param, one in zip(kernel.params, specializations, strict=False):
            if param.is_constexpr:
                constants.append(one[1])
            elif (kernel.__name__, param.name) not in USERS_LAYOUT:
                others.append((param.name, *one))
        self.seen[tuple(constants)].add(tuple(others))


# A caller's tensors may be aligned or not, and contiguous along x or not.
USERS_LAYOUT = {("pack_kernel", "maps"), ("pack_kernel", "stride_x")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_compile_nothing_new(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    from blpseg_ops.triton.lam import lam, lam_backward
    from blpseg_ops.triton.lam_two_grids import lam_two_grids, lam_two_grids_backward

    variants = _Variants()
    monkeypatch.setattr(
        JITFunction, "run", lambda *args, **kwargs: variants.record(*args, **kwargs)
    )
    inv = {n: torch.full((n,), 0.1) for n in (1, 2, 3)}
    for n in (1, 2, 3):
        for h, w in ((1, 1), (3, 5), (8, 8), (9, 17), (31, 33), (16, 64)):
            features = torch.empty(n, 50, h, w, dtype=dtype)
            values = torch.empty(n, 21, h, w, dtype=dtype)
            for params in ((3.0, 0.0, 1.0), (2.0, 1e-3, 0.5), (3.0, 0.0, 1.0, 4)):
                output, log_denominator = lam(features, values, *params)
                lam_backward(values, features, values, output, log_denominator, *params)
            queries = torch.empty(n, 50, 2 * h + 1, 3 * w, dtype=dtype)
            for params in ((0.0, 1.0), (1e-3, 0.5), (0.0, 1.0, 1.5)):
                maps = queries, features, values
                output, log_denominator = lam_two_grids(*maps, inv[n], *params)
                saved = output, log_denominator, inv[n]
                lam_two_grids_backward(output, *maps, *saved, *params)
    assert len(variants.seen) >= 12
    for kernel, specializations in variants.seen.items():
        assert len(specializations) == 1, (kernel, specializations)
