"""Call every operator at random, with valid and invalid arguments, under sanitizers.

A third of the calls are checks of ``test_properties.py``. The others take valid arguments of an
operator or of its public function, and spoil some. Such a call must raise one of the expected
exceptions, or return the shapes and dtypes that the fake kernel computes. A call depends on the
seed and its number alone, so ``--only`` repeats it. CONTRIBUTING.md says how to build with
sanitizers::

    python -m tests.ops.fuzz --calls 100000 --seed 1
"""

from __future__ import annotations

import argparse
import faulthandler
import math
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import torch
from torch import Tensor

import blpseg_ops

from ._draws import (
    DTYPES,
    draw_joint_bilateral,
    draw_lam,
    draw_layout,
    draw_losses,
    draw_sigma,
    draw_tensor,
    draw_two_grids,
    draw_upsample_argmax,
    draw_vector_layout,
)
from .test_properties import (
    check_joint_bilateral,
    check_lam,
    check_lam_two_grids,
    check_lam_with_queries,
    check_losses,
    check_upsample_argmax,
)

HANGS = 600  # seconds; if 100 calls take longer, one hangs
CHECKS = (
    check_lam,
    check_lam_two_grids,
    check_lam_with_queries,
    check_joint_bilateral,
    *3 * (check_losses,),
    *2 * (check_upsample_argmax,),
)

# Exceptions that public functions may raise, and that operators called without the checks may.
# An operator that gets no tensor runs its fallback, which raises Python's own exceptions.
PUBLIC = (TypeError, ValueError)
RAW = (*PUBLIC, RuntimeError, IndexError, OverflowError, AttributeError)


@dataclass(frozen=True)
class Call:
    """An operator or a public function, and its arguments in order."""

    name: str
    function: Callable[..., Any]
    arguments: list[Any]
    refusals: tuple[type[Exception], ...]


def draw_operator(rng: Random) -> Call:
    """Return an operator of torch.ops.blpseg with valid arguments."""
    lay_out, dtype = draw_layout(rng), rng.choice(DTYPES)
    name = rng.choice(
        (
            "lam",
            "lam_backward",
            "lam_two_grids",
            "lam_two_grids_backward",
            "blp_loss",
            "blp_loss_backward",
            "annotation_loss",
            "annotation_loss_backward",
            "pseudo_labels",
            "blp_objective",
            "blp_objective_backward",
            "upsample_argmax",
        )
    )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if name.startswith("lam_two_grids"):
        case = draw_two_grids(rng).map(lay_out).to(dtype).map(lay_out)
        inv_two_sigma_sq = draw_vector_layout(rng)(case.inv_two_sigma_sq)
        arguments = list(replace(case, inv_two_sigma_sq=inv_two_sigma_sq).arguments)
        if name == "lam_two_grids_backward":
            # Random, not forward's results: backward must not rely on them.
            output = draw_tensor(rng, *case.grad_output.shape).to(dtype)
            log_denominator = draw_tensor(rng, *case.grad_output[:, 0].shape).to(wide)
            arguments = [case.grad_output, *arguments[:3], output, log_denominator, *arguments[3:]]
    elif name.startswith("lam"):
        lam = draw_lam(rng).map(lay_out).to(dtype).map(lay_out)
        arguments = [lam.features, lam.values, *lam.params]
        if name == "lam_backward":
            # Random, not forward's results: backward must not rely on them.
            output = draw_tensor(rng, *lam.values.shape).to(dtype)
            log_denominator = draw_tensor(rng, *lam.values[:, 0].shape).to(wide)
            inputs = [lam.grad_output, lam.features, lam.values, output, log_denominator]
            arguments = [*inputs, *lam.params]
    elif name == "upsample_argmax":
        logits, size = draw_upsample_argmax(rng)
        arguments = [lay_out(lay_out(logits).to(dtype)), list(size)]
    else:
        case = draw_losses(rng).map(lay_out).to(dtype).map(lay_out)
        seg, annotation, target = case.seg_logits, case.annotation_logits, case.target
        present = rng.choice((case.class_present, None))
        sums = draw_tensor(rng, len(target)).abs().to(wide)
        one, total = draw_tensor(rng, 2).to(wide)
        none = one.new_zeros(0)  # saved_pixels; only CUDA has some
        gamma, weight, ignore = case.gamma, case.unlabeled_weight, case.ignore_index
        arguments = {
            "blp_loss": [seg, annotation, target, gamma, ignore],
            "blp_loss_backward": [one, seg, annotation, target, sums, none, gamma, ignore],
            "annotation_loss": [annotation, target, weight, ignore],
            "annotation_loss_backward": [one, annotation, target, total, none, weight, ignore],
            "pseudo_labels": [seg, target, case.class_present, case.threshold, ignore],
            "blp_objective": [
                *(seg, annotation, target, present),
                *(gamma, weight, case.threshold, ignore),
            ],
            "blp_objective_backward": [
                *(one, one, seg, annotation, target.clone(), target, sums, total),
                *(none, none, gamma, weight, ignore),
            ],
        }[name]
    return Call(name, getattr(torch.ops.blpseg, name).default, arguments, RAW)


