"""Exported programs, their decomposition into standard operators, and ONNX graphs."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import blpseg_ops

from ._common import TORCH, randn


class Segmenter(nn.Module):
    """Return logits at stride 4 after LAM, and the label of every pixel."""

    def __init__(self, **params: Any) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 5, 4, stride=4)
        self.lam = blpseg_ops.LocalAggregation(dim=32, **params)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.lam(images, self.net(nn.functional.pad(images, (0, 3, 0, 3))))
        return logits, blpseg_ops.upsample_argmax(logits, images.shape[2:])


def segmenter(**params: Any) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(**params).eval().requires_grad_(False)


def images(*shape: int) -> Tensor:
    return randn(*shape, seed=len(shape)).float()


PARAMS = [{"eps": 0.0}, {"eps": 1e-7}, {"eps": 1e-2, "radius": 3, "sigma": 2.0}]
SIZES = {
    "static": (None, [(2, 3, 40, 52)]),
    "any batch": (({0: Dim("batch")},), [(2, 3, 40, 52), (5, 3, 40, 52)]),
    "any size": (({i: Dim.DYNAMIC for i in (0, 2, 3)},), [(2, 3, 40, 52), (1, 3, 61, 131)]),
}

# By default each kind of sizes and each set of parameters occurs once per test. ONNX graphs are
# decomposed programs too, so the two tests pair them differently.
DECOMPOSED = [("static", PARAMS[0]), ("any batch", PARAMS[2]), ("any size", PARAMS[1])]
ONNX = [("static", PARAMS[1]), ("any batch", PARAMS[0]), ("any size", PARAMS[2])]
if os.environ.get("BLPSEG_TEST_ALL") == "1":
    DECOMPOSED = ONNX = [(sizes, params) for sizes in SIZES for params in PARAMS]


def exported(model: nn.Module, sizes: str) -> torch.export.ExportedProgram:
    return torch.export.export(model, (images(2, 3, 40, 52),), dynamic_shapes=SIZES[sizes][0])


@pytest.mark.parametrize("sizes", SIZES)
def test_exported_programs_hold_one_operator_and_survive_saving(sizes: str) -> None:
    model = segmenter(eps=1e-7)
    program = exported(model, sizes)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("blpseg.lam.default") == 1
    assert targets.count("blpseg.upsample_argmax.default") == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    again = torch.export.load(file).module()
    for shape in SIZES[sizes][1]:
        torch.testing.assert_close(again(images(*shape)), model(images(*shape)), rtol=0, atol=0)


@pytest.mark.parametrize(("sizes", "params"), DECOMPOSED, ids=str)
def test_decomposed_programs_compute_the_same(sizes: str, params: dict[str, Any]) -> None:
    if sizes == "any size" and TORCH < (2, 14):
        pytest.skip(
            "older torch guards the decomposed program against a batch of 1; see docs/ops.md"
        )
    model = segmenter(**params)
    program = exported(model, sizes).run_decompositions(blpseg_ops.decompositions())
    assert not any("blpseg" in str(node.target) for node in program.graph.nodes)
    for shape in SIZES[sizes][1]:
        logits, labels = program.module()(images(*shape))
        expected, expected_labels = model(images(*shape))
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert (
            labels != expected_labels
        ).float().mean() < 1e-3  # where two logits are nearly equal


def test_training_steps_decompose() -> None:
    class Losses(nn.Module):
        def forward(
            self, seg: Tensor, annotation: Tensor, target: Tensor, present: Tensor
        ) -> tuple[Tensor, ...]:
            separate = (
                blpseg_ops.blp_loss(seg, annotation, target),
                blpseg_ops.annotation_loss(annotation, target),
                blpseg_ops.pseudo_labels(seg, target, present, threshold=0.4),
            )
            together = blpseg_ops.blp_objective(
                seg, annotation, target, class_present=present, threshold=0.4
            )
            return *separate, *together

    target = torch.randint(0, 4, (2, 14, 18), generator=torch.Generator().manual_seed(0))
    present = torch.tensor([[True, True, False], [True, False, True]])
    arguments = (images(2, 3, 7, 9), images(2, 4, 7, 9), target, present)
    program = torch.export.export(Losses(), arguments)
    plain = program.run_decompositions(blpseg_ops.decompositions())
    assert not any("blpseg" in str(node.target) for node in plain.graph.nodes)
    expected = Losses()(*arguments)
    torch.testing.assert_close(program.module()(*arguments), expected)
    torch.testing.assert_close(plain.module()(*arguments), expected)


@pytest.mark.parametrize(("sizes", "params"), ONNX, ids=str)
def test_onnx(sizes: str, params: dict[str, Any]) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = segmenter(**params)
    with torch.no_grad():
        model.lam.conv.weight *= 5  # scores of hundreds; their exponentials overflow
    scores = model.lam.embed(images(*SIZES[sizes][1][0])).square().sum(1)
    assert scores.max() > 200
    program = exported(model, sizes).run_decompositions(blpseg_ops.decompositions())
    graph = torch.onnx.export(program, dynamo=True, verbose=False).model_proto
    onnx.checker.check_model(graph, full_check=True)
    assert {node.domain for node in graph.graph.node} == {""}
    session = runtime.InferenceSession(
        graph.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (name,) = (argument.name for argument in session.get_inputs())
    for shape in SIZES[sizes][1]:
        found = session.run(None, {name: images(*shape).numpy()})
        expected, labels = model(images(*shape))
        torch.testing.assert_close(torch.from_numpy(found[0]), expected, rtol=1e-4, atol=1e-4)
        assert (torch.from_numpy(found[1]) != labels).float().mean() < 1e-3
