"""HypeNet in plain PyTorch, for transformers on CPU and CUDA.

    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Rows may be padded on either side (`attention_mask`) and packed: a token whose position is not that of the token before
it plus one starts a document, which sees nothing from before. Padding takes no position, writes and decays no state.
Source: arXiv 2601.22156 (HypeNet, HyPE); arXiv 2401.04658 (lightning attention).
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .attention_hypenet import (
    HypeNetLightningAttention,
    HypeNetRMSNorm,
    HypeNetSoftmaxAttention,
    slopes,
)
from .configuration_hypenet import LIGHTNING, HypeNetConfig, read_logit_scale
from .rotary_hypenet import frequencies
from .tokens_hypenet import HypeNetCache, Tokens, attention_mask, number_documents


class HypeNetMLP(nn.Module):
    """W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, config: HypeNetConfig) -> None:
        super().__init__()
        inner, outer = config.intermediate_size, config.hidden_size
        self.gate_proj = nn.Linear(outer, inner, bias=False)
        self.up_proj = nn.Linear(outer, inner, bias=False)
        self.down_proj = nn.Linear(inner, outer, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class HypeNetDecoderLayer(GradientCheckpointingLayer):
    """x += mixer(norm(x)); x += mlp(norm(x))."""

    def __init__(self, config: HypeNetConfig, layer: int) -> None:
        super().__init__()
        is_lightning = config.mixer_types[layer] == LIGHTNING
        mixer = HypeNetLightningAttention if is_lightning else HypeNetSoftmaxAttention
        self.self_attn = mixer(config, layer)
        self.mlp = HypeNetMLP(config)
        self.input_layernorm = HypeNetRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = HypeNetRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, x: Tensor, tokens: Tokens, past_key_values: HypeNetCache | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), tokens, past_key_values)
        return x + self.mlp(self.post_attention_layernorm(x))


class HypeNetPreTrainedModel(PreTrainedModel):
    """How transformers builds, saves and spreads a HypeNet."""

    config_class = HypeNetConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar = ["HypeNetDecoderLayer"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _supports_sdpa = True
    _is_stateful = True


class HypeNetModel(HypeNetPreTrainedModel):
    """The decoder without its output head."""

    def __init__(self, config: HypeNetConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(HypeNetDecoderLayer(config, layer) for layer in layers)
        self.norm = HypeNetRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embed_tokens = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HypeNetCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        if past_key_values is not None and not isinstance(past_key_values, HypeNetCache):
            kind = type(past_key_values).__name__
            raise TypeError(
                f"past_key_values is what an earlier call returned, or None; got {kind}"
            )
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        cache = HypeNetCache() if past_key_values is None else past_key_values
        tokens = self.describe(x, attention_mask, position_ids, cache)
        use_cache = self.config.use_cache if use_cache is None else use_cache
        use_cache = use_cache and not (self.gradient_checkpointing and self.training)
        kept = cache if use_cache or past_key_values is not None else None
        hidden = []
        for layer in self.layers:
            hidden.append(x)
            x = layer(x, tokens, past_key_values=kept)
        x = self.norm(x)
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=kept,
            hidden_states=(*hidden, x) if output_hidden_states else None,
        )

    def describe(
        self, x: Tensor, mask: Tensor | None, position_ids: Tensor | None, cache: HypeNetCache
    ) -> Tokens:
        """Documents, masks, angles and factors of the tokens x, and the note of them in the cache."""
        config = self.config
        positions, segments, open_segment = number_documents(mask, position_ids, x, cache)
        positions, single = positions.float()[:, None, :, None], cache.single
        # Positions reach a million: angles stay float32 until sine and cosine.
        per_token, larger = frequencies(config.rope_parameters, config.head_dim, x.device)
        angles = positions * per_token
        factor = None
        if scale := read_logit_scale(getattr(config, "attn_logits_scaling", None)):
            grows, a = scale
            factor = torch.log(positions + a) / math.log(int(a)) if grows else a
        rates = slopes(config.lightning_nh) if LIGHTNING in config.mixer_types else []
        return Tokens(
            segments=segments[:1] if single else segments,
            open_segment=open_segment[:1] if single else open_segment,
            mask=attention_mask(cache.segments, x.shape[1], single),
            factor=factor,
            cos=larger * angles.cos(),
            sin=larger * angles.sin(),
            slopes=torch.tensor(rates, dtype=torch.float32, device=x.device),
        )


class HypeNetForCausalLM(HypeNetPreTrainedModel, GenerationMixin):
    """The language model."""

    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: HypeNetConfig) -> None:
        super().__init__(config)
        self.model = HypeNetModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # the first call makes its own

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: HypeNetCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
        )
        last = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
