"""The reference's configurations of derived scalars as messages of the contract."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from neuropil import names
from neuropil.common import v1 as common
from neuropil.scalars import v1 as scalars

Config = dict[str, Any]
"""A configuration of the manifest."""
Entry = dict[str, Any]
"""A tensor of the manifest."""

SIDES = {
    "pre": scalars.NONLINEARITY_SIDE_PRE_ACT,
    "post": scalars.NONLINEARITY_SIDE_POST_ACT,
}
ATTENTION_TRACES = {
    None: scalars.ATTENTION_TRACE_TYPE_UNSPECIFIED,
    "Q": scalars.ATTENTION_TRACE_TYPE_Q,
    "K": scalars.ATTENTION_TRACE_TYPE_K,
    "QK": scalars.ATTENTION_TRACE_TYPE_QK,
    "V": scalars.ATTENTION_TRACE_TYPE_V,
}
ATTENTION_PARTS = {
    None: scalars.ATTENTION_PART_UNSPECIFIED,
    "attn.q": scalars.ATTENTION_PART_QUERY,
    "attn.k": scalars.ATTENTION_PART_KEY,
    "attn.v": scalars.ATTENTION_PART_VALUE,
}


def autoencoder_files(config: Config) -> tuple[str, ...]:
    """Names of the files of the autoencoders that a configuration was computed with."""
    suffix = "_topk" if config["autoencoder_is_topk"] else ""
    inputs = (config["autoencoders"] or {}).values()
    return tuple(f"autoencoder_{each}{suffix}" for each in inputs)


def write_deployment(path: Path, golden: Path, autoencoders: Sequence[str]) -> None:
    """Writes the configuration of a server on the golden model with these autoencoders."""
    model = golden / "model"
    section = {
        "name": "golden",
        "path": str(model),
        "device": "cpu",
        "autoencoders": [
            {"name": name, "path": str(model / f"{name}.safetensors")} for name in autoencoders
        ],
    }
    path.write_text(yaml.safe_dump({"model": section}))


def derive_request(config: Config, prompt: str, entries: Iterable[Entry]) -> scalars.DeriveRequest:
    """Asks for the tensors of some entries, all of this configuration and prompt.

    A selection a scalar type and pass type, in the order of `selected`.
    """
    by_type = selected(entries)
    return scalars.DeriveRequest(
        inference=inference(config, prompt),
        selections=[
            _selection(config, dst, pass_type, layers)
            for (dst, pass_type), layers in by_type.items()
        ],
    )


def selected(entries: Iterable[Entry]) -> dict[tuple[str, str], list[int]]:
    """Layers by scalar type and pass type; no layers where the type has none."""
    by_type: dict[tuple[str, str], list[int]] = {}
    for entry in entries:
        layers = by_type.setdefault((entry["dst"], entry["pass_type"]), [])
        if entry["layer"] is not None:
            layers.append(entry["layer"])
    return by_type


def inference(config: Config, prompt: str) -> scalars.InferenceSpec:
    """What a configuration runs."""
    spec = scalars.InferenceSpec(
        prompt=prompt, ablations=[ablation(each) for each in config["ablation_specs"]]
    )
    derivation = config["dst_config"]
    if config["loss_fn"] is not None:
        spec.loss.CopyFrom(loss(config["loss_fn"]))
    if config["trace_config"] is not None:
        spec.trace.CopyFrom(trace(config["trace_config"]))
    elif derivation.get("trace_config") is not None:
        # A latent whose gradient within its own layer is wanted: no pass through the model.
        spec.within_layer_gradient_index.CopyFrom(_within_layer(derivation["trace_config"]))
    fake = derivation.get("activation_index_for_fake_grad")
    if fake is not None:
        # A loss of 0 whose gradient is set to 1 at the activation.
        spec.loss.CopyFrom(loss({"name": "zero"}))
        spec.ablations.append(ablation({"index": {**fake, "pass_type": "backward"}, "value": 1.0}))
    return spec


def loss(spec: dict[str, Any]) -> scalars.LossFunction:
    """A loss."""
    return scalars.LossFunction(
        kind=names.LOSS_KINDS.value(spec["name"]),
        target_tokens=spec.get("target_tokens") or (),
        distractor_tokens=spec.get("distractor_tokens") or (),
    )


def ablation(spec: dict[str, Any]) -> scalars.Ablation:
    """An ablation."""
    return scalars.Ablation(index=activation_index(spec["index"]), value=spec["value"])


def activation_index(spec: dict[str, Any]) -> common.ActivationIndex:
    """Where an activation is."""
    return common.ActivationIndex(
        location_type=names.ACTIVATION_LOCATION_TYPES.value(spec["activation_location_type"]),
        layer_index=spec["layer_index"],
        tensor_indices=_indices(spec["tensor_indices"]),
        pass_type=names.PASS_TYPES.value(spec["pass_type"]),
    )


def node_index(spec: dict[str, Any]) -> common.NodeIndex:
    """A node."""
    return common.NodeIndex(
        node_type=names.NODE_TYPES.value(spec["node_type"]),
        layer_index=spec["layer_index"],
        tensor_indices=_indices(spec["tensor_indices"]),
        pass_type=names.PASS_TYPES.value(spec["pass_type"]),
    )


def trace(spec: dict[str, Any]) -> scalars.Trace:
    """A trace, with what is downstream of it."""
    downstream = spec["downstream_trace_config"]
    return scalars.Trace(
        node_index=node_index(spec["node_index"]),
        side=SIDES[spec["pre_or_post_act"]],
        detach_layer_norm_scale=spec["detach_layer_norm_scale"],
        attention_trace_type=ATTENTION_TRACES[spec["attention_trace_type"]],
        downstream=None if downstream is None else trace(downstream),
    )


def _within_layer(spec: dict[str, Any]) -> common.ActivationIndex:
    node = spec["node_index"]
    return common.ActivationIndex(
        location_type=common.ACTIVATION_LOCATION_TYPE_ONLINE_AUTOENCODER_LATENT,
        layer_index=node["layer_index"],
        tensor_indices=_indices(node["tensor_indices"]),
    )


def _selection(
    config: Config, dst: str, pass_type: str, layers: Sequence[int]
) -> scalars.ScalarSelection:
    derivation = config["dst_config"]
    selection = scalars.ScalarSelection(
        derived_scalar_type=names.DERIVED_SCALAR_TYPES.value(dst),
        pass_type=names.PASS_TYPES.value(pass_type),
        layer_indices=sorted(layers),
    )
    node = derivation.get("node_index_for_attribution")
    if node is not None:
        selection.node_index.CopyFrom(node_index(node))
        selection.attention_part = ATTENTION_PARTS[node.get("q_k_or_v")]
    if dst.endswith("_attribution"):
        selection.detach_layer_norm_scale = bool(
            derivation.get("detach_layer_norm_scale_for_attribution")
        )
    activation = derivation.get("activation_index_for_fake_grad")
    if activation is not None:
        selection.activation_index.CopyFrom(activation_index(activation))
    return selection


def _indices(indices: Sequence[int | str | None]) -> list[common.DimensionIndex]:
    return [
        common.DimensionIndex(index=each if isinstance(each, int) else None) for each in indices
    ]
