"""The planted model: a checkpoint of GPT-2's shape with weights set by hand.

Every vector of the residual stream is a sum of one-hot codes, each written as +1 in one dimension
and -1 in the next: the token, its position, and the token before it, which one attention head of
layer 0 brings (its query at position p meets the key of p - 1 alone). So every vector has mean 0
and the same length, a layer norm is a constant factor, and a neuron reads codes exactly.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from tests.planted.meaning import ACTIVE, NEURONS, WORDS, Meaning

POSITIONS = 32
UNKNOWN = "<unk>"
TOKENS = (UNKNOWN, *(f" {word}" for word in WORDS))
HEADS = 4
_CODES = len(TOKENS), POSITIONS, len(TOKENS)
WIDTH = 8 * -(-2 * sum(_CODES) // 8)
NEURONS_PER_LAYER = len(NEURONS[0])
_SHARPNESS = 60.0
"""Difference of attention scores: what another position gets is under 1e-25."""
_EPSILON = 1e-5
_SWING = 2 * ACTIVE
"""A neuron's input is -ACTIVE without its word and ACTIVE with it."""


def _columns(kind: int) -> slice:
    """The first dimension of each code: 0 the token's, 1 the position's, 2 the token before's."""
    start = 2 * sum(_CODES[:kind])
    return slice(start, start + 2 * _CODES[kind], 2)


def _norm_factor(codes: int) -> float:
    """What a layer norm multiplies with a vector of so many codes."""
    return float((2 * codes / WIDTH + _EPSILON) ** -0.5)


def _reader(kind: int, codes: int) -> Tensor:
    """Weights [width, codes of the kind] that read 0 or 1 behind a layer norm."""
    weights = torch.zeros(WIDTH, _CODES[kind], dtype=torch.float64)
    columns = range(WIDTH)[_columns(kind)]
    for code, column in enumerate(columns):
        weights[column, code] = 0.5 / _norm_factor(codes)
        weights[column + 1, code] = -0.5 / _norm_factor(codes)
    return weights


def _neuron(meaning: Meaning) -> tuple[Tensor, float]:
    """Input weights [width] and bias of a neuron."""
    token, position, before = (_reader(kind, 3) for kind in range(3))
    weights = torch.zeros(WIDTH, dtype=torch.float64)
    bias = -ACTIVE
    for word, share in meaning.words:
        # gelu leaves an input of 3 or more as it is, to a thousandth.
        weights += (_SWING - ACTIVE * (1 - share)) * token[:, TOKENS.index(f" {word}")]
    if meaning.after:
        weights += _SWING * before[:, TOKENS.index(f" {meaning.after}")]
        # The first token attends to itself: nothing stands before it.
        weights -= 2 * _SWING * position[:, 0]
        if meaning.words:
            bias -= _SWING
    return weights, bias


def network() -> GPT2LMHeadModel:
    """The model, in single precision."""
    config = GPT2Config(
        vocab_size=len(TOKENS),
        n_positions=POSITIONS,
        n_embd=WIDTH,
        n_layer=len(NEURONS),
        n_head=HEADS,
        n_inner=NEURONS_PER_LAYER,
        activation_function="gelu_new",
        layer_norm_epsilon=_EPSILON,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if ".ln_" in name and name.endswith("weight") else 0.0)
        body = model.transformer
        for table, kind in ((body.wte, 0), (body.wpe, 1)):
            for code, column in enumerate(range(WIDTH)[_columns(kind)]):
                table.weight[code, column : column + 2] = torch.tensor([1.0, -1.0])
        _bring_token_before(body.h[0].attn)
        for block, meanings in zip(body.h, NEURONS, strict=True):
            for number, meaning in enumerate(meanings):
                weights, bias = _neuron(meaning)
                block.mlp.c_fc.weight[:, number] = weights.float()
                block.mlp.c_fc.bias[number] = bias
    return model


def _bring_token_before(attention: torch.nn.Module) -> None:
    """Head 0 attends to the position before, and writes that token's code."""
    per_head = WIDTH // HEADS
    position, token = _reader(1, 2), _reader(0, 2)
    weights = torch.zeros(WIDTH, 3 * WIDTH, dtype=torch.float64)
    scale = _SHARPNESS * per_head**0.5
    for place in range(POSITIONS):
        weights[:, max(place - 1, 0)] += scale * position[:, place]
        weights[:, WIDTH + place] = position[:, place]
    weights[:, 2 * WIDTH : 2 * WIDTH + len(TOKENS)] = token
    attention.c_attn.weight.copy_(weights.float())
    for code, column in enumerate(range(WIDTH)[_columns(2)]):
        attention.c_proj.weight[code, column] = 1.0
        attention.c_proj.weight[code, column + 1] = -1.0


def tokenizer() -> Tokenizer:
    """A word with the space before it is a token."""
    words = models.WordLevel(dict(zip(TOKENS, range(len(TOKENS)), strict=True)), unk_token=UNKNOWN)
    result = Tokenizer(words)
    result.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+"), "isolated")
    result.decoder = decoders.Fuse()
    return result


def save(folder: Path) -> None:
    """Write it in the Hugging Face layout."""
    network().save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
