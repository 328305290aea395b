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

from benchmarks.gpu_model_compile import ROOT, Compiled, Work, compile_cuda
from benchmarks.gpu_model_loops import Chain, header, is_behind, total_cost
from benchmarks.losses_cases import ALL, BLP, PSEUDO, SELF_TRAINING, Case, make_inputs

WARP, ROWS, COLUMNS = 32, 4, 128  # of a pixel block (kWarp, kRows, kThreads)
CHUNK = 4  # classes per step of a softmax (kChunk)
GROUP, CELL_ROWS, BATCH = 4, 8, 4  # kClasses, kMaxCellRows, kBatch of gather_gradients


class Sizes:
    """Everything that the rules ask of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.scale = case.high // case.low
        self.pixels = case.n * case.high**2
        # Blocks begin where the rows between two cell rows do: half a cell further up.
        self.blocks_down = -(-(case.high + self.scale // 2) // ROWS)
        self.blocks = case.n * self.blocks_down * -(-case.high // COLUMNS)
        self.gather_blocks = case.n * -(-case.low // CELL_ROWS)

    @cached_property
    def labeled(self) -> torch.Tensor:  # [N, H, W] float
        """1 where the BLP loss learns a label."""
        if self.case.what == SELF_TRAINING:
            return torch.ones(self.case.n, self.case.high, self.case.high)
        target = make_inputs(self.case._replace(backward=False, device="cpu")).target
        return (target < self.case.classes).float()

    @cached_property
    def list_steps(self) -> float:
        """Pixels of a block's list per thread, for a warp: mean over warps and blocks."""
        padded = F.pad(self.labeled, (0, -self.case.high % COLUMNS, self.scale // 2, ROWS))
        padded = padded[:, : self.blocks_down * ROWS]
        count = padded.unflatten(1, (-1, ROWS)).unflatten(3, (-1, COLUMNS)).sum((2, 4))
        first = WARP * torch.arange(COLUMNS // WARP)
        return float(((count[..., None] - first) / COLUMNS).ceil().clamp(min=0).mean())

    @cached_property
    def any_labeled(self) -> float:
        """How often one of a warp's pixels of a batch has a gradient of the BLP loss."""
        lanes = WARP * self.scale  # columns of the gaps of a warp
        row = F.pad(self.labeled, (0, -self.case.high % lanes))
        return float(row.unflatten(2, (-1, WARP, self.scale)).amax(3).mean())


# Loop header, and behind it the lines of the calls that lead there -> iterations per entry.
LOOPS: list[tuple[str, Callable[[Sizes, int], float]]] = [
    (r"k < classes; k \+= kChunk", lambda sizes, classes: -(-classes // CHUNK)),
    (r"first < kRows;\)", lambda sizes, classes: 1 if sizes.scale >= ROWS else 2),
    (r"while \(last < kRows", lambda sizes, classes: ROWS - 1),
    (r"i < total; i \+= kThreads", lambda sizes, classes: sizes.list_steps),
    (r"row < at\.bottom; \+\+row", lambda sizes, classes: CELL_ROWS + 1),
    (r"x < at\.last", lambda sizes, classes: sizes.scale),
    (r"batch < end_y", lambda sizes, classes: -(-sizes.scale // BATCH)),
    (r"distance = lanes / 2", lambda sizes, classes: 0),
    (r"distance > 0", lambda sizes, classes: 5),
    (r"i < columns; i|i < pixel_rows \+ pixel_columns", lambda sizes, classes: sizes.scale + 1),
    (r"i < rows \* warps \* kClasses", lambda sizes, classes: 1),
    (
        r"block < blocks; block \+= kThreads",
        lambda sizes, classes: sizes.blocks / sizes.case.n / 128,
    ),
    (r"n < images; n \+= kThreads", lambda sizes, classes: 1),
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
    skipped = []  # calls that this case does not make
    if case.what not in (PSEUDO, SELF_TRAINING):
        skipped += ["make_pseudo_labels(", "add_blp_terms_of_column("]
    if case.what in (SELF_TRAINING, PSEUDO):
        skipped.append("add_blp_terms_of_list(")
    if case.what == PSEUDO:
        skipped += ["add_annotation_terms(", "add_blp_terms_of_column(", "sum_block"]
    if case.what == BLP:
        skipped.append("add_annotation_terms(")

    def share(chain: Chain) -> float:
        text = header(chain)
        if case.what != BLP and "softmax_at(call.annotation" in text:
            return 0.0  # the annotation loss has it already
        return 0.0 if any(call in text for call in skipped) else 1.0

    compiled = _kernel("loss_pixels", "f")
    cost = total_cost(compiled.whole, _trips(sizes), share)
    planes = {ALL: 3, BLP: 2, SELF_TRAINING: 3, PSEUDO: 0}[case.what]
    logits = case.classes if case.what == PSEUDO else 2 * case.classes + 1
    size = 4 * case.n * logits * case.low**2 + (1 + 4 * planes) * sizes.pixels
    size += sizes.pixels if case.what in (PSEUDO, SELF_TRAINING) else 0
    return Work("loss_pixels", "forward", compiled, cost, sizes.blocks, size)


def _finish(sizes: Sizes) -> list[Work]:
    """From sums of blocks to losses."""
    found = []
    for name, programs in (("sum_images", sizes.case.n), ("finish_losses", 1)):
        compiled = _kernel(name, "f")
        cost = total_cost(compiled.whole, _trips(sizes))
        found.append(Work(name, "forward", compiled, cost, programs, 24 * sizes.blocks))
    return found


def _gather(sizes: Sizes, name: str, classes: int, planes: int) -> Work:
    """Backward: the gradients of one of the logits."""

    def share(chain: Chain) -> float:
        if "past the cache" in header(chain):  # none of these problems has so many pixels per gap
            return 0.0
        if is_behind(chain, r"if \(own\S* < 0 \|\| own\S* >= kClasses\) return;"):
            return 0.3 * behind  # a pixel's label is among the 4 classes of a thread
        if is_behind(chain, r"log_normalizer\[i\] == A\(__builtin_inf\(\)\)\) continue;"):
            return behind
        return 1.0

    behind = sizes.any_labeled if name == "seg" else 1.0
    compiled = _kernel("gather_gradients", "f", "h")
    warps = min(4, -(-sizes.case.low // WARP))
    compiled = compiled._replace(warps=warps)
    cost = total_cost(compiled.whole, _trips(sizes), share)
    gaps = WARP * warps
    across = max(1, -(-(sizes.case.low - 1) // (gaps - 1)))
    programs = sizes.gather_blocks * across * -(-classes // GROUP)
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
    return compile_cuda(ROOT / "csrc/cuda/losses.cu")


def _kernel(name: str, *types: str) -> Compiled:
    """The kernel of that name for the first template arguments (f: float, h: uint8_t)."""
    prefix = f"{len(name)}{name}I{''.join(types)}"
    found = [one for mangled, one in _kernels().items() if prefix in mangled]
    if not found:
        raise LookupError(f"losses.cu has no kernel {name}<{', '.join(types)}>")
    return found[0]
