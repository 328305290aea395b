"""A convolution over disjoint patches that computes in full float32."""

from __future__ import annotations

from torch import Tensor, nn

from blpseg_ops._precision import matmul


class PatchConv2d(nn.Conv2d):
    """A convolution whose stride is its kernel size, as a product of matrices.

    cuDNN computes float32 convolutions in TF32 by default, with 10 bits of mantissa. LAM takes the
    exponential of products of these features, where that error is visible. Patches that do not
    overlap make the convolution a matrix product, which keeps float32 forward and backward.
    """

    def __init__(self, in_channels: int, out_channels: int, patch: int) -> None:
        super().__init__(in_channels, out_channels, patch, stride=patch)

    def forward(
        self,
        input: Tensor,  # [N, C, h * patch, w * patch]
    ) -> Tensor:  # [N, D, h, w], channels last in memory
        """Project every patch."""
        assert self.bias is not None
        return patch_conv2d(input, self.weight, self.bias)


def patch_conv2d(
    images: Tensor,  # [N, C, (h - 1) * stride + patch, (w - 1) * stride + patch]
    weight: Tensor,  # [D, C, patch, patch]
    bias: Tensor,  # [D]
    stride: int | None = None,  # None: the patch's side
) -> Tensor:  # [N, D, h, w], channels last in memory
    """Compute ``F.conv2d(images, weight, bias, stride=stride)`` in full float32."""
    n, channels, height, width = images.shape
    patch = weight.shape[-1]
    if stride is None or stride == patch:
        tiled = images.reshape(n, channels, height // patch, patch, width // patch, patch)
        patches = tiled.permute(0, 2, 4, 1, 3, 5).flatten(3)  # [N, h, w, C * patch^2]
    else:
        windows = images.unfold(2, patch, stride).unfold(3, patch, stride)
        patches = windows.permute(0, 2, 3, 1, 4, 5).flatten(3)
    return (matmul(patches, weight.flatten(1).mT) + bias).permute(0, 3, 1, 2)
