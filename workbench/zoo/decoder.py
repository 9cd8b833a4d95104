"""A small decoder with the structure and layer names of today's language models.

Token embedding, blocks of grouped attention with rotary positions and a gated feed-forward, RMS
norms, and a head: as large language models have them, at any size. `sort` trains it on a task of
its own in half a minute.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class DecoderConfig:
    """``heads`` of ``width // heads`` features, of which ``kv_heads`` for keys and values."""

    vocabulary: int = 18
    width: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 128
    tied: bool = False
    rotary_base: float = 10000.0


class RMSNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.float().square().mean(-1, keepdim=True)
        return (x.float() * torch.rsqrt(mean + 1e-6)).to(x.dtype) * self.weight


class Rotary(nn.Module):
    """Cosines and sines of the positions; its frequencies are no part of a checkpoint."""

    frequencies: Tensor

    def __init__(self, head_width: int, base: float) -> None:
        super().__init__()
        powers = torch.arange(0, head_width, 2) / head_width
        self.register_buffer("frequencies", base**-powers, persistent=False)

    def forward(self, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        place = torch.arange(length, device=self.frequencies.device)
        angles = torch.outer(place, self.frequencies).repeat(1, 2)
        return angles.cos().to(dtype), angles.sin().to(dtype)


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.groups = config.heads // config.kv_heads
        narrow = config.kv_heads * self.head_width
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, narrow, bias=False)
        self.v_proj = nn.Linear(config.width, narrow, bias=False)
        self.o_proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (self._heads(f(x)) for f in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (_rotate(heads, *position_embeddings) for heads in (q, k))
        k, v = (heads.repeat_interleave(self.groups, 1) for heads in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)  # type: ignore[no-untyped-call,no-any-return]


class FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.width)
        self.mlp = FeedForward(config)

    def forward(self, hidden: Tensor, position_embeddings: tuple[Tensor, Tensor]) -> Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), position_embeddings)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class DecoderStack(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocabulary, config.width)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width)
        self.rotary_emb = Rotary(config.width // config.heads, config.rotary_base)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embed_tokens(tokens)
        positions = self.rotary_emb(tokens.shape[1], hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=positions)
        out: Tensor = self.norm(hidden)
        return out


class Decoder(nn.Module):
    """Tokens [N, T] to logits [N, T, vocabulary]."""

    def __init__(self, config: DecoderConfig | None = None) -> None:
        super().__init__()
        self.config = config or DecoderConfig()
        self.model = DecoderStack(self.config)
        self.lm_head = nn.Linear(self.config.width, self.config.vocabulary, bias=False)
        if self.config.tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.lm_head(self.model(tokens))
        return logits


def _rotate(heads: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = heads.chunk(2, -1)
    return heads * cosine + torch.cat([-second, first], -1) * sine
