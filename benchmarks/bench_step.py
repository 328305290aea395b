"""A training step on the CPU: how long its parts take, with our ops and with plain PyTorch.

A small ResNet under a narrow decoder, on the built-in scenes. Both peers are the same network
on the same batch; their LAM and losses differ.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("timm", reason="the network needs the train extra")

from benchmarks.step_cases import DATA, OURS, PARTS, PEERS, Case, Training
from blpseg.data.scenes import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "scenes"
    write_scenes(folder, 8, 0, 192)
    return folder


@lru_cache(maxsize=1)
def _training(case: Case, peer: str, scenes: Path) -> Training:
    return Training(case, peer, scenes)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("peer", PEERS)
def test_step(benchmark: Any, scenes: Path, peer: str, part: str) -> None:
    if part == DATA and peer != OURS:
        pytest.skip("the data is the same")
    case = Case(part).shrunk() if benchmark.disabled else Case(part)
    benchmark.group = f"training step: {case}"
    benchmark.extra_info.update(case._asdict(), peer=peer)
    training = _training(case._replace(part=""), peer, scenes)
    before, run = training.call(part)
    benchmark.pedantic(run, setup=before, rounds=5, warmup_rounds=1)
    training.optimizer.zero_grad()
