"""Enumerations of the HTTP interface: the contract's own, by the names that people write."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import TYPE_CHECKING

from neuropil import names
from neuropil.scalars import v1 as scalars

ATTENTION_TRACES = {
    "Q": scalars.ATTENTION_TRACE_TYPE_Q,
    "K": scalars.ATTENTION_TRACE_TYPE_K,
    "QK": scalars.ATTENTION_TRACE_TYPE_QK,
    "V": scalars.ATTENTION_TRACE_TYPE_V,
}
NONLINEARITY_SIDES = {
    "pre": scalars.NONLINEARITY_SIDE_PRE_ACT,
    "post": scalars.NONLINEARITY_SIDE_POST_ACT,
}

# Dimensions that the reference's clients may name and no scalar type of the contract has.
FOREIGN_DIMENSIONS = ("max_context_length", "layers", "autoencoder_latents_by_token_pair")


def _members(values: Iterable[str]) -> dict[str, str]:
    return {value.upper().replace(".", "_"): value for value in values}


if TYPE_CHECKING:

    class DerivedScalarType(StrEnum):
        """For example ``mlp_post_act``."""

    class PassType(StrEnum):
        """``forward`` or ``backward``."""

    class NodeType(StrEnum):
        """For example ``attention_head``."""

    class Dimension(StrEnum):
        """For example ``sequence_tokens``."""

    class LossFnName(StrEnum):
        """For example ``logit_diff``."""

    class GroupId(StrEnum):
        """For example ``write_norm``."""

    class AttentionTraceType(StrEnum):
        """For example ``QK``."""

    class TokenScoringType(StrEnum):
        """For example ``upvoted_output_tokens``."""

    class PreOrPostAct(StrEnum):
        """``pre`` or ``post``."""

    class ActivationLocationType(StrEnum):
        """For example ``attn.qk_probs``."""

else:
    # Made from the contract, so that a value it gains is accepted here at once.
    DerivedScalarType = StrEnum("DerivedScalarType", _members(names.DERIVED_SCALAR_TYPES))
    PassType = StrEnum("PassType", _members(names.PASS_TYPES))
    NodeType = StrEnum("NodeType", _members(names.NODE_TYPES))
    Dimension = StrEnum("Dimension", _members([*names.DIMENSIONS, *FOREIGN_DIMENSIONS]))
    LossFnName = StrEnum("LossFnName", _members(names.LOSS_KINDS))
    GroupId = StrEnum("GroupId", _members(names.GROUP_IDS))
    AttentionTraceType = StrEnum("AttentionTraceType", _members(ATTENTION_TRACES))
    TokenScoringType = StrEnum("TokenScoringType", _members(names.TOKEN_SCORINGS))
    PreOrPostAct = StrEnum("PreOrPostAct", _members(NONLINEARITY_SIDES))
    ActivationLocationType = StrEnum(
        "ActivationLocationType", _members(names.ACTIVATION_LOCATION_TYPES)
    )
