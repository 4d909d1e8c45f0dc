"""The same model and scalars once more: in float64, with loops, straight from the definitions.

Written to be obviously right and for nothing else, so that the fast ones can be held against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Replace = Callable[[str, int | None, Tensor], Tensor]
Scalars = dict[str, dict[int | None, Tensor]]


def normed(x: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """A layer norm and its scale."""
    mean = x.mean(dim=-1, keepdim=True)
    scale = torch.sqrt(((x - mean) ** 2).mean(dim=-1, keepdim=True) + 1e-5)
    return (x - mean) / scale * gain + bias, scale


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class Float64Model:
    """GPT-2 by its definition. `replace` gets every named tensor and answers what goes on."""

    def __init__(self, weights: dict[str, Tensor], heads: int) -> None:
        self.weights = {name: tensor.double() for name, tensor in weights.items()}
        self.heads = heads
        self.layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h."))

    def forward(
        self,
        tokens: list[int],
        replace: Replace = lambda name, layer, x: x,
    ) -> Scalars:
        """All raw activations, by name and layer.

        The normalised inputs of blocks, which are no scalars, go through `replace` alone, under the
        names of their places.
        """
        w = self.weights
        found: Scalars = {}

        def keep(name: str, layer: int | None, x: Tensor) -> Tensor:
            x = replace(name, layer, x)
            found.setdefault(name, {})[layer] = x
            return x

        n = len(tokens)
        x = keep("resid_post_embedding", None, w["wte.weight"][tokens] + w["wpe.weight"][:n])
        for layer in range(self.layers):
            x = self._block(x, layer, keep, replace)
        final, scale = normed(x, w["ln_f.weight"], w["ln_f.bias"])
        scale = keep("resid_final_layer_norm_scale", None, scale)
        centred = x - x.mean(dim=-1, keepdim=True)
        final = centred / scale * w["ln_f.weight"] + w["ln_f.bias"]
        final = replace("resid.post_ln_f", None, final)
        keep("logits", None, final @ w["wte.weight"].T)
        return found

    def _block(self, x: Tensor, layer: int, keep: Replace, replace: Replace) -> Tensor:
        w, at = self.weights, f"h.{layer}"
        n, width = x.shape
        size = width // self.heads
        _, scale = normed(x, w[f"{at}.ln_1.weight"], w[f"{at}.ln_1.bias"])
        scale = keep("attn_input_layer_norm_scale", layer, scale)
        centred = x - x.mean(dim=-1, keepdim=True)
        normal = centred / scale * w[f"{at}.ln_1.weight"] + w[f"{at}.ln_1.bias"]
        normal = replace("resid.post_attn_ln", layer, normal)
        qkv = normal @ w[f"{at}.attn.c_attn.weight"] + w[f"{at}.attn.c_attn.bias"]
        q, k, v = (part.reshape(n, self.heads, size) for part in torch.split(qkv, width, dim=-1))
        q = keep("attn_query", layer, q / size**0.25)
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
        exponentials = torch.exp(logits)
        probs = keep("attn_qk_probs", layer, exponentials / exponentials.sum(dim=1, keepdim=True))
        mixed = keep("attn_weighted_sum_of_values", layer, (probs[..., None] * v[None]).sum(dim=1))
        delta = (
            mixed.reshape(n, width) @ w[f"{at}.attn.c_proj.weight"] + w[f"{at}.attn.c_proj.bias"]
        )
        delta = keep("resid_delta_attn", layer, delta)
        x = keep("resid_post_attn", layer, x + delta)
        _, scale = normed(x, w[f"{at}.ln_2.weight"], w[f"{at}.ln_2.bias"])
        scale = keep("mlp_input_layer_norm_scale", layer, scale)
        centred = x - x.mean(dim=-1, keepdim=True)
        normal = centred / scale * w[f"{at}.ln_2.weight"] + w[f"{at}.ln_2.bias"]
        normal = replace("resid.post_mlp_ln", layer, normal)
        pre = keep(
            "mlp_pre_act", layer, normal @ w[f"{at}.mlp.c_fc.weight"] + w[f"{at}.mlp.c_fc.bias"]
        )
        post = keep("mlp_post_act", layer, gelu(pre))
        delta = post @ w[f"{at}.mlp.c_proj.weight"] + w[f"{at}.mlp.c_proj.bias"]
        delta = keep("resid_delta_mlp", layer, delta)
        return keep("resid_post_mlp", layer, x + delta)

    def mlp_rows(self, layer: int) -> Tensor:
        """Write vectors of neurons, (F, D)."""
        return self.weights[f"h.{layer}.mlp.c_proj.weight"]

    def head_matrices(self, layer: int) -> Tensor:
        """Output matrices of heads, (H, dh, D)."""
        matrix = self.weights[f"h.{layer}.attn.c_proj.weight"]
        return matrix.reshape(self.heads, -1, matrix.shape[1])


def flat(pairs: Tensor) -> Tensor:
    """The lower triangle, row by row."""
    return torch.stack([pairs[q, k] for q in range(len(pairs)) for k in range(q + 1)])


class Writing(Protocol):
    """What a model's nodes write with."""

    layers: int

    def mlp_rows(self, layer: int) -> Tensor: ...

    def head_matrices(self, layer: int) -> Tensor: ...


