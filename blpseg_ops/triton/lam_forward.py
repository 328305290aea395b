"""LAM of a run of targets: one pass over the source tiles that matter, with an online softmax.

Weights are relative to the target's own, w_bb = 1, so the running maximum begins at 0 and no sum is
ever empty. Z and eps T are sums over the same scores and share it.
"""

from __future__ import annotations

import triton
import triton.language as tl

from blpseg_ops.triton.lam_math import (
    log_weights,
    only,
    place,
    products,
    squared_distances,
    within,
)


@triton.jit(
    do_not_specialize=[
        "height", "width", "columns", "tiles", "room", "channels",
        "scale", "precision", "log_eps", "radius",
    ]
)  # fmt: skip
def forward_kernel(
    features,  # [N, tiles, 64, packed_dims]
    values,  # [N, tiles, 64, packed_channels]
    own_product,  # [N, tiles, 64]
    lists,  # [N, tiles * 64 / TARGETS, room]
    counts,  # [N, tiles * 64 / TARGETS]
    output,  # [N, C, h, w], contiguous
    log_denominator,  # [N, h, w], contiguous
    height,
    width,
    columns,
    tiles,
    room,
    channels,
    packed_dims,
    packed_channels,
    scale,
    precision,
    log_eps,
    radius,
    HAS_EPS: tl.constexpr,
    WINDOW: tl.constexpr,
    TARGETS: tl.constexpr,  # pixels a program
    SOURCES: tl.constexpr,  # pixels a step
    WHOLE: tl.constexpr,  # whether BLOCK is all features
    BLOCK: tl.constexpr,  # features that are multiplied in one go
    SLICE: tl.constexpr,  # channels a program
    INPUT_PRECISION: tl.constexpr,
):
    """Make the output of TARGETS pixels; program ids: image and run, slice of the channels."""
    runs = tiles * 64 // TARGETS
    run = tl.program_id(0)
    image = (run // runs).to(tl.int64)
    features += image * tiles * 64 * packed_dims
    values += image * tiles * 64 * packed_channels
    lists += run.to(tl.int64) * room

    target = run % runs * TARGETS + tl.arange(0, TARGETS)
    y, x = place(target, columns)
    own = tl.load(own_product + image * tiles * 64 + target)[:, None]
    dim = tl.arange(0, BLOCK)
    target_features = features + target.to(tl.int64)[:, None] * packed_dims + dim[None, :]
    first_features = tl.load(target_features)
    lane = tl.arange(0, SOURCES)
    channel = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    source_features = features + lane[:, None] * packed_dims + dim[None, :]
    source_values = values + lane[:, None] * packed_channels + channel[None, :]

    highest = tl.zeros([TARGETS], tl.float32)
    denominator = tl.zeros([TARGETS], tl.float32)
    total = tl.zeros([TARGETS, SLICE], tl.float32)
    for i in range(tl.load(counts + run) * (64 // SOURCES)):
        first = tl.load(lists + i // (64 // SOURCES)) * 64 + i % (64 // SOURCES) * SOURCES
        source_y, source_x = place(first + lane, columns)
        first = first.to(tl.int64)
        product = products(
            target_features,
            first_features,
            source_features + first * packed_dims,
            packed_dims,
            WHOLE,
            BLOCK,
            INPUT_PRECISION,
        )
        distance2 = squared_distances(y, x, source_y, source_x)
        log_similarity, log_weight = log_weights(product, own, distance2, scale, precision)
        visible = ((source_y < height) & (source_x < width))[None, :]
        if WINDOW:
            visible = visible & within(y, x, source_y, source_x, radius)
        log_similarity, log_weight = only(visible, log_similarity, log_weight)

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
        source = tl.load(source_values + first * packed_channels)
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
    if tl.program_id(1) == 0:
        log_sum = highest + tl.log(denominator)
        tl.store(log_denominator + image * area + pixel, log_sum, mask=inside)
