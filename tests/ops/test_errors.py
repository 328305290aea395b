"""Bad inputs: every backend raises, naming the argument, what it must be, and what came."""

from __future__ import annotations

import ast
import re
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import blpseg_ops
from blpseg_ops import _targets

F = torch.zeros(2, 4, 3, 5)  # features
Q = torch.zeros(2, 4, 6, 10)  # queries
V = torch.zeros(2, 3, 3, 5)  # values, or logits of 3 classes
A = torch.zeros(2, 4, 3, 5)  # annotation logits
T = torch.zeros(2, 12, 20, dtype=torch.uint8)
P = torch.ones(2, 3, dtype=torch.bool)


def _with(tensor: torch.Tensor, value: int) -> torch.Tensor:
    changed = tensor.clone()
    changed[1, 2, 3] = value
    return changed


lam, blp, ann = blpseg_ops.lam, blpseg_ops.blp_loss, blpseg_ops.annotation_loss
pseudo, argmax = blpseg_ops.pseudo_labels, blpseg_ops.upsample_argmax
objective, bilateral = blpseg_ops.blp_objective, blpseg_ops.joint_bilateral

CASES: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (lam, ([1.0], V), {}, TypeError, "lam: features must be a torch.Tensor, got list"),
    (
        lam,
        (F.to_sparse(), V),
        {},
        TypeError,
        "lam: features must be a dense tensor, got layout torch.sparse_coo",
    ),
    (
        lam,
        (F[0], V),
        {},
        ValueError,
        "lam: features must be a non-empty [N, D, h, w] tensor (only N may be 0), "
        "got shape [4, 3, 5]",
    ),
    (
        lam,
        (F, V[:, :0]),
        {},
        ValueError,
        "lam: values must be a non-empty [N, C, h, w] tensor (only N may be 0), "
        "got shape [2, 0, 3, 5]",
    ),
    (lam, (F.long(), V), {}, TypeError, "lam: features must be floating point, got torch.int64"),
    (
        lam,
        (F, V.double()),
        {},
        TypeError,
        "lam: values must have the dtype of features, torch.float32, got torch.float64",
    ),
    (
        lam,
        (F, V[:1]),
        {},
        ValueError,
        "lam: values must have the batch size, height and width of features, shape [2, 4, 3, 5], "
        "got shape [1, 3, 3, 5]",
    ),
    (
        lam,
        (F, V.to("meta")),
        {},
        ValueError,
        "lam: values must be on the device of features, cpu, got meta",
    ),
    (lam, (F, V, 0.0), {}, ValueError, "lam: sigma must be a number > 0, got 0.0"),
    (lam, (F, V, -2), {}, ValueError, "lam: sigma must be a number > 0, got -2"),
    (lam, (F, V), {"radius": -1}, ValueError, "lam: radius must be None or an int >= 0, got -1"),
    (lam, (F, V), {"radius": 2.5}, ValueError, "lam: radius must be None or an int >= 0, got 2.5"),
    (
        lam,
        (F, V),
        {"radius": True},
        ValueError,
        "lam: radius must be None or an int >= 0, got True",
    ),
    (
        lam,
        (F, V, float("nan")),
        {},
        ValueError,
        "lam: sigma must be a number > 0, got nan",
    ),
    (
        lam,
        (F, V, torch.ones((), device="meta")),
        {},
        ValueError,
        "lam: sigma must hold a number, as features on cpu do, got a tensor on meta",
    ),
    (
        lam,
        (F, V, torch.ones(()).to_sparse()),
        {},
        TypeError,
        "lam: sigma must be a dense tensor, got layout torch.sparse_coo",
    ),
    (
        lam,
        (F, V, torch.ones(2)),
        {},
        ValueError,
        "lam: sigma must be a number > 0 or a 0-dim floating-point tensor, "
        "got a tensor of shape [2] and torch.float32",
    ),
    (
        lam,
        (F, V),
        {"queries": Q[0]},
        ValueError,
        "lam: queries must be a non-empty [N, D, H, W] tensor (only N may be 0), "
        "got shape [4, 6, 10]",
    ),
    (
        lam,
        (F, V),
        {"queries": Q.double()},
        TypeError,
        "lam: queries must have the dtype of features, torch.float32, got torch.float64",
    ),
    (
        lam,
        (F, V),
        {"queries": Q.to("meta")},
        ValueError,
        "lam: queries must be on the device of features, cpu, got meta",
    ),
    (
        lam,
        (F, V),
        {"queries": Q[:, :3]},
        ValueError,
        "lam: queries must have the batch size and channels of features, shape [2, 4, 3, 5], "
        "got shape [2, 3, 6, 10]",
    ),
    (
        lam,
        (F, V),
        {"queries": Q, "radius": 0.4},
        ValueError,
        "lam: radius must be None or a number >= 0.5 with queries, got 0.4",
    ),
    (lam, (F, V), {"eps": -1e-7}, ValueError, "lam: eps must be a finite number >= 0, got -1e-07"),
    (
        lam,
        (F, V),
        {"scale": float("inf")},
        ValueError,
        "lam: scale must be a finite number, got inf",
    ),
    (
        bilateral,
        (Q[0], V),
        {},
        ValueError,
        "joint_bilateral: guide must be a non-empty [N, G, H, W] tensor (only N may be 0), "
        "got shape [4, 6, 10]",
    ),
    (
        bilateral,
        (Q, V.double()),
        {},
        TypeError,
        "joint_bilateral: values must have the dtype of guide, torch.float32, got torch.float64",
    ),
    (
        bilateral,
        (Q, V.to("meta")),
        {},
        ValueError,
        "joint_bilateral: values must be on the device of guide, cpu, got meta",
    ),
    (
        bilateral,
        (Q, V[:1]),
        {},
        ValueError,
        "joint_bilateral: values must have the batch size of guide, 2, got 1",
    ),
    (
        bilateral,
        (Q, V, -1.0),
        {},
        ValueError,
        "joint_bilateral: sigma_space must be a number > 0, got -1.0",
    ),
    (
        bilateral,
        (Q, V),
        {"radius": 0.4},
        ValueError,
        "joint_bilateral: radius must be None or a number >= 0.5, got 0.4",
    ),
    (
        bilateral,
        (Q, V, 1.0, 0.0),
        {},
        ValueError,
        "joint_bilateral: sigma_color must be a number > 0, got 0.0",
    ),
    (
        bilateral,
        (Q, V, 1.0, 1.0, (0, 4)),
        {},
        ValueError,
        "joint_bilateral: size must be (H, W) with H, W >= 1, got (0, 4)",
    ),
    (
        blp,
        (V[0], A, T),
        {},
        ValueError,
        "blp_loss: seg_logits must be a non-empty [N, K, h, w] tensor (only N may be 0), "
        "got shape [3, 3, 5]",
    ),
    (
        blp,
        (V.int(), A, T),
        {},
        TypeError,
        "blp_loss: seg_logits must be floating point, got torch.int32",
    ),
    (
        blp,
        (V, A.half(), T),
        {},
        TypeError,
        "blp_loss: annotation_logits must have the dtype of seg_logits, torch.float32, "
        "got torch.float16",
    ),
    (
        blp,
        (V, V, T),
        {},
        ValueError,
        "blp_loss: annotation_logits must have K + 1 = 4 channels, one more than seg_logits, got 3",
    ),
    (
        blp,
        (V, A[:1], T),
        {},
        ValueError,
        "blp_loss: annotation_logits must have the batch size, height and width of seg_logits, "
        "shape [2, 3, 3, 5], got shape [1, 4, 3, 5]",
    ),
    (
        blp,
        (V, A, T),
        {"ignore_index": 2.5},
        TypeError,
        "blp_loss: ignore_index must be an int, got 2.5",
    ),
    (
        blp,
        (V, A, T[0]),
        {},
        ValueError,
        "blp_loss: target must be a non-empty [N, H, W] tensor (only N may be 0), "
        "got shape [12, 20]",
    ),
    (
        blp,
        (V, A, T[:1]),
        {},
        ValueError,
        "blp_loss: target must have the batch size of seg_logits, 2, got 1",
    ),
    (
        blp,
        (V, A, T.float()),
        {},
        TypeError,
        "blp_loss: target must have one of the dtypes torch.uint8, torch.int16, torch.int32, "
        "torch.int64, got torch.float32",
    ),
    (
        blp,
        (V, A, _with(T, 77)),
        {},
        ValueError,
        "blp_loss: target must hold 0..2 (a class), 3 (unlabeled) or 255 (ignore), got 77",
    ),
    (
        blp,
        (V, A, _with(T.long(), -1)),
        {},
        ValueError,
        "blp_loss: target must hold 0..2 (a class), 3 (unlabeled) or 255 (ignore), got -1",
    ),
    (
        blp,
        (V, A, T),
        {"gamma": -0.5},
        ValueError,
        "blp_loss: gamma must be a finite number >= 0, got -0.5",
    ),
    (
        blp,
        (V, A, T),
        {"ignore_index": 3},
        ValueError,
        "blp_loss: ignore_index must be outside 0..3 (0..2 are classes, 3 is unlabeled), got 3",
    ),
    (
        ann,
        (A[:, :1], T),
        {},
        ValueError,
        "annotation_loss: annotation_logits must have K + 1 >= 2 channels, got 1",
    ),
    (
        ann,
        (A, _with(T, 4)),
        {},
        ValueError,
        "annotation_loss: target must hold 0..2 (a class), 3 (unlabeled) or 255 (ignore), got 4",
    ),
    (
        ann,
        (A, T),
        {"unlabeled_weight": -1},
        ValueError,
        "annotation_loss: unlabeled_weight must be a finite number >= 0, got -1",
    ),
    (
        pseudo,
        (V, _with(T, 9), P),
        {},
        ValueError,
        "pseudo_labels: target must hold 0..2 (a class), 3 (unlabeled) or 255 (ignore), got 9",
    ),
    (
        pseudo,
        (V, T, P.int()),
        {},
        TypeError,
        "pseudo_labels: class_present must have dtype torch.bool, got torch.int32",
    ),
    (
        pseudo,
        (V, T, P[:, :2]),
        {},
        ValueError,
        "pseudo_labels: class_present must have shape [N, K] = [2, 3], got [2, 2]",
    ),
    (
        pseudo,
        (V, T, P),
        {"threshold": 1.5},
        ValueError,
        "pseudo_labels: threshold must be in 0..1, got 1.5",
    ),
    (
        objective,
        (V, V, T),
        {},
        ValueError,
        "blp_objective: annotation_logits must have K + 1 = 4 channels, one more than seg_logits, "
        "got 3",
    ),
    (
        objective,
        (V, A, T[:1]),
        {},
        ValueError,
        "blp_objective: target must have the batch size of seg_logits, 2, got 1",
    ),
    (
        objective,
        (V, A, _with(T, 77)),
        {},
        ValueError,
        "blp_objective: target must hold 0..2 (a class), 3 (unlabeled) or 255 (ignore), got 77",
    ),
    (
        objective,
        (V, A, _with(T, 9)),
        {"class_present": P},
        ValueError,
        "blp_objective: target must hold 0..2 (a class), 3 (unlabeled) or 255 (ignore), got 9",
    ),
    (
        objective,
        (V, A, T),
        {"gamma": float("nan")},
        ValueError,
        "blp_objective: gamma must be a finite number >= 0, got nan",
    ),
    (
        objective,
        (V, A, T),
        {"unlabeled_weight": -1},
        ValueError,
        "blp_objective: unlabeled_weight must be a finite number >= 0, got -1",
    ),
    (
        objective,
        (V, A, T),
        {"class_present": P.tolist()},
        TypeError,
        "blp_objective: class_present must be a torch.Tensor, got list",
    ),
    (
        objective,
        (V, A, T),
        {"class_present": P.int()},
        TypeError,
        "blp_objective: class_present must have dtype torch.bool, got torch.int32",
    ),
    (
        objective,
        (V, A, T),
        {"class_present": P[:1]},
        ValueError,
        "blp_objective: class_present must have shape [N, K] = [2, 3], got [1, 3]",
    ),
    (
        objective,
        (V, A, T),
        {"threshold": -0.1},
        ValueError,
        "blp_objective: threshold must be in 0..1, got -0.1",
    ),
    (
        objective,
        (V, A, T),
        {"ignore_index": 0},
        ValueError,
        "blp_objective: ignore_index must be outside 0..3 (0..2 are classes, 3 is unlabeled), "
        "got 0",
    ),
    (
        objective,
        (V.to("meta"), A.to("meta"), T.to("meta")),
        {"backend": "fast"},
        ValueError,
        "blp_objective: backend must be one of 'auto', 'reference' on meta, got 'fast'",
    ),
    (
        argmax,
        (V[0], (4, 4)),
        {},
        ValueError,
        "upsample_argmax: logits must be a non-empty [N, K, h, w] tensor (only N may be 0), "
        "got shape [3, 3, 5]",
    ),
    (
        argmax,
        (V, (4, 0)),
        {},
        ValueError,
        "upsample_argmax: size must be (H, W) with H, W >= 1, got (4, 0)",
    ),
    (
        argmax,
        (V.to("meta"), (4, 4)),
        {"backend": "fast"},
        ValueError,
        "upsample_argmax: backend must be one of 'auto', 'reference' on meta, got 'fast'",
    ),
    (
        lam,
        (F.to("meta"), V.to("meta")),
        {"backend": "cuda"},
        ValueError,
        "lam: backend must be one of 'auto', 'reference' on meta, got 'cuda'",
    ),
    *(
        (
            op,
            tuple(argument.to("meta") for argument in arguments),
            {"backend": "triton"},
            ValueError,
            f"{op.__name__}: backend must be one of 'auto', 'reference' on meta, got 'triton'",
        )
        for op, arguments in ((blp, (V, A, T)), (ann, (A, T)), (pseudo, (V, T, P)))
    ),
    (
        blp,
        (V, A, T.to("meta")),
        {},
        ValueError,
        "blp_loss: target must be on the device of seg_logits, cpu, got meta",
    ),
    (
        pseudo,
        (V, T, P.to("meta")),
        {},
        ValueError,
        "pseudo_labels: class_present must be on the device of seg_logits, cpu, got meta",
    ),
    (
        objective,
        (V, A.to("meta"), T),
        {},
        ValueError,
        "blp_objective: annotation_logits must be on the device of seg_logits, cpu, got meta",
    ),
    (
        ann,
        (A.long(), T),
        {},
        TypeError,
        "annotation_loss: annotation_logits must be floating point, got torch.int64",
    ),
    (
        ann,
        (A, T[0]),
        {},
        ValueError,
        "annotation_loss: target must be a non-empty [N, H, W] tensor (only N may be 0), "
        "got shape [12, 20]",
    ),
    (
        ann,
        (A, T),
        {"ignore_index": 0},
        ValueError,
        "annotation_loss: ignore_index must be outside 0..3 (0..2 are classes, 3 is unlabeled), "
        "got 0",
    ),
    (pseudo, (V, [0], P), {}, TypeError, "pseudo_labels: target must be a torch.Tensor, got list"),
    (
        pseudo,
        (V, T > 0, P),
        {},
        TypeError,
        "pseudo_labels: target must have one of the dtypes torch.uint8, torch.int16, torch.int32, "
        "torch.int64, got torch.bool",
    ),
    (
        argmax,
        (V.int(), (4, 4)),
        {},
        TypeError,
        "upsample_argmax: logits must be floating point, got torch.int32",
    ),
    (
        argmax,
        (V, (4,)),
        {},
        ValueError,
        "upsample_argmax: size must be (H, W) with H, W >= 1, got (4,)",
    ),
]