def derived(model: Writing, raw: Scalars, grad: Scalars) -> Scalars:
    """Every other scalar that is served, from raw activations and their gradients."""
    found: Scalars = {}
    last = model.layers - 1
    g = grad["resid_post_mlp"][last]

    def keep(name: str, layer: int | None, x: Tensor) -> None:
        found.setdefault(name, {})[layer] = x

    x0, dx0 = raw["resid_post_embedding"][None], grad["resid_post_embedding"][None]
    keep("resid_post_embedding_norm", None, x0.norm(dim=1)[:, None])
    keep("resid_post_embedding_proj_to_final_residual_grad", None, (x0 * g).sum(1)[:, None])
    keep("token_attribution", None, (x0 * dx0).sum(1)[:, None])
    keep("always_one", None, torch.ones(len(x0), 1, dtype=x0.dtype))
    for layer in range(model.layers):
        f, df = raw["mlp_post_act"][layer], grad["mlp_post_act"][layer]
        rows = model.mlp_rows(layer)
        vectors = f[:, :, None] * rows[None]
        keep("mlp_write", layer, vectors)
        keep("resid_delta_mlp_from_mlp_post_act", layer, vectors.sum(dim=1))
        keep("mlp_write_norm", layer, f.sign() * vectors.norm(dim=2))
        keep("mlp_act_times_grad", layer, f * df)
        keep("mlp_write_to_final_residual_grad", layer, (vectors * g[:, None]).sum(dim=2))
        probs, dprobs = raw["attn_qk_probs"][layer], grad["attn_qk_probs"][layer]
        values = raw["attn_value"][layer]
        weighted = probs[..., None] * values[None]
        writes = torch.einsum("tshe,hed->tshd", weighted, model.head_matrices(layer))
        keep("attn_weighted_value", layer, weighted)
        keep("attn_write", layer, writes)
        keep("attn_write_sum_heads", layer, writes.sum(dim=2))
        norms, effects = writes.norm(dim=3), (writes * g[:, None, None]).sum(dim=3)
        keep("unflattened_attn_write_norm", layer, norms)
        keep("attn_write_norm", layer, flat(norms))
        keep("flattened_attn_post_softmax", layer, flat(probs))
        keep("unflattened_attn_act_times_grad", layer, probs * dprobs)
        keep("attn_act_times_grad", layer, flat(probs * dprobs))
        keep("attn_act_times_grad_per_sequence_token", layer, (probs * dprobs).sum(dim=1))
        keep("attn_write_norm_per_sequence_token", layer, writes.sum(dim=1).norm(dim=2))
        keep("unflattened_attn_write_to_final_residual_grad", layer, effects)
        keep("attn_write_to_final_residual_grad", layer, flat(effects))
        keep("attn_write_to_final_residual_grad_per_sequence_token", layer, effects.sum(dim=1))
        keep(
            "previous_layer_resid_post_mlp",
            layer,
            x0 if layer == 0 else raw["resid_post_mlp"][layer - 1],
        )
        for source, norm, projection in (
            ("resid_post_mlp", "resid_post_mlp_norm", "resid_post_mlp_proj"),
            ("resid_delta_mlp", "mlp_layer_write_norm", "mlp_layer_write"),
            ("resid_post_attn", "resid_post_attn_norm", "resid_post_attn_proj"),
            ("resid_delta_attn", "attn_layer_write_norm", "attn_layer_write"),
        ):
            x = raw[source][layer]
            keep(norm, layer, x.norm(dim=1)[:, None])
            projected = (x * g).sum(dim=1)[:, None]
            if source == "resid_post_mlp" and layer == last:
                projected = torch.zeros_like(projected)
            keep(f"{projection}_to_final_residual_grad", layer, projected)
    return found
