"""LAM's gradients of a run of pixels, gathered from the tiles that matter: no atomics.

Scores are symmetric, so the product of two tiles' features serves both directions: what the run
gets as targets of the other tile, and what it gets as its sources. The features' gradient is one
product with the sum of both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from blpseg_ops.triton.lam_math import log_weights, place, products, squared_distances


@triton.jit
def _share(log_weight, log_denominator):
    """At most 1, also where the smallest difference in rounding is large beside 1."""
    log_share = log_weight - log_denominator
    return tl.exp(tl.minimum(log_share, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit(
    do_not_specialize=[
        "height", "width", "columns", "tiles", "dims", "channels",
        "scale", "precision", "log_eps",
    ]
)  # fmt: skip
def backward_kernel(
    features,  # [N, tiles, 64, DIMS]
    values,  # [N, tiles, 64, CHANNELS]
    gradient,  # [N, tiles, 64, CHANNELS]
    own_product,  # [N, tiles, 64]
    delta,  # [N, tiles, 64]
    log_denominator,  # [N, tiles, 64]
    lists,  # [N, tiles * 64 / TARGETS, tiles]
    counts,  # [N, tiles * 64 / TARGETS]
    grad_features,  # [N, D, h, w], contiguous
    grad_values,  # [N, C, h, w], contiguous
    height,
    width,
    columns,
    tiles,
    dims,
    channels,
    scale,
    precision,
    log_eps,
    HAS_EPS: tl.constexpr,
    DIMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    TARGETS: tl.constexpr,  # pixels a program
    BLOCK_D: tl.constexpr,
    SLICE: tl.constexpr,  # features whose gradient a program makes
    INPUT_PRECISION: tl.constexpr,
):
    """Make the gradients of TARGETS pixels; program ids: image and run, slice of the features."""
    runs = tiles * 64 // TARGETS
    run = tl.program_id(0)
    image = (run // runs).to(tl.int64)
    features += image * tiles * 64 * DIMS
    values += image * tiles * 64 * CHANNELS
    gradient += image * tiles * 64 * CHANNELS
    own_product += image * tiles * 64
    delta += image * tiles * 64
    log_denominator += image * tiles * 64
    lists += run.to(tl.int64) * tiles

    # Names without a prefix are the run's, those with `their` the other tile's.
    pixel = run % runs * TARGETS + tl.arange(0, TARGETS)
    row = pixel.to(tl.int64)[:, None]
    y, x = place(pixel, columns)
    dim, channel = tl.arange(0, BLOCK_D), tl.arange(0, CHANNELS)
    own_features = features + row * DIMS + dim[None, :]
    first_features = tl.load(own_features)
    value = tl.load(values + row * CHANNELS + channel[None, :])
    g = tl.load(gradient + row * CHANNELS + channel[None, :])
    own = tl.load(own_product + pixel)[:, None]
    own_delta = tl.load(delta + pixel)[:, None]
    own_log_denominator = tl.load(log_denominator + pixel)[:, None]

    lane = tl.arange(0, 64)
    feature = tl.program_id(1) * SLICE + tl.arange(0, SLICE)
    of_lane = lane[:, None] * DIMS + dim[None, :]
    of_slice = lane[:, None] * DIMS + feature[None, :]
    of_channel = lane[:, None] * CHANNELS + channel[None, :]
    total_features = tl.zeros([TARGETS, SLICE], tl.float32)
    total_values = tl.zeros([TARGETS, CHANNELS], tl.float32)
    for i in range(tl.load(counts + run)):
        tile = tl.load(lists + i)
        first = tile.to(tl.int64) * 64
        product = products(
            own_features,
            first_features,
            features + first * DIMS + of_lane,
            DIMS,
            BLOCK_D,
            INPUT_PRECISION,
        )
        their_y, their_x = place(tile * 64 + lane, columns)
        distance2 = squared_distances(y, x, their_y, their_x)
        their = tl.load(own_product + first + lane)[None, :]
        their_delta = tl.load(delta + first + lane)[None, :]
        their_log_denominator = tl.load(log_denominator + first + lane)[None, :]
        their_value = tl.load(values + first * CHANNELS + of_channel)
        their_g = tl.load(gradient + first * CHANNELS + of_channel)

        # The run as target, the other tile as source. What lies outside of the image has
        # features, values and gradients 0, and so adds nothing.
        log_similarity, log_weight = log_weights(product, own, distance2, scale, precision)
        share = _share(log_weight, own_log_denominator)
        reward = tl.dot(g, tl.trans(their_value), input_precision=INPUT_PRECISION)
        grad_score = share * (reward - own_delta)
        if HAS_EPS:
            grad_score -= _share(log_similarity + log_eps, own_log_denominator) * own_delta

        # And the other way round.
        log_similarity, log_weight = log_weights(product, their, distance2, scale, precision)
        share = _share(log_weight, their_log_denominator)
        reward = tl.dot(value, tl.trans(their_g), input_precision=INPUT_PRECISION)
        grad_score += share * (reward - their_delta)
        if HAS_EPS:
            grad_score -= _share(log_similarity + log_eps, their_log_denominator) * their_delta

        total_values = tl.dot(
            share.to(their_g.dtype), their_g, total_values, input_precision=INPUT_PRECISION
        )
        their_features = tl.load(features + first * DIMS + of_slice)
        total_features = tl.dot(
            grad_score.to(their_features.dtype),
            their_features,
            total_features,
            input_precision=INPUT_PRECISION,
        )

    inside = ((y < height) & (x < width))[:, None]
    area = height.to(tl.int64) * width
    place_in_map = (y.to(tl.int64) * width + x)[:, None]
    tl.store(
        grad_features + place_in_map + ((image * dims + feature) * area)[None, :],
        total_features * scale,
        mask=inside & (feature < dims)[None, :],
    )
    if tl.program_id(1) == 0:
        tl.store(
            grad_values + place_in_map + ((image * channels + channel) * area)[None, :],
            total_values,
            mask=inside & (channel < channels)[None, :],
        )