def draw_function(rng: Random) -> Call:
    """Return a public function with valid arguments."""
    if rng.random() < 0.15:
        return draw_filter(rng)
    call = draw_operator(rng)
    while call.name.endswith("_backward"):
        call = draw_operator(rng)
    if call.name.startswith("lam"):
        i = {"lam": 2, "lam_two_grids": 3}[call.name]
        call.arguments[i] = draw_sigma(rng, rng.choice(DTYPES))
    function: Callable[..., Any] = {
        "lam": lambda f, v, sigma, eps, scale, radius: blpseg_ops.lam(
            f, v, sigma, eps=eps, scale=scale, radius=radius
        ),
        "lam_two_grids": lambda q, f, v, sigma, eps, scale, radius: blpseg_ops.lam(
            f, v, sigma, queries=q, eps=eps, scale=scale, radius=radius
        ),
        "blp_loss": lambda s, a, t, gamma, ignore: blpseg_ops.blp_loss(
            s, a, t, gamma=gamma, ignore_index=ignore
        ),
        "annotation_loss": lambda a, t, weight, ignore: blpseg_ops.annotation_loss(
            a, t, unlabeled_weight=weight, ignore_index=ignore
        ),
        "pseudo_labels": lambda s, t, present, threshold, ignore: blpseg_ops.pseudo_labels(
            s, t, present, threshold=threshold, ignore_index=ignore
        ),
        "blp_objective": lambda s, a, t, present, gamma, weight, threshold, ignore: (
            blpseg_ops.blp_objective(
                s,
                a,
                t,
                gamma=gamma,
                unlabeled_weight=weight,
                class_present=present,
                threshold=threshold,
                ignore_index=ignore,
            )
        ),
        "upsample_argmax": blpseg_ops.upsample_argmax,
    }[call.name]
    # A label map of the requested size may not fit into memory.
    refusals = (*PUBLIC, RuntimeError) if call.name == "upsample_argmax" else PUBLIC
    return Call(call.name, function, call.arguments, refusals)


def draw_filter(rng: Random) -> Call:
    """Return joint_bilateral with valid arguments."""
    lay_out, dtype = draw_layout(rng), rng.choice(DTYPES)
    case = draw_joint_bilateral(rng).map(lay_out).to(dtype).map(lay_out)
    sigmas = [draw_sigma(rng, rng.choice(DTYPES)) for _ in range(2)]
    size = case.size if case.size is None else list(case.size)
    return Call(
        "joint_bilateral",
        lambda *arguments: blpseg_ops.joint_bilateral(*arguments[:-1], radius=arguments[-1]),
        [case.guide, case.values, *sigmas, size, case.radius],
        # A guide of the requested size may not fit into memory.
        (*PUBLIC, RuntimeError),
    )


# --- Spoiling -------------------------------------------------------------------------------------


def spoil(rng: Random, argument: Any) -> Any:
    """Return a similar argument that is rarely valid."""
    if isinstance(argument, Tensor):
        return spoil_tensor(rng, argument)
    if isinstance(argument, list):
        odd = (0, -1, 1, 5, 2**44, 2**62, -(2**63))  # none that fits into memory but takes hours
        return [rng.choice(odd) for _ in range(rng.choice((1, 2, 2, 2, 3)))]
    if isinstance(argument, float):
        odd_numbers = (0.0, -0.0, -1.0, 1e-300, 1e-20, 1e20, 1e300, -1e300, 50.0)
        return rng.choice((*odd_numbers, math.inf, -math.inf, math.nan, None, "2"))
    return rng.choice((0, -1, 1, 7, 255, 256, 2**31 - 1, 2**31, 2**63 - 1, -(2**63), None, 2.5))


def spoil_tensor(rng: Random, x: Tensor) -> Any:
    """Return a tensor of another shape, dtype or layout, or with odd values, or no tensor."""
    if x.is_sparse or x.is_meta:  # already spoiled
        return x
    axis = rng.randrange(x.dim()) if x.dim() else None
    ways: list[Callable[[], Any]] = [
        lambda: x.to(rng.choice((*DTYPES, torch.int64, torch.uint8, torch.bool, torch.complex64))),
        lambda: x[None],
        lambda: x.reshape(-1),
        lambda: x.to("meta"),
        lambda: x.to_sparse(),
        lambda: rng.choice((None, 1.5, [1, 2], "x")),
        lambda: with_odd_values(rng, x),
        lambda: with_odd_values(rng, x),
    ]
    if axis is not None:
        ways += [
            lambda: x.narrow(axis, 0, rng.randint(0, x.shape[axis])),
            lambda: torch.cat([x, x], axis).narrow(axis, 0, x.shape[axis] + bool(x.shape[axis])),
            lambda: x.narrow(axis, 0, min(1, x.shape[axis])).expand(x.shape),
            lambda: x.transpose(axis, rng.randrange(x.dim())),
            lambda: x.sum(axis).to(x.dtype),
        ]
    return rng.choice(ways)()


