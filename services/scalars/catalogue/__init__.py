"""The catalogue of derived scalar types.

To add a type, declare it in the module of its subject; the list below puts it in the contract's
order. The service's list of types, the validation of requests and docs/scalars.md come from it.
"""

from __future__ import annotations

from services.scalars.catalogue import attention, mlp, residual, vectors
from services.scalars.catalogue.declaration import Catalogue, Declaration, Derivers, Requirement
from services.scalars.catalogue.later import LATER
from services.scalars.catalogue.raw import PREVIOUS_RESIDUAL, RAW

__all__ = ["CATALOGUE", "Catalogue", "Declaration", "Derivers", "Requirement"]


def _later(*names: str) -> list[Declaration]:
    return [LATER[name] for name in names]


def _in_contract_order() -> list[Declaration]:
    later = list(LATER.values())
    position = {each.dst.name: index for index, each in enumerate(later)}
    first_typed = position["mlp_autoencoder_latent"]

    def between(first: str, last: str) -> list[Declaration]:
        return later[position[first] : position[last] + 1]

    return [
        *RAW,
        *_later("online_autoencoder_latent"),
        attention.WRITE_NORM,
        attention.FLATTENED_PROBS,
        attention.ACT_TIMES_GRAD,
        mlp.MLP_OUTPUT,
        mlp.MLP_WRITE_NORM,
        mlp.MLP_ACT_TIMES_GRAD,
        *_later("autoencoder_latent", "autoencoder_write_norm"),
        mlp.MLP_DIRECT_EFFECT,
        attention.WRITE_NORM_PER_TOKEN,
        attention.DIRECT_EFFECT_PER_TOKEN,
        attention.ACT_TIMES_GRAD_PER_TOKEN,
        *residual.NORMS,
        *residual.PROJECTIONS,
        attention.UNFLATTENED_ACT_TIMES_GRAD,
        attention.UNFLATTENED_WRITE_NORM,
        attention.UNFLATTENED_DIRECT_EFFECT,
        attention.DIRECT_EFFECT,
        *between(
            "online_autoencoder_act_times_grad",
            "online_mlp_autoencoder_error_write_to_final_residual_grad",
        ),
        vectors.ATTN_WRITE,
        vectors.ATTN_WRITE_SUM_HEADS,
        vectors.MLP_WRITE,
        *_later("online_autoencoder_write"),
        vectors.ATTN_WEIGHTED_VALUE,
        PREVIOUS_RESIDUAL,
        *between(
            "mlp_write_to_final_activation_residual_grad",
            "attn_write_to_latent_per_sequence_token_batched",
        ),
        residual.TOKEN_ATTRIBUTION,
        *between("single_node_write", "vocab_token_write_to_input_direction"),
        residual.ALWAYS_ONE,
        *between("attn_query_in_edge_activation", "online_autoencoder_in_edge_activation"),
        *later[first_typed:],
    ]


CATALOGUE = Catalogue(_in_contract_order())
