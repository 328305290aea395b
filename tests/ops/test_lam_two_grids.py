"""LAM from queries on a grid of their own: reference, fallback, C++ kernel, torch's transforms."""

from __future__ import annotations

import io
import math
import sys
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import vmap

import blpseg_ops

from ._common import LAYOUTS, MEASURE, run_program
from ._lam_inputs import run_rounded
from ._two_grids_inputs import (
    HOSTILE,
    Case,
    ErrorBudget,
    assert_equal,
    normal_case,
    run_kernel,
    run_reference,
)

native = pytest.mark.skipif(
    blpseg_ops.backends.available("lam", "cpu") == ("reference",), reason="no native code was built"
)


def brute_force(case: Case) -> Tensor:  # [N, C, H, W]
    """The formula, one query after the other."""
    (n, _, height, width), (h, w) = case.queries.shape, case.values.shape[2:]
    out = torch.empty(n, case.values.shape[1], height, width, dtype=torch.float64)
    for i, query_y, query_x in product(range(n), range(height), range(width)):
        y, x = (query_y + 0.5) * h / height - 0.5, (query_x + 0.5) * w / width - 0.5
        z, total, t = 0.0, torch.zeros(case.values.shape[1], dtype=torch.float64), 0.0
        for a, b in product(range(h), range(w)):
            reach = math.inf if case.radius is None else case.radius
            if max(abs(a - y), abs(b - x)) > reach + 1e-12:
                continue
            query, key = case.queries[i, :, query_y, query_x], case.features[i, :, a, b]
            exp_score = math.exp(case.scale * torch.dot(query, key).item())
            sq_distance = (a - y) ** 2 + (b - x) ** 2
            weight = exp_score * math.exp(-sq_distance * case.inv_two_sigma_sq[i].item())
            z, t = z + weight, t + exp_score
            total += weight * case.values[i, :, a, b]
        out[i, :, query_y, query_x] = total / (z + case.eps * t)
    return out


def check(case: Case) -> None:
    """Assert that the kernel is within the error budget, in float64 and float32."""
    budget = ErrorBudget(case)
    for dtype in (torch.float64, torch.float32):
        budget.check(run_kernel(budget.case.to(dtype)))


SHAPES = [((3, 4), (7, 5)), ((5, 3), (2, 9)), ((4, 4), (4, 4)), ((1, 6), (3, 1))]


