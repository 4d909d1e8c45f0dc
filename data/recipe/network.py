"""The subject model's network, written for training: GPT-2's architecture and nothing else."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody uses
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class Shape:
    """Sizes, under their Hugging Face names."""

    vocab_size: int = 4096
    n_positions: int = 128
    n_embd: int = 64
    n_layer: int = 4
    n_head: int = 4
    n_inner: int = 256


class Block(nn.Module):
    """Attention, then an MLP, each added to the residual stream."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.n_embd
        self.heads = shape.n_head
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.c_attn = nn.Linear(width, 3 * width)
        self.attn_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.c_fc = nn.Linear(width, shape.n_inner)
        self.mlp_proj = nn.Linear(shape.n_inner, width)

    def forward(self, residual: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Residual stream [batch, tokens, n_embd] -> the same, and what was computed on the way."""
        batch, tokens, width = residual.shape
        q, k, v = (
            self.c_attn(self.ln_1(residual))
            .view(batch, tokens, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        attention = self.attn_proj(mixed.transpose(1, 2).reshape(batch, tokens, width))
        residual = residual + attention
        post_act = F.gelu(self.c_fc(self.ln_2(residual)), approximate="tanh")
        written = self.mlp_proj(post_act)
        return residual + written, {
            "mlp_post_act": post_act,
            "resid_delta_mlp": written,
            "resid_delta_attn": attention,
        }


class Network(nn.Module):
    """Token ids -> final residual stream; logits are that times the embedding, transposed."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.wte = nn.Embedding(shape.vocab_size, shape.n_embd)
        self.wpe = nn.Embedding(shape.n_positions, shape.n_embd)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.ln_f = nn.LayerNorm(shape.n_embd, eps=LAYER_NORM_EPSILON)
        self._initialise(torch.Generator().manual_seed(seed))

    def _initialise(self, generator: torch.Generator) -> None:
        for name, parameter in self.named_parameters():
            if name in ("wte.weight", "wpe.weight"):
                nn.init.normal_(parameter, std=0.04, generator=generator)
            elif parameter.ndim == 2:
                # Every block writes twice: the sum of the writes should start small.
                scale = (2 * self.shape.n_layer) ** -0.5 if "_proj" in name else 1.0
                std = scale * parameter.shape[1] ** -0.5
                nn.init.normal_(parameter, std=std, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor) -> tuple[Tensor, list[dict[str, Tensor]]]:
        """Ids [batch, tokens] -> the normed final residual stream and, per layer, activations."""
        residual = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        layers = []
        for block in self.blocks:
            residual, captured = block(residual)
            layers.append(captured)
        return self.ln_f(residual), layers

    def hugging_face_state(self) -> dict[str, Tensor]:
        """Weights under the names and in the layout of a GPT2LMHeadModel checkpoint."""
        state = {
            "transformer.wte.weight": self.wte.weight,
            "transformer.wpe.weight": self.wpe.weight,
            "transformer.ln_f.weight": self.ln_f.weight,
            "transformer.ln_f.bias": self.ln_f.bias,
        }
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            prefix = f"transformer.h.{layer}."
            for name, norm in (("ln_1", block.ln_1), ("ln_2", block.ln_2)):
                state[f"{prefix}{name}.weight"] = norm.weight
                state[f"{prefix}{name}.bias"] = norm.bias
            for name, linear in (
                ("attn.c_attn", block.c_attn),
                ("attn.c_proj", block.attn_proj),
                ("mlp.c_fc", block.c_fc),
                ("mlp.c_proj", block.mlp_proj),
            ):
                # GPT-2 stores its linear layers as [inputs, outputs].
                state[f"{prefix}{name}.weight"] = linear.weight.T
                state[f"{prefix}{name}.bias"] = linear.bias
        return {name: tensor.detach().contiguous() for name, tensor in state.items()}

    def load_hugging_face_state(self, state: dict[str, Tensor]) -> None:
        """Take weights as `hugging_face_state` gives them, whatever their floating type."""
        mine = self.hugging_face_state()
        if set(mine) != set(state):
            raise ValueError(f"checkpoint differs in {sorted(set(mine) ^ set(state))}")
        with torch.no_grad():
            for name, target in self._targets().items():
                target.copy_(state[name].to(torch.float32))

    def _targets(self) -> dict[str, Tensor]:
        targets: dict[str, Tensor] = {
            "transformer.wte.weight": self.wte.weight,
            "transformer.wpe.weight": self.wpe.weight,
            "transformer.ln_f.weight": self.ln_f.weight,
            "transformer.ln_f.bias": self.ln_f.bias,
        }
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            prefix = f"transformer.h.{layer}."
            for name, module in (
                ("ln_1", block.ln_1),
                ("attn.c_attn", block.c_attn),
                ("attn.c_proj", block.attn_proj),
                ("ln_2", block.ln_2),
                ("mlp.c_fc", block.c_fc),
                ("mlp.c_proj", block.mlp_proj),
            ):
                weight = module.weight
                targets[f"{prefix}{name}.weight"] = (
                    weight.T if isinstance(module, nn.Linear) else weight
                )
                targets[f"{prefix}{name}.bias"] = module.bias
        return targets

    def hugging_face_config(self, end_of_text: int) -> dict[str, Any]:
        """The config.json of a GPT2LMHeadModel with these sizes."""
        return {
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            **asdict(self.shape),
            "n_ctx": self.shape.n_positions,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": LAYER_NORM_EPSILON,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "tie_word_embeddings": True,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
        }


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross entropy of tied logits, a chunk of rows at a time.

    All logits at once don't fit in a processor's cache: computing loss and gradient chunk by chunk
    is twice as fast on a CPU, and needs no memory for them on any device.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, targets: Tensor, rows: int) -> Tensor:
        hidden_grad = torch.empty_like(hidden)
        embedding_grad = torch.zeros_like(embedding)
        total = hidden.new_zeros(())
        for start in range(0, len(hidden), rows):
            part = hidden[start : start + rows]
            wanted = targets[start : start + rows, None]
            logits = part @ embedding.T
            at_target = logits.gather(1, wanted)
            top = logits.amax(1, keepdim=True)
            exponentials = logits.sub_(top).exp_()
            normaliser = exponentials.sum(1, keepdim=True)
            total += (top + normaliser.log() - at_target).sum()
            probabilities = exponentials.div_(normaliser)
            probabilities.scatter_add_(1, wanted, torch.full_like(at_target, -1.0))
            torch.mm(probabilities, embedding, out=hidden_grad[start : start + rows])
            embedding_grad.addmm_(probabilities.T, part)
        ctx.save_for_backward(hidden_grad / len(hidden), embedding_grad / len(hidden))
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, embedding_grad = ctx.saved_tensors
        return hidden_grad * grads[0], embedding_grad * grads[0], None, None


def cross_entropy(hidden: Tensor, embedding: Tensor, targets: Tensor, rows: int = 256) -> Tensor:
    """Mean next-token loss in nats: hidden [n, n_embd], embedding [vocabulary, n_embd], ids [n]."""
    loss: Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, embedding, targets, rows
    )
    return loss
