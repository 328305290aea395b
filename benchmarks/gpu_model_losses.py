"""The loss kernels' launches: how many blocks, and how often each loop runs.

The loops of csrc/cuda have lengths that follow from sizes and targets, so they are stated here, by
the text of the loop's header (``LOOPS``). Code behind a condition counts as often as the condition
holds for the inputs of bench_losses (``SHARES``). A loop that no rule names is reported, since its
length would be wrong.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F

import blpseg_ops
from benchmarks.gpu_model_compile import Compiled, Work, compile_cuda
from benchmarks.gpu_model_loops import Chain, header, is_behind, total_cost
from benchmarks.losses_cases import (
    ALL,
    BLP,
    IGNORE,
    PSEUDO,
    SELF_TRAINING,
    THRESHOLD,
    Case,
    make_inputs,
)

WARP, ROWS, COLUMNS = 32, 4, 128  # of a pixel block (kWarp, kRows, kThreads)
CHUNK = 4  # classes per step of a softmax (kChunk)
GATHER_THREADS = 160  # kGatherThreads
SLOW_DIVISION = "return a / b;"  # of numbers above 32 bits, which no problem here has
GROUP, CELL_ROWS = 8, 8  # kGroup<float> and kMaxCellRows of gather_gradients

# What the problems launch: kernels for float32 logits and uint8 labels.
KERNELS = """
#include "cuda/finish_losses.cuh"
#include "cuda/gather_gradients.cuh"
#include "cuda/loss_pixels.cuh"
namespace blpseg::device {
template __global__ void loss_pixels<float, false>(CudaLossCall<float>, float*);
template __global__ void loss_pixels<float, true>(CudaLossCall<float>, float*);
template __global__ void sum_images<float>(const float*, int64_t, double*, float*);
template __global__ void finish_losses<float>(
    const double*, int64_t, double, double, LossResults<float>);
template __global__ void gather_gradients<float, uint8_t>(GatherCall<float>);
}
"""


class Sizes:
    """Everything that the rules ask of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.scale = case.high // case.low
        self.pixels = case.n * case.high**2
        # Blocks begin where the rows between two cell rows do: half a cell further up.
        self.blocks_down = -(-(case.high + self.scale // 2) // ROWS)
        self.blocks = case.n * self.blocks_down * -(-case.high // COLUMNS)
        # Blocks of a gather have a thread per column of the gaps around their cells.
        most_cells = max(1, GATHER_THREADS // self.scale - 1)
        across = 1 if case.high <= GATHER_THREADS else -(-case.low // most_cells)
        self.cells = -(-case.low // across)
        self.gather_threads = -(-(self.cells + 1) * self.scale // WARP) * WARP
        self.gather_blocks = case.n * across * -(-case.low // CELL_ROWS)

    @cached_property
    def labels(self) -> dict[str, torch.Tensor]:  # [N, H, W] uint8
        """The labels of each loss, by the logits that learn them."""
        inputs = make_inputs(self.case._replace(backward=False, device="cpu"))
        of_seg = inputs.target
        if self.case.what == SELF_TRAINING:
            of_seg = blpseg_ops.pseudo_labels(
                inputs.seg_logits,
                inputs.target,
                inputs.class_present,
                threshold=THRESHOLD,
                ignore_index=IGNORE,
            )
        return {"seg": of_seg, "annotation": inputs.target}

    @property
    def labeled(self) -> torch.Tensor:  # [N, H, W] float
        """1 where the BLP loss learns a label."""
        return (self.labels["seg"] < self.case.classes).float()

    @cached_property
    def list_steps(self) -> float:
        """Pixels of a block's list per thread, for a warp: mean over warps and blocks."""
        padded = F.pad(self.labeled, (0, -self.case.high % COLUMNS, self.scale // 2, ROWS))
        padded = padded[:, : self.blocks_down * ROWS]
        count = padded.unflatten(1, (-1, ROWS)).unflatten(3, (-1, COLUMNS)).sum((2, 4))
        first = WARP * torch.arange(COLUMNS // WARP)
        return float(((count[..., None] - first) / COLUMNS).ceil().clamp(min=0).mean())

    def any_labeled(self, name: str) -> float:
        """How often one of a warp's pixels has a gradient of the loss."""
        known = (self.labels[name] < self.case.classes + (name == "annotation")).float()
        return float(_warps(known).amax(3).mean())

    def any_own(self, name: str, classes: int) -> float:
        """How often the label of one of a warp's pixels is among the classes of its threads."""
        warps = _warps(self.labels[name].float())
        groups = range(0, classes, GROUP)
        ends = [min(first + GROUP, classes) for first in groups]
        found = [
            ((warps >= first) & (warps < end)).any(3).float().mean()
            for first, end in zip(groups, ends, strict=True)
        ]
        return float(torch.stack(found).mean())


def _warps(pixels: torch.Tensor) -> torch.Tensor:
    """The pixels [N, H, W] of each warp of a gather: [N, H, warps, lanes]."""
    return F.pad(pixels, (0, -pixels.shape[2] % WARP), value=IGNORE).unflatten(2, (-1, WARP))


# Loop header, and behind it the lines of the calls that lead there -> iterations per entry.
LOOPS: list[tuple[str, Callable[[Sizes, int], float]]] = [
    (r"k < classes; k \+= kChunk", lambda sizes, classes: -(-classes // CHUNK)),
    (r"first < kRows;\)", lambda sizes, classes: 1 if sizes.scale >= ROWS else 2),
    (r"while \(last < kRows", lambda sizes, classes: ROWS - 1),
    (r"i < total; i \+= kThreads", lambda sizes, classes: sizes.list_steps),
    (r"row < at\.bottom; \+\+row", lambda sizes, classes: CELL_ROWS + 1),
    (r"int left = shared\.begin", lambda sizes, classes: 1),
    (r"gap < at\.cells", lambda sizes, classes: 1),
    (r"y < min\(band_end\(first\)", lambda sizes, classes: 1),
    (r"x < end; \+\+x", lambda sizes, classes: 2 * sizes.scale),
    (r"i < 2 \* at\.cells", lambda sizes, classes: 2 * sizes.cells / sizes.gather_threads),
    (r"y < end_y;\)", lambda sizes, classes: 1),
    (r"y < stop; \+\+y", lambda sizes, classes: sizes.scale),
    (r"distance > 0", lambda sizes, classes: 5),
    (
        r"block < blocks; block \+= kThreads",
        lambda sizes, classes: sizes.blocks / sizes.case.n / 128,
    ),
    (r"n < images; n \+= kThreads", lambda sizes, classes: 1),
    (r"i < kLossSums; i \+= kWarps", lambda sizes, classes: 6 / (COLUMNS // WARP)),
    (r"i < kLossSums", lambda sizes, classes: 6),
    (r"other < kWarps", lambda sizes, classes: COLUMNS // WARP - 1),
    (r"first < last;\)|for \(.*last = out", lambda sizes, classes: 9),  # binary search
]


def problems() -> Iterator[tuple[Case, list[Work]]]:
    """The problems of bench_losses on CUDA, each with its launches; none without nvcc."""
    if shutil.which("nvcc") is None:
        print("nvcc is not on the PATH: the losses are left out", file=sys.stderr)
        return
    for classes in (21, 150):
        for what in (ALL, BLP):
            yield from _problem(Case(what, classes, backward=True, device="cuda"))
        yield from _problem(Case(PSEUDO, classes, backward=False, device="cuda"))
    yield from _problem(Case(SELF_TRAINING, 21, backward=True, device="cuda"))


def _problem(case: Case) -> Iterator[tuple[Case, list[Work]]]:
    sizes = Sizes(case)
    launches = [_pixels(sizes)]
    if case.what != PSEUDO:
        launches += _finish(sizes)
    if case.backward:
        launches.append(_gather(sizes, "seg", case.classes, planes=2))
        if case.what != BLP:
            launches.append(_gather(sizes, "annotation", case.classes + 1, planes=1))
    yield case, launches


def _pixels(sizes: Sizes) -> Work:
    """Forward: every pixel's softmax, sums and labels."""
    case = sizes.case
    # Lines that this case does not reach.
    skipped = [SLOW_DIVISION, "// another type"]
    if case.what == PSEUDO:
        skipped += ["add_annotation_terms<", "add_blp_terms_of_column("]
    if case.what == BLP:
        skipped.append("add_annotation_terms<")

    def share(chain: Chain) -> float:
        text = header(chain)
        if case.what != BLP and "softmax_at(call.annotation" in text:
            return 0.0  # the annotation loss has it already
        return 0.0 if any(call in text for call in skipped) else 1.0

    makes_labels = case.what in (PSEUDO, SELF_TRAINING)
    compiled = _kernel("loss_pixels", "f", f"Lb{makes_labels:d}E")
    cost = total_cost(compiled.whole, _trips(sizes), share)
    planes = {ALL: 3, BLP: 2, SELF_TRAINING: 3, PSEUDO: 0}[case.what]
    logits = case.classes if case.what == PSEUDO else 2 * case.classes + 1
    size = 4 * case.n * logits * case.low**2 + (1 + 4 * planes) * sizes.pixels
    size += sizes.pixels if makes_labels else 0
    return Work("loss_pixels", "forward", compiled, cost, sizes.blocks, size)


def _finish(sizes: Sizes) -> list[Work]:
    """From sums of blocks to losses."""
    found = []
    for name, programs, size in (
        ("sum_images", sizes.case.n, 24 * sizes.blocks),
        ("finish_losses", 1, 48 * sizes.case.n),
    ):
        compiled = _kernel(name, "f")
        cost = total_cost(compiled.whole, _trips(sizes))
        found.append(Work(name, "forward", compiled, cost, programs, size))
    return found


def _gather(sizes: Sizes, name: str, classes: int, planes: int) -> Work:
    """Backward: the gradients of one of the logits."""

    def share(chain: Chain) -> float:
        text = header(chain)
        if SLOW_DIVISION in text or "refill_row_weights(" in text:
            return 0.0  # at most once per block
        if is_behind(chain, r"if \(own < 0 \|\| own >= kGroup<A>\) return;"):
            return own
        if is_behind(chain, r"log_normalizer == A\(__builtin_inf\(\)\)\) continue;"):
            return labeled
        return 1.0

    labeled, own = sizes.any_labeled(name), sizes.any_own(name, classes)
    compiled = _kernel("gather_gradients", "f", "h")
    compiled = compiled._replace(warps=sizes.gather_threads // WARP)
    cost = total_cost(compiled.whole, _trips(sizes), share)
    programs = sizes.gather_blocks * -(-classes // GROUP)
    size = 8 * sizes.case.n * classes * sizes.case.low**2 + (1 + 4 * planes) * sizes.pixels
    return Work(f"gather_gradients of {name}", "backward", compiled, cost, programs, size)


def _trips(sizes: Sizes) -> Callable[[Chain, float], float | None]:
    def trips(chain: Chain, around: float) -> float | None:
        text = header(chain)
        classes = sizes.case.classes + ("annotation" in text)
        for pattern, count in LOOPS:
            if re.search(pattern, text):
                return around * count(sizes, classes)
        print(f"gpu_model_losses.LOOPS has no rule for: {text}", file=sys.stderr)
        return None

    return trips


@lru_cache
def _kernels() -> dict[str, Compiled]:
    return compile_cuda(KERNELS)


def _kernel(name: str, *types: str) -> Compiled:
    """The kernel of that name for the first template arguments (f: float, h: uint8_t)."""
    prefix = f"{len(name)}{name}I{''.join(types)}"
    found = [one for mangled, one in _kernels().items() if prefix in mangled]
    if not found:
        raise LookupError(f"KERNELS has no kernel {name}<{', '.join(types)}>")
    return found[0]
