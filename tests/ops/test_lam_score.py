"""A pair's score has the same bits in both passes of LAM, whichever of its pixels comes first.

So probabilities in backward are those of forward, even where scores of 1e6 are rounded to 1/16.
The Triton kernels are tested likewise in test_lam_triton.py and test_lam_tensor_cores.py.
"""

from __future__ import annotations

import pytest
import torch

from ._common import randn
from ._lam_inputs import assert_scores_agree, far_clusters, probabilities

_C = pytest.importorskip("blpseg_ops._C", reason="no native code was built")


@pytest.mark.usefixtures("restore_variant")
@pytest.mark.parametrize("variant", _C.cpu_capabilities())
@pytest.mark.parametrize("size", [(9, 10), (26, 33)], ids=str)
@pytest.mark.parametrize(("dims", "scale"), [(3, 1.0), (50, 0.7), (200, 1.0)])
def test_forward_and_backward_have_the_same_scores(
    variant: str, size: tuple[int, int], dims: int, scale: float
) -> None:
    _C.set_cpu_capability(variant)
    features = far_clusters(*size, dims).to(torch.float32)
    forward, backward = torch.ops.blpseg.lam, torch.ops.blpseg.lam_backward
    assert_scores_agree(*probabilities(forward, backward, features, 6.0, 0.0, scale, None))


@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_both_passes_compute_scores_in_the_same_basis(eps: float, both_ways_to_sum_t: None) -> None:
    rank, dims = 20, 64
    directions = torch.linalg.qr(randn(dims, rank))[0]
    features = torch.einsum("dr,nrhw->ndhw", directions, far_clusters(26, 33, rank)).float()
    forward, backward = torch.ops.blpseg.lam, torch.ops.blpseg.lam_backward
    assert_scores_agree(*probabilities(forward, backward, features, 6.0, eps, 1.0, None))


def test_scores_that_differ_are_noticed() -> None:
    features = far_clusters(9, 10, 16).to(torch.float32)

    def backward(grad_output: torch.Tensor, x: torch.Tensor, *others: object) -> object:
        x = x.clone()
        x[:, 8, 3, 3] += 2**-14  # a unit in the last place of 1000
        return torch.ops.blpseg.lam_backward(grad_output, x, *others)

    probs = probabilities(torch.ops.blpseg.lam, backward, features, 6.0, 0.0, 1.0, None)
    with pytest.raises(AssertionError):
        assert_scores_agree(*probs)
