"""LAM's gradients of a block of pixels, gathered from the tiles that matter: no atomics.

Scores are symmetric, so one product of two tiles' features serves both directions: the owned pixels
as queries of the other tile's keys, and as keys of the other tile's queries. The features' gradient
is one product with the sum of both score gradients.
"""

from __future__ import annotations

import triton
import triton.language as tl

from blpseg_ops.triton.lam_math import (
    add_dot,
    dot_products,
    in_window,
    log_weights,
    mask_logits,
    pixel_yx,
    probability,
    probability_and_score_gradient,
    scores,
    squared_distances,
    step_yx,
)


@triton.jit
def _score_gradient(
    dot_product,  # [QUERIES, KEYS]
    reward,  # [QUERIES, KEYS], <g_b, v_a>
    distance2,  # [QUERIES, KEYS]
    visible,  # [QUERIES, KEYS], used only with WINDOW
    query_sq_norm,  # this and the next two: [QUERIES, 1] or [1, KEYS], by who is the query
    query_log_denominator,
    query_delta,
    scale,
    inv_two_sigma_sq,
    log_eps,
    HAS_EPS: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Return the probabilities P_ab of one direction and the score gradients ds_ab."""
    log_similarity, log_weight = log_weights(
        dot_product, query_sq_norm, distance2, scale, inv_two_sigma_sq
    )
    if WINDOW:
        log_similarity, log_weight = mask_logits(visible, log_similarity, log_weight)
    return probability_and_score_gradient(
        log_similarity, log_weight, reward, query_log_denominator, query_delta, log_eps, HAS_EPS
    )


@triton.jit
def _guard_gradient(
    dot_product,  # [QUERIES, KEYS]
    visible,  # [QUERIES, KEYS], used only with WINDOW
    query_sq_norm,  # this and the next two: [QUERIES, 1] or [1, KEYS], by who is the query
    query_log_denominator,
    query_delta,
    scale,
    log_eps,
    WINDOW: tl.constexpr,
):
    """Return the score gradients -R_ab delta_b of pairs whose weight is negligible."""
    log_similarity = (dot_product - query_sq_norm) * scale
    if WINDOW:
        log_similarity = tl.where(visible, log_similarity, float("-inf"))
    return -probability(log_similarity + log_eps, query_log_denominator) * query_delta


@triton.jit(
    do_not_specialize=[
        "height", "width", "tile_columns", "tiles", "list_capacity", "dims", "channels",
        "scale", "inv_two_sigma_sq", "log_eps", "radius",
    ]
)  # fmt: skip
def backward_kernel(
    features,  # [N, tiles, 64, packed_dims]
    values,  # [N, tiles, 64, packed_channels]
    grad_output,  # [N, tiles, 64, packed_channels]
    sq_norm,  # [N, tiles, 64]
    delta,  # [N, tiles, 64]
    log_denominator,  # [N, tiles, 64]
    grad_unit,  # [N], powers of two that score gradients are scaled by; used with HAS_GRAD_UNIT
    tile_lists,  # [N, query blocks, list_capacity]
    list_lengths,  # [2, N, query blocks], near and far
    grad_features,  # [N, D, h, w], contiguous
    grad_values,  # [N, C, h, w], contiguous
    height,
    width,
    tile_columns,
    tiles,
    list_capacity,
    dims,
    channels,
    packed_dims,
    packed_channels,
    scale,
    inv_two_sigma_sq,
    log_eps,
    radius,
    HAS_EPS: tl.constexpr,
    HAS_GRAD_UNIT: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,  # pixels that a program owns
    KEYS: tl.constexpr,  # other pixels per step
    D_FITS_IN_ONE_BLOCK: tl.constexpr,  # BLOCK_D == packed_dims
    C_FITS_IN_ONE_BLOCK: tl.constexpr,  # BLOCK_C == packed_channels
    BLOCK_D: tl.constexpr,  # features per matrix product
    BLOCK_C: tl.constexpr,  # channels per matrix product
    SLICE_D: tl.constexpr,  # features whose gradient one program computes
    SLICE_C: tl.constexpr,  # channels whose gradient one program computes
    INPUT_PRECISION: tl.constexpr,
):
    """Compute the gradients of the pixels that a program owns.

    Grid axis 0 covers images and blocks of QUERIES pixels. Axis 1 covers max(feature slices,
    channel slices); programs past the shorter one store only the longer.

    own_*: pixels this program owns. other_*: the tile being visited.
    """
    # 1. The owned pixels: features, values, gradients and what was saved by forward.
    blocks_per_image = tiles * 64 // QUERIES
    block = tl.program_id(0)
    image = (block // blocks_per_image).to(tl.int64)
    features += image * tiles * 64 * packed_dims
    values += image * tiles * 64 * packed_channels
    grad_output += image * tiles * 64 * packed_channels
    sq_norm += image * tiles * 64
    delta += image * tiles * 64
    log_denominator += image * tiles * 64
    tile_lists += block.to(tl.int64) * list_capacity

    pixel = block % blocks_per_image * QUERIES + tl.arange(0, QUERIES)
    row = pixel.to(tl.int64)[:, None]
    y, x = pixel_yx(pixel, tile_columns)
    float_y, float_x = y.to(tl.float32), x.to(tl.float32)
    dim, channel = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_C)[None, :]
    own_features = features + row * packed_dims + dim
    own_values = values + row * packed_channels + channel
    own_grad = grad_output + row * packed_channels + channel
    own_first_features = tl.load(own_features)
    own_first_values = tl.load(own_values)
    own_first_grad = tl.load(own_grad)
    own_sq_norm = tl.load(sq_norm + pixel)[:, None]
    own_delta = tl.load(delta + pixel)[:, None]
    own_log_denominator = tl.load(log_denominator + pixel)[:, None]

    unit = 1.0  # keeps float16 score gradients below its largest number
    if HAS_GRAD_UNIT:
        unit = tl.load(grad_unit + image)

    lane = tl.arange(0, KEYS)
    other_features = features + lane[:, None] * packed_dims + dim
    other_values = values + lane[:, None] * packed_channels + channel
    other_grad = grad_output + lane[:, None] * packed_channels + channel
    slice_d = tl.program_id(1) * SLICE_D + tl.arange(0, SLICE_D)
    slice_c = tl.program_id(1) * SLICE_C + tl.arange(0, SLICE_C)
    features_slice = features + lane[:, None] * packed_dims + (slice_d % packed_dims)[None, :]
    grad_slice = (
        grad_output + lane[:, None] * packed_channels + (slice_c % packed_channels)[None, :]
    )

    total_features = tl.zeros([QUERIES, SLICE_D], tl.float32)
    total_values = tl.zeros([QUERIES, SLICE_C], tl.float32)
    for i in range(tl.load(list_lengths + block) * (64 // KEYS)):
        # 2. Scores with the next KEYS pixels, the same in both directions. Pixels outside the
        # image have features, values and gradients of 0, and so add nothing.
        tile, part = tl.load(tile_lists + i // (64 // KEYS)), i % (64 // KEYS)
        other_y, other_x = step_yx(tile, part, lane, tile_columns, KEYS)
        first = tile.to(tl.int64) * 64 + part * KEYS
        other = first + lane
        dot_product = scores(
            own_features,
            own_first_features,
            other_features + first * packed_dims,
            packed_dims,
            D_FITS_IN_ONE_BLOCK,
            BLOCK_D,
            INPUT_PRECISION,
        )
        distance2 = squared_distances(float_y, float_x, other_y, other_x)
        visible = distance2 >= 0
        if WINDOW:
            visible = in_window(float_y, float_x, other_y, other_x, radius)

        # 3. The owned pixels as queries, the others as keys.
        reward = dot_products(
            own_grad,
            own_first_grad,
            other_values + first * packed_channels,
            packed_channels,
            C_FITS_IN_ONE_BLOCK,
            BLOCK_C,
            INPUT_PRECISION,
        )
        prob, grad_score = _score_gradient(
            dot_product, reward, distance2, visible, own_sq_norm, own_log_denominator, own_delta,
            scale, inv_two_sigma_sq, log_eps, HAS_EPS, WINDOW,
        )  # fmt: skip

        # 4. The others as queries, the owned pixels as keys.
        reward = dot_products(
            own_values,
            own_first_values,
            other_grad + first * packed_channels,
            packed_channels,
            C_FITS_IN_ONE_BLOCK,
            BLOCK_C,
            INPUT_PRECISION,
        )
        other_sq_norm = tl.load(sq_norm + other)[None, :]
        other_delta = tl.load(delta + other)[None, :]
        other_log_denominator = tl.load(log_denominator + other)[None, :]
        prob, other_grad_score = _score_gradient(
            dot_product, reward, distance2, visible, other_sq_norm, other_log_denominator,
            other_delta, scale, inv_two_sigma_sq, log_eps, HAS_EPS, WINDOW,
        )  # fmt: skip

        # 5. grad_values of the owned keys; grad_features from both directions' score gradients.
        grad = tl.load(grad_slice + first * packed_channels)
        total_values = add_dot(total_values, prob.to(grad.dtype), grad, INPUT_PRECISION)
        feature = tl.load(features_slice + first * packed_dims)
        grad_score += other_grad_score
        if HAS_GRAD_UNIT:
            grad_score *= unit
        total_features = add_dot(
            total_features, grad_score.to(feature.dtype), feature, INPUT_PRECISION
        )

    if HAS_EPS:
        # 6. Far tiles: their pixels count in T only.
        tile_lists += tl.load(list_lengths + block)
        for i in range(tl.load(list_lengths + tl.num_programs(0) + block) * (64 // KEYS)):
            tile, part = tl.load(tile_lists + i // (64 // KEYS)), i % (64 // KEYS)
            first = tile.to(tl.int64) * 64 + part * KEYS
            other = first + lane
            dot_product = scores(
                own_features,
                own_first_features,
                other_features + first * packed_dims,
                packed_dims,
                D_FITS_IN_ONE_BLOCK,
                BLOCK_D,
                INPUT_PRECISION,
            )
            visible = dot_product == dot_product
            if WINDOW:
                other_y, other_x = step_yx(tile, part, lane, tile_columns, KEYS)
                visible = in_window(float_y, float_x, other_y, other_x, radius)
            other_sq_norm = tl.load(sq_norm + other)[None, :]
            other_delta = tl.load(delta + other)[None, :]
            other_log_denominator = tl.load(log_denominator + other)[None, :]
            grad_score = _guard_gradient(
                dot_product, visible, own_sq_norm, own_log_denominator, own_delta, scale,
                log_eps, WINDOW,
            ) + _guard_gradient(
                dot_product, visible, other_sq_norm, other_log_denominator, other_delta,
                scale, log_eps, WINDOW,
            )  # fmt: skip
            feature = tl.load(features_slice + first * packed_dims)
            if HAS_GRAD_UNIT:
                grad_score *= unit
            total_features = add_dot(
                total_features, grad_score.to(feature.dtype), feature, INPUT_PRECISION
            )

    # 7. Store.
    inside = ((y < height) & (x < width))[:, None]
    area = height.to(tl.int64) * width
    pixel_offset = (y.to(tl.int64) * width + x)[:, None]
    tl.store(
        grad_features + pixel_offset + ((image * dims + slice_d) * area)[None, :],
        total_features * (scale / unit),
        mask=inside & (slice_d < dims)[None, :],
    )
    tl.store(
        grad_values + pixel_offset + ((image * channels + slice_c) * area)[None, :],
        total_values,
        mask=inside & (slice_c < channels)[None, :],
    )
