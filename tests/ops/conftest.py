"""Fixtures of the tests of blpseg_ops."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent.parent / "data"


def load_golden(name: str) -> dict[str, Any]:
    """Load a golden file: floating-point arrays as float64 tensors, scalars as numbers."""
    golden: dict[str, Any] = {}
    with np.load(DATA / f"{name}.npz") as archive:
        for key, array in archive.items():
            if array.ndim == 0:
                golden[key] = array.item()
            else:
                tensor = torch.from_numpy(array)
                golden[key] = tensor.double() if tensor.is_floating_point() else tensor
    return golden


@pytest.fixture(params=sorted(path.stem for path in DATA.glob("lam_*.npz")))
def golden_lam(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return one golden file of lam; the test runs on each."""
    return load_golden(request.param)


@pytest.fixture(params=sorted(path.stem for path in DATA.glob("loss_*.npz")))
def golden_loss(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return one golden file of the losses; the test runs on each."""
    return load_golden(request.param)


@pytest.fixture
def rng() -> torch.Generator:
    """Return a seeded random number generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def restore_variant() -> Iterator[None]:
    """Restore the capability of the CPU kernels after the test."""
    from blpseg_ops import _C  # missing without native code

    before = _C.cpu_capability()
    yield
    _C.set_cpu_capability(before)


@pytest.fixture(params=[False, True], ids=["T with Z", "T apart"])
def both_ways_to_sum_t(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let lam with eps > 0 sum T together with Z, and apart from it, whatever the input's size."""
    from blpseg_ops import _C  # not there without native code

    before = _C.min_tiles_to_sum_apart()
    _C.set_min_tiles_to_sum_apart(0 if request.param else 2**62)
    yield
    _C.set_min_tiles_to_sum_apart(before)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Restore the number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
