"""Running the lower blocks of a Llama or GPT-2 without the bridge around them: no hooks, no copies, in place.

TransformerLens wraps every module so that anything can hook it. To read the residual stream between two blocks none of
that is needed, and it costs as much as a third of a run. What runs here are the same products on the same weights in
the same order, so in float32 the bits are the same; `stages.lib.language.extraction` makes sure of that.

In bfloat16, where results are an approximation anyway, attention is PyTorch's fused function, and norms, rotary
positions and activation functions round once where the steps written out round several times.
"""

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from stages.lib.language.direct_loops import gate_bits, look_up, norm_bits, turn, turn_bits

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CHUNK_TOKENS = 1024
"""Tokens that go through the blocks at once: of a small model, what a step leaves is in the cache for the next."""
BETWEEN_BLOCKS = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


def plain(module: Any) -> Any:
    """The module of `transformers` inside the bridge's wrapper, or inside none."""
    while hasattr(module, "original_component"):
        module = module.original_component
    return module


class Positions(NamedTuple):
    """What all blocks share: it depends on the positions alone."""

    mask: Float[Tensor, "query key"]
    """0 where a position looks, the lowest number where it does not."""
    cos: Float[Tensor, "pos d_head"]
    sin: Float[Tensor, "pos d_head"]


class Direct:
    """A model without its bridge, which several threads may run at once: it keeps nothing of a run."""

    def __init__(self, model: "TransformerBridge") -> None:
        self._root = plain(model.original_model)
        self._n_heads = int(self._root.config.num_attention_heads)
        weight = plain(self._root.get_input_embeddings()).weight
        self.device, self.dtype, self._d_model = weight.device, weight.dtype, int(weight.shape[1])
        self._fused = self.dtype == torch.bfloat16
        self._tables: dict[Any, Tensor] = {}

    def streams(self, tokens: Int[Tensor, "batch pos"], depths: Sequence[int]) -> list[Float[Tensor, "batch pos d_in"]]:
        """The residual stream when so many blocks have run, for each of the depths."""
        n, n_ctx = tokens.shape
        found = {depth: torch.empty(n, n_ctx, self._d_model, dtype=self.dtype) for depth in depths}
        with torch.inference_mode():
            positions = self._positions(n_ctx)
            step = max(1, CHUNK_TOKENS // n_ctx)
            for start in range(0, n, step):
                x = self._embed(tokens[start : start + step])
                for depth in range(max(depths) + 1):
                    if depth:
                        x = self._block(depth - 1, x, positions)
                    if depth in found:
                        found[depth][start : start + step] = x
        return [found[depth] for depth in depths]

    def _positions(self, n_ctx: int) -> Positions:
        lowest = torch.finfo(self.dtype).min
        mask = torch.full((n_ctx, n_ctx), lowest, dtype=self.dtype).triu_(1)
        return Positions(mask, *self._angles(n_ctx))

    def _angles(self, n_ctx: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_in"]:
        raise NotImplementedError

    def _block(self, layer: int, x: Float[Tensor, "batch pos d_in"], positions: Positions) -> Tensor:
        raise NotImplementedError

    def _attend(
        self,
        query: Float[Tensor, "batch head pos d_head"],
        key: Float[Tensor, "batch head pos d_head"],
        value: Float[Tensor, "batch head pos d_head"],
        scale: float,
        positions: Positions,
    ) -> Float[Tensor, "batch pos d_in"]:
        """Causal attention of each head, the heads side by side."""
        batch, n_heads, n_ctx, _ = query.shape
        if self._fused:
            found = functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        else:
            query, key, value = (part.reshape(batch * n_heads, n_ctx, -1) for part in (query, key, value))
            scores = torch.baddbmm(positions.mask, query, key.mT, alpha=scale)
            torch.softmax(scores, -1, out=scores)
            found = torch.bmm(scores, value).view(batch, n_heads, n_ctx, -1)
        return found.transpose(1, 2).reshape(batch, n_ctx, -1)

    def _table(self, act: Any) -> Float[Tensor, " bits"]:
        """An activation function of every bfloat16 number, by its bits: there are just 65,536."""
        if type(act) not in self._tables:
            every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.bfloat16)
            self._tables[type(act)] = act(every.float())
        return self._tables[type(act)]


class Llama(Direct):
    """`LlamaForCausalLM`."""

    def _angles(self, n_ctx: int) -> tuple[Tensor, Tensor]:
        like = torch.empty(1)
        cos, sin = plain(self._root.model.rotary_emb)(like, torch.arange(n_ctx)[None])
        return cos[0], sin[0]

    def _embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_in"]:
        return functional.embedding(tokens, plain(self._root.model.embed_tokens).weight)

    def _block(self, layer: int, x: Float[Tensor, "batch pos d_in"], positions: Positions) -> Tensor:
        block = plain(self._root.model.layers[layer])
        attention, mlp = plain(block.self_attn), plain(block.mlp)
        normed = self._norm(plain(block.input_layernorm), x)
        query = self._rotate(_linear(attention.q_proj, normed), positions)
        key = self._rotate(_linear(attention.k_proj, normed), positions)
        value = self._heads(_linear(attention.v_proj, normed), positions)
        if key.shape[1] < self._n_heads:  # several query heads share a key
            key, value = (part.repeat_interleave(self._n_heads // part.shape[1], 1) for part in (key, value))
        x = _linear(attention.o_proj, self._attend(query, key, value, attention.scaling, positions)).add_(x)
        normed = self._norm(plain(block.post_attention_layernorm), x)
        gate, up = _linear(mlp.gate_proj, normed), _linear(mlp.up_proj, normed)
        act = plain(mlp.act_fn)
        if self._fused:
            gate_bits(_bits(gate), self._table(act).numpy(), _bits(up))
        else:
            gate = functional.silu(gate, inplace=True) if type(act).__name__ == "SiLUActivation" else act(gate)
            gate.mul_(up)
        return _linear(mlp.down_proj, gate).add_(x)

    def _norm(self, norm: Any, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        if self._fused:
            out = torch.empty_like(x)
            norm_bits(_bits(x), norm.weight.float().numpy(), norm.variance_epsilon, _bits(out))
            return out
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True).add_(norm.variance_epsilon))
        normed: Tensor = (x * scale).mul_(norm.weight)
        return normed

    @staticmethod
    def _heads(x: Float[Tensor, "batch pos d_in"], positions: Positions) -> Float[Tensor, "batch head pos d_head"]:
        return x.view(*x.shape[:-1], -1, positions.cos.shape[-1]).transpose(1, 2)

    def _rotate(
        self, x: Float[Tensor, "batch pos d_in"], positions: Positions
    ) -> Float[Tensor, "batch head pos d_head"]:
        """Heads with each pair of numbers turned by the angle of its position: x cos + (-second, first) sin."""
        x = x.view(*x.shape[:-1], -1, positions.cos.shape[-1])
        out = torch.empty(len(x), x.shape[2], *x.shape[1::2], dtype=x.dtype)
        angles = positions.cos.numpy(), positions.sin.numpy()
        if self._fused:
            turn_bits(x.view(torch.uint16).numpy(), *angles, out.view(torch.uint16).numpy())
        else:
            turn(x.numpy(), *angles, out.numpy())
        return out


class GPT2(Direct):
    """`GPT2LMHeadModel`."""

    def _angles(self, n_ctx: int) -> tuple[Tensor, Tensor]:
        return torch.empty(n_ctx, 0), torch.empty(n_ctx, 0)

    def _embed(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_in"]:
        model = self._root.transformer
        x = functional.embedding(tokens, plain(model.wte).weight)
        return x.add_(plain(model.wpe).weight[: tokens.shape[1]])

    def _block(self, layer: int, x: Float[Tensor, "batch pos d_in"], positions: Positions) -> Tensor:
        block = plain(self._root.transformer.h[layer])
        attention, mlp = plain(block.attn), plain(block.mlp)
        normed = self._norm(block.ln_1, x)
        # The bridge has cut the weight of query, key and value in three.
        parts = (_linear(part, normed) for part in (block.attn.q, block.attn.k, block.attn.v))
        query, key, value = (part.view(*part.shape[:-1], self._n_heads, -1).transpose(1, 2) for part in parts)
        x = _conv(attention.c_proj, self._attend(query, key, value, attention.scaling, positions)).add_(x)
        hidden = self._activate(plain(mlp.act), _conv(mlp.c_fc, self._norm(block.ln_2, x)))
        return _conv(mlp.c_proj, hidden).add_(x)

    def _norm(self, norm: Any, x: Float[Tensor, "batch pos d_in"]) -> Float[Tensor, "batch pos d_in"]:
        norm = plain(norm)
        if self._fused:
            return functional.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, norm.eps)
        # The bridge's steps, one after the other.
        centred = x - x.mean(-1, keepdim=True)
        scale = centred.pow(2).mean(-1, keepdim=True).add_(norm.eps).sqrt_()
        normed: Tensor = centred.div_(scale).mul_(norm.weight).add_(norm.bias)
        return normed

    def _activate(self, act: Any, x: Float[Tensor, "batch pos d_mlp"]) -> Float[Tensor, "batch pos d_mlp"]:
        if self._fused:
            look_up(_bits(x), _bits(self._table(act).to(self.dtype)[None])[0])
            return x
        if type(act).__name__ != "NewGELUActivation":
            found: Tensor = act(x)
            return found
        # x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
        inner = torch.pow(x, 3.0).mul_(0.044715).add_(x).mul_(math.sqrt(2.0 / math.pi)).tanh_().add_(1.0)
        return x.mul_(0.5).mul_(inner)


KINDS: dict[str, type[Direct]] = {"LlamaForCausalLM": Llama, "GPT2LMHeadModel": GPT2}


def depth_of(hook_name: str) -> int | None:
    """How many blocks have run where the residual stream has this name; None if the name is of something else."""
    match = BETWEEN_BLOCKS.fullmatch(hook_name)
    return None if match is None else int(match[1]) + (match[2] == "post")


def direct(model: "TransformerBridge") -> Direct | None:
    """The model without its bridge, or None if it is of another architecture, device or number format."""
    root = plain(model.original_model)
    kind = KINDS.get(type(root).__name__)
    # Positions whose angles depend on the length of the window keep something of a run.
    rope = (getattr(root.config, "rope_parameters", None) or {}).get("rope_type", "default")
    weight = next(model.parameters())
    if kind is None or weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    return None if rope in ("dynamic", "longrope") else kind(model)


def _linear(module: Any, x: Tensor) -> Tensor:
    module = plain(module)
    return functional.linear(x, module.weight, module.bias)


def _conv(module: Any, x: Tensor) -> Tensor:
    """The layer that `transformers` calls Conv1D: its weight is [d_in, d_out]."""
    module = plain(module)
    return torch.addmm(module.bias, x.flatten(0, -2), module.weight).view(*x.shape[:-1], -1)


def _bits(x: Tensor) -> Any:
    """The bits of bfloat16 numbers in rows, in the same memory."""
    return x.flatten(0, -2).view(torch.uint16).numpy()
