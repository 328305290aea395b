"""LAM of a run of targets: one pass over the source tiles that matter, with an online softmax.

Weights are relative to the target's own, w_bb = 1, so the running maximum begins at 0 and no sum is
ever empty. Z and eps T are sums over the same scores and share it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from blpseg_ops.triton.lam_math import log_weights, place, products, squared_distances


@triton.jit(
    do_not_specialize=[
        "height", "width", "columns", "tiles", "channels", "scale", "precision", "log_eps"
    ]
)  # fmt: skip
def forward_kernel(
    features,  # [N, tiles, 64, DIMS]
    values,  # [N, tiles, 64, CHANNELS]
    own_product,  # [N, tiles, 64]
    lists,  # [N, tiles * 64 / TARGETS, tiles]
    counts,  # [N, tiles * 64 / TARGETS]
    output,  # [N, C, h, w], contiguous
    log_denominator,  # [N, h, w], contiguous
    height,
    width,
    columns,
    tiles,
    channels,
    scale,
    precision,
    log_eps,
    HAS_EPS: tl.constexpr,
    DIMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TARGETS: tl.constexpr,  # pixels a program
    BLOCK_D: tl.constexpr,
    INPUT_PRECISION: tl.constexpr,
):
    """Make the output of TARGETS pixels."""
    runs = tiles * 64 // TARGETS
    run = tl.program_id(0)
    image = (run // runs).to(tl.int64)
    features += image * tiles * 64 * DIMS
    values += image * tiles * 64 * CHANNELS
    lists += run.to(tl.int64) * tiles

    target = run % runs * TARGETS + tl.arange(0, TARGETS)
    y, x = place(target, columns)
    own = tl.load(own_product + image * tiles * 64 + target)[:, None]
    dim = tl.arange(0, BLOCK_D)
    target_features = features + target.to(tl.int64)[:, None] * DIMS + dim[None, :]
    first_features = tl.load(target_features)
    lane, channel = tl.arange(0, 64), tl.arange(0, CHANNELS)
    source_features = features + lane[:, None] * DIMS + dim[None, :]
    source_values = values + lane[:, None] * CHANNELS + channel[None, :]

    highest = tl.zeros([TARGETS], tl.float32)
    denominator = tl.zeros([TARGETS], tl.float32)
    total = tl.zeros([TARGETS, CHANNELS], tl.float32)
    for i in range(tl.load(counts + run)):
        tile = tl.load(lists + i)
        first = tile.to(tl.int64) * 64
        product = products(
            target_features,
            first_features,
            source_features + first * DIMS,
            DIMS,
            BLOCK_D,
            INPUT_PRECISION,
        )
        source_y, source_x = place(tile * 64 + lane, columns)
        distance2 = squared_distances(y, x, source_y, source_x)
        log_similarity, log_weight = log_weights(product, own, distance2, scale, precision)
        inside = ((source_y < height) & (source_x < width))[None, :]
        log_weight = tl.where(inside, log_weight, float("-inf"))
        if HAS_EPS:
            log_similarity = tl.where(inside, log_similarity, float("-inf"))

        peak = tl.max(log_weight, 1)
        if HAS_EPS:
            peak = tl.maximum(peak, tl.max(log_similarity, 1) + log_eps)
        raised = tl.maximum(highest, peak)
        fade = tl.exp(highest - raised)
        highest = raised
        weight = tl.exp(log_weight - raised[:, None])
        part = tl.sum(weight, 1)
        if HAS_EPS:
            part += tl.sum(tl.exp(log_similarity + (log_eps - raised)[:, None]), 1)
        denominator = denominator * fade + part
        source = tl.load(source_values + first * CHANNELS)
        total = tl.dot(
            weight.to(source.dtype), source, total * fade[:, None], input_precision=INPUT_PRECISION
        )

    inside = (y < height) & (x < width)
    pixel = y.to(tl.int64) * width + x
    area = height.to(tl.int64) * width
    of_channel = (image * channels + channel) * area
    tl.store(
        output + pixel[:, None] + of_channel[None, :],
        total / denominator[:, None],
        mask=inside[:, None] & (channel < channels)[None, :],
    )
    log_sum = highest + tl.log(denominator)
    tl.store(log_denominator + image * area + pixel, log_sum, mask=inside)
