"""GPU kernels (Triton). Imported on CUDA machines only; Triton comes with torch there.

One attention kernel serves both ways of MLA: expanded, keys and values lie in [T, H * (nope + v)], heads side by side;
absorbed, every head reads the latents themselves (head stride 0) and the "nope" part is the whole rank.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_norm(x, delta, weight, x_out, h_out, width, eps, HAS_DELTA: tl.constexpr, BLOCK: tl.constexpr):
    """x_out = x + delta, h_out = RMSNorm(x_out) * weight; a program a row of `width`."""
    row = tl.program_id(0).to(tl.int64) * width
    column = tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_DELTA:
        value += tl.load(delta + row + column, mask=inside, other=0.0).to(tl.float32)
        rounded = value.to(x_out.dtype.element_ty)
        tl.store(x_out + row + column, rounded, mask=inside)
        value = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / width + eps)
    normed = value * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(h_out + row + column, normed.to(h_out.dtype.element_ty), mask=inside)


@triton.jit
def rotate_queries(
    query, rotary, row_stride, heads, head_stride, nope, HALF: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr
):
    """In place, the rotary tail of every head of a row; `rotary` [N, 2 * HALF]: cosines, then sines."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (head < heads) & (column < HALF)
    cos = tl.load(rotary + row * 2 * HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
    sin = tl.load(rotary + row * 2 * HALF + HALF + column, mask=column < HALF, other=0.0).to(tl.float32)
    place = query + row * row_stride + head * head_stride + nope + column
    even = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(place + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(place, (even * cos - odd * sin).to(query.dtype.element_ty), mask=inside)
    tl.store(place + HALF, (odd * cos + even * sin).to(query.dtype.element_ty), mask=inside)


@triton.jit
def write_latents(
    down,
    weight,
    rotary,
    slot,
    latent,
    store,
    row_stride,
    rank,
    eps,
    HALF: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
):
    """Normalised latent and rotated shared key of a row: to `latent` [N, rank + rope], and to the store where `slot`
    [N] names a place."""
    row = tl.program_id(0).to(tl.int64)
    width = rank + 2 * HALF
    kind = latent.dtype.element_ty
    column = tl.arange(0, RANK_BLOCK)
    inside = column < rank
    value = tl.load(down + row * row_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, axis=0) / rank + eps)
    normed = (value * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)).to(kind)
    half = tl.arange(0, HALF_BLOCK)
    real = half < HALF
    cos = tl.load(rotary + row * 2 * HALF + half, mask=real, other=0.0).to(tl.float32)
    sin = tl.load(rotary + row * 2 * HALF + HALF + half, mask=real, other=0.0).to(tl.float32)
    even = tl.load(down + row * row_stride + rank + half, mask=real, other=0.0).to(tl.float32)
    odd = tl.load(down + row * row_stride + rank + HALF + half, mask=real, other=0.0).to(tl.float32)
    first, second = (even * cos - odd * sin).to(kind), (odd * cos + even * sin).to(kind)
    mine = latent + row * width
    tl.store(mine + column, normed, mask=inside)
    tl.store(mine + rank + half, first, mask=real)
    tl.store(mine + rank + HALF + half, second, mask=real)
    place = tl.load(slot + row).to(tl.int64)
    kept = store + place * width
    tl.store(kept + column, normed, mask=inside & (place >= 0))
    tl.store(kept + rank + half, first, mask=real & (place >= 0))
    tl.store(kept + rank + HALF + half, second, mask=real & (place >= 0))


