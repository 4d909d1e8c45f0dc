"""The Llama family once more: in float64, with loops, straight from its definition.

Written to be obviously right and for nothing else, so that the fast one can be held against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.unit.scalars_float64 import Scalars

Keep = Callable[[str, int | None, Tensor], Tensor]


def rms(x: Tensor, epsilon: float) -> Tensor:
    return torch.sqrt((x**2).mean(dim=-1, keepdim=True) + epsilon)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


class Float64Llama:
    """Llama, Mistral, Qwen2 or Qwen3. `replace` gets every named tensor, answers what goes on."""

    def __init__(self, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
        self.weights = {name: tensor.double() for name, tensor in weights.items()}
        self.config = config
        self.layers: int = config["num_hidden_layers"]
        self.heads: int = config["num_attention_heads"]
        self.groups: int = config["num_key_value_heads"] or self.heads
        self.channels: int = config.get("head_dim") or config["hidden_size"] // self.heads

    def forward(
        self,
        tokens: list[int],
        replace: Keep = lambda name, layer, x: x,
    ) -> Scalars:
        """All raw activations, by name and layer."""
        w = self.weights
        found: Scalars = {}

        def keep(name: str, layer: int | None, x: Tensor) -> Tensor:
            x = replace(name, layer, x)
            found.setdefault(name, {})[layer] = x
            return x

        x = keep("resid_post_embedding", None, w["model.embed_tokens.weight"][tokens])
        for layer in range(self.layers):
            x = self._block(x, layer, keep)
        scale = keep("resid_final_layer_norm_scale", None, rms(x, self.config["rms_norm_eps"]))
        final = x / scale * w["model.norm.weight"]
        tied = self.config["tie_word_embeddings"]
        keep("logits", None, final @ w["model.embed_tokens.weight" if tied else "lm_head.weight"].T)
        return found

    def linear(self, x: Tensor, name: str) -> Tensor:
        """x W^T + b, where there is a bias."""
        product = x @ self.weights[f"{name}.weight"].T
        bias = self.weights.get(f"{name}.bias")
        return product if bias is None else product + bias

    def angle(self, position: int, pair: int) -> float:
        """By how much a pair of channels is turned."""
        rotary = self.config.get("rope_parameters") or {
            "rope_theta": self.config.get("rope_theta", 10000.0),
            **(self.config.get("rope_scaling") or {}),
        }
        frequency = rotary["rope_theta"] ** (-2 * pair / self.channels)
        kind = rotary.get("rope_type", rotary.get("type", "default"))
        if kind == "linear":
            frequency /= rotary["factor"]
        if kind == "llama3":
            length = 2 * math.pi / frequency
            old = rotary["original_max_position_embeddings"]
            low, high = rotary["low_freq_factor"], rotary["high_freq_factor"]
            if length > old / low:
                frequency /= rotary["factor"]
            elif length >= old / high:
                share = (old / length - low) / (high - low)
                frequency = (1 - share) * frequency / rotary["factor"] + share * frequency
        return float(position * frequency)

    def turned(self, x: Tensor) -> Tensor:
        """Each pair of channels (i, i + half) of (T, heads, channels), turned by its angle."""
        half = self.channels // 2
        columns: list[Tensor | None] = [None] * self.channels
        for pair in range(half):
            angles = [self.angle(position, pair) for position in range(len(x))]
            cos = torch.tensor([math.cos(each) for each in angles], dtype=x.dtype)[:, None]
            sin = torch.tensor([math.sin(each) for each in angles], dtype=x.dtype)[:, None]
            first, second = x[..., pair], x[..., pair + half]
            columns[pair] = first * cos - second * sin
            columns[pair + half] = first * sin + second * cos
        return torch.stack([each for each in columns if each is not None], dim=-1)

    def _block(self, x: Tensor, layer: int, keep: Keep) -> Tensor:
        w, at, epsilon = self.weights, f"model.layers.{layer}", self.config["rms_norm_eps"]
        n, size = len(x), self.channels
        scale = keep("attn_input_layer_norm_scale", layer, rms(x, epsilon))
        normal = x / scale * w[f"{at}.input_layernorm.weight"]
        q, k, v = (
            self.linear(normal, f"{at}.self_attn.{part}_proj").reshape(n, -1, size)
            for part in "qkv"
        )
        if self.config["model_type"] == "qwen3":
            q = q / rms(q, epsilon) * w[f"{at}.self_attn.q_norm.weight"]
            k = k / rms(k, epsilon) * w[f"{at}.self_attn.k_norm.weight"]
        shared = self.heads // self.groups
        # Head h reads the keys and values of group h // shared.
        k, v = (
            torch.stack([part[:, head // shared] for head in range(self.heads)], dim=1)
            for part in (self.turned(k), v)
        )
        q = keep("attn_query", layer, self.turned(q) / size**0.25)
        k = keep("attn_key", layer, k / size**0.25)
        v = keep("attn_value", layer, v)
        rows = []
        for query in range(n):
            row = [
                (q[query] * k[key]).sum(dim=-1)
                if key <= query
                else torch.full((self.heads,), -math.inf, dtype=x.dtype)
                for key in range(n)
            ]
            rows.append(torch.stack(row))
        logits = keep("attn_qk_logits", layer, torch.stack(rows))
        exponentials = torch.exp(logits - logits.detach().amax(dim=1, keepdim=True))
        probs = keep("attn_qk_probs", layer, exponentials / exponentials.sum(dim=1, keepdim=True))
        mixed = keep("attn_weighted_sum_of_values", layer, (probs[..., None] * v[None]).sum(dim=1))
        delta = self.linear(mixed.reshape(n, -1), f"{at}.self_attn.o_proj")
        x = keep("resid_post_attn", layer, x + keep("resid_delta_attn", layer, delta))
        scale = keep("mlp_input_layer_norm_scale", layer, rms(x, epsilon))
        normal = x / scale * w[f"{at}.post_attention_layernorm.weight"]
        pre = keep("mlp_pre_act", layer, self.linear(normal, f"{at}.mlp.gate_proj"))
        post = keep("mlp_post_act", layer, silu(pre) * self.linear(normal, f"{at}.mlp.up_proj"))
        delta = keep("resid_delta_mlp", layer, self.linear(post, f"{at}.mlp.down_proj"))
        return keep("resid_post_mlp", layer, x + delta)

    def mlp_rows(self, layer: int) -> Tensor:
        """Write vectors of neurons, (F, D)."""
        return self.weights[f"model.layers.{layer}.mlp.down_proj.weight"].T

    def head_matrices(self, layer: int) -> Tensor:
        """Output matrices of heads, (H, dh, D)."""
        matrix = self.weights[f"model.layers.{layer}.self_attn.o_proj.weight"].T
        return matrix.reshape(self.heads, self.channels, -1)

    def biases(self, layer: int) -> Tensor:
        """What the layer writes besides its nodes, (D,)."""
        at = f"model.layers.{layer}"
        nothing = torch.zeros(self.config["hidden_size"], dtype=torch.float64)
        return sum(
            (
                self.weights.get(f"{at}.{name}.bias", nothing)
                for name in ("self_attn.o_proj", "mlp.down_proj")
            ),
            nothing,
        )
