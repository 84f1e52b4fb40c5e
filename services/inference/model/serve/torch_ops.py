"""The serving pass in plain torch: what CPUs run, and what the GPU kernels are compared with.

Attention goes request by request, because lengths differ and requests are few. Two ways that agree within rounding:
expanded (keys and values are made from the latents of the whole history) and absorbed (queries are moved into the
latent space instead), which is cheaper where a request has few query rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from services.inference.model.serve.step import LatentStore, Segments, Step
from services.inference.model.serve.weights import PackedDense, PackedLayer, PackedMoE

_NEVER = float("-inf")


class TorchOps:
    """See `Ops`. `absorb_below`: query rows a request, under which attention runs absorbed; measured at warm-up."""

    def __init__(self) -> None:
        self.absorb_below = 1 << 30

    def stage(self, step: Step, store: LatentStore) -> Step:
        """The step where the store is."""
        device = store.latent.device
        if device.type == "cpu":
            return step
        moved = {f.name: getattr(step, f.name).to(device) for f in fields(step) if f.name != "segments"}
        return Step(segments=step.segments, **moved)

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """x + delta, and its RMSNorm."""
        if delta is not None:
            x = x + delta
        return x, functional.rms_norm(x, weight.shape, weight, eps)

    def attention(
        self, layer: PackedLayer, index: int, h: Tensor, rotary: Tensor, step: Step, store: LatentStore, *, last: bool
    ) -> Tensor:
        """h [N, d] to [N, d] ([K, d] in the last layer); new latents are written to the store on the way. `rotary`
        [N, rope]: cosines, then sines."""
        absorbed = self._absorbs(step.segments)
        fused = absorbed and layer.absorbed_entry is not None
        entry = layer.absorbed_entry if fused and layer.absorbed_entry is not None else layer.entry
        projected = functional.linear(h, entry)
        latent = self._latents(layer, projected[:, -layer.width :], rotary)
        self._write(latent, index, step, store)
        query = projected[:, : -layer.width]
        if last:
            keep = step.keep
            query, rotary = query.index_select(0, keep), rotary.index_select(0, keep)
        if layer.q_up is not None and layer.q_norm is not None:
            query = functional.linear(
                functional.rms_norm(query, layer.q_norm.shape, layer.q_norm, layer.latent_eps), layer.q_up
            )
        query = query.view(-1, layer.heads, query.shape[1] // layer.heads)
        _rotate_in_place(query[..., -layer.rope :], rotary)
        pages = store.latent[index].index_select(0, step.page).flatten(0, 1)
        if not absorbed:
            return functional.linear(
                self._expanded(layer, query, latent, pages, step, store.page_rows, last), layer.out
            )
        if not fused:
            lifted = torch.matmul(query[..., : layer.nope].transpose(0, 1), layer.key_up).transpose(0, 1)
            query = torch.cat((lifted, query[..., layer.nope :]), dim=-1)
        mixed = self._in_latents(layer, query, latent, pages, step, store.page_rows, last)
        if fused and layer.absorbed_out is not None:
            return functional.linear(mixed.flatten(1), layer.absorbed_out)
        values = torch.matmul(mixed.transpose(0, 1), layer.value_up.transpose(1, 2)).transpose(0, 1)
        return functional.linear(values.flatten(1), layer.out)

    def feed_forward(self, ffn: PackedDense | PackedMoE, h: Tensor) -> Tensor:
        if isinstance(ffn, PackedDense):
            return _swiglu(h, ffn.gate_up, ffn.down)
        routed = experts_loop(ffn, h, *ffn.gate(h))
        return routed if ffn.shared is None else routed + _swiglu(h, ffn.shared.gate_up, ffn.shared.down)

    def _absorbs(self, segments: Segments) -> bool:
        return segments.rows < self.absorb_below * segments.requests

    def _latents(self, layer: PackedLayer, down: Tensor, rotary: Tensor) -> Tensor:
        """Normalised latents and rotated shared keys, [N, rank + rope]."""
        latent = torch.empty_like(down, memory_format=torch.contiguous_format)
        latent[:, : layer.rank] = functional.rms_norm(
            down[:, : layer.rank], layer.kv_norm.shape, layer.kv_norm, layer.eps
        )
        latent[:, layer.rank :] = down[:, layer.rank :]
        _rotate_in_place(latent[:, None, layer.rank :], rotary)
        return latent

    def _write(self, latent: Tensor, index: int, step: Step, store: LatentStore) -> None:
        count = step.segments.candidates
        if latent.shape[0] == count:
            return
        slot = step.slot[count:]
        places = (slot >= 0).nonzero().squeeze(1)
        rows = store.latent[index].flatten(0, 1)
        rows.index_copy_(0, slot.index_select(0, places).long(), latent[count:].index_select(0, places))

    def _in_latents(
        self, layer: PackedLayer, query: Tensor, latent: Tensor, pages: Tensor, step: Step, page_rows: int, last: bool
    ) -> Tensor:
        """Queries [M, H, rank + rope] to mixtures of latents [M, H, rank]; every head has the same keys, so a request
        is one product of [rows * H, width]."""
        count = step.segments.candidates
        own = latent[:count]
        itself = torch.matmul(query[:count], own[:, :, None]).mul_(layer.scale)
        mixed = query.new_empty(query.shape)
        seen = itself.new_empty(count, layer.heads)
        for part in _parts(step, page_rows, last):
            candidates, rows, history = part.candidates, part.rows, pages[part.keys][None]
            if candidates.stop > candidates.start:
                asked = query[candidates].flatten(0, 1)[None]
                done, total = _attended(asked, history, history, layer.scale)
                mixed[candidates], seen[candidates] = done.view(-1, *query.shape[1:]), total.view(-1, layer.heads)
            if rows.stop > rows.start:
                asked = query[rows].flatten(0, 1)
                scores = torch.matmul(asked, history[0].t()).mul_(layer.scale)
                hidden = _hidden(part, asked.device)
                if hidden is not None:
                    scores.masked_fill_(hidden.repeat_interleave(layer.heads, 0), _NEVER)
                weight = torch.softmax(scores, dim=-1)
                mixed[rows] = torch.matmul(weight, history[0]).view(-1, *query.shape[1:])
        mixed[:count].lerp_(own[:, None], torch.sigmoid(itself.squeeze(-1) - seen)[:, :, None])
        return mixed[..., : layer.rank]

    def _expanded(
        self, layer: PackedLayer, query: Tensor, latent: Tensor, pages: Tensor, step: Step, page_rows: int, last: bool
    ) -> Tensor:
        """Queries [M, H, nope + rope] to values [M, H * v]."""
        count = step.segments.candidates
        query = _padded(query, layer.v_dim)
        key, value = _expand(layer, pages)
        own_key, own_value = _expand(layer, latent[:count])
        itself = (query[:count] * own_key).sum(-1).mul_(layer.scale)
        output = query.new_empty(query.shape)
        seen = itself.new_empty(itself.shape)
        for part in _parts(step, page_rows, last):
            candidates, rows = part.candidates, part.rows
            past, values = key[part.keys].transpose(0, 1), value[part.keys].transpose(0, 1)
            if candidates.stop > candidates.start:
                done, total = _attended(query[candidates].transpose(0, 1), past, values, layer.scale)
                output[candidates], seen[candidates] = done.transpose(0, 1), total.t()
            if rows.stop > rows.start:
                output[rows] = _causal(query[rows].transpose(0, 1), past, values, part, layer.scale).transpose(0, 1)
        output[:count].lerp_(own_value, torch.sigmoid(itself - seen)[:, :, None])
        return output[..., : layer.v_dim].flatten(1)


class _Part(NamedTuple):
    """One request: its slices of the query rows (candidates, new rows) and of the gathered history, and the first
    position among its new rows."""

    candidates: slice
    rows: slice
    keys: slice
    first: int


def _parts(step: Step, page_rows: int, last: bool) -> Iterator[_Part]:
    segments = step.segments
    candidate, row, page = segments.candidate.tolist(), segments.row.tolist(), segments.page.tolist()
    count, kept = candidate[-1], candidate[-1]
    for b, length in enumerate(segments.length.tolist()):
        fresh = row[b + 1] - row[b]
        if last:
            # Of the new rows only the newest is finished.
            rows = slice(kept, kept + min(fresh, 1))
            kept, first = rows.stop, length - 1
        else:
            rows, first = slice(count + row[b], count + row[b + 1]), length - fresh
        keys = slice(page[b] * page_rows, page[b] * page_rows + length)
        yield _Part(slice(candidate[b], candidate[b + 1]), rows, keys, first)


def _hidden(part: _Part, device: torch.device) -> Tensor | None:
    """[rows, length], True where a row must not look: at what came after it. None: nothing did."""
    rows, length = part.rows.stop - part.rows.start, part.keys.stop - part.keys.start
    if rows == 1 and part.first == length - 1:
        return None
    return torch.arange(length, device=device) > torch.arange(part.first, part.first + rows, device=device)[:, None]


def _attended(query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Values that queries [H, X, k] find in keys and values [H, L, k], and the logarithm [H, X] of what their
    softmax divided by: a candidate joins itself to that with one sigmoid, `sigmoid(a - log sum exp b)` being a's share.

    On CPU torch's fused kernel, which alone among its attentions tells that logarithm: 128 candidates over 200 rows
    take 0.29 ms a layer in it and 0.46 as two products and a softmax."""
    if key.shape[1] == 0:
        return query.new_zeros(query.shape), query.new_full(query.shape[:2], _NEVER)
    if query.device.type != "cpu":
        scores = torch.matmul(query, key.transpose(-1, -2)) * scale
        return torch.matmul(torch.softmax(scores, dim=-1), value), torch.logsumexp(scores, dim=-1)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    done, total = kernel(query[None], key[None], value[None], scale=scale)
    return done[0], total[0]


