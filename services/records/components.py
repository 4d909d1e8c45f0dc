"""What a record is of, and what of it is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from shared.errors import InvalidArgument

# Derived scalar types with a value for every pair of attending and attended-to token; all others
# have one for every token.
TOKEN_PAIR_TYPES = frozenset(
    {
        "attn_act_times_grad",
        "attn_key_in_edge_activation",
        "attn_key_in_edge_attribution",
        "attn_out_edge_attribution",
        "attn_qk_logits",
        "attn_qk_probs",
        "attn_query_in_edge_activation",
        "attn_query_in_edge_attribution",
        "attn_value_in_edge_attribution",
        "attn_weighted_value",
        "attn_write",
        "attn_write_norm",
        "attn_write_sum_heads",
        "attn_write_to_final_residual_grad",
        "attn_write_to_latent",
        "attn_write_to_latent_summed_over_heads",
        "flattened_attn_post_softmax",
        "flattened_attn_write_to_latent_summed_over_heads",
        "flattened_attn_write_to_latent_summed_over_heads_batched",
        "unflattened_attn_act_times_grad",
        "unflattened_attn_write_norm",
        "unflattened_attn_write_to_final_activation_residual_grad",
        "unflattened_attn_write_to_final_residual_grad",
    }
)


@dataclass(frozen=True, slots=True)
class Component:
    """A part of a model over all tokens: the scalar that it has, its layer, its index there.

    Indices count from 0; InvalidArgument names the one that is negative.
    """

    derived_scalar_type: str
    layer_index: int
    component_index: int

    def __post_init__(self) -> None:
        for name in ("layer_index", "component_index"):
            if getattr(self, name) < 0:
                raise InvalidArgument(
                    f"{name} is {getattr(self, name)}, but indices count from 0.",
                    field=f"component.{name}",
                )

    @property
    def by_token_pair(self) -> bool:
        """Whether its activations are of token pairs, and not of tokens."""
        return self.derived_scalar_type in TOKEN_PAIR_TYPES

    @property
    def record_file(self) -> str:
        """Where its record is in a folder of records."""
        return f"{self.layer_index}/{self.component_index}.json"

    @property
    def explanation_file(self) -> str:
        """Where its explanations are in a folder of explanations."""
        return f"{self.layer_index}/{self.component_index}.jsonl"

    def __str__(self) -> str:
        return f"{self.derived_scalar_type} {self.layer_index}:{self.component_index}"


@dataclass(frozen=True, slots=True)
class View:
    """What of a record is wanted besides its top and random sequences."""

    quantile_samples: bool = False
    moments: bool = False
