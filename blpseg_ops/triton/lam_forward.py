"""LAM of a query block: one pass over the key tiles that matter, with an online softmax.

Weights are relative to the query's own weight, w_bb = 1, so the running maximum starts at 0 and no
denominator is ever 0. Z and eps T are sums over the same scores and share the maximum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from blpseg_ops.triton.lam_math import (
    add_dot,
    exp,
    in_window,
    log_weights,
    mask_logits,
    pixel_yx,
    scores,
    squared_distances,
    step_yx,
    update_softmax,
)


@triton.jit
def _add_to_guard(
    log_similarity,  # [QUERIES, KEYS]
    log_eps,
    max_logit,  # [QUERIES]
    denominator,  # [QUERIES], relative to exp(max_logit)
):
    """Add a step's keys to eps T; return the factor on what was summed."""
    new_max = tl.maximum(max_logit, tl.max(log_similarity, 1) + log_eps)
    rescale = exp(max_logit - new_max)
    step_sum = tl.sum(exp(log_similarity + (log_eps - new_max)[:, None]), 1)
    return rescale, new_max, denominator * rescale + step_sum


@triton.jit(
    do_not_specialize=[
        "height", "width", "tile_columns", "tiles", "list_capacity", "channels",
        "scale", "inv_two_sigma_sq", "log_eps", "radius",
    ]
)  # fmt: skip
def forward_kernel(
    features,  # [N, tiles, 64, packed_dims]
    values,  # [N, tiles, 64, packed_channels]
    sq_norm,  # [N, tiles, 64]
    tile_lists,  # [N, query blocks, list_capacity]
    list_lengths,  # [2, N, query blocks], near and far
    output,  # [N, C, h, w], contiguous
    log_denominator,  # [N, h, w], contiguous
    height,
    width,
    tile_columns,
    tiles,
    list_capacity,
    channels,
    packed_dims,
    packed_channels,
    scale,
    inv_two_sigma_sq,
    log_eps,
    radius,
    HAS_EPS: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,  # pixels per program
    KEYS: tl.constexpr,  # pixels per step
    FITS_IN_ONE_BLOCK: tl.constexpr,  # BLOCK_D == packed_dims
    BLOCK_D: tl.constexpr,  # features per matrix product
    SLICE_C: tl.constexpr,  # channels per program
    INPUT_PRECISION: tl.constexpr,
):
    """Compute the output of a query block; program ids: image and query block, channel slice."""
    # 1. The query block: its pixels, features and norms.
    blocks_per_image = tiles * 64 // QUERIES
    block = tl.program_id(0)
    image = (block // blocks_per_image).to(tl.int64)
    features += image * tiles * 64 * packed_dims
    values += image * tiles * 64 * packed_channels
    tile_lists += block.to(tl.int64) * list_capacity
    query = block % blocks_per_image * QUERIES + tl.arange(0, QUERIES)
    y, x = pixel_yx(query, tile_columns)
    float_y, float_x = y.to(tl.float32), x.to(tl.float32)
    query_sq_norm = tl.load(sq_norm + image * tiles * 64 + query)[:, None]
    dim = tl.arange(0, BLOCK_D)
    query_features = features + query.to(tl.int64)[:, None] * packed_dims + dim[None, :]
    first_block_of_queries = tl.load(query_features)
    lane = tl.arange(0, KEYS)
    channel = tl.program_id(1) * SLICE_C + tl.arange(0, SLICE_C)
    key_features = features + lane[:, None] * packed_dims + dim[None, :]
    key_values = values + lane[:, None] * packed_channels + channel[None, :]

    max_logit = tl.zeros([QUERIES], tl.float32)
    denominator = tl.zeros([QUERIES], tl.float32)
    total = tl.zeros([QUERIES, SLICE_C], tl.float32)
    for i in range(tl.load(list_lengths + block) * (64 // KEYS)):
        # 2. Scores of the next KEYS keys.
        tile, part = tl.load(tile_lists + i // (64 // KEYS)), i % (64 // KEYS)
        key_y, key_x = step_yx(tile, part, lane, tile_columns, KEYS)
        first_key = tile.to(tl.int64) * 64 + part * KEYS
        dot_product = scores(
            query_features,
            first_block_of_queries,
            key_features + first_key * packed_dims,
            packed_dims,
            FITS_IN_ONE_BLOCK,
            BLOCK_D,
            INPUT_PRECISION,
        )

        # 3. Weights relative to the query's own.
        distance2 = squared_distances(float_y, float_x, key_y, key_x)
        log_similarity, log_weight = log_weights(
            dot_product, query_sq_norm, distance2, scale, inv_two_sigma_sq
        )
        visible = ((key_y < height) & (key_x < width))[None, :]
        if WINDOW:
            visible = visible & in_window(float_y, float_x, key_y, key_x, radius)
        log_similarity, log_weight = mask_logits(visible, log_similarity, log_weight)

        # 4. Online softmax, and the product with the values.
        weight, rescale, max_logit, denominator = update_softmax(
            log_weight, log_similarity, log_eps, max_logit, denominator, HAS_EPS
        )
        value = tl.load(key_values + first_key * packed_channels)
        total = add_dot(total * rescale[:, None], weight.to(value.dtype), value, INPUT_PRECISION)

    if HAS_EPS:
        # 5. Far tiles: they count in T only.
        near = tl.load(list_lengths + block)
        tile_lists += near
        for i in range(tl.load(list_lengths + tl.num_programs(0) + block) * (64 // KEYS)):
            tile, part = tl.load(tile_lists + i // (64 // KEYS)), i % (64 // KEYS)
            key_y, key_x = step_yx(tile, part, lane, tile_columns, KEYS)
            first_key = tile.to(tl.int64) * 64 + part * KEYS
            dot_product = scores(
                query_features,
                first_block_of_queries,
                key_features + first_key * packed_dims,
                packed_dims,
                FITS_IN_ONE_BLOCK,
                BLOCK_D,
                INPUT_PRECISION,
            )
            log_similarity = (dot_product - query_sq_norm) * scale
            visible = ((key_y < height) & (key_x < width))[None, :]
            if WINDOW:
                visible = visible & in_window(float_y, float_x, key_y, key_x, radius)
            log_similarity = tl.where(visible, log_similarity, float("-inf"))
            rescale, max_logit, denominator = _add_to_guard(
                log_similarity, log_eps, max_logit, denominator
            )
            total *= rescale[:, None]

    # 6. Normalize and store.
    inside = (y < height) & (x < width)
    pixel_offset = y.to(tl.int64) * width + x
    area = height.to(tl.int64) * width
    channel_offset = (image * channels + channel) * area
    tl.store(
        output + pixel_offset[:, None] + channel_offset[None, :],
        total / denominator[:, None],
        mask=inside[:, None] & (channel < channels)[None, :],
    )
    if tl.program_id(1) == 0:
        log_sum = max_logit + tl.log(denominator)
        tl.store(log_denominator + image * area + pixel_offset, log_sum, mask=inside)
