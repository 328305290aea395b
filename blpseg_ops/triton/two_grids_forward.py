"""LAM of a block of queries on a grid of their own: one pass over the key tiles that matter."""

from __future__ import annotations

import triton
import triton.language as tl

from blpseg_ops.triton.lam_math import add_dot, pixel_yx, scores, update_softmax
from blpseg_ops.triton.two_grids_math import pair_logits

_LOWEST = tl.constexpr(-1e30)  # the running maximum's start: below any finite logit


@triton.jit(
    do_not_specialize=[
        "stride_n", "stride_c", "stride_y", "key_height", "key_width", "key_columns", "key_tiles",
        "query_height", "query_width", "query_top", "query_columns", "query_tiles", "reach_y",
        "reach_x", "list_capacity", "channels", "scale", "log_eps",
    ]
)  # fmt: skip
def two_grids_forward_kernel(
    queries,  # [N, query_tiles, 64, packed_dims]
    features,  # [N, key_tiles, 64, packed_dims]
    values,  # [N, key_tiles, 64, packed_channels]
    nearest_score,  # [N, query_tiles, 64]
    inv_two_sigma_sqs,  # [N]
    tile_lists,  # [N, query blocks, list_capacity]
    list_lengths,  # [N, query blocks]
    output,  # [N, C, H, W], of any strides
    log_denominator,  # [N, H, W], contiguous
    stride_n,  # of output
    stride_c,
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
    channels,
    packed_dims,
    packed_channels,
    scale,
    log_eps,
    HAS_EPS: tl.constexpr,
    WINDOW: tl.constexpr,
    QUERIES: tl.constexpr,  # per program
    KEYS: tl.constexpr,  # per step
    FITS_IN_ONE_BLOCK: tl.constexpr,  # BLOCK_D == packed_dims
    BLOCK_D: tl.constexpr,  # features per matrix product
    SLICE_C: tl.constexpr,  # channels per program
    INPUT_PRECISION: tl.constexpr,
):
    """Compute the output of a query block; program ids: image and query block, channel slice."""
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
    inv = tl.load(inv_two_sigma_sqs + image)
    dim = tl.arange(0, BLOCK_D)
    own_queries = queries + row[:, None] * packed_dims + dim[None, :]
    first_block_of_queries = tl.load(own_queries)
    lane = tl.arange(0, KEYS)
    channel = tl.program_id(1) * SLICE_C + tl.arange(0, SLICE_C)
    key_features = features + lane[:, None] * packed_dims + dim[None, :]
    key_values = values + lane[:, None] * packed_channels + channel[None, :]

    max_logit = tl.full([QUERIES], _LOWEST, tl.float32)
    denominator = tl.zeros([QUERIES], tl.float32)
    total = tl.zeros([QUERIES, SLICE_C], tl.float32)
    for i in range(tl.load(list_lengths + block) * (64 // KEYS)):
        # 2. Log weights of the next KEYS keys, relative to the nearest key's.
        first_key = tl.load(tile_lists + i // (64 // KEYS)) * 64 + i % (64 // KEYS) * KEYS
        key_y, key_x = pixel_yx(first_key + lane, key_columns)
        first_key = first_key.to(tl.int64)
        dot_product = scores(
            own_queries,
            first_block_of_queries,
            key_features + first_key * packed_dims,
            packed_dims,
            FITS_IN_ONE_BLOCK,
            BLOCK_D,
            INPUT_PRECISION,
        )
        log_similarity, log_weight, _, _ = pair_logits(
            dot_product, own_nearest_score, y[:, None], x[:, None], key_y[None, :], key_x[None, :],
            query_height, query_width, key_height, key_width, reach_y, reach_x, scale, inv, WINDOW,
        )  # fmt: skip

        # 3. Online softmax, and the product with the values.
        weight, rescale, max_logit, denominator = update_softmax(
            log_weight, log_similarity, log_eps, max_logit, denominator, HAS_EPS
        )
        value = tl.load(key_values + first_key * packed_channels)
        total = add_dot(total * rescale[:, None], weight.to(value.dtype), value, INPUT_PRECISION)

    # 4. Normalize and store.
    inside = (y < query_height) & (x < query_width)
    pixel_offset = image * stride_n + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    channel_offset = channel.to(tl.int64) * stride_c
    tl.store(
        output + pixel_offset[:, None] + channel_offset[None, :],
        total / denominator[:, None],
        mask=inside[:, None] & (channel < channels)[None, :],
    )
    if tl.program_id(1) == 0:
        log_sum = max_logit + tl.log(denominator)
        pixel = (image * query_height + y) * query_width + x
        tl.store(log_denominator + pixel, log_sum, mask=inside)
