"""Between the contract's messages and the domain's objects, and nothing more.

Requests have passed the contract's own rules: no enum is unset where one is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from neuropil import names
from neuropil.common import v1 as common
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_tensor
from services.scalars import token_pairs
from services.scalars.ablations import AblationSpec
from services.scalars.catalogue import Declaration, Requirement
from services.scalars.data_plane import ComponentScalars, InferenceResult
from services.scalars.deriving.indexing import ActivationIndex, NodeIndex
from services.scalars.inference import InferenceSpec
from services.scalars.losses import LossKind, LossSpec
from services.scalars.model.autoencoders import AutoencoderInfo
from services.scalars.model.locations import (
    ActivationLocationType,
    Dimension,
    LayerIndex,
    NodeType,
    PassType,
)
from services.scalars.model.subject import Subject
from services.scalars.selections import ComponentSpec, DimensionRange, Selection
from services.scalars.top_nodes import NodeScalars, ScalarGroup, TopNodesSpec
from services.scalars.top_tokens import TopTokens
from shared.errors import InvalidArgument, ResourceExhausted, Unimplemented

FRAME_BYTES = 1 << 20
"""About how much of a tensor one message of a stream holds."""

MAX_ROW_BYTES = 15 << 20
"""Most of a tensor that one message can hold."""

INDICES_PER_NODE = 3

_REQUIREMENTS = {
    Requirement.GRADIENT: scalars.SCALAR_REQUIREMENT_GRADIENT,
    Requirement.NO_LAYER: scalars.SCALAR_REQUIREMENT_NO_LAYER,
    Requirement.SINGLE_AUTOENCODER: scalars.SCALAR_REQUIREMENT_SINGLE_AUTOENCODER,
    Requirement.MLP_AUTOENCODER: scalars.SCALAR_REQUIREMENT_MLP_AUTOENCODER,
    Requirement.ATTENTION_AUTOENCODER: scalars.SCALAR_REQUIREMENT_ATTENTION_AUTOENCODER,
    Requirement.TRACE: scalars.SCALAR_REQUIREMENT_TRACE,
    Requirement.NODE_INDEX: scalars.SCALAR_REQUIREMENT_NODE_INDEX,
    Requirement.ACTIVATION_INDEX: scalars.SCALAR_REQUIREMENT_ACTIVATION_INDEX,
}


def inference_spec(message: scalars.InferenceSpec, field: str = "inference") -> InferenceSpec:
    """What to run; Unimplemented for what a later release runs."""
    for name in ("trace", "within_layer_gradient_index"):
        if message.HasField(name):
            raise Unimplemented(f"{name} is not served yet", field=f"{field}.{name}")
    if message.prepend_beginning_token:
        raise InvalidArgument(
            "the model's family needs no beginning token; write one into the prompt to have it",
            field=f"{field}.prepend_beginning_token",
        )
    return InferenceSpec(
        prompt=message.prompt,
        ablations=tuple(
            AblationSpec(activation_index(each.index), each.value) for each in message.ablations
        ),
        loss=_loss(message.loss) if message.HasField("loss") else None,
    )


def _loss(message: scalars.LossFunction) -> LossSpec:
    return LossSpec(
        kind=LossKind(names.LOSS_KINDS.name(message.kind)),
        target_tokens=tuple(message.target_tokens),
        distractor_tokens=tuple(message.distractor_tokens),
        position=message.position if message.HasField("position") else None,
    )


def pass_type(number: int) -> PassType:
    """A pass type, forward where none is set."""
    return PassType(names.PASS_TYPES.name(number)) if number else PassType.FORWARD


def activation_index(message: common.ActivationIndex) -> ActivationIndex:
    """Elements of an activation or gradient."""
    return ActivationIndex(
        ActivationLocationType(names.ACTIVATION_LOCATION_TYPES.name(message.location_type)),
        _indices(message.tensor_indices),
        message.layer_index if message.HasField("layer_index") else None,
        pass_type(message.pass_type),
    )


def _node_index(message: common.NodeIndex) -> NodeIndex:
    return NodeIndex(
        NodeType(names.NODE_TYPES.name(message.node_type)),
        _indices(message.tensor_indices),
        message.layer_index if message.HasField("layer_index") else None,
        pass_type(message.pass_type),
    )


def _indices(messages: Iterable[common.DimensionIndex]) -> tuple[int | None, ...]:
    return tuple(each.index if each.HasField("index") else None for each in messages)


def selection(message: scalars.ScalarSelection) -> Selection:
    """What to derive."""
    return Selection(
        dst=names.DERIVED_SCALAR_TYPES.name(message.derived_scalar_type),
        pass_type=pass_type(message.pass_type),
        layer_indices=tuple(message.layer_indices),
        ranges=tuple(
            DimensionRange(
                Dimension(names.DIMENSIONS.name(each.dimension)),
                each.start,
                each.stop if each.HasField("stop") else None,
            )
            for each in message.ranges
        ),
        node_index=_node_index(message.node_index) if message.HasField("node_index") else None,
        activation_index=activation_index(message.activation_index)
        if message.HasField("activation_index")
        else None,
    )


def component_spec(
    component: common.ComponentId, pass_number: int, top_token_count: int
) -> ComponentSpec:
    """Which component to derive."""
    return ComponentSpec(
        dst=names.DERIVED_SCALAR_TYPES.name(component.derived_scalar_type),
        layer_index=component.layer_index if component.HasField("layer_index") else None,
        component_index=component.component_index,
        pass_type=pass_type(pass_number),
        top_token_count=top_token_count,
    )


def top_nodes_spec(message: scalars.TopNodesSpec) -> TopNodesSpec:
    """Which nodes to list."""
    return TopNodesSpec(
        groups=tuple(
            ScalarGroup(
                names.GROUP_IDS.name(group.group_id),
                tuple(
                    names.DERIVED_SCALAR_TYPES.name(number) for number in group.derived_scalar_types
                ),
            )
            for group in message.groups
        ),
        token_index=message.token_index if message.HasField("token_index") else None,
        count=message.top_and_bottom_count if message.HasField("top_and_bottom_count") else None,
        pass_type=pass_type(message.pass_type),
        sum_dimensions=tuple(
            Dimension(names.DIMENSIONS.name(number)) for number in message.sum_dimensions.dimensions
        )
        if message.HasField("sum_dimensions")
        else None,
        exclude_bottom=message.exclude_bottom,
    )


def inference_result(result: InferenceResult) -> scalars.InferenceResult:
    """What a run gave besides activations."""
    return scalars.InferenceResult(
        seconds=result.seconds,
        memory_used_before=result.memory_used_before,
        memory_used_after=result.memory_used_after,
        loss=result.loss,
        token_ids=result.tokens,
        tokens=result.token_strings,
    )


def model_info(
    subject: Subject, autoencoders: Sequence[AutoencoderInfo]
) -> scalars.GetModelInfoResponse:
    """The model and its autoencoders."""
    shape = subject.model.shape
    return scalars.GetModelInfoResponse(
        name=subject.name,
        family=subject.family,
        layer_count=shape.layers,
        residual_channel_count=shape.residual_stream_channels,
        head_count=shape.attn_heads,
        head_channel_count=shape.value_channels,
        neuron_count=shape.mlp_acts,
        vocabulary_size=shape.vocab_size,
        context_size=shape.context,
        beginning_token=subject.beginning_token,
        autoencoders=[
            scalars.AutoencoderInfo(
                name=each.name,
                node_type=names.NODE_TYPES.value(each.node_type),
                input=names.DERIVED_SCALAR_TYPES.value(each.input),
                activation_function=each.activation,
                latent_counts=each.latent_counts,
            )
            for each in autoencoders
        ],
        device=str(subject.model.device),
    )


def scalar_type(declaration: Declaration) -> scalars.ScalarType:
    """A row of the catalogue."""
    dst = declaration.dst
    available = declaration.make is not None
    return scalars.ScalarType(
        derived_scalar_type=names.DERIVED_SCALAR_TYPES.value(dst.name),
        name=dst.name,
        dimensions=[names.DIMENSIONS.value(each) for each in dst.dimensions],
        node_type=names.NODE_TYPES.value(dst.node_type),
        pass_types=[names.PASS_TYPES.value(each) for each in declaration.pass_types],
        requirements=[
            _REQUIREMENTS[each] for each in Requirement if each in declaration.requirements
        ],
        formula=declaration.formula,
        available=available,
        unavailable_reason="" if available else "not served by this release yet",
    )


def node_table(nodes: Sequence[NodeIndex], pass_of_all: PassType) -> scalars.NodeTable:
    """Nodes column by column."""
    indices = np.full((len(nodes), INDICES_PER_NODE), -1, dtype=np.int64)
    for position, node in enumerate(nodes):
        given = [-1 if index is None else index for index in node.tensor_indices]
        indices[position, : len(given)] = given
    return scalars.NodeTable(
        node_types=[names.NODE_TYPES.value(node.node_type) for node in nodes],
        tensor_indices=indices.reshape(-1).tolist(),
        layer_indices=[-1 if node.layer_index is None else node.layer_index for node in nodes],
        pass_type=names.PASS_TYPES.value(pass_of_all),
    )


def component_scalars(derived: ComponentScalars, pass_of_all: PassType) -> scalars.ComponentScalars:
    """One component's scalars."""
    return scalars.ComponentScalars(
        activations=to_tensor(derived.activations),
        nodes=node_table(derived.nodes, pass_of_all),
        top_tokens=None if derived.top_tokens is None else _top_tokens(derived.top_tokens),
    )