def _causal(query: Tensor, key: Tensor, value: Tensor, part: _Part, scale: float) -> Tensor:
    """New rows [H, R, dk] over [H, L, dk]."""
    whole = part.first == 0 and query.shape[1] > 1
    hidden = None if whole else _hidden(part, query.device)
    seen = functional.scaled_dot_product_attention(
        query[None],
        key[None],
        value[None],
        attn_mask=None if hidden is None else ~hidden,
        is_causal=whole,
        scale=scale,
    )
    return seen[0]


def _expand(layer: PackedLayer, latent: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [T, H, w] of latent rows [T, rank + rope], with zeros behind where one is narrower: the fused
    kernel takes one width."""
    up = functional.linear(latent[:, : layer.rank], layer.kv_up).view(-1, layer.heads, layer.nope + layer.v_dim)
    shared = latent[:, None, layer.rank :].expand(-1, layer.heads, -1)
    key, value = torch.cat((up[..., : layer.nope], shared), dim=-1), up[..., layer.nope :]
    return _padded(key, layer.v_dim), _padded(value, layer.nope + layer.rope)


def _padded(x: Tensor, width: int) -> Tensor:
    """With zeros up to `width`; wider ones as they are."""
    return x if x.shape[-1] >= width else functional.pad(x, (0, width - x.shape[-1]))


def _rotate_in_place(x: Tensor, rotary: Tensor) -> None:
    """[N, H, rope], even parts first (`_rotary_halves`), by `rotary` [N, rope]."""
    cos, sin = rotary[:, None].chunk(2, dim=-1)
    even, odd = x.chunk(2, dim=-1)
    turned = odd * cos + even * sin
    even.copy_(even * cos - odd * sin)
    odd.copy_(turned)


def _swiglu(h: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = functional.linear(h, gate_up).chunk(2, dim=-1)
    return functional.linear(functional.silu(gate).mul_(up), down)


def experts_loop(moe: PackedMoE, h: Tensor, chosen: Tensor, weight: Tensor) -> Tensor:
    """Rows sorted by expert, one pair of products an expert that has rows. Counts go through the host."""
    top_k = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten(), minlength=moe.down.shape[0]).tolist()
    source = order // top_k
    groups = torch.split(h.index_select(0, source), counts)
    done = [_swiglu(rows, moe.gate_up[e], moe.down[e]) for e, rows in enumerate(groups) if rows.shape[0]]
    routed = torch.cat(done) * weight.flatten().index_select(0, order)[:, None].to(h.dtype)
    return torch.zeros_like(h).index_add_(0, source, routed)