def _differentiate_twice(op: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    first = inputs[0].clone().requires_grad_()
    (grad,) = torch.autograd.grad(op(first, *inputs[1:]).sum(), first, create_graph=True)
    grad.sum().backward()


OTHERS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (
        lambda: blpseg_ops.LocalAggregation(sigma=0),
        ValueError,
        "LocalAggregation: sigma must be a finite number > 0, got 0",
    ),
    (
        lambda: blpseg_ops.LocalAggregation(radius=-1),
        ValueError,
        "LocalAggregation: radius must be None or an int >= 0, got -1",
    ),
    (
        lambda: blpseg_ops.LocalAggregation(patch=4, query_stride=3),
        ValueError,
        "LocalAggregation: query_stride must be None or a divisor of patch, 4, got 3",
    ),
    (
        lambda: blpseg_ops.LocalAggregation(eps=-1.0),
        ValueError,
        "LocalAggregation: eps must be a finite number >= 0, got -1.0",
    ),
    (
        lambda: blpseg_ops.LocalAggregation(scale=float("nan")),
        ValueError,
        "LocalAggregation: scale must be a finite number, got nan",
    ),
    (
        lambda: blpseg_ops.LocalAggregation(dim=4)(
            torch.ones(1, 3, 4, 4), torch.ones(1, 2, 1, 1), sigma=-1.0
        ),
        ValueError,
        "LocalAggregation: sigma must be a finite number > 0, got -1.0",
    ),
    (
        lambda: blpseg_ops.LocalAggregation(dim=4)(torch.zeros(3, 9, 8), V[:1]),
        ValueError,
        "LocalAggregation: images must be a non-empty [N, 3, H, W] tensor (only N may be 0), "
        "got shape [3, 9, 8]",
    ),
    (
        lambda: blpseg_ops.LocalAggregation(dim=4)(torch.zeros(1, 3, 9, 8), V[:1].int()),
        TypeError,
        "LocalAggregation: logits must be floating point, got torch.int32",
    ),
    (
        lambda: blpseg_ops.LocalAggregation(dim=4)(torch.zeros(1, 3, 9, 8), V[:1]),
        ValueError,
        "LocalAggregation: logits must have batch size, height and width [1, 3, 2] for images "
        "of shape [1, 3, 9, 8] and patch 4, got shape [1, 3, 3, 5]",
    ),
    (
        lambda: blpseg_ops.BLPLoss(gamma=-1.0),
        ValueError,
        "BLPLoss: gamma must be a finite number >= 0, got -1.0",
    ),
    *(
        (
            lambda op=op, arguments=arguments: _differentiate_twice(op, *arguments),
            RuntimeError,
            f"{op.__name__} can be differentiated once; backend='reference' supports higher "
            "derivatives",
        )
        for op, arguments in ((lam, (F, V)), (blp, (V, A, T)), (ann, (A, T)))
    ),
    *(
        (
            lambda op=op, arguments=arguments: torch.func.jvp(
                lambda x: op(x, *arguments[1:]), arguments[:1], arguments[:1]
            ),
            RuntimeError,
            f"{op.__name__} has no forward-mode derivative (jvp, jacfwd, hessian); "
            "backend='reference' supports it",
        )
        for op, arguments in ((lam, (F, V)), (blp, (V, A, T)), (ann, (A, T)))
    ),
    (
        lambda: torch.vmap(blp)(V[:0, None], A[:0, None], T[:0, None]),
        ValueError,
        "vmap: a loss needs at least one entry to map over, got 0",
    ),
]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("op", "args", "kwargs", "error", "text"), CASES)
def test_refused(
    op: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    error: type[Exception],
    text: str,
    backend: str,
) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        op(*args, **{"backend": backend, **kwargs})


