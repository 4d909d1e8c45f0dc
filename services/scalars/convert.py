"""Between the contract's messages and the domain's objects, and nothing more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import TypeVar

import numpy as np
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from numpy.typing import NDArray

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

Name = TypeVar("Name", bound=StrEnum)


class _Names:
    """Numbers of an enum of the contract, by the name that the domain uses."""

    def __init__(self, enum: EnumTypeWrapper, prefix: str) -> None:
        self._numbers = {
            name.removeprefix(prefix).lower(): number
            for name, number in enum.items()
            if number != 0
        }
        self._names = {number: name for name, number in self._numbers.items()}

    def number(self, name: str) -> int:
        return self._numbers[name.replace(".", "_")]

    def name(self, number: int, field: str) -> str:
        if number not in self._names:
            raise InvalidArgument(f"{number} is no value of the contract", field=field)
        return self._names[number]

    def member(self, kind: type[Name], number: int, field: str) -> Name:
        name = self.name(number, field)
        return next(each for each in kind if each.value.replace(".", "_") == name)


SCALAR_TYPES = _Names(common.DerivedScalarType, "DERIVED_SCALAR_TYPE_")
LOCATIONS = _Names(common.ActivationLocationType, "ACTIVATION_LOCATION_TYPE_")
DIMENSIONS = _Names(common.Dimension, "DIMENSION_")
NODE_TYPES = _Names(common.NodeType, "NODE_TYPE_")
PASS_TYPES = _Names(common.PassType, "PASS_TYPE_")
LOSS_KINDS = _Names(scalars.LossKind, "LOSS_KIND_")
GROUP_IDS = _Names(scalars.GroupId, "GROUP_ID_")

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
            AblationSpec(
                activation_index(each.index, f"{field}.ablations[{position}].index"), each.value
            )
            for position, each in enumerate(message.ablations)
        ),
        loss=_loss(message.loss, f"{field}.loss") if message.HasField("loss") else None,
    )


def _loss(message: scalars.LossFunction, field: str) -> LossSpec:
    return LossSpec(
        kind=LOSS_KINDS.member(LossKind, message.kind, f"{field}.kind"),
        target_tokens=tuple(message.target_tokens),
        distractor_tokens=tuple(message.distractor_tokens),
        position=message.position if message.HasField("position") else None,
    )


def pass_type(number: int, field: str) -> PassType:
    """A pass type, forward where none is set."""
    return PASS_TYPES.member(PassType, number, field) if number else PassType.FORWARD


def activation_index(message: common.ActivationIndex, field: str) -> ActivationIndex:
    """Elements of an activation or gradient."""
    return ActivationIndex(
        LOCATIONS.member(ActivationLocationType, message.location_type, f"{field}.location_type"),
        _indices(message.tensor_indices),
        message.layer_index if message.HasField("layer_index") else None,
        pass_type(message.pass_type, f"{field}.pass_type"),
    )


def _node_index(message: common.NodeIndex, field: str) -> NodeIndex:
    return NodeIndex(
        NODE_TYPES.member(NodeType, message.node_type, f"{field}.node_type"),
        _indices(message.tensor_indices),
        message.layer_index if message.HasField("layer_index") else None,
        pass_type(message.pass_type, f"{field}.pass_type"),
    )


def _indices(messages: Iterable[common.DimensionIndex]) -> tuple[int | None, ...]:
    return tuple(each.index if each.HasField("index") else None for each in messages)


def selection(message: scalars.ScalarSelection, field: str) -> Selection:
    """What to derive."""
    return Selection(
        dst=SCALAR_TYPES.name(message.derived_scalar_type, f"{field}.derived_scalar_type"),
        pass_type=pass_type(message.pass_type, f"{field}.pass_type"),
        layer_indices=tuple(message.layer_indices),
        ranges=tuple(
            DimensionRange(
                DIMENSIONS.member(
                    Dimension, each.dimension, f"{field}.ranges[{position}].dimension"
                ),
                each.start,
                each.stop if each.HasField("stop") else None,
            )
            for position, each in enumerate(message.ranges)
        ),
        node_index=_node_index(message.node_index, f"{field}.node_index")
        if message.HasField("node_index")
        else None,
        activation_index=activation_index(message.activation_index, f"{field}.activation_index")
        if message.HasField("activation_index")
        else None,
    )


def component_spec(
    component: common.ComponentId, pass_number: int, top_token_count: int, field: str
) -> ComponentSpec:
    """Which component to derive."""
    return ComponentSpec(
        dst=SCALAR_TYPES.name(
            component.derived_scalar_type, f"{field}.component.derived_scalar_type"
        ),
        layer_index=component.layer_index if component.HasField("layer_index") else None,
        component_index=component.component_index,
        pass_type=pass_type(pass_number, f"{field}.pass_type"),
        top_token_count=top_token_count,
    )


def top_nodes_spec(message: scalars.TopNodesSpec, field: str) -> TopNodesSpec:
    """Which nodes to list."""
    return TopNodesSpec(
        groups=tuple(
            ScalarGroup(
                GROUP_IDS.name(group.group_id, f"{field}.groups[{position}].group_id"),
                tuple(
                    SCALAR_TYPES.name(
                        number, f"{field}.groups[{position}].derived_scalar_types[{index}]"
                    )
                    for index, number in enumerate(group.derived_scalar_types)
                ),
            )
            for position, group in enumerate(message.groups)
        ),
        token_index=message.token_index if message.HasField("token_index") else None,
        count=message.top_and_bottom_count if message.HasField("top_and_bottom_count") else None,
        pass_type=pass_type(message.pass_type, f"{field}.pass_type"),
        sum_dimensions=tuple(
            DIMENSIONS.member(Dimension, number, f"{field}.sum_dimensions.dimensions[{position}]")
            for position, number in enumerate(message.sum_dimensions.dimensions)
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
                node_type=NODE_TYPES.number(each.node_type),  # type: ignore[arg-type]
                input=SCALAR_TYPES.number(each.input),  # type: ignore[arg-type]
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
        derived_scalar_type=SCALAR_TYPES.number(dst.name),  # type: ignore[arg-type]
        name=dst.name,
        dimensions=[DIMENSIONS.number(each) for each in dst.dimensions],  # type: ignore[misc]
        node_type=NODE_TYPES.number(dst.node_type),  # type: ignore[arg-type]
        pass_types=[PASS_TYPES.number(each) for each in declaration.pass_types],  # type: ignore[misc]
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
        node_types=[NODE_TYPES.number(node.node_type) for node in nodes],  # type: ignore[misc]
        tensor_indices=indices.reshape(-1).tolist(),
        layer_indices=[-1 if node.layer_index is None else node.layer_index for node in nodes],
        pass_type=PASS_TYPES.number(pass_of_all),  # type: ignore[arg-type]
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
                group_id=GROUP_IDS.number(name),  # type: ignore[arg-type]
                values=to_tensor(values),
            )
            for name, values in found.values.items()
        ],
        sums=[
            scalars.IntermediateSum(
                group_id=GROUP_IDS.number(group),  # type: ignore[arg-type]
                derived_scalar_type=SCALAR_TYPES.number(dst),  # type: ignore[arg-type]
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
