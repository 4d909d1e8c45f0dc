"""The names that people write for the contract's enums, and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, Generic, TypeVar, cast

from neuropil.common import v1 as common
from neuropil.common.v1.component_pb2 import (
    ActivationLocationType,
    Dimension,
    NodeType,
    PassType,
)
from neuropil.common.v1.derived_scalar_type_pb2 import DerivedScalarType
from neuropil.scalars.v1.inference_pb2 import AttentionTraceType, LossKind, NonlinearitySide
from neuropil.scalars.v1.scalars_service_pb2 import (
    AttentionPart,
    GroupId,
    ScalarRequirement,
    TokenScoring,
)
from neuropil.simulation.v1.simulation_pb2 import (
    ActivationScale,
    CalibrationKind,
    ScoringMethod,
    UndefinedReason,
)
from neuropil.simulation.v1.simulation_service_pb2 import BudgetLimit, PutOutcome

_DOTTED = (
    "resid.post_emb",
    "resid.delta_attn",
    "resid.post_attn",
    "resid.delta_mlp",
    "resid.post_mlp",
    "resid.post_mlp_ln",
    "resid.post_attn_ln",
    "resid.post_ln_f",
    "resid.ln_f.scale",
    "mlp_ln.scale",
    "attn_ln.scale",
    "attn.q",
    "attn.k",
    "attn.v",
    "attn.qk_logits",
    "attn.qk_probs",
    "attn.v_out",
    "mlp.pre_act",
    "mlp.post_act",
)


Value = TypeVar("Value", bound=int)


class EnumNames(Generic[Value]):
    """Names of one enum: its values in small letters without the enum's prefix."""

    def __init__(
        self, enum: type[Value], prefix: str, what: str, dotted: tuple[str, ...] = ()
    ) -> None:
        self._what = what
        points = {name.replace(".", "_"): name for name in dotted}
        self._value_of: dict[str, Value] = {}
        for key, value in cast(Any, enum).items():
            if value != 0:
                plain = key.removeprefix(prefix).lower()
                self._value_of[points.get(plain, plain)] = value
        self._name_of = {int(value): name for name, value in self._value_of.items()}

    def value(self, name: str) -> Value:
        """Number of a name.

        Raises:
            ValueError: if the enum has no such name.
        """
        value = self._value_of.get(name)
        if value is None:
            near = get_close_matches(name, self, n=3) if isinstance(name, str) else []
            known = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(self)}"
            raise ValueError(f"{name!r} is no {self._what}; {known}")
        return value

    def name(self, value: int) -> str:
        """Name of a number; empty for one that is unset or that this version doesn't know."""
        return self._name_of.get(value, "")

    def __contains__(self, name: object) -> bool:
        return name in self._value_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._value_of)


DERIVED_SCALAR_TYPES = EnumNames(DerivedScalarType, "DERIVED_SCALAR_TYPE_", "derived scalar type")
"""For example ``mlp_post_act``."""
PASS_TYPES = EnumNames(PassType, "PASS_TYPE_", "pass type")
"""``forward`` and ``backward``."""
NODE_TYPES = EnumNames(NodeType, "NODE_TYPE_", "node type")
"""For example ``attention_head``."""
DIMENSIONS = EnumNames(Dimension, "DIMENSION_", "dimension")
"""For example ``sequence_tokens``."""
ACTIVATION_LOCATION_TYPES = EnumNames(
    ActivationLocationType,
    "ACTIVATION_LOCATION_TYPE_",
    "activation location type",
    dotted=_DOTTED,
)
"""For example ``attn.qk_probs``."""
LOSS_KINDS = EnumNames(LossKind, "LOSS_KIND_", "loss")
"""``logit_diff``, ``logit_minus_mean``, ``probs``, ``zero``."""
GROUP_IDS = EnumNames(GroupId, "GROUP_ID_", "group")
"""For example ``write_norm``."""
ATTENTION_TRACE_TYPES = EnumNames(AttentionTraceType, "ATTENTION_TRACE_TYPE_", "trace of a head")
"""``q``, ``k``, ``qk``, ``v``."""
NONLINEARITY_SIDES = EnumNames(NonlinearitySide, "NONLINEARITY_SIDE_", "side of a nonlinearity")
"""``pre_act`` and ``post_act``."""
ATTENTION_PARTS = EnumNames(AttentionPart, "ATTENTION_PART_", "way into a head")
"""``query``, ``key``, ``value``."""
TOKEN_SCORINGS = EnumNames(TokenScoring, "TOKEN_SCORING_", "token scoring")
"""For example ``upvoted_output_tokens``."""
SCALAR_REQUIREMENTS = EnumNames(ScalarRequirement, "SCALAR_REQUIREMENT_", "requirement")
"""For example ``gradient``."""
CALIBRATION_KINDS = EnumNames(CalibrationKind, "CALIBRATION_KIND_", "calibration kind")
"""``none``, ``linear``, ``percentile``, ``isotonic``."""
ACTIVATION_SCALES = EnumNames(ActivationScale, "ACTIVATION_SCALE_", "activation scale")
"""For example ``neuron_activations``."""
SCORING_METHODS = EnumNames(ScoringMethod, "SCORING_METHOD_", "scoring method")
"""``simulation``, ``detection``, ``fuzzing``, ``attention_pairs``."""
UNDEFINED_REASONS = EnumNames(UndefinedReason, "UNDEFINED_REASON_", "reason of an undefined score")
"""For example ``constant_simulation``."""
PUT_OUTCOMES = EnumNames(PutOutcome, "PUT_OUTCOME_", "outcome of putting a result")
"""``not_asked``, ``stored``, ``failed``."""
BUDGET_LIMITS = EnumNames(BudgetLimit, "BUDGET_LIMIT_", "limit of a budget")
"""``tokens`` and ``calls``."""


def component_id(
    derived_scalar_type: str, layer_index: int | None, component_index: int
) -> common.ComponentId:
    """A component by the name of its scalar type.

    Raises:
        ValueError: if there is no such scalar type.
    """
    return common.ComponentId(
        derived_scalar_type=DERIVED_SCALAR_TYPES.value(derived_scalar_type),
        layer_index=layer_index,
        component_index=component_index,
    )


def dataset_names(datasets: str | Sequence[str]) -> list[str]:
    """Names of datasets; one alone need not be in a list."""
    return several(datasets)


def several(strings: str | Sequence[str]) -> list[str]:
    """Strings of which one alone need not be in a list: it is not taken letter by letter."""
    return [strings] if isinstance(strings, str) else list(strings)
