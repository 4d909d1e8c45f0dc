"""Deriving in process on tiny random models of every family, beside random autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from services.scalars.autoencoders import (
    NO_AUTOENCODERS,
    Activation,
    Autoencoder,
    AutoencoderLayer,
    AutoencoderSet,
)
from services.scalars.catalogue import CATALOGUE, Derivers
from services.scalars.deriving.config import DstConfig
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ActivationLocationType, LayerIndex, PassType
from services.scalars.model.subject import load_subject
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import PreparedInference, Row, RunResult, run_rows
from services.scalars.requests.selected_nodes import NO_NODE, SelectedNode
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_llama_checkpoint import write_llama_checkpoint

LATENTS = 7


@dataclass(frozen=True)
class Given:
    """A model and its autoencoders."""

    model: SubjectModel
    autoencoders: AutoencoderSet = NO_AUTOENCODERS


def make_model(directory: Path, variant: str) -> SubjectModel:
    """A tiny model: `gpt2`, or a variant of the Llama family."""
    path = (
        write_checkpoint(directory)
        if variant == "gpt2"
        else write_llama_checkpoint(directory, variant)
    )
    return load_subject("tiny", str(path), "cpu").model


def make_autoencoder(
    model: SubjectModel,
    location: ActivationLocationType,
    activation: Activation = Activation.RELU,
    layers: Sequence[int] | None = None,
) -> Autoencoder:
    """Random weights, a latent more in each further layer."""
    neurons = location is ActivationLocationType.MLP_POST_ACT
    width = model.shape.mlp_acts if neurons else model.shape.residual_stream_channels
    generator = torch.Generator().manual_seed(3)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator) * 0.4

    thresholds = (Activation.JUMPRELU, Activation.GATED)
    made = {}
    for layer in range(model.shape.layers) if layers is None else layers:
        latents = LATENTS + layer
        made[layer] = AutoencoderLayer(
            encoder=normal(latents, width),
            encoder_bias=normal(latents),
            decoder=normal(latents, width),
            input_bias=normal(width),
            output_bias=normal(width),
            threshold=normal(latents).abs() if activation in thresholds else None,
            k=4 if activation is Activation.TOPK else None,
        )
    return Autoencoder("random", location, activation, made)


@dataclass(frozen=True)
class Wanted:
    """A scalar, and the node that it is about, if any."""

    dst: str
    about: SelectedNode = NO_NODE
    pass_type: PassType = PassType.FORWARD


def run(
    given: Given, prepared: PreparedInference, captures: Sequence[RawTensorId] = ()
) -> RunResult:
    """One run that captures some tensors."""
    rows = [Row(prepared, frozenset(captures), lambda: None)]
    return run_rows(given.model, rows, given.autoencoders)[0]


def derive(
    given: Given, prepared: PreparedInference, wanted: Sequence[Wanted]
) -> list[dict[LayerIndex, Tensor]]:
    """Scalars by layer, at all their layers, of one run that captures what they need."""
    base = DstConfig(
        given.model,
        derive_gradients=True,
        autoencoders=given.autoencoders,
        trace=prepared.trace,
        has_loss=prepared.loss is not None,
    )
    derivers = [Derivers(CATALOGUE, each.about.config(base))[each.dst] for each in wanted]
    layers: list[list[LayerIndex]] = []
    captures: set[RawTensorId] = set()
    for each, deriver in zip(wanted, derivers, strict=True):
        declaration = CATALOGUE[each.dst]
        chosen: list[LayerIndex] = list(range(given.model.shape.layers))
        if declaration.at_layer_of_node and each.about.node is not None:
            chosen = [each.about.node.layer]
        if not declaration.dst.has_layers:
            chosen = [None]
        layers.append(chosen)
        captures |= deriver.raw_tensors(each.pass_type, chosen)
    result = run(given, prepared, sorted(captures, key=str))
    return [
        dict(
            deriver.derive_from_raw(
                result.raw_store, each.pass_type, chosen
            ).activations_by_layer_index
        )
        for each, deriver, chosen in zip(wanted, derivers, layers, strict=True)
    ]
