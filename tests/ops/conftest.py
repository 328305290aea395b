"""What the tests of blpseg_ops share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

DATA = Path(__file__).parent.parent / "data"


def load_golden(name: str) -> dict[str, Any]:
    """A golden file: floating arrays as float64 tensors, others as they are, scalars as numbers."""
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
    """Every golden file of lam in turn."""
    return load_golden(request.param)


@pytest.fixture(params=sorted(path.stem for path in DATA.glob("loss_*.npz")))
def golden_loss(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Every golden file of the losses in turn."""
    return load_golden(request.param)


@pytest.fixture
def rng() -> torch.Generator:
    """A seeded source of random numbers."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def restore_variant() -> Iterator[None]:
    """Puts the variant of the CPU kernels back after the test."""
    from blpseg_ops import _C  # not there without native code

    before = _C.cpu_capability()
    yield
    _C.set_cpu_capability(before)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Puts the number of threads back after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
