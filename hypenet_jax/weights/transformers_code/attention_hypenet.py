"""The two mixers of HypeNet: softmax attention and lightning attention."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_hypenet import HypeNetConfig
from .tokens_hypenet import HypeNetCache, Tokens

CHUNK = 64


def slopes(num_heads: int) -> list[float]:
    """Decay rate of each head: 2^(-8 i / N), i = 1 .. N, for N a power of two.

    Otherwise those of the next lower power P, then every second one of the list for 2 P until N are found.
    """
    power = 2 ** math.floor(math.log2(num_heads))
    first = [2.0 ** (-8.0 * i / power) for i in range(1, power + 1)]
    between = [2.0 ** (-4.0 * i / power) for i in range(1, 2 * power + 1, 2)]
    return (first + between)[:num_heads]


def lightning_attention(
    q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, state: Tensor
) -> tuple[Tensor, Tensor]:
    """s_t = exp(-slope) s_(t-1) + k_t v_t^T;  o_t = q_t s_t; in chunks of time, a token alone as one step.

    Args:
      q, k, v: [B, N, T, H], float32, as the state is: bfloat16 loses 2 % on the slowest head.
      state: [B, N, H, H] after the tokens before.
    """
    time = q.shape[2]
    size = min(CHUNK, time)
    q, k, v = (F.pad(x, (0, 0, 0, -time % size)).unflatten(2, (-1, size)) for x in (q, k, v))
    segments = F.pad(tokens.segments, (0, -time % size)).unflatten(1, (-1, size))  # [B, G, C]
    count = (segments > 0).cumsum(-1)  # tokens of the chunk up to and with each
    last = torch.maximum(segments.amax(-1).cummax(1).values, tokens.open_segment[:, None])
    before = torch.cat([tokens.open_segment[:, None], last[:, :-1]], dim=1)  # [B, G]

    def decay(steps: Tensor, where: Tensor) -> Tensor:
        """exp(-slope steps), "B N ...", and 0 elsewhere."""
        slope = tokens.slopes.reshape(1, -1, *[1] * (steps.ndim - 1))
        return torch.exp(-slope * steps[:, None].clamp(min=0)) * where[:, None]

    real, total = segments > 0, count[..., -1]
    earlier = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    pairs = earlier & real[..., None] & (segments[..., None] == segments[..., None, :])
    out = (q @ k.mT * decay(count[..., None] - count[..., None, :], pairs)) @ v
    kept = decay(total[..., None] - count, real & (segments == last[..., None]))
    written = (k * kept[..., None]).mT @ v  # [B, N, G, H, H]
    carried = decay(total, last == before)[..., None, None]
    states = []
    for chunk in range(written.shape[2]):
        states.append(state)
        state = state * carried[:, :, chunk] + written[:, :, chunk]
    seen = decay(count, real & (segments == before[..., None]))
    out = out + (q * seen[..., None]) @ torch.stack(states, dim=2)
    return out.flatten(2, 3)[:, :, :time], state


def lightning_step(
    q: Tensor, k: Tensor, v: Tensor, tokens: Tokens, state: Tensor
) -> tuple[Tensor, Tensor]:
    """`lightning_attention` of one token."""
    real = (tokens.segments > 0)[..., None, None]  # [B, 1, 1, 1]
    stays = ~real | (tokens.segments == tokens.open_segment[:, None])[..., None, None]
    decay = torch.where(real, torch.exp(-tokens.slopes)[None, :, None, None], 1.0)
    state = state * (decay * stays) + k.mT * (v * real)
    return q @ state, state


class HypeNetRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), rounded to the dtype of x, then times the weight."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return wide.to(x.dtype) * self.weight


class HypeNetMixer(nn.Module):
    """What both mixers have: queries, keys and values of every head, normed and rotated, and the map back."""

    def __init__(
        self, config: HypeNetConfig, layer: int, heads: int, kv_heads: int, width: int, prefix: str
    ) -> None:
        super().__init__()
        self.layer, self.heads, self.kv_heads, self.width = layer, heads, kv_heads, width
        self.use_rope = getattr(config, f"{prefix}_use_rope")
        bias, outer = getattr(config, f"{prefix}_use_qkv_bias"), config.hidden_size
        self.q_proj = nn.Linear(outer, heads * width, bias=bias)
        self.k_proj = nn.Linear(outer, kv_heads * width, bias=bias)
        self.v_proj = nn.Linear(outer, kv_heads * width, bias=bias)
        self.o_proj = nn.Linear(heads * width, outer, bias=False)
        self.q_norm = self.k_norm = nn.Identity()
        if getattr(config, f"{prefix}_use_qk_norm"):
            self.q_norm = HypeNetRMSNorm(width, config.rms_norm_eps)
            self.k_norm = HypeNetRMSNorm(width, config.rms_norm_eps)

    def project(self, x: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            f(x).unflatten(-1, (-1, self.width)) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k, v = (y.transpose(1, 2) for y in (self.q_norm(q), self.k_norm(k), v))
        return (rotate(q, tokens), rotate(k, tokens), v) if self.use_rope else (q, k, v)


def rotate(x: Tensor, tokens: Tokens) -> Tensor:
    """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin): dimension j turns with j + H / 2."""
    cos, sin = tokens.cos.to(x.dtype), tokens.sin.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class HypeNetSoftmaxAttention(HypeNetMixer):
    """W_o (softmax(factor q k^T / sqrt(H)) v * sigmoid(W_gate x))."""

    def __init__(self, config: HypeNetConfig, layer: int) -> None:
        heads = (config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        super().__init__(config, layer, *heads, prefix="attn")
        if config.attn_use_output_gate:
            self.o_gate = nn.Linear(config.hidden_size, self.heads * self.width, bias=False)

    def forward(self, x: Tensor, tokens: Tokens, cache: HypeNetCache | None) -> Tensor:
        q, k, v = self.project(x, tokens)
        if tokens.factor is not None:
            q = (q.float() * tokens.factor).to(q.dtype)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        y = self.attend(q, k, v, tokens.mask).transpose(1, 2).flatten(2)
        return self.o_proj(y * torch.sigmoid(self.o_gate(x)) if hasattr(self, "o_gate") else y)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        group, one = self.heads // self.kv_heads, q.shape[2] == 1
        if one:  # the heads that share keys are queries of one head: the cache is not repeated
            q = q.unflatten(1, (-1, group)).flatten(2, 3)
        else:
            k, v = (y.repeat_interleave(group, dim=1) for y in (k, v))
        causal = mask is None and not one
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=self.width**-0.5)
        return y.unflatten(2, (group, 1)).flatten(1, 2) if one else y


class HypeNetLightningAttention(HypeNetMixer):
    """W_o (norm over all heads(lightning_attention(q, k, v)) * sigmoid(W_gate x))."""

    def __init__(self, config: HypeNetConfig, layer: int) -> None:
        heads, width = config.lightning_nh, config.lightning_head_dim
        super().__init__(config, layer, heads, config.lightning_nkv, width, prefix="lightning")
        self.scale = {"1/sqrt(d)": width**-0.5, "1/d": 1.0 / width, "1": 1.0}[
            config.lightning_scale
        ]
        if config.lightning_use_output_norm:
            self.o_norm = HypeNetRMSNorm(heads * width, config.rms_norm_eps)
        if config.lightning_use_output_gate:
            self.z_proj = nn.Linear(config.hidden_size, heads * width, bias=False)

    def forward(self, x: Tensor, tokens: Tokens, cache: HypeNetCache | None) -> Tensor:
        q, k, v = (y.float() for y in self.project(x, tokens))
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=1) for y in (k, v))
        state = q.new_zeros(len(q), self.heads, self.width, self.width)
        if cache is not None and self.layer in cache.tensors:
            (state,) = cache.tensors[self.layer]
        mix = lightning_step if q.shape[2] == 1 else lightning_attention
        with torch.autocast(x.device.type, enabled=False):
            y, state = mix(q * self.scale, k, v, tokens, state)
        if cache is not None:
            cache.tensors[self.layer] = (state,)
        y = y.transpose(1, 2).flatten(2).to(x.dtype)
        y = self.o_norm(y) if hasattr(self, "o_norm") else y
        return self.o_proj(y * torch.sigmoid(self.z_proj(x)) if hasattr(self, "z_proj") else y)