def _top_tokens(top_tokens: TopTokens) -> scalars.TopTokens:
    top, bottom = (
        [
            scalars.ScoredToken(
                token=each.token,
                scalar=each.scalar,
                normalized_scalar=each.normalized_scalar,
            )
            for each in entries
        ]
        for entries in (top_tokens.top, top_tokens.bottom)
    )
    return scalars.TopTokens(top=top, bottom=bottom)


def token_pair_sequences(
    tokens: Sequence[str], by_query_and_key: NDArray[np.float32]
) -> common.TokenPairSequences:
    """One component's scalars by token pair, with summaries."""
    pairs = token_pairs.summarize(by_query_and_key)

    def summary(each: token_pairs.TokenSummary) -> common.TokenPairSummary:
        return common.TokenPairSummary(
            values=to_tensor(each.values), normalized_values=to_tensor(each.normalized)
        )

    return common.TokenPairSequences(
        tokens=tokens,
        sequence_lengths=[len(tokens)],
        attended_to_caps=[len(tokens)],
        activations=to_tensor(pairs.activations),
        normalized_activations=to_tensor(pairs.normalized),
        total_in=summary(pairs.total_in),
        max_in=summary(pairs.max_in),
        total_out=summary(pairs.total_out),
        max_out=summary(pairs.max_out),
    )