@pytest.mark.parametrize(("make", "error", "text"), OTHERS)
def test_refused_otherwise(make: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}$"):
        make()


ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
HEAD = """# Error texts

Each text names the op, the argument, what was expected and what came. It is the same on every
backend. This page has one example of each kind per op. `tests/ops/test_errors.py` raises each of
them and fails if a `raise` of `blpseg_ops` is missing here. `python tests/ops/test_errors.py`
writes this page.

On the CPU the values of targets are always checked. On a GPU they are checked under
`blpseg_ops.checked_targets()`; otherwise a wrong value is a device assertion, as in torch's
`cross_entropy`.
"""


def page() -> str:
    """Return docs/errors.md: a table per op, in the order of the cases."""
    tables: dict[str, list[str]] = {}
    for *_, error, text in (*CASES, *OTHERS):
        op, argument = re.match(r"(\w+)(?:: (\w+) must)?", text).groups()
        what = f"`{argument}`" if argument else "transforms"
        tables.setdefault(op, []).append(f"| {what} | `{error.__name__}` | `{text}` |")
    rule = "| argument | exception | text |\n|---|---|---|\n"
    return HEAD + "".join(
        f"\n## {op}\n\n{rule}" + "\n".join(dict.fromkeys(rows)) + "\n"
        for op, rows in tables.items()
    )