def with_odd_values(rng: Random, x: Tensor) -> Tensor:
    """Return the tensor with some or all numbers replaced."""
    odd = x.clone()
    fraction = rng.choice((0.05, 0.5, 1.0))
    draws = torch.rand(x.shape, generator=torch.Generator().manual_seed(rng.getrandbits(31)))
    if x.is_floating_point():
        largest = torch.finfo(x.dtype).max
        value = rng.choice((0.0, math.nan, math.inf, -math.inf, largest, -largest, 1e-40, 1e4))
    elif x.dtype in (torch.bool, torch.complex64):
        value = 0
    else:
        low, high = torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max
        value = rng.choice((low, high, high // 2 + 1, 0, 255 if high >= 255 else high))
    odd[draws < fraction] = value
    return odd


# --- Calling --------------------------------------------------------------------------------------


def assert_as_promised(call: Call, results: Any) -> None:
    """Assert that results have the shapes and dtypes that the fake kernel computes."""
    if any(isinstance(x, Tensor) and (x.is_meta or x.is_sparse) for x in call.arguments):
        return
    fakes = call.function(*(x.to("meta") if isinstance(x, Tensor) else x for x in call.arguments))
    both = (x if isinstance(x, tuple) else (x,) for x in (results, fakes))
    for result, fake in zip(*both, strict=True):
        if result is not None:
            assert (result.shape, result.dtype) == (fake.shape, fake.dtype)


def run_spoiled(rng: Random, verbose: bool) -> str:
    """Make one call with invalid arguments; return a word for the outcome."""
    call = rng.choice((draw_operator, draw_function))(rng)
    for _ in range(rng.choice((1, 1, 2))):
        i = rng.randrange(len(call.arguments))
        call.arguments[i] = spoil(rng, call.arguments[i])
    if verbose:
        print(call.name, *map(describe, call.arguments), flush=True)
    try:
        results = call.function(*call.arguments)
    except call.refusals as error:
        # torch's own operators, which the fallbacks call, may fail so on sparse tensors.
        sparse = any(isinstance(x, Tensor) and x.is_sparse for x in call.arguments)
        assert sparse or "INTERNAL ASSERT" not in str(error)
        return f"{call.name}: refused"
    assert_as_promised(call, results)
    return f"{call.name}: answered"


def describe(argument: Any) -> str:
    """Return a short description of an argument."""
    if not isinstance(argument, Tensor):
        return repr(argument)
    kind = str(argument.dtype).removeprefix("torch.")
    strides = "" if argument.is_sparse else f" by {tuple(argument.stride())}"
    return f"{kind}{list(argument.shape)}{strides} on {argument.device}"


def run(seed: int, index: int, verbose: bool) -> str:
    """Make call number `index`; return a word for the outcome, or raise."""
    rng = Random(f"{seed}:{index}")
    if C is not None:
        C.set_cpu_capability(rng.choice(C.cpu_capabilities()))
    if rng.random() < 2 / 3:
        return run_spoiled(rng, verbose)
    check = rng.choice(CHECKS)
    check(rng)
    return f"{check.__name__.removeprefix('check_')}: as the reference"


try:
    from blpseg_ops import _C as C
except ImportError:  # without native code the fallbacks are fuzzed
    C = None


def main() -> int:
    """Run the calls; return 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--only", type=int, help="make this call alone and print its arguments")
    parser.add_argument("--verbose", action="store_true", help="print each call before it is made")
    options = parser.parse_args()
    calls = range(options.first, options.first + options.calls)
    if options.only is not None:
        calls, options.verbose = range(options.only, options.only + 1), True

    faulthandler.enable()
    print("torch", torch.__version__, C.build_info() if C else "no native code", flush=True)
    began, outcomes, failed = time.monotonic(), Counter[str](), []
    for index in calls:
        if index % 100 == 0:
            faulthandler.dump_traceback_later(HANGS, exit=True)
            torch.set_num_threads(1 + index // 100 % 3)
        if index % 1000 == 0:
            print(
                f"call {index}: {len(failed)} wrong, {time.monotonic() - began:.0f} s", flush=True
            )
        if options.verbose:
            print(f"call {index}", flush=True)
        try:
            outcomes[run(options.seed, index, options.verbose)] += 1
        except Exception:
            failed.append(index)
            print(f"call {index} of seed {options.seed} went wrong:", traceback.format_exc())
    for outcome, count in sorted(outcomes.items()):
        print(f"{count:8} {outcome}")
    took = time.monotonic() - began
    print(f"seed {options.seed}, {len(calls)} calls, {len(failed)} wrong, {took:.0f} s: {failed}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