def top_nodes(
    found: NodeScalars, pass_of_all: PassType, vocabulary: Sequence[str]
) -> scalars.TopNodes:
    """Listed nodes; their vocabulary entries where they are some."""
    of_vocabulary = bool(found.nodes) and all(
        node.node_type is NodeType.VOCAB_TOKEN for node in found.nodes
    )
    return scalars.TopNodes(
        nodes=node_table(found.nodes, pass_of_all),
        groups=[
            scalars.GroupScalars(
                group_id=names.GROUP_IDS.value(name),
                values=to_tensor(values),
            )
            for name, values in found.values.items()
        ],
        sums=[
            scalars.IntermediateSum(
                group_id=names.GROUP_IDS.value(group),
                derived_scalar_type=names.DERIVED_SCALAR_TYPES.value(dst),
                values=to_tensor(values),
            )
            for (group, dst), values in found.sums.items()
        ],
        vocabulary_tokens=[vocabulary[int(node.tensor_indices[-1] or 0)] for node in found.nodes]
        if of_vocabulary
        else (),
    )


def check_row(shape: Sequence[int], field: str) -> None:
    """Refuses a tensor one of whose rows is too large for a message."""
    row_bytes = 4 * int(np.prod(shape[1:], dtype=np.int64))
    if row_bytes > MAX_ROW_BYTES:
        raise ResourceExhausted(
            f"a row of this tensor takes {row_bytes} bytes; {MAX_ROW_BYTES} is the most. "
            "Ask for a range of one of its dimensions",
            field=field,
            reason="REQUEST_TOO_LARGE",
            metadata={"row_bytes": str(row_bytes), "limit_bytes": str(MAX_ROW_BYTES)},
        )


def frames(
    position: int, layer: LayerIndex, array: NDArray[np.float32]
) -> Iterator[scalars.DeriveResponse]:
    """A tensor in messages of about a megabyte, at least one row each."""
    row_bytes = max(1, array[:1].nbytes)
    step = max(1, FRAME_BYTES // row_bytes)
    for first in range(0, len(array), step):
        yield scalars.DeriveResponse(
            frame=scalars.TensorFrame(
                selection=position,
                layer_index=layer,
                shape=array.shape,
                first_row=first,
                rows=to_tensor(array[first : first + step]),
            )
        )