@pytest.mark.skipif(not PAGE.parent.exists(), reason="docs/ exists in a checkout only")
def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "python tests/ops/test_errors.py writes docs/errors.md"


def test_no_raise_is_left_out() -> None:
    """Each `raise` of the checks, the ops and the modules is in some case's traceback.

    A bare `raise` and `from None` are exempt, since they pass on an error raised elsewhere.
    """
    package = Path(blpseg_ops.__file__).parent
    files = [package / f"{name}.py" for name in ("_checks", "_targets", "backends", "modules")]
    files += sorted((package / "ops").glob("*.py"))
    raises = {
        (str(file), line): (str(file), node.lineno)
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Raise) and node.exc is not None and node.cause is None
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    calls = [make for make, *_ in OTHERS]
    for op, args, kwargs, *_ in CASES:
        for backend in ("auto", "reference"):
            named = {"backend": backend, **kwargs}
            calls.append(lambda op=op, args=args, named=named: op(*args, **named))
    seen = set()
    for call in calls:
        try:
            call()
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            seen |= {raises.get((frame.filename, frame.lineno)) for frame in frames}
    assert set(raises.values()) - seen == set()


def test_another_ignore_index_is_needed_from_255_classes_on() -> None:
    seg, annotation = torch.zeros(1, 255, 2, 2), torch.zeros(1, 256, 2, 2)
    target = torch.full((1, 2, 2), -1)
    with pytest.raises(ValueError, match=r"ignore_index must be outside 0\.\.255"):
        blp(seg, annotation, target)
    assert blp(seg, annotation, target, ignore_index=-1).item() == 0
    labels = pseudo(seg, target, torch.ones(1, 255, dtype=torch.bool), ignore_index=-1)
    assert labels.dtype == torch.int32
    assert (labels == -1).all()


