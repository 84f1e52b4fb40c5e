"""The serving pass on a CUDA device: matrix products by cuBLAS and CUTLASS, everything between them by our kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import triton
from torch import Tensor
from torch.nn import functional

from services.inference.model.moe import Gate
from services.inference.model.serve import kernels
from services.inference.model.serve.staging import ABSORBED_TILE, EXPANDED_TILE, Columns, StagedStep, stage
from services.inference.model.serve.step import LatentStore, Step
from services.inference.model.serve.torch_ops import experts_loop
from services.inference.model.serve.weights import PackedDense, PackedLayer, PackedMoE

_LOG2_E = 1.4426950408889634
_WIDE = 1024
"""Columns a program of an elementwise kernel takes."""
_FEW_ROWS = 16
grouped_mm: Callable[..., Tensor] = getattr(functional, "grouped_mm", None) or torch._grouped_mm


class TritonOps:
    """See `Ops`. `absorb_below`: query rows a request, under which attention runs absorbed; measured at warm-up."""

    def __init__(self) -> None:
        self.absorb_below = _FEW_ROWS
        self._router: dict[int, tuple[Tensor, int]] = {}

    def stage(self, step: Step, store: LatentStore) -> StagedStep:
        return stage(self.columns(step, store), store.latent.device)

    def columns(self, step: Step, store: LatentStore) -> Columns:
        segments = step.segments
        absorbed = segments.rows < self.absorb_below * segments.requests
        return Columns(step, store.page_rows, absorbed=absorbed, trash_page=store.trash_page)

    def add_norm(self, x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        rows, width = x.shape
        h = torch.empty_like(x)
        out = x if delta is None else torch.empty_like(x)
        if rows:
            block = triton.next_power_of_2(width)
            kernels.add_norm[(rows,)](
                x, x if delta is None else delta, weight, out, h, width, eps,
                HAS_DELTA=delta is not None, BLOCK=block, num_warps=4 if block <= 2048 else 8,
            )  # fmt: skip
        return out, h

    def attention(
        self, layer: PackedLayer, index: int, h: Tensor, rotary: Tensor, step: Step, store: LatentStore, *, last: bool
    ) -> Tensor:
        if not isinstance(step, StagedStep):
            raise TypeError("a step must be staged before it runs on a CUDA device")
        projected = functional.linear(h, layer.entry)
        latent = self._latents(layer, index, projected, rotary, step, store)
        query, limit, tile = projected[:, : -layer.width], step.limit, step.tile
        if last:
            query, rotary = query.index_select(0, step.keep), rotary.index_select(0, step.keep)
            limit, tile = step.keep_limit, step.last_tile
        if layer.q_up is not None and layer.q_norm is not None:
            query = functional.rms_norm(query, layer.q_norm.shape, layer.q_norm, layer.latent_eps)
            query = functional.linear(query, layer.q_up)
        self._rotate(layer, query, rotary)
        pages = store.latent[index].index_select(0, step.page).flatten(0, 1)
        if step.absorbed:
            mixed = self._absorbed(layer, query, latent, pages, limit, tile)
        else:
            mixed = self._expanded(layer, query, latent[: step.owner.shape[0]], pages, limit, tile)
        return functional.linear(mixed, layer.out)

    def feed_forward(self, ffn: PackedDense | PackedMoE, h: Tensor) -> Tensor:
        if isinstance(ffn, PackedDense):
            return self._dense(ffn, h)
        chosen, weight = self._route(ffn.gate, h)
        if h.dtype is not torch.bfloat16:  # the grouped product has no other type
            routed = experts_loop(ffn, h, chosen, weight)
            return routed if ffn.shared is None else routed + self._dense(ffn.shared, h)
        top = chosen.shape[1]
        ordered, order = torch.sort(chosen.flatten().to(torch.uint8), stable=True)
        numbers = torch.arange(ffn.down.shape[0], device=h.device, dtype=torch.uint8)
        ends = torch.searchsorted(ordered, numbers, right=True, out_int32=True)
        place = torch.empty_like(order, dtype=torch.int32)
        place[order] = torch.arange(len(order), device=h.device, dtype=torch.int32)
        rows = h.index_select(0, order // top)
        inner = self._silu_mul(grouped_mm(rows, ffn.gate_up.transpose(1, 2), offs=ends))
        done = grouped_mm(inner, ffn.down.transpose(1, 2), offs=ends)
        return self._combine(done, place, weight, None if ffn.shared is None else self._dense(ffn.shared, h), h)

    def _latents(
        self, layer: PackedLayer, index: int, projected: Tensor, rotary: Tensor, step: Step, store: LatentStore
    ) -> Tensor:
        rows, half = projected.shape[0], layer.rope // 2
        latent = projected.new_empty((rows, layer.width))
        down = projected[:, -layer.width :]
        kernels.write_latents[(rows,)](
            down, layer.kv_norm, rotary, step.slot, latent, store.latent[index], projected.stride(0), layer.rank,
            layer.latent_eps, HALF=half, RANK_BLOCK=triton.next_power_of_2(layer.rank),
            HALF_BLOCK=triton.next_power_of_2(half), num_warps=2,
        )  # fmt: skip
        return latent

    def _rotate(self, layer: PackedLayer, query: Tensor, rotary: Tensor) -> None:
        half = layer.rope // 2
        kernels.rotate_queries[(query.shape[0],)](
            query, rotary, query.stride(0), layer.heads, layer.nope + layer.rope, layer.nope, HALF=half,
            HEADS=triton.next_power_of_2(layer.heads), BLOCK=triton.next_power_of_2(half), num_warps=2,
        )  # fmt: skip

    def _expanded(
        self, layer: PackedLayer, query: Tensor, own: Tensor, pages: Tensor, limit: Tensor, tile: Tensor
    ) -> Tensor:
        up = functional.linear(pages[:, : layer.rank], layer.kv_up)
        mine = functional.linear(own[:, : layer.rank], layer.kv_up)
        head = layer.nope + layer.v_dim
        output = query.new_empty((query.shape[0], layer.heads * layer.v_dim))
        self._attend(
            layer, query, layer.nope, layer.v_dim,
            (up, pages[:, layer.rank :], up[:, layer.nope :], mine, own[:, layer.rank :], mine[:, layer.nope :]),
            (up.stride(0), head, pages.stride(0)), limit, tile, output,
        )  # fmt: skip
        return output

    def _absorbed(
        self, layer: PackedLayer, query: Tensor, latent: Tensor, pages: Tensor, limit: Tensor, tile: Tensor
    ) -> Tensor:
        rows, width = query.shape[0], layer.nope + layer.rope
        split = query.view(rows, layer.heads, width)
        lifted = query.new_empty((rows, layer.heads, layer.width))
        lifted[..., : layer.rank] = torch.bmm(split[..., : layer.nope].transpose(0, 1), layer.key_up).transpose(0, 1)
        lifted[..., layer.rank :] = split[..., layer.nope :]
        output = query.new_empty((rows, layer.heads * layer.rank))
        self._attend(
            layer, lifted.flatten(1), layer.rank, layer.rank,
            (pages, pages[:, layer.rank :], pages, latent, latent[:, layer.rank :], latent),
            (pages.stride(0), 0, pages.stride(0)), limit, tile, output,
        )  # fmt: skip
        values = torch.bmm(output.view(rows, layer.heads, -1).transpose(0, 1), layer.value_up.transpose(1, 2))
        return values.transpose(0, 1).flatten(1)

    def _attend(
        self, layer: PackedLayer, query: Tensor, plain: int, wide: int, columns: tuple[Tensor, ...],
        strides: tuple[int, int, int], limit: Tensor, tile: Tensor, output: Tensor,
    ) -> None:  # fmt: skip
        """`columns`: keys, shared keys, values of the history; the same of the candidates themselves."""
        tiles = tile.shape[1]
        if tiles == 0:
            return
        absorbed, large = strides[1] == 0, plain > 256
        kernels.attend[(tiles, layer.heads)](
            query, *columns, limit, tile, tiles, output, layer.scale * _LOG2_E, query.stride(0), plain + layer.rope,
            *strides, output.stride(0), NOPE=plain, ROPE=layer.rope, VALUE=wide,
            NOPE_BLOCK=_block(plain), ROPE_BLOCK=_block(layer.rope), VALUE_BLOCK=_block(wide),
            ROWS=ABSORBED_TILE if absorbed else EXPANDED_TILE,
            KEYS=32 if large else 64, PRECISION="ieee" if query.dtype is torch.float32 else "tf32",
            num_warps=4, num_stages=2 if large else 3,
        )  # fmt: skip

    def _dense(self, ffn: PackedDense, h: Tensor) -> Tensor:
        return functional.linear(self._silu_mul(functional.linear(h, ffn.gate_up)), ffn.down)

    def _silu_mul(self, gate_up: Tensor) -> Tensor:
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        output = gate_up.new_empty((rows, width))
        if rows:
            block = min(_WIDE, triton.next_power_of_2(width))
            kernels.silu_mul[(rows, triton.cdiv(width, block))](gate_up, output, width, BLOCK=block, num_warps=4)
        return output

    def _combine(self, done: Tensor, place: Tensor, weight: Tensor, shared: Tensor | None, h: Tensor) -> Tensor:
        rows, width = h.shape
        output = torch.empty_like(h)
        block = min(_WIDE, triton.next_power_of_2(width))
        kernels.combine[(rows, triton.cdiv(width, block))](
            done, place, weight, h if shared is None else shared, output, width, TOP=weight.shape[1],
            HAS_SHARED=shared is not None, BLOCK=block, num_warps=4,
        )  # fmt: skip
        return output

    def _route(self, gate: Gate, h: Tensor) -> tuple[Tensor, Tensor]:
        """One product for the logits in fp32, one kernel for the choice."""
        if h.dtype is not torch.bfloat16 or not gate.plain:
            chosen, weights = gate(h)
            return chosen, weights
        parts, count = self._parts(gate)
        logits = torch.mm(h, parts.t(), out_dtype=torch.float32)
        experts, rows = gate.weight.shape[0], h.shape[0]
        chosen = torch.empty((rows, gate.top_k), dtype=torch.int32, device=h.device)
        weights = torch.empty((rows, gate.top_k), dtype=torch.float32, device=h.device)
        kernels.route[(rows,)](
            logits, gate.e_score_correction_bias, chosen, weights, experts, gate.factor, PARTS=count, TOP=gate.top_k,
            SIGMOID=gate.sigmoid, NORMALISE=gate.normalise, BLOCK=triton.next_power_of_2(experts), num_warps=1,
        )  # fmt: skip
        return chosen, weights

    def _parts(self, gate: Gate) -> tuple[Tensor, int]:
        """The fp32 router weight as a sum of bf16 ones: with bf16 rows and fp32 sums the product stays one of fp32
        weights, at the tensor cores' speed. A checkpoint in bf16 is one part, others are three (24 bits)."""
        known = self._router.get(id(gate))
        if known is None:
            parts: list[Tensor] = []
            rest = gate.weight.float()
            while not parts or (len(parts) < 3 and bool(rest.any())):
                parts.append(rest.bfloat16())
                rest = rest - parts[-1].float()
            known = self._router[id(gate)] = (torch.cat(parts), len(parts))
        return known


def _block(size: int) -> int:
    """The matrix units want at least 16."""
    return max(16, int(triton.next_power_of_2(size)))
