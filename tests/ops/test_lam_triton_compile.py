"""LAM's Triton kernels, as the table launches them, fit the chips that they are for."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("triton", reason="no Triton for this platform")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter does not compile", allow_module_level=True)

import triton

from blpseg_ops.triton import lam_config
from blpseg_ops.triton.lam_config import Launch

from ._lam_aot import SHARED_MEMORY, compile_kernel, preparations


def _launches(family: str) -> list[tuple[str, torch.dtype, Launch]]:
    """All with the eps term, without a window and, on one family, with it.

    float16 is left out, for it takes what bfloat16 takes.
    """
    largest = [
        (name, dtype, launch)
        for name, dtype, launch in lam_config.every(family)
        if launch.constants["HAS_EPS"]
        and dtype != torch.float16
        and (not launch.constants["WINDOW"] or family == "sm_90")
    ]
    return [*largest, *preparations(family)]


# Triton 3.6 puts numbers aside in some kernels: up to 224 bytes on sm_80 to sm_100.
TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
CASES = [(family, *case) for family in lam_config.FAMILIES for case in _launches(family)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "name", "dtype", "launch"),
    CASES,
    ids=[f"{family}-{name}-{dtype}-{i}" for i, (family, name, dtype, _) in enumerate(CASES)],
)
def test_fits(family: str, name: str, dtype: torch.dtype, launch: Launch) -> None:
    used = compile_kernel(name, dtype, launch, family)
    assert used.shared_memory <= SHARED_MEMORY[family]
    assert used.registers * launch.num_warps * 32 <= 2**16
    if TRITON >= (3, 9):
        # ptxas holds the smallest kernel at 80 registers, and puts one number aside once. Some of
        # the largest take all 255 and put up to four aside; in which ones that is depends on the
        # order of statements that do not depend on each other. A window's mask takes more.
        allowed = 64 if launch.constants.get("WINDOW") else 8 if name == "describe" else 16
        assert used.spilled <= allowed


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