CHECKED: list[tuple[Callable[..., Any], Callable[[torch.Tensor], tuple[Any, ...]]]] = [
    (blp, lambda target: (V, A, target)),
    (ann, lambda target: (A, target)),
    (pseudo, lambda target: (V, target, P)),
    (objective, lambda target: (V, A, target)),
]


@pytest.mark.parametrize(("op", "arguments"), CHECKED)
def test_checked_targets_check_before_dispatch(
    monkeypatch: pytest.MonkeyPatch,
    op: Callable[..., Any],
    arguments: Callable[[torch.Tensor], tuple[Any, ...]],
) -> None:
    """As on a GPU, where the kernel cannot name the wrong value."""

    def dispatched(*_: Any) -> None:
        raise AssertionError("the target was not checked")

    module = sys.modules[f"blpseg_ops.ops.{op.__name__}"]
    monkeypatch.setattr(module, f"{op.__name__}_op", dispatched)
    text = f"^{op.__name__}: target must hold .*, got 77$"
    wrong = arguments(_with(T, 77))
    with pytest.raises(AssertionError, match="not checked"):
        op(*wrong)
    with blpseg_ops.checked_targets(), pytest.raises(ValueError, match=text):
        op(*wrong)
    with pytest.raises(ValueError, match=text):
        blpseg_ops.checked_targets()(op)(*wrong)
    with pytest.raises(AssertionError, match="not checked"):
        op(*wrong)


def test_checked_targets_nest_and_end_with_an_error() -> None:
    def checking() -> bool:
        return _targets._checked.get()

    with blpseg_ops.checked_targets():
        with blpseg_ops.checked_targets():
            assert checking()
        assert checking()
        with pytest.raises(KeyError), blpseg_ops.checked_targets():
            raise KeyError
        assert checking()
    assert not checking()


def test_checked_targets_hold_for_their_thread_alone() -> None:
    seen = []
    thread = threading.Thread(target=lambda: seen.append(_targets._checked.get()))
    with blpseg_ops.checked_targets():
        thread.start()
        thread.join()
    assert seen == [False]


def test_checked_targets_without_values() -> None:
    with blpseg_ops.checked_targets():
        assert blp(V.to("meta"), A.to("meta"), T.to("meta")).is_meta


if __name__ == "__main__":
    PAGE.write_text(page())
