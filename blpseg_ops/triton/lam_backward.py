"""LAM's gradients of a run of pixels, gathered from the tiles that matter: no atomics.

Scores are symmetric, so the product of two tiles' features serves both directions: what the run
gets as targets of the other tile, and what it gets as its sources. The features' gradient is one
product with the sum of both.
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


@triton.jit
def _share(log_weight, log_denominator):
    """At most 1, also where the smallest difference in rounding is large beside 1."""
    log_share = log_weight - log_denominator
    return tl.exp(tl.minimum(log_share, 0.0, propagate_nan=tl.PropagateNan.ALL))


@triton.jit(
    do_not_specialize=[
        "height", "width", "columns", "tiles", "room", "dims", "channels",
        "scale", "precision", "log_eps", "radius",
    ]
)  # fmt: skip
def backward_kernel(
    features,  # [N, tiles, 64, packed_dims]
    values,  # [N, tiles, 64, packed_channels]
    gradient,  # [N, tiles, 64, packed_channels]
    own_product,  # [N, tiles, 64]
    delta,  # [N, tiles, 64]
    log_denominator,  # [N, tiles, 64]
    lists,  # [N, tiles * 64 / TARGETS, room]
    counts,  # [N, tiles * 64 / TARGETS]
    grad_features,  # [N, D, h, w], contiguous
    grad_values,  # [N, C, h, w], contiguous
    height,
    width,
    columns,
    tiles,
    room,
    dims,
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
    WHOLE_D: tl.constexpr,  # whether BLOCK_D is all features
    WHOLE_C: tl.constexpr,  # whether BLOCK_C is all channels
    BLOCK_D: tl.constexpr,  # features that are multiplied in one go
    BLOCK_C: tl.constexpr,  # channels, likewise
    SLICE_D: tl.constexpr,  # features whose gradient a program makes
    SLICE_C: tl.constexpr,  # channels, likewise
    INPUT_PRECISION: tl.constexpr,
):
    """Make the gradients of TARGETS pixels; program ids: image and run, slice of the gradients.

    Where there are more slices of features than of channels or the other way round, the programs
    beyond have nothing of the one to store.
    """
    runs = tiles * 64 // TARGETS
    run = tl.program_id(0)
    image = (run // runs).to(tl.int64)
    features += image * tiles * 64 * packed_dims
    values += image * tiles * 64 * packed_channels
    gradient += image * tiles * 64 * packed_channels
    own_product += image * tiles * 64
    delta += image * tiles * 64
    log_denominator += image * tiles * 64
    lists += run.to(tl.int64) * room

    # Names without a prefix or with `own` are the run's, those with `their` the other tile's.
    pixel = run % runs * TARGETS + tl.arange(0, TARGETS)
    row = pixel.to(tl.int64)[:, None]
    y, x = place(pixel, columns)
    dim, channel = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_C)[None, :]
    own_features = features + row * packed_dims + dim
    own_values = values + row * packed_channels + channel
    own_gradient = gradient + row * packed_channels + channel
    first_features = tl.load(own_features)
    first_values = tl.load(own_values)
    first_gradient = tl.load(own_gradient)
    own = tl.load(own_product + pixel)[:, None]
    own_delta = tl.load(delta + pixel)[:, None]
    own_log_denominator = tl.load(log_denominator + pixel)[:, None]

    lane = tl.arange(0, SOURCES)
    their_features = features + lane[:, None] * packed_dims + dim
    their_values = values + lane[:, None] * packed_channels + channel
    their_gradient = gradient + lane[:, None] * packed_channels + channel
    feature = tl.program_id(1) * SLICE_D + tl.arange(0, SLICE_D)
    channel = tl.program_id(1) * SLICE_C + tl.arange(0, SLICE_C)
    features_slice = features + lane[:, None] * packed_dims + (feature % packed_dims)[None, :]
    gradient_slice = (
        gradient + lane[:, None] * packed_channels + (channel % packed_channels)[None, :]
    )

    total_features = tl.zeros([TARGETS, SLICE_D], tl.float32)
    total_values = tl.zeros([TARGETS, SLICE_C], tl.float32)
    for i in range(tl.load(counts + run) * (64 // SOURCES)):
        first = tl.load(lists + i // (64 // SOURCES)) * 64 + i % (64 // SOURCES) * SOURCES
        their_y, their_x = place(first + lane, columns)
        first = first.to(tl.int64)
        product = products(
            own_features,
            first_features,
            their_features + first * packed_dims,
            packed_dims,
            WHOLE_D,
            BLOCK_D,
            INPUT_PRECISION,
        )
        distance2 = squared_distances(y, x, their_y, their_x)
        if WINDOW:
            visible = within(y, x, their_y, their_x, radius)

        # The run as target, the other tile as source. What lies outside of the image has
        # features, values and gradients 0, and so adds nothing.
        log_similarity, log_weight = log_weights(product, own, distance2, scale, precision)
        if WINDOW:
            log_similarity, log_weight = only(visible, log_similarity, log_weight)
        share = _share(log_weight, own_log_denominator)
        reward = products(
            own_gradient,
            first_gradient,
            their_values + first * packed_channels,
            packed_channels,
            WHOLE_C,
            BLOCK_C,
            INPUT_PRECISION,
        )
        grad_score = share * (reward - own_delta)
        if HAS_EPS:
            grad_score -= _share(log_similarity + log_eps, own_log_denominator) * own_delta

        # And the other way round.
        their = tl.load(own_product + first + lane)[None, :]
        their_delta = tl.load(delta + first + lane)[None, :]
        their_log_denominator = tl.load(log_denominator + first + lane)[None, :]
        log_similarity, log_weight = log_weights(product, their, distance2, scale, precision)
        if WINDOW:
            log_similarity, log_weight = only(visible, log_similarity, log_weight)
        share = _share(log_weight, their_log_denominator)
        reward = products(
            own_values,
            first_values,
            their_gradient + first * packed_channels,
            packed_channels,
            WHOLE_C,
            BLOCK_C,
            INPUT_PRECISION,
        )
        grad_score += share * (reward - their_delta)
        if HAS_EPS:
            grad_score -= _share(log_similarity + log_eps, their_log_denominator) * their_delta

        g = tl.load(gradient_slice + first * packed_channels)
        total_values = tl.dot(share.to(g.dtype), g, total_values, input_precision=INPUT_PRECISION)
        f = tl.load(features_slice + first * packed_dims)
        total_features = tl.dot(
            grad_score.to(f.dtype), f, total_features, input_precision=INPUT_PRECISION
        )

    inside = ((y < height) & (x < width))[:, None]
    area = height.to(tl.int64) * width
    place_in_map = (y.to(tl.int64) * width + x)[:, None]
    tl.store(
        grad_features + place_in_map + ((image * dims + feature) * area)[None, :],
        total_features * scale,
        mask=inside & (feature < dims)[None, :],
    )
    tl.store(
        grad_values + place_in_map + ((image * channels + channel) * area)[None, :],
        total_values,
        mask=inside & (channel < channels)[None, :],
    )