@pytest.mark.parametrize(("keys", "queries"), SHAPES)
@pytest.mark.parametrize("radius", [None, 0.5, 1.5])
def test_reference_is_the_formula(
    keys: tuple[int, int], queries: tuple[int, int], radius: float | None
) -> None:
    case = normal_case(keys, queries, n=1, norm=1.0, inv=0.3, eps=0.1, scale=0.7, radius=radius)
    found = run_reference(case).output
    torch.testing.assert_close(found, brute_force(case), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_queries_on_the_keys_grid_change_nothing(backend: str) -> None:
    case = normal_case((9, 7), (9, 7))
    for radius in (None, 2):
        options = {"eps": 0.1, "radius": radius, "backend": backend}
        one = blpseg_ops.lam(case.features, case.values, 2.0, **options)
        two = blpseg_ops.lam(case.features, case.values, 2.0, queries=case.features, **options)
        tensor = blpseg_ops.lam(case.features, case.values, torch.tensor(2.0), **options)
        torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(tensor, one, rtol=1e-12, atol=1e-12)


# Keys, queries, D, C: fewer and more queries than keys, one row, one column, several tiles.
SIZES = [
    ((3, 4), (7, 5), 3, 2),
    ((17, 23), (40, 61), 17, 5),
    ((33, 31), (20, 50), 70, 33),
    ((40, 1), (3, 100), 9, 21),
    ((9, 70), (37, 5), 2, 1),
    ((12, 12), (120, 96), 24, 9),
    ((1, 1), (9, 33), 4, 70),
]


@native
@pytest.mark.parametrize(("keys", "queries", "d", "c"), SIZES)
@pytest.mark.parametrize("radius", [None, 1.3, 6])
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_kernel_at_odd_sizes(
    keys: tuple[int, int], queries: tuple[int, int], d: int, c: int, radius: float, eps: float
) -> None:
    for norm, inv in ((2.0, 0.05), (12.0, 0.0), (5.0, 1e20)):
        check(normal_case(keys, queries, d, c, n=1, norm=norm, inv=inv, eps=eps, radius=radius))


@pytest.mark.parametrize("radius", [None, 0.5, 2.2])
@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("block", [2**20, 2 * 63 * 40])
def test_gradients_are_the_references(
    monkeypatch: pytest.MonkeyPatch, block: int, eps: float, radius: float | None
) -> None:
    monkeypatch.setattr(sys.modules["blpseg_ops.fallback.lam_two_grids"], "BLOCK", block)
    case = normal_case((9, 7), (20, 31), inv=0.2, eps=eps, scale=-0.7, radius=radius)
    budget = ErrorBudget(case)  # of the fallback
    budget.check(run_reference(budget.case.to(torch.float64)))
    check(case)


def test_gradcheck() -> None:
    case = normal_case((3, 4), (5, 3), n=1, norm=1.0)
    sigma = torch.tensor(1.3, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (case.queries, case.features, case.values, sigma)]

    def op(q: Tensor, f: Tensor, v: Tensor, s: Tensor) -> Tensor:
        return blpseg_ops.lam(f, v, s, queries=q, radius=1.6, eps=0.2)

    assert torch.autograd.gradcheck(op, leaves)


@native
@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("name", HOSTILE)
def test_kernel_on_hostile_inputs(name: str, eps: float) -> None:
    check(HOSTILE[name](normal_case((22, 19), (48, 50), 16, n=1, inv=1 / 18, eps=eps)))


@native
def test_every_variant(restore_variant: None) -> None:
    from blpseg_ops import _C

    cases = [
        normal_case((17, 23), (40, 61), 17, 21, radius=3.5),
        normal_case((12, 12), (60, 50), eps=1e-3),
    ]
    for variant, case in product(_C.cpu_capabilities(), cases):
        _C.set_cpu_capability(variant)
        check(case)


@native
def test_the_number_of_threads_does_not_matter(restore_threads: None) -> None:
    case = normal_case((30, 26), (64, 90), 16, eps=1e-7).to(torch.float32)
    torch.set_num_threads(1)
    expected = run_kernel(case)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert_equal(run_kernel(case), expected)


@native
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_inputs_are_widened_and_rounded_once(dtype: torch.dtype) -> None:
    case = normal_case((9, 7), (20, 31)).to(dtype)
    assert_equal(run_kernel(case), run_rounded("lam_two_grids", case))


@native
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout(layout: str) -> None:
    case = normal_case((9, 7), (20, 31), eps=1e-7)
    laid_out = case.map(LAYOUTS[layout])
    results = run_kernel(laid_out)
    assert_equal(results, run_kernel(laid_out.map(Tensor.contiguous)))
    for name in ("queries", "features", "values"):
        grad = getattr(results, "grad_" + name)
        assert grad.stride() == torch.empty_like(getattr(laid_out, name)).stride()


@pytest.mark.parametrize("backend", blpseg_ops.backends.available("lam", "cpu"))
def test_the_output_is_channels_last_if_the_values_are(backend: str) -> None:
    case = normal_case((9, 7), (20, 31))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        values = case.values.contiguous(memory_format=memory_format)
        output = blpseg_ops.lam(case.features, values, queries=case.queries, backend=backend)
        assert output.is_contiguous(memory_format=memory_format)


@native
def test_what_is_not_finite_reaches_those_who_see_it() -> None:
    case = normal_case((12, 12), (48, 48), n=1, radius=2.0)
    values = case.values.clone()
    values[0, 1, 3, 3] = math.nan
    output = run_kernel(replace(case, values=values)).output
    y, x = ((torch.arange(48) + 0.5) / 4 - 0.5 for _ in range(2))
    sees = ((y - 3).abs() <= 2)[:, None] & ((x - 3).abs() <= 2)
    assert output[0, 1][sees].isnan().all()
    assert not output[0, 1, 24:].isnan().any()  # tiles of 4 x 16 queries that do not see it
    assert not output[0, 1, :, 32:].isnan().any()
    assert not output[0, 0].isnan().any()
    grad_output = case.grad_output.clone()
    grad_output[0, 1, 20, 20] = math.nan
    grad = run_kernel(replace(case, grad_output=grad_output)).grad_values[0, 1]
    assert grad[3:7, 3:7].isnan().all()  # the keys that this query sees
    assert not grad[8:].isnan().any()
    assert not grad[:, 10:].isnan().any()


@native
def test_the_operator_refuses_a_window_without_keys() -> None:
    with pytest.raises(RuntimeError, match=r"expected radius >= 0\.5"):
        run_kernel(normal_case((9, 7), (20, 31), radius=0.4))


def test_empty_batch() -> None:
    case = normal_case((9, 7), (20, 31), n=0)
    found = run_kernel(case)
    assert found.output.shape == (0, 3, 20, 31)
    assert found.grad_queries.shape == (0, 5, 20, 31)


def test_a_tensor_sigma_gets_its_gradient() -> None:
    case = normal_case((9, 7), (20, 31))
    for value in (1.3, math.inf):
        grads = []
        for backend in ("auto", "reference"):
            sigma = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            output = blpseg_ops.lam(
                case.features, case.values, sigma, queries=case.queries, backend=backend
            )
            grads.append(torch.autograd.grad(output, sigma, case.grad_output)[0])
        torch.testing.assert_close(*grads)
    assert grads[0] == 0  # at infinity


def test_vmap() -> None:
    cases = [normal_case((4, 5), (9, 7), norm=norm) for norm in (1.0, 2.0, 3.0)]
    stacks = [
        torch.stack([getattr(case, name) for case in cases])
        for name in ("features", "values", "queries")
    ]
    sigmas = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def op(f: Tensor, v: Tensor, q: Tensor, sigma: Tensor) -> Tensor:
        return blpseg_ops.lam(f, v, sigma, queries=q, radius=2.5).square().sum()

    def step(*inputs: Tensor) -> tuple[Tensor, ...]:
        return torch.func.grad(op, (0, 1, 2, 3))(*inputs)

    expected = [torch.stack(x) for x in zip(*map(step, *stacks, sigmas), strict=True)]
    torch.testing.assert_close(list(vmap(step)(*stacks, sigmas)), expected)
    same_sigma = vmap(op, (0, 0, 0, None))(*stacks, sigmas[1])
    torch.testing.assert_close(same_sigma[1], op(*(x[1] for x in stacks), sigmas[1]))


def test_autocast_widens() -> None:
    case = normal_case((9, 7), (20, 31)).to(torch.bfloat16)
    inputs = [x.clone().requires_grad_() for x in (case.features, case.values, case.queries)]
    with torch.autocast("cpu", torch.bfloat16):
        output = blpseg_ops.lam(*inputs[:2], queries=inputs[2], radius=2.5)
    assert output.dtype == torch.float32
    wide = [x.detach().float() for x in inputs]
    torch.testing.assert_close(output, blpseg_ops.lam(*wide[:2], queries=wide[2], radius=2.5))
    output.sum().backward()
    assert all(x.grad is not None and x.grad.dtype == torch.bfloat16 for x in inputs)


class Upsample(nn.Module):
    """Upsample by guide, with a learned sigma."""

    def __init__(self, radius: float | None = None) -> None:
        super().__init__()
        self.sigma = nn.Parameter(torch.tensor(1.5))
        self.radius = radius

    def forward(self, features: Tensor, values: Tensor, queries: Tensor) -> Tensor:
        return blpseg_ops.lam(features, values, self.sigma, queries=queries, radius=self.radius)


def inputs_of(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    case = case.to(torch.float32)
    return case.features, case.values, case.queries


def test_compile_makes_one_graph() -> None:
    torch.compiler.reset()
    module = Upsample(2.5)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for n in (2, 3):
        inputs = [x.requires_grad_() for x in inputs_of(normal_case((4, 5), (9, 7), n=n))]
        results = []
        for run in (module, compiled):
            output = run(*inputs)
            leaves = [*inputs, module.sigma]
            results.append((output, *torch.autograd.grad(output.square().sum(), leaves)))
        torch.testing.assert_close(*results)
    torch.compiler.reset()


@pytest.mark.parametrize("radius", [None, 1.5])
@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic: bool, radius: float | None) -> None:
    module = Upsample(radius).requires_grad_(False)
    inputs = inputs_of(normal_case((4, 5), (9, 7)))
    dims = {i: Dim.DYNAMIC for i in (2, 3)}
    shapes = (dims, dims, dims) if dynamic else None
    program = torch.export.export(module, inputs, dynamic_shapes=shapes)
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("blpseg.lam_two_grids.default") == 1
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    plain = program.run_decompositions(blpseg_ops.decompositions())
    assert not any("blpseg" in str(node.target) for node in plain.graph.nodes)
    others = inputs_of(normal_case((6, 3), (11, 8))) if dynamic else inputs
    for arguments in (inputs, others):
        expected = module(*arguments)
        found = torch.export.load(file).module()(*arguments)
        file.seek(0)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(plain.module()(*arguments), expected, rtol=1e-5, atol=1e-5)


PEAK = (
    MEASURE
    + """
import blpseg_ops
def draw(h, w, height, width, d, c):
    return torch.randn(1, d, h, w), torch.randn(1, c, h, w), torch.randn(1, d, height, width)
f, v, q = draw(24, 24, 336, 336, 64, 128)
call = lambda: (blpseg_ops.lam(f, v, queries=q, radius=3.5),)
blpseg_ops.lam(*draw(4, 4, 8, 8, 64, 128)[:2])
print(beyond(call))
"""
)


def test_an_output_of_huge_pages() -> None:
    """An output larger than 32 MiB, whose every query sees the only key."""
    queries = torch.zeros(1, 1, 2900, 2901, requires_grad=True)
    key = torch.full((1, 1, 1, 1), 3.0)
    output = blpseg_ops.lam(key, key, queries=queries)
    assert output.nbytes > 2**25
    assert (output == 3).all()
    (gradient,) = torch.autograd.grad(output.sum(), queries)
    assert (gradient == 0).all()  # one key has all the weight


@native
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_the_output_and_little_more() -> None:
    done = run_program(PEAK)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.2 * 128 * 336**2 * 4 / 2**20  # all pairs: 248 MiB
