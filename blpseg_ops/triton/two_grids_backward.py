"""Gradients of LAM between two grids, gathered from the tiles that matter: no atomics.

With P_ab = w_ab / D_b, the upstream gradient g, delta_b = <g_b, out_b> and
ds_ab = P_ab (<g_b, v_a> - delta_b) - R_ab delta_b:

    dq_b = scale sum_a ds_ab f_a          two_grids_queries_kernel: a program owns queries
    df_a = scale sum_b ds_ab q_b          two_grids_keys_kernel: a program owns keys
    dv_a = sum_b P_ab g_b
"""

from __future__ import annotations

import triton
import triton.language as tl

from blpseg_ops.triton.lam_math import (
    add_dot,
    dot_products,
    pixel_yx,
    probability,
    probability_and_score_gradient,
    scores,
)
from blpseg_ops.triton.two_grids_math import pair_logits


@triton.jit(
    do_not_specialize=[
        "stride_n", "stride_d", "stride_y", "key_height", "key_width", "key_columns", "key_tiles",
        "query_height", "query_width", "query_top", "query_columns", "query_tiles", "reach_y",
        "reach_x", "list_capacity", "dims", "scale", "log_eps",
    ]
)  # fmt: skip
def two_grids_queries_kernel(
    queries,  # [N, query_tiles, 64, packed_dims]
    features,  # [N, key_tiles, 64, packed_dims]
    values,  # [N, key_tiles, 64, packed_channels]
    grad_output,  # [N, query_tiles, 64, packed_channels]
    nearest_score,  # [N, query_tiles, 64]
    delta,  # [N, query_tiles, 64]
    log_denominator,  # [N, query_tiles, 64]
    inv_two_sigma_sqs,  # [N]
    grad_unit,  # [N], powers of two that score gradients are scaled by; used with HAS_GRAD_UNIT
    tile_lists,  # [N, query blocks, list_capacity]
    list_lengths,  # [N, query blocks]
    grad_queries,  # [N, D, H, W], of any strides
    sigma_sums,  # [N, query blocks]: sum of P_ab (<g_b, v_a> - delta_b) |p_a - p_b|^2
    stride_n,  # of grad_queries
    stride_d,
    stride_y,
    stride_x,
    key_height,
    key_width,
    key_columns,
    key_tiles,
    query_height,
    query_width,
    query_top,
    query_columns,
    query_tiles,
    reach_y,
    reach_x,
    list_capacity,
    dims,
    packed_dims,
    packed_channels,
    scale,
    log_eps,
    HAS_EPS: tl.constexpr,
    HAS_GRAD_UNIT: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,  # per program
    KEYS: tl.constexpr,  # per step
    D_FITS_IN_ONE_BLOCK: tl.constexpr,  # BLOCK_D == packed_dims
    C_FITS_IN_ONE_BLOCK: tl.constexpr,  # BLOCK_C == packed_channels
    BLOCK_D: tl.constexpr,  # features per matrix product
    BLOCK_C: tl.constexpr,  # channels per matrix product
    SLICE_D: tl.constexpr,  # features whose gradient one program computes
    INPUT_PRECISION: tl.constexpr,
):
    """Compute grad_queries of a block; program ids: image and query block, feature slice."""
    # 1. The query block.
    blocks_per_image = query_tiles * 64 // QUERIES
    block = tl.program_id(0)
    image = (block // blocks_per_image).to(tl.int64)
    features += image * key_tiles * 64 * packed_dims
    values += image * key_tiles * 64 * packed_channels
    tile_lists += block.to(tl.int64) * list_capacity
    query = block % blocks_per_image * QUERIES + tl.arange(0, QUERIES)
    row = image * query_tiles * 64 + query
    y, x = pixel_yx(query, query_columns)
    y += query_top
    own_nearest_score = tl.load(nearest_score + row)[:, None]
    own_delta = tl.load(delta + row)[:, None]
    own_log_denominator = tl.load(log_denominator + row)[:, None]
    inv = tl.load(inv_two_sigma_sqs + image)
    unit = 1.0  # keeps float16 score gradients below its largest number
    if HAS_GRAD_UNIT:
        unit = tl.load(grad_unit + image)
    dim, channel = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_C)[None, :]
    own_queries = queries + row[:, None] * packed_dims + dim
    own_grad = grad_output + row[:, None] * packed_channels + channel
    own_first_queries = tl.load(own_queries)
    own_first_grad = tl.load(own_grad)
    lane = tl.arange(0, KEYS)
    key_features = features + lane[:, None] * packed_dims + dim
    key_values = values + lane[:, None] * packed_channels + channel
    slice_d = tl.program_id(1) * SLICE_D + tl.arange(0, SLICE_D)
    features_slice = features + lane[:, None] * packed_dims + slice_d[None, :]

    total = tl.zeros([QUERIES, SLICE_D], tl.float32)
    sigma_sum = tl.zeros([QUERIES], tl.float32)
    for i in range(tl.load(list_lengths + block) * (64 // KEYS)):
        # 2. Probabilities and score gradients of the next KEYS keys.
        first_key = tl.load(tile_lists + i // (64 // KEYS)) * 64 + i % (64 // KEYS) * KEYS
        key_y, key_x = pixel_yx(first_key + lane, key_columns)
        first_key = first_key.to(tl.int64)
        dot_product = scores(
            own_queries,
            own_first_queries,
            key_features + first_key * packed_dims,
            packed_dims,
            D_FITS_IN_ONE_BLOCK,
            BLOCK_D,
            INPUT_PRECISION,
        )
        log_similarity, log_weight, beyond_nearest, sq_nearest = pair_logits(
            dot_product, own_nearest_score, y[:, None], x[:, None], key_y[None, :], key_x[None, :],
            query_height, query_width, key_height, key_width, reach_y, reach_x, scale, inv, WINDOW,
        )  # fmt: skip
        reward = dot_products(
            own_grad,
            own_first_grad,
            key_values + first_key * packed_channels,
            packed_channels,
            C_FITS_IN_ONE_BLOCK,
            BLOCK_C,
            INPUT_PRECISION,
        )
        prob, grad_score = probability_and_score_gradient(
            log_similarity, log_weight, reward, own_log_denominator, own_delta, log_eps, HAS_EPS
        )

        # 3. The sums. With eps = 0 the score gradients of a query add up to 0, so |p_n - p_b|^2
        # times their sum is left out.
        if HAS_EPS:
            beyond_nearest += sq_nearest
        sigma_sum += tl.sum(prob * (reward - own_delta) * beyond_nearest, 1)
        feature = tl.load(features_slice + first_key * packed_dims)
        if HAS_GRAD_UNIT:
            grad_score *= unit
        total = add_dot(total, grad_score.to(feature.dtype), feature, INPUT_PRECISION)

    # 4. Store.
    inside = (y < query_height) & (x < query_width)
    pixel_offset = image * stride_n + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    tl.store(
        grad_queries + pixel_offset[:, None] + (slice_d.to(tl.int64) * stride_d)[None, :],
        total * (scale / unit),
        mask=inside[:, None] & (slice_d < dims)[None, :],
    )
    if tl.program_id(1) == 0:
        tl.store(sigma_sums + block, tl.sum(tl.where(inside, sigma_sum, 0), 0))


@triton.jit(
    do_not_specialize=[
        "key_height", "key_width", "key_columns", "key_tiles", "query_height", "query_width",
        "query_top", "query_columns", "query_tiles", "reach_y", "reach_x", "list_capacity", "dims",
        "channels", "scale", "log_eps",
    ]
)  # fmt: skip
def two_grids_keys_kernel(
    queries,  # [N, query_tiles, 64, packed_dims]
    features,  # [N, key_tiles, 64, packed_dims]
    values,  # [N, key_tiles, 64, packed_channels]
    grad_output,  # [N, query_tiles, 64, packed_channels]
    nearest_score,  # [N, query_tiles, 64]
    delta,  # [N, query_tiles, 64]
    log_denominator,  # [N, query_tiles, 64]
    inv_two_sigma_sqs,  # [N]
    grad_unit,  # [N], powers of two that score gradients are scaled by; used with HAS_GRAD_UNIT
    tile_lists,  # [N, key blocks, list_capacity]
    list_lengths,  # [N, key blocks]
    features_sums,  # [parts, N, D, h, w] float32, contiguous; added to
    values_sums,  # [parts, N, C, h, w] float32, contiguous; added to
    key_height,
    key_width,
    key_columns,
    key_tiles,
    query_height,
    query_width,
    query_top,
    query_columns,
    query_tiles,
    reach_y,
    reach_x,
    list_capacity,
    dims,
    channels,
    packed_dims,
    packed_channels,
    scale,
    log_eps,
    HAS_EPS: tl.constexpr,
    HAS_GRAD_UNIT: tl.constexpr,
    WINDOW: tl.constexpr,
    FEATURES: tl.constexpr,  # whether to compute grad_features
    VALUES: tl.constexpr,  # whether to compute grad_values
    KEYS: tl.constexpr,  # per program
    QUERIES: tl.constexpr,  # per step
    D_FITS_IN_ONE_BLOCK: tl.constexpr,  # BLOCK_D == packed_dims
    C_FITS_IN_ONE_BLOCK: tl.constexpr,  # BLOCK_C == packed_channels
    BLOCK_D: tl.constexpr,  # features per matrix product
    BLOCK_C: tl.constexpr,  # channels per matrix product
    SLICE_D: tl.constexpr,  # features whose gradient one program computes
    SLICE_C: tl.constexpr,  # channels whose gradient one program computes
    INPUT_PRECISION: tl.constexpr,
):
    """Add a part of the band's queries to the gradients of a block of keys.

    Program ids: image and key block; slice of features or channels; part. Each part has sums of its
    own, which are added up in order afterwards.
    """
    # 1. The key block.
    blocks_per_image = key_tiles * 64 // KEYS
    block = tl.program_id(0)
    image = (block // blocks_per_image).to(tl.int64)
    queries += image * query_tiles * 64 * packed_dims
    grad_output += image * query_tiles * 64 * packed_channels
    nearest_score += image * query_tiles * 64
    delta += image * query_tiles * 64
    log_denominator += image * query_tiles * 64
    tile_lists += block.to(tl.int64) * list_capacity
    key = block % blocks_per_image * KEYS + tl.arange(0, KEYS)
    row = image * key_tiles * 64 + key
    key_y, key_x = pixel_yx(key, key_columns)
    inv = tl.load(inv_two_sigma_sqs + image)
    unit = 1.0  # keeps float16 score gradients below its largest number
    if HAS_GRAD_UNIT:
        unit = tl.load(grad_unit + image)
    dim, channel = tl.arange(0, BLOCK_D)[None, :], tl.arange(0, BLOCK_C)[None, :]
    own_features = features + row[:, None] * packed_dims + dim
    own_values = values + row[:, None] * packed_channels + channel
    own_first_features = tl.load(own_features)
    own_first_values = tl.load(own_values)
    lane = tl.arange(0, QUERIES)
    step_queries = queries + lane[:, None] * packed_dims + dim
    step_grad = grad_output + lane[:, None] * packed_channels + channel
    slice_d = tl.program_id(1) * SLICE_D + tl.arange(0, SLICE_D)
    slice_c = tl.program_id(1) * SLICE_C + tl.arange(0, SLICE_C)
    queries_slice = queries + lane[:, None] * packed_dims + slice_d[None, :]
    grad_slice = grad_output + lane[:, None] * packed_channels + slice_c[None, :]

    # 2. The part of the list.
    part, parts = tl.program_id(2), tl.num_programs(2)
    steps = tl.load(list_lengths + block) * (64 // QUERIES)
    steps_per_part = (steps + parts - 1) // parts
    begin = tl.minimum(part * steps_per_part, steps)
    end = tl.minimum(begin + steps_per_part, steps)

    total_features = tl.zeros([KEYS, SLICE_D], tl.float32)
    total_values = tl.zeros([KEYS, SLICE_C], tl.float32)
    for i in range(begin, end):
        # 3. Log weights of the next QUERIES queries.
        first = tl.load(tile_lists + i // (64 // QUERIES)) * 64 + i % (64 // QUERIES) * QUERIES
        query = first + lane
        y, x = pixel_yx(query, query_columns)
        y += query_top
        first = first.to(tl.int64)
        dot_product = scores(
            own_features,
            own_first_features,
            step_queries + first * packed_dims,
            packed_dims,
            D_FITS_IN_ONE_BLOCK,
            BLOCK_D,
            INPUT_PRECISION,
        )
        log_similarity, log_weight, _, _ = pair_logits(
            dot_product, tl.load(nearest_score + query)[None, :], y[None, :], x[None, :],
            key_y[:, None], key_x[:, None], query_height, query_width, key_height, key_width,
            reach_y, reach_x, scale, inv, WINDOW,
        )  # fmt: skip
        query_log_denominator = tl.load(log_denominator + query)[None, :]

        # 4. The sums. Queries outside of the image have q, g and delta of 0, and so add nothing.
        if FEATURES:
            reward = dot_products(
                own_values,
                own_first_values,
                step_grad + first * packed_channels,
                packed_channels,
                C_FITS_IN_ONE_BLOCK,
                BLOCK_C,
                INPUT_PRECISION,
            )
            query_delta = tl.load(delta + query)[None, :]
            prob, grad_score = probability_and_score_gradient(
                log_similarity, log_weight, reward, query_log_denominator, query_delta, log_eps,
                HAS_EPS,
            )  # fmt: skip
            if HAS_GRAD_UNIT:
                grad_score *= unit
            query_features = tl.load(queries_slice + first * packed_dims)
            total_features = add_dot(
                total_features,
                grad_score.to(query_features.dtype),
                query_features,
                INPUT_PRECISION,
            )
        else:
            prob = probability(log_weight, query_log_denominator)
        if VALUES:
            grad = tl.load(grad_slice + first * packed_channels)
            total_values = add_dot(total_values, prob.to(grad.dtype), grad, INPUT_PRECISION)

    # 5. Add to what the bands before have left.
    inside = ((key_y < key_height) & (key_x < key_width))[:, None]
    area = key_height.to(tl.int64) * key_width
    pixel_offset = (key_y.to(tl.int64) * key_width + key_x)[:, None]
    sums = part * (tl.num_programs(0) // blocks_per_image) + image  # index of part and image
    if FEATURES:
        place = features_sums + pixel_offset + ((sums * dims + slice_d) * area)[None, :]
        stored = inside & (slice_d < dims)[None, :]
        before = tl.load(place, mask=stored, other=0.0)
        tl.store(place, before + total_features * (scale / unit), mask=stored)
    if VALUES:
        place = values_sums + pixel_offset + ((sums * channels + slice_c) * area)[None, :]
        stored = inside & (slice_c < channels)[None, :]
        tl.store(place, tl.load(place, mask=stored, other=0.0) + total_values, mask=stored)