@triton.jit(do_not_specialize=["tiles"])  # else a first request of another size waits for a compiler
def attend(
    query,
    key,
    shared,
    value,
    own_key,
    own_shared,
    own_value,
    limit,
    tile,
    tiles,
    output,
    scale_log2,
    query_row,
    query_head,
    key_row,
    key_head,
    shared_row,
    output_row,
    NOPE: tl.constexpr,
    ROPE: tl.constexpr,
    VALUE: tl.constexpr,
    NOPE_BLOCK: tl.constexpr,
    ROPE_BLOCK: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Online softmax (Dao et al. 2022) of a tile of one request's query rows over its history, and over itself for
    candidates: their own key is where the sum begins. `tile` [4, tiles]: first query row, rows, first key row, 1 for
    candidates. `limit` [M]: history rows that a query row sees."""
    index, head = tl.program_id(0), tl.program_id(1)
    count = tl.load(tile + tiles + index)
    if count == 0:
        return
    first = tl.load(tile + index).to(tl.int64)
    keys = tl.load(tile + 2 * tiles + index).to(tl.int64)
    is_candidate = tl.load(tile + 3 * tiles + index) > 0
    local = tl.arange(0, ROWS)
    real = local < count
    row = first + local
    nope, rope, wide = tl.arange(0, NOPE_BLOCK), tl.arange(0, ROPE_BLOCK), tl.arange(0, VALUE_BLOCK)
    in_nope, in_rope, in_value = nope < NOPE, rope < ROPE, wide < VALUE
    seen = tl.load(limit + row, mask=real, other=0)
    most = tl.max(seen, axis=0)

    asked = query + row[:, None] * query_row + head * query_head
    plain = tl.load(asked + nope[None, :], mask=real[:, None] & in_nope[None, :], other=0.0)
    turned = tl.load(asked + NOPE + rope[None, :], mask=real[:, None] & in_rope[None, :], other=0.0)

    has_own = real & is_candidate
    mine = row[:, None] * key_row + head * key_head
    own = tl.load(own_key + mine + nope[None, :], mask=has_own[:, None] & in_nope[None, :], other=0.0)
    turn = own_shared + row[:, None] * shared_row + rope[None, :]
    own_turned = tl.load(turn, mask=has_own[:, None] & in_rope[None, :], other=0.0)
    itself = tl.sum(plain.to(tl.float32) * own.to(tl.float32), axis=1)
    itself += tl.sum(turned.to(tl.float32) * own_turned.to(tl.float32), axis=1)
    peak = tl.where(has_own, itself * scale_log2, float("-inf"))
    total = tl.where(has_own, 1.0, 0.0)
    mixed = tl.load(own_value + mine + wide[None, :], mask=has_own[:, None] & in_value[None, :], other=0.0)
    mixed = mixed.to(tl.float32)

    for begin in range(0, most, KEYS):
        column = begin + tl.arange(0, KEYS)
        there = column < most
        past = (keys + column) * key_row + head * key_head
        k = tl.load(key + past[None, :] + nope[:, None], mask=there[None, :] & in_nope[:, None], other=0.0)
        past_turn = shared + (keys + column)[None, :] * shared_row + rope[:, None]
        r = tl.load(past_turn, mask=there[None, :] & in_rope[:, None], other=0.0)
        score = tl.dot(plain, k, input_precision=PRECISION)
        score = tl.dot(turned, r, score, input_precision=PRECISION) * scale_log2
        score = tl.where(column[None, :] < seen[:, None], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees nothing yet
        weight = tl.exp2(score - base[:, None])
        fade = tl.exp2(peak - base)
        v = tl.load(value + past[:, None] + wide[None, :], mask=there[:, None] & in_value[None, :], other=0.0)
        total = total * fade + tl.sum(weight, axis=1)
        mixed = tl.dot(weight.to(v.dtype), v, mixed * fade[:, None], input_precision=PRECISION)
        peak = higher

    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    place = output + row[:, None] * output_row + head * VALUE + wide[None, :]
    tl.store(place, mixed.to(output.dtype.element_ty), mask=real[:, None] & in_value[None, :])


@triton.jit
def route(
    logits,
    bias,
    chosen,
    weights,
    experts,
    factor,
    PARTS: tl.constexpr,
    TOP: tl.constexpr,
    SIGMOID: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The gate of one row: `logits` [N, PARTS * experts] are summed over parts; ties go to the lower number."""
    row = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK)
    inside = expert < experts
    value = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        value += tl.load(logits + row * PARTS * experts + part * experts + expert, mask=inside, other=0.0)
    if SIGMOID:
        score = tl.sigmoid(value)
    else:
        value = tl.where(inside, value, float("-inf"))
        grown = tl.exp(value - tl.max(value, axis=0))
        score = grown / tl.sum(grown, axis=0)
    ranked = score + tl.load(bias + expert, mask=inside, other=0.0)
    ranked = tl.where(inside, ranked, float("-inf"))
    whole = 0.0
    for _ in tl.static_range(TOP):
        best = tl.argmax(ranked, axis=0)
        whole += tl.sum(tl.where(expert == best, score, 0.0), axis=0)
        ranked = tl.where(expert == best, float("-inf"), ranked)
    ranked = score + tl.load(bias + expert, mask=inside, other=0.0)
    ranked = tl.where(inside, ranked, float("-inf"))
    for place in tl.static_range(TOP):
        best = tl.argmax(ranked, axis=0)
        share = tl.sum(tl.where(expert == best, score, 0.0), axis=0)
        ranked = tl.where(expert == best, float("-inf"), ranked)
        if NORMALISE:
            share = share / (whole + 1e-20)
        tl.store(chosen + row * TOP + place, best.to(chosen.dtype.element_ty))
        tl.store(weights + row * TOP + place, share * factor)


@triton.jit
def silu_mul(gate_up, output, width, BLOCK: tl.constexpr):
    """silu(first half) * second half of rows [2 * width]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * 2 * width + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * width + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * width + column, (gate * tl.sigmoid(gate) * up).to(output.dtype.element_ty), mask=inside)


@triton.jit
def combine(
    done, place, weights, shared, output, width, TOP: tl.constexpr, HAS_SHARED: tl.constexpr, BLOCK: tl.constexpr
):
    """output[n] = shared[n] + sum over j of weights[n, j] * done[place[n, j]]."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    total = tl.zeros([BLOCK], tl.float32)
    if HAS_SHARED:
        total += tl.load(shared + row * width + column, mask=inside, other=0.0).to(tl.float32)
    for j in tl.static_range(TOP):
        source = tl.load(place + row * TOP + j).to(tl.int64)
        share = tl.load(weights + row * TOP + j)
        total += share * tl.load(done + source * width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row * width + column, total.to(output.dtype.element_ty), mask=inside)
