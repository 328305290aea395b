"""Predicts how fast the GPU kernels are, from their machine code and the tiles that they visit.

    python -m benchmarks.gpu_model > benchmarks/results/gpu-model.md
    python -m benchmarks.gpu_model --measured benchmarks/results/DEVICE-*.json

No GPU is needed. 1. The kernels are compiled for an H100 (gpu_model_compile). 2. Triton's
interpreter counts on real photos how often each loop runs (gpu_model_launches, gpu_model_loops).
3. An iteration costs what its instructions cost (gpu_model_sass) on that chip (gpu_model_chip).
4. A launch takes as long as the resource that is busy longest, divided by EFFICIENCY. The losses'
loops have known lengths (gpu_model_losses). Peers are predicted from the bytes and operations of
their formulas (gpu_model_peers).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import gpu_model_chip as chip
from benchmarks import gpu_model_losses, gpu_model_peers
from benchmarks.gpu_model_chip import CLOCK, SCHEDULERS, SMS, TENSOR
from benchmarks.gpu_model_compile import Compiled, Work, compile_launch
from benchmarks.gpu_model_launches import MAIN, Chain, Launch
from benchmarks.gpu_model_loops import total_cost
from benchmarks.lam_cuda_cases import AUTOCAST, MODULE, TRAINING, Case, our_cases
from benchmarks.losses_cases import ALL
from benchmarks.losses_cases import Case as LossCase
from benchmarks.measured import Measured, Results, read
from benchmarks.tables import table

TILE = 64  # pixels


class Prediction(NamedTuple):
    """One launch."""

    name: str
    phase: str  # "forward" or "backward"
    seconds: float
    bound: str  # the resource that is busy longest
    floor: float  # seconds of matrix units alone, with the products that the kernel makes
    l2_bytes: float
    hbm_bytes: float  # arguments, each once
    kept: float = math.nan  # visited pairs / all pairs
    instructions_per_pair: float = math.nan
    compiled: Compiled | None = None


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description="Predict the GPU kernels' times on an H100.")
    parser.add_argument(
        "--measured",
        type=Path,
        nargs="+",
        default=[],
        help="DEVICE-*.json files that benchmarks/gpu_suite.sh has written",
    )
    parser.add_argument("--only", default="", help="problems whose name contains this text")
    parser.add_argument(
        "--launches", type=Path, help="file that keeps the interpreter's counts for the next call"
    )
    given = parser.parse_args()
    lam = _results(given.measured, "lam_cuda", Case)
    losses = _results(given.measured, "losses", LossCase)
    for line in report(given.only, given.launches, lam, losses):
        print(line, flush=True)


def report(only: str, launches: Path | None, lam: Results, losses: Results) -> Iterable[str]:
    """The page, a part at a time."""
    yield (
        f"# GPU kernels on an {chip.NAME}: predicted\n\n"
        "No GPU has run this. `python -m benchmarks.gpu_model` counts instructions, bytes and tile "
        f"pairs and predicts times from them, with {chip.EFFICIENCY:.0%} of the tightest bound. "
        "Measured times stand beside the predictions once there are any."
    )
    cases = [case for case in our_cases() if case.dtype != AUTOCAST and only in str(case)]
    problems = {case: predictions for case, predictions in _predict_lam(cases, launches)}
    try:
        loss_problems = {
            case: [_predict(work) for work in launches]
            for case, launches in gpu_model_losses.problems()
            if only in str(case)
        }
    except LookupError as error:  # the rules are for other kernels than these
        print(f"the losses are left out: {error}", file=sys.stderr)
        loss_problems = {}
    yield f"\nProblems: {only or 'all'}.\n\n## Goals\n\n" + _goals(problems, loss_problems)
    if problems:
        yield "\n## LAM\n\n" + _summary(problems, lam)
    if loss_problems:
        yield "\n## Losses\n\n" + _loss_summary(loss_problems, losses)
    if problems:
        yield "\n## Peers\n\n" + _peers(lam)
    yield "\n## Every launch\n\n" + LEGEND
    for case, predictions in (*problems.items(), *loss_problems.items()):
        if case.backward or case._replace(backward=True) not in problems:
            yield f"\n{case}\n\n" + _launches(predictions)
            if kernels := _kernels(predictions, lam.get(("blpseg_ops", case))):
                yield f"\n{kernels}"


LEGEND = (
    "kept: visited pairs of pixels / all pairs. instr/pair: instructions of all threads per "
    "visited pair. CTAs: per SM, from registers, shared memory and threads. L2: bytes that loads "
    "and stores ask for. HBM: all arguments once. floor: the products alone, on the matrix units."
)


def _predict_lam(
    cases: Sequence[Case], kept: Path | None
) -> Iterable[tuple[Case, list[Prediction]]]:
    """Predict the launches of every problem; a forward problem is a part of its backward twin."""
    longest = [c for c in cases if c.backward or c._replace(backward=True) not in cases]
    recorded = _record(longest, kept)
    found = {}
    for case in longest:
        found[case] = [_predict_launch(Launch(*one), case) for one in recorded[str(case)]]
    for case in cases:
        whole = found.get(case) or found[case._replace(backward=True)]
        yield case, [one for one in whole if case.backward or one.phase == "forward"]


def _record(cases: Sequence[Case], kept: Path | None) -> dict[str, list[Any]]:
    """Launches by the problem's name, from Triton's interpreter in a process of its own."""
    found = json.loads(kept.read_text()) if kept and kept.exists() else {}
    missing = [case for case in cases if str(case) not in found]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_model_launches"],
        input=json.dumps(missing),
        stdout=subprocess.PIPE,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
        text=True,
    )
    for case, line in zip(missing, done.stdout.splitlines(), strict=True):
        found[str(case)] = json.loads(line)
    if kept:
        kept.write_text(json.dumps(found))
    return found


def _predict_launch(launch: Launch, case: Case) -> Prediction:
    if not launch.module:
        size = case.n * launch.bytes
        seconds = max(chip.LAUNCH_SECONDS, size / (chip.HBM * chip.HBM_EFFICIENCY))
        return Prediction(launch.kernel, launch.phase, seconds, "launch", 0.0, size, size)
    compiled = compile_launch(launch)
    loops = {tuple(tuple(line) for line in chain): count for chain, count, _ in launch.loops}

    def trips(chain: Chain, around: float) -> float | None:
        return loops.get(chain)

    cost = total_cost(compiled.whole, trips)
    tensors = {
        address: math.prod(shape) * {"float32": 4, "bfloat16": 2, "float16": 2}.get(dtype, 0)
        for dtype, address, shape in (x for x in launch.arguments.values() if isinstance(x, list))
    }
    programs = case.n * math.prod(launch.grid)
    size = case.n * sum(tensors.values())
    name = launch.kernel.removesuffix("_kernel")
    made = _predict(Work(name, launch.phase, compiled, cost, programs, size))
    queries = launch.arguments.get("QUERIES", launch.arguments.get("TARGETS"))
    keys = launch.arguments.get("KEYS", launch.arguments.get("SOURCES", TILE))
    # The main kernels walk a list of near tiles and one of far tiles; others look at pairs in one
    # loop and handle lists of tiles in shorter ones.
    counts = [count for _, count, outermost in launch.loops if outermost]
    steps = sum(counts) if launch.kernel in MAIN else max(counts, default=0)
    if not queries or not steps:
        return made
    lanes = 32 * compiled.warps * cost.instructions * math.prod(launch.grid[1:])
    per_pair = lanes / (queries * keys * steps)
    pixels = launch.arguments["tiles"] * TILE
    kept = keys * steps / pixels if launch.kernel in MAIN else math.nan
    return made._replace(kept=kept, instructions_per_pair=per_pair)


def _predict(one: Work) -> Prediction:
    """How long each resource is busy; the one that is longest decides."""
    cost, warps, ctas = one.cost, one.compiled.warps, one.compiled.ctas
    per_sm = one.programs / SMS
    resident = min(ctas, math.ceil(per_sm))
    l2_bytes = one.programs * warps * cost.global_bytes
    cycles = {
        "issue": per_sm * warps * cost.instructions / SCHEDULERS,
        "shared memory": per_sm * warps * cost.shared_bytes / chip.SHARED_MEMORY_RATE,
        "latency": per_sm / resident * cost.latency,
        "L2": l2_bytes / chip.L2 * CLOCK,
        "HBM": one.hbm_bytes / (chip.HBM * chip.HBM_EFFICIENCY) * CLOCK,
    }
    for unit, busy in cost.busy.items():
        cycles[f"{unit} units"] = per_sm * warps * busy / SCHEDULERS
    bound = max(cycles, key=lambda resource: cycles[resource])
    waves = per_sm / ctas
    # The last CTAs leave SMs idle: half a wave, or what a single wave does not fill.
    idle = math.ceil(per_sm) / per_sm if waves <= 1 else (waves + 0.5) / waves
    seconds = max(chip.LAUNCH_SECONDS, cycles[bound] * idle / chip.EFFICIENCY / CLOCK)
    floor = cycles.get(f"{TENSOR} units", 0.0) / CLOCK
    return Prediction(
        one.name, one.phase, seconds, bound, floor, l2_bytes, one.hbm_bytes, compiled=one.compiled
    )


def _floor(case: Case, predictions: Sequence[Prediction]) -> float:
    """The least time of a problem: its products, or its inputs and outputs through HBM."""
    width = 2 if case.dtype == "bfloat16" else 4
    maps = case.dims + 2 * case.channels
    if case.backward:  # once more inputs, the upstream gradient, and gradients
        maps += 2 * case.dims + 4 * case.channels
    size = case.n * case.pixels * maps * width
    return max(sum(one.floor for one in predictions), size / (chip.HBM * chip.HBM_EFFICIENCY))


def _loss_floor(case: LossCase) -> float:
    """Logits and target through HBM, in backward once more, with the gradients."""
    logits = 4 * case.n * (2 * case.classes + 1) * case.low**2
    target = case.n * case.high**2
    size = 3 * logits + 2 * target if case.backward else logits + target
    return size / (chip.HBM * chip.HBM_EFFICIENCY)


def _goals(problems: dict[Case, list[Prediction]], losses: dict[LossCase, list[Prediction]]) -> str:
    published = gpu_model_peers.published(TRAINING._replace(dtype=AUTOCAST)).seconds
    low = TRAINING._replace(dtype="bfloat16")
    flex50 = gpu_model_peers.flex(low._replace(dims=MODULE.dims)).seconds
    flex256 = gpu_model_peers.flex(low).seconds
    rows = []
    for case, peer, seconds, goal in (
        (MODULE, "published under autocast", published, 10),
        (MODULE, "FlexAttention bfloat16 on the 50 coordinates", flex50, 2),
        (TRAINING, "published under autocast", published, 3),
        (TRAINING, "FlexAttention bfloat16, D 256", flex256, 1),
    ):
        if case in problems:
            ratio = seconds / _total(problems[case])
            met = "yes" if ratio >= goal else "no"
            rows.append(
                (f"D {case.dims}, float32: faster than {peer}", f"{goal}x", f"{ratio:.2g}x", met)
            )
    for case, predictions in losses.items():
        if case.what == ALL and case.backward:
            ratio = _total(predictions) / _loss_floor(case)
            name = f"{case.what}, {case.classes} classes: time / HBM floor"
            rows.append((name, "at most 10x", f"{ratio:.3g}x", "yes" if ratio <= 10 else "no"))
    note = "LAM: N 10, 96 x 96, C 21, sigma 6, eps 0. All: forward + backward.\n\n"
    return note + table(["", "goal", "predicted", "reached"], rows)


def _summary(problems: dict[Case, list[Prediction]], measured: Results) -> str:
    rows = []
    for case, predictions in problems.items():
        main = [one for one in predictions if not math.isnan(one.kept)]
        kept = " / ".join(f"{one.kept:.0%}" for one in main)
        slowest = max(predictions, key=lambda one: one.seconds)
        rows.append(
            (
                str(case),
                kept,
                f"{slowest.name}: {slowest.bound}",
                _ms(_total(predictions)),
                _measured(measured, case),
                _ms(_floor(case, predictions)),
                f"{_total(predictions) / _floor(case, predictions):.2g}x",
            )
        )
    heads = ["problem", "kept pairs", "slowest launch, its bound", "predicted ms", "measured ms"]
    return table([*heads, "floor ms", "predicted / floor"], rows)


def _loss_summary(problems: dict[LossCase, list[Prediction]], measured: Results) -> str:
    rows = [
        (
            str(case),
            _ms(_total(predictions)),
            _measured(measured, case),
            _ms(_loss_floor(case)),
            f"{_total(predictions) / _loss_floor(case):.3g}x",
            _ms(gpu_model_peers.loss("published", case).seconds),
            _ms(gpu_model_peers.loss("careful", case).seconds),
        )
        for case, predictions in problems.items()
    ]
    heads = ["problem", "predicted ms", "measured ms", "HBM floor ms", "predicted / floor"]
    return table([*heads, "published, eager: predicted ms", "careful, eager"], rows)


def _peers(measured: Results) -> str:
    rows = []
    for case in (TRAINING, TRAINING._replace(backward=False)):
        low = case._replace(dtype="bfloat16")
        for name, peer, same in (
            ("published", "published", case),
            ("published under autocast", "published", case._replace(dtype=AUTOCAST)),
            ("FlexAttention bfloat16", "FlexAttention", low),
            ("FlexAttention bfloat16", "FlexAttention", low._replace(dims=MODULE.dims)),
        ):
            model = gpu_model_peers.published if peer == "published" else gpu_model_peers.flex
            used = model(same)
            rows.append(
                (
                    f"{name}: {same}",
                    f"{used.bytes / 1e9:.3g}",
                    f"{used.flops / 1e12:.2g}",
                    _ms(used.seconds),
                    _measured(measured, same, peer),
                )
            )
    return table(["peer", "HBM GB", "TFLOP", "predicted ms", "measured ms"], rows)


def _launches(predictions: Sequence[Prediction]) -> str:
    rows = []
    for phase in ("forward", "backward"):
        ours = [one for one in predictions if one.phase == phase]
        for one in (x for x in ours if x.compiled):
            compiled = one.compiled
            assert compiled is not None
            per_pair = one.instructions_per_pair
            resources = f"{compiled.registers} registers, {compiled.shared_memory >> 10} KiB"
            if compiled.stack:
                resources += f", {compiled.stack} B stack"
            rows.append(
                (
                    f"{phase}: {one.name}",
                    "" if math.isnan(one.kept) else f"{one.kept:.0%}",
                    "" if math.isnan(per_pair) else f"{per_pair:.0f}",
                    f"{resources}, {compiled.warps} warps",
                    str(compiled.ctas),
                    f"{one.l2_bytes / 1e9:.2g}",
                    f"{one.hbm_bytes / 1e6:.0f}",
                    one.bound,
                    _ms(one.seconds),
                    _ms(one.floor),
                )
            )
        torch_operators = [one for one in ours if not one.compiled]
        if torch_operators:
            rows.append(
                (
                    f"{phase}: {len(torch_operators)} operators of torch",
                    *[""] * 5,
                    f"{sum(one.hbm_bytes for one in torch_operators) / 1e6:.0f}",
                    "launch",
                    _ms(_total(torch_operators)),
                    "",
                )
            )
    rows.append(
        ("all", *[""] * 7, _ms(_total(predictions)), _ms(sum(x.floor for x in predictions)))
    )
    heads = ["launch", "kept", "instr/pair", "per CTA", "CTAs", "L2 GB", "HBM MB", "bound by"]
    return table([*heads, "predicted ms", "floor ms"], rows)


def _kernels(predictions: Sequence[Prediction], measured: Measured | None) -> str:
    """Each kernel's time, over all its launches, as predicted and as a profiler has seen it."""
    if measured is None or not measured.kernels:
        return ""
    names = dict.fromkeys(one.name for one in predictions if one.compiled)
    rows = [
        (
            name,
            _ms(sum(one.seconds for one in predictions if one.name == name)),
            _ms(sum(v for kernel, v in measured.kernels.items() if kernel.startswith(name))),
        )
        for name in names
    ]
    return table(["kernel", "predicted ms", "measured ms"], rows)


def _total(predictions: Iterable[Prediction]) -> float:
    return sum(one.seconds for one in predictions)


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _measured(results: Results, case: Any, peer: str = "blpseg_ops") -> str:
    found = results.get((peer, case))
    return _ms(found.seconds) if found else "-"


def _results(files: Iterable[Path], name: str, case_type: Any) -> Results:
    results: Results = {}
    for file in files:
        results |= read(json.loads(file.read_text()), name, case_type)
    return results


if __name__ == "__main__":
    main()
