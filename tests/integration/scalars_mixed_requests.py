"""Random requests for derived scalars: ablated, with losses, traces and autoencoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from neuropil.common import v1 as common
from neuropil.common.v1.component_pb2 import NodeType
from neuropil.scalars import v1 as scalars
from services.scalars.model.locations import ActivationLocationType, Dimension
from tests.unit.scalars_checkpoint import TEXT

Item = TypeVar("Item")
Request = scalars.DeriveRequest | scalars.ListTopNodesRequest | scalars.BatchDeriveRequest

LATENT_LOCATIONS = {
    common.NODE_TYPE_MLP_AUTOENCODER_LATENT: (
        common.ACTIVATION_LOCATION_TYPE_ONLINE_MLP_AUTOENCODER_LATENT
    ),
    common.NODE_TYPE_ATTENTION_AUTOENCODER_LATENT: (
        common.ACTIVATION_LOCATION_TYPE_ONLINE_ATTENTION_AUTOENCODER_LATENT
    ),
}
ONLINE_LATENTS = {
    common.NODE_TYPE_MLP_AUTOENCODER_LATENT: "online_mlp_autoencoder_latent",
    common.NODE_TYPE_ATTENTION_AUTOENCODER_LATENT: "online_attention_autoencoder_latent",
}
LOCATIONS = [each for each in ActivationLocationType if each.exists_by_default]
AT_ITS_LAYER = {"single_node_write", "grad_of_single_subnode_attribution"}
GROUPS = {
    scalars.GROUP_ID_WRITE_NORM: ["mlp_write_norm", "unflattened_attn_write_norm"],
    scalars.GROUP_ID_ACT_TIMES_GRAD: ["mlp_act_times_grad", "unflattened_attn_act_times_grad"],
}


class MixedRequests:
    """Makes requests for one server, the same ones for the same seed."""

    def __init__(self, stub: scalars.DerivedScalarsStub, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._model = stub.GetModelInfo(scalars.GetModelInfoRequest())
        self._types = {
            each.name: each
            for each in stub.ListScalarTypes(scalars.ListScalarTypesRequest()).scalar_types
            if each.available
        }
        self._prompts = self._make_prompts(stub)
        self._words = self._single_tokens(stub)
        self._autoencoders = list(self._model.autoencoders)

    def __call__(self) -> Request:
        """The next request; most are for whole tensors."""
        kind = self._random.random()
        if kind < 0.1:
            return scalars.BatchDeriveRequest(inferences=[self._batched() for _ in range(2)])
        inference, n_tokens = self._inference()
        if kind < 0.2 and inference.HasField("loss"):
            return scalars.ListTopNodesRequest(
                inference=inference,
                spec=scalars.TopNodesSpec(
                    groups=[
                        scalars.ScalarGroup(
                            group_id=group,
                            derived_scalar_types=[
                                self._types[name].derived_scalar_type for name in types
                            ],
                        )
                        for group, types in GROUPS.items()
                    ],
                    top_and_bottom_count=int(self._random.integers(1, 12)),
                ),
            )
        return scalars.DeriveRequest(
            inference=inference, selections=self._selections(inference, n_tokens)
        )

    def _batched(self) -> scalars.BatchInference:
        inference, n_tokens = self._inference()
        return scalars.BatchInference(
            inference=inference,
            specs=[
                scalars.NamedSpec(name=str(number), selection=selection)
                for number, selection in enumerate(self._selections(inference, n_tokens))
            ],
        )

    def _inference(self) -> tuple[scalars.InferenceSpec, int]:
        prompt, n_tokens = self._one(self._prompts)
        spec = scalars.InferenceSpec(prompt=prompt)
        kind = self._random.random()
        if kind < 0.5:
            spec.loss.CopyFrom(self._loss(n_tokens))
        elif kind < 0.8:
            self._add_trace(spec, n_tokens)
        elif kind < 0.9 and self._autoencoders:
            self._add_latent_within_layer(spec)
        backward = spec.HasField("loss") or spec.HasField("trace")
        spec.ablations.extend(
            self._ablation(n_tokens, backward) for _ in range(self._random.integers(0, 4))
        )
        return spec, n_tokens

    def _loss(self, n_tokens: int) -> scalars.LossFunction:
        kind = self._one(
            [
                scalars.LOSS_KIND_LOGIT_DIFF,
                scalars.LOSS_KIND_LOGIT_MINUS_MEAN,
                scalars.LOSS_KIND_PROBS,
            ]
        )
        loss = scalars.LossFunction(
            kind=kind, target_tokens=[self._one(self._words) for _ in range(2)]
        )
        if kind == scalars.LOSS_KIND_LOGIT_DIFF:
            loss.distractor_tokens.append(self._one(self._words))
        if self._random.random() < 0.3:
            loss.position = int(self._random.integers(-n_tokens, n_tokens))
        return loss

    def _add_trace(self, spec: scalars.InferenceSpec, n_tokens: int) -> None:
        layers = int(self._model.layer_count)
        layer = int(self._random.integers(0, layers))
        node = self._node(n_tokens, layer)
        trace = self._trace(node)
        if node.node_type == common.NODE_TYPE_ATTENTION_HEAD:
            trace.attention_trace_type = self._one(
                [
                    scalars.ATTENTION_TRACE_TYPE_Q,
                    scalars.ATTENTION_TRACE_TYPE_K,
                    scalars.ATTENTION_TRACE_TYPE_QK,
                    scalars.ATTENTION_TRACE_TYPE_V,
                ]
            )
        if trace.attention_trace_type == scalars.ATTENTION_TRACE_TYPE_V:
            if self._random.random() < 0.5:
                spec.loss.CopyFrom(self._loss(n_tokens))
            else:
                below = self._neuron(n_tokens, int(self._random.integers(layer, layers)))
                trace.downstream.CopyFrom(self._trace(below))
        spec.trace.CopyFrom(trace)

    def _trace(self, node: common.NodeIndex) -> scalars.Trace:
        return scalars.Trace(
            node_index=node,
            side=self._one([scalars.NONLINEARITY_SIDE_PRE_ACT, scalars.NONLINEARITY_SIDE_POST_ACT]),
            detach_layer_norm_scale=bool(self._random.random() < 0.5),
        )

    def _add_latent_within_layer(self, spec: scalars.InferenceSpec) -> None:
        autoencoder = self._one(self._autoencoders)
        layer = self._layer_with_latents(autoencoder)
        spec.within_layer_gradient_index.CopyFrom(
            common.ActivationIndex(
                location_type=LATENT_LOCATIONS[autoencoder.node_type],
                layer_index=layer,
                tensor_indices=_indices([None, self._below(autoencoder.latent_counts[layer])]),
            )
        )

    def _ablation(self, n_tokens: int, backward: bool) -> scalars.Ablation:
        if self._autoencoders and self._random.random() < 0.3:
            autoencoder = self._one(self._autoencoders)
            layer: int | None = self._layer_with_latents(autoencoder)
            name: int = LATENT_LOCATIONS[autoencoder.node_type]
            sizes = [n_tokens, int(autoencoder.latent_counts[layer or 0])]
            value = abs(float(self._random.normal()))
        else:
            location = self._one(LOCATIONS)
            layer = self._below(self._model.layer_count) if location.has_layers else None
            name = _location_number(location)
            sizes = [self._size(each, n_tokens) for each in location.dimensions]
            # A layer norm divides by its scale.
            is_scale = location.value.endswith("scale")
            value = float(self._random.uniform(0.5, 2) if is_scale else self._random.normal())
        to_gradient = backward and self._random.random() < 0.4
        open_ones = [self._random.random() < 0.2 for _ in sizes]
        # The same value in all channels leaves a layer norm nothing but rounding to divide.
        open_ones[-1] &= sizes[-1] != self._model.residual_channel_count
        return scalars.Ablation(
            index=common.ActivationIndex(
                location_type=name,  # type: ignore[arg-type]
                layer_index=layer,
                tensor_indices=_indices(
                    [
                        None if all_of_it else self._below(n)
                        for all_of_it, n in zip(open_ones, sizes, strict=True)
                    ]
                ),
                pass_type=common.PASS_TYPE_BACKWARD if to_gradient else common.PASS_TYPE_FORWARD,
            ),
            value=value,
        )

    def _selections(
        self, inference: scalars.InferenceSpec, n_tokens: int
    ) -> list[scalars.ScalarSelection]:
        allowed = [each for each in self._types.values() if _fits(each, inference)]
        chosen = [self._one(allowed) for _ in range(self._random.integers(1, 6))]
        selections = [self._selection(each, inference, n_tokens) for each in chosen]
        # Which latents are active says whether a difference is one at their boundary.
        selections += [
            scalars.ScalarSelection(
                derived_scalar_type=self._types[ONLINE_LATENTS[each.node_type]].derived_scalar_type
            )
            for each in self._autoencoders
        ]
        return selections

    def _selection(
        self, scalar_type: scalars.ScalarType, inference: scalars.InferenceSpec, n_tokens: int
    ) -> scalars.ScalarSelection:
        gradient = inference.HasField("loss") or inference.HasField("trace")
        backward = common.PASS_TYPE_BACKWARD in scalar_type.pass_types and gradient
        selection = scalars.ScalarSelection(
            derived_scalar_type=scalar_type.derived_scalar_type,
            pass_type=common.PASS_TYPE_BACKWARD
            if backward and self._random.random() < 0.4
            else common.PASS_TYPE_FORWARD,
        )
        needs = set(scalar_type.requirements)
        if scalars.SCALAR_REQUIREMENT_NODE_INDEX in needs:
            node = self._node(n_tokens, self._below(self._model.layer_count))
            selection.node_index.CopyFrom(node)
            downstream = "out_edge" in scalar_type.name or scalar_type.name.startswith("grad_of")
            if downstream and node.node_type == common.NODE_TYPE_ATTENTION_HEAD:
                selection.attention_part = self._one(
                    [
                        scalars.ATTENTION_PART_QUERY,
                        scalars.ATTENTION_PART_KEY,
                        scalars.ATTENTION_PART_VALUE,
                    ]
                )
            if scalar_type.name in AT_ITS_LAYER:
                selection.layer_indices.append(node.layer_index)
        if scalars.SCALAR_REQUIREMENT_ACTIVATION_INDEX in needs:
            selection.activation_index.CopyFrom(
                common.ActivationIndex(
                    location_type=common.ACTIVATION_LOCATION_TYPE_MLP_POST_ACT,
                    layer_index=self._below(self._model.layer_count),
                    tensor_indices=_indices(
                        [self._below(n_tokens), self._below(self._model.neuron_count)]
                    ),
                )
            )
        within = inference.within_layer_gradient_index
        if "_latent" in scalar_type.name and inference.HasField("within_layer_gradient_index"):
            selection.layer_indices.append(within.layer_index)
        return selection

    def _node(self, n_tokens: int, layer: int) -> common.NodeIndex:
        kind = self._random.random()
        if kind < 0.3 and self._autoencoders:
            autoencoder = self._one(self._autoencoders)
            if autoencoder.latent_counts[layer]:
                latent = self._below(autoencoder.latent_counts[layer])
                return _node(autoencoder.node_type, layer, [self._below(n_tokens), latent])
        if kind < 0.6:
            return self._neuron(n_tokens, layer)
        query = self._below(n_tokens)
        key, head = self._below(query + 1), self._below(self._model.head_count)
        return _node(common.NODE_TYPE_ATTENTION_HEAD, layer, [query, key, head])

    def _neuron(self, n_tokens: int, layer: int) -> common.NodeIndex:
        neuron = self._below(self._model.neuron_count)
        return _node(common.NODE_TYPE_MLP_NEURON, layer, [self._below(n_tokens), neuron])

    def _layer_with_latents(self, autoencoder: scalars.AutoencoderInfo) -> int:
        counts = autoencoder.latent_counts
        return self._one([layer for layer, count in enumerate(counts) if count])

    def _size(self, dimension: Dimension, n_tokens: int) -> int:
        model = self._model
        sizes: dict[Dimension, int] = {
            Dimension.SEQUENCE_TOKENS: n_tokens,
            Dimension.ATTENDED_TO_SEQUENCE_TOKENS: n_tokens,
            Dimension.ATTN_HEADS: model.head_count,
            Dimension.MLP_ACTS: model.neuron_count,
            Dimension.RESIDUAL_STREAM_CHANNELS: model.residual_channel_count,
            Dimension.QUERY_AND_KEY_CHANNELS: model.head_channel_count,
            Dimension.VALUE_CHANNELS: model.head_channel_count,
            Dimension.VOCAB_SIZE: model.vocabulary_size,
            Dimension.SINGLETON: 1,
        }
        return sizes[dimension]

    def _below(self, count: int) -> int:
        return int(self._random.integers(count))

    def _one(self, items: Sequence[Item]) -> Item:
        return items[self._below(len(items))]

    def _make_prompts(self, stub: scalars.DerivedScalarsStub) -> list[tuple[str, int]]:
        text = TEXT * 3
        starts = self._random.integers(0, len(TEXT), size=300)
        lengths = self._random.integers(1, 90, size=300)
        texts = [text[start : start + n] for start, n in zip(starts, lengths, strict=True)]
        found = stub.Tokenize(scalars.TokenizeRequest(texts=texts)).texts
        return [
            (text, len(each.token_ids))
            for text, each in zip(texts, found, strict=True)
            if 1 <= len(each.token_ids) <= min(self._model.context_size, 24)
        ]

    def _single_tokens(self, stub: scalars.DerivedScalarsStub) -> list[str]:
        found = stub.Tokenize(scalars.TokenizeRequest(texts=[TEXT])).texts[0]
        words = sorted({each for each in found.tokens if "\ufffd" not in each})
        again = stub.Tokenize(scalars.TokenizeRequest(texts=words)).texts
        return [word for word, each in zip(words, again, strict=True) if len(each.token_ids) == 1]


def _fits(scalar_type: scalars.ScalarType, inference: scalars.InferenceSpec) -> bool:
    """Whether an inference has what a type needs."""
    needs = set(scalar_type.requirements)
    trace = inference.HasField("trace")
    if scalars.SCALAR_REQUIREMENT_TRACE in needs and not trace:
        return False
    if scalars.SCALAR_REQUIREMENT_GRADIENT in needs and not (trace or inference.HasField("loss")):
        return False
    within = scalars.SCALAR_REQUIREMENT_WITHIN_LAYER_GRADIENT_INDEX in needs
    return not within or inference.HasField("within_layer_gradient_index")


def _location_number(location: ActivationLocationType) -> int:
    name = location.value.replace(".", "_").upper()
    return int(common.ActivationLocationType.Value(f"ACTIVATION_LOCATION_TYPE_{name}"))


def _node(node_type: NodeType, layer: int, indices: Sequence[int]) -> common.NodeIndex:
    return common.NodeIndex(
        node_type=node_type, layer_index=layer, tensor_indices=_indices(indices)
    )


def _indices(indices: Sequence[int | None]) -> list[common.DimensionIndex]:
    return [common.DimensionIndex(index=each) for each in indices]
