"""The document of all derived scalar types, made from their declarations."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from services.scalars.catalogue import CATALOGUE, Declaration, Requirement
from services.scalars.model.locations import ActivationLocationType, Dimension

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "scalars.md"

_LETTERS = {
    Dimension.SEQUENCE_TOKENS: "T",
    Dimension.ATTENDED_TO_SEQUENCE_TOKENS: "S",
    Dimension.SEQUENCE_TOKEN_PAIRS: "T(T+1)/2",
    Dimension.RESIDUAL_STREAM_CHANNELS: "D",
    Dimension.VOCAB_SIZE: "V",
    Dimension.ATTN_HEADS: "H",
    Dimension.QUERY_AND_KEY_CHANNELS: "dh",
    Dimension.VALUE_CHANNELS: "dh",
    Dimension.MLP_ACTS: "F",
    Dimension.AUTOENCODER_LATENTS: "A",
    Dimension.SINGLETON: "1",
}

_INTRODUCTION = """\
# Derived scalar types

Made by `python -m services.scalars.catalogue` from the declarations in that package;
don't edit it.

A derived scalar type is a named quantity that a model's activations and gradients determine.
In shapes, T counts tokens, S attended-to tokens (as many), T(T+1)/2 the token pairs of the lower
triangle row by row, D residual stream channels, V vocabulary entries, H attention heads, dh the
channels of a head, F MLP neurons, A autoencoder latents. In formulas, x0 is the embedding, x_l the
residual stream after layer l, x_mid that between attention and MLP, f the MLP's post-activation, P
the attention probabilities, v the values, z the latents, w_n the write vector of latent n, d(.) the
gradient of what the backward pass starts from, g that gradient at the residual stream after the
last layer, or, with a trace, at the residual stream that the traced node's block reads, g~ the same
of a trace, recomputed from that residual stream without a backward pass.

A request for a gradient, whether in the formula or as the backward pass, needs a loss or a trace.
A scalar that is the effect of a write on a later place is 0 at layers that are not upstream of it.
The backward pass is the gradient with respect to the scalar; where a type has none, asking for it
is an error that lists those that have one. Which types a deployment lacks an autoencoder for, the
service's list of types says.

## Traces

A trace starts the backward pass from one node's activation: of a neuron or a latent at a token, of
a head at a query and a key. The activation is computed anew from the residual stream that enters
the node's block, so that ablations inside that block don't reach it, but those before it do. It is
read before its nonlinearity (for a head: the attention logit) or after it (the probability). A head
is traced through its query, its key, both, or its value; what is not traced through is a constant.
A trace through the value starts from P v_k W_O^h · d_q, where d is the gradient of a loss, or of
another trace's activation, at its own residual stream; d is a constant. Detaching makes the scale
of the layer norms between the residual stream and what is traced constants, the last layer norm
before a loss included.

## Edges

A type that needs a node index is about the edges of one node, upstream of many or downstream of
many. Where it is a head downstream, the request says which way into it counts. An attribution is
the first-order change of activation times gradient, an activation the change alone; both go through
the residual stream directly, from a node's write at its own token. Changes at nodes that the node
is not upstream of are 0. `single_node_write`, its product with g and
`grad_of_single_subnode_attribution` exist at the node's own layer alone.

## Model families

Served are GPT-2 (`gpt2`) and the Llama family (`llama`, `mistral`, `qwen2`, `qwen3`, each dense).
Every type that needs no autoencoder has a meaning in both. The formulas are written for GPT-2; in
the Llama family

- nothing is added to the embedding for the position: x0 = wte[token]. Queries and keys are rotated
  by their position, after the norms that Qwen3 has for them; what is captured is rotated and
  scaled;
- a layer norm is an RMS norm: no mean is taken off, there is no bias, and its scale is
  sqrt(mean(x²) + epsilon). Detaching does not reach the norms of queries and keys;
- heads that share keys and values have them each: every shape counts query heads, a gradient is
  that head's own, and an overwritten key or value changes for that head alone;
- the MLP is gated: the pre-activation is what the gate's nonlinearity, SiLU, reads, and f is the
  gate times the other factor, which W_out reads. What starts from a pre-activation follows the
  gate alone;
- where a family has no bias, b is 0.

Llama was trained with a beginning token before each text. It is put before a prompt only where a
request asks for it; the service says which it is, or that there is none. Strings of tokens are as
they stand within a text: in the manner of SentencePiece a prompt begins with a space.

What would be computed wrongly is refused at the start, by the key of `config.json`: attention to a
window shorter than the context, rotary positions other than `default`, `linear` and `llama3`,
mixtures of experts, quantized weights, activation functions other than the family's; so are tensors
in the files that the configuration has no place for.

A within-layer gradient index names one latent at all tokens: its tensor indices are all, and the
latent's number.

## Types

"""

_LOCATIONS_INTRODUCTION = """\
## Activation locations

Places whose activations, or gradients, a request can overwrite (ablate): elements are named by one
index, or all, for each dimension. The forward pass goes on from the overwritten activation, the
backward pass from the overwritten gradient; what is derived sees both. Attention probabilities are
not brought back to a sum of 1. `resid.post_attn_ln` and `resid.post_mlp_ln` are the normalised
inputs of attention and MLP, gain and bias applied.
"""


def render() -> str:
    """The document's text."""
    parts = [
        _INTRODUCTION + _table(CATALOGUE),
        _LOCATIONS_INTRODUCTION,
        _locations(),
    ]
    return "\n".join(parts)


def _table(declarations: Iterable[Declaration]) -> str:
    lines = ["| type | shape | formula | needs | passes |", "|---|---|---|---|---|"]
    for each in declarations:
        needs = "; ".join(r.value for r in Requirement if r in each.requirements)
        passes = "forward, backward" if each.backward else "forward"
        lines.append(
            f"| `{each.dst.name}` | {_shape(each.dst.dimensions)} | {each.formula} | {needs} "
            f"| {passes} |"
        )
    return "\n".join(lines) + "\n"


def _locations() -> str:
    lines = ["| location | shape | layers | without autoencoder |", "|---|---|---|---|"]
    lines += [
        f"| `{each.value}` | {_shape(each.dimensions)} | {_yes(each.has_layers)} "
        f"| {_yes(each.exists_by_default)} |"
        for each in ActivationLocationType
    ]
    return "\n".join(lines) + "\n"


def _shape(dimensions: tuple[Dimension, ...]) -> str:
    return " × ".join(_LETTERS[each] for each in dimensions)


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
