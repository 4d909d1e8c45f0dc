"""Types of the contract that this release does not derive: they need autoencoders or traces.

Each becomes a declaration with a deriver in a module of its subject; until then a request for it is
answered UNIMPLEMENTED.
"""

from __future__ import annotations

from services.scalars.catalogue.declaration import (
    ONE,
    PAIRS,
    A,
    D,
    Declaration,
    F,
    H,
    Requirement,
    S,
    T,
    declare,
)
from services.scalars.model.locations import Dimension, NodeType

_SINGLE = Requirement.SINGLE_AUTOENCODER
_MLP = Requirement.MLP_AUTOENCODER
_ATTN = Requirement.ATTENTION_AUTOENCODER
_GRADIENT = Requirement.GRADIENT
_TRACE = Requirement.TRACE
_NODE = Requirement.NODE_INDEX
_ACTIVATION = Requirement.ACTIVATION_INDEX
_NO_LAYER = Requirement.NO_LAYER

_Row = tuple[str, tuple[Dimension, ...], str, tuple[Requirement, ...]]

_ROWS: tuple[_Row, ...] = (
    ("online_autoencoder_latent", (T, A), "z, read during the forward pass", (_SINGLE,)),
    ("autoencoder_latent", (T, A), "z, from saved activations", (_SINGLE,)),
    ("autoencoder_write_norm", (T, A), "z · ‖w_n‖, z from saved activations", (_SINGLE,)),
    ("online_autoencoder_act_times_grad", (T, A), "z · dz", (_SINGLE, _GRADIENT)),
    ("online_autoencoder_write_norm", (T, A), "z · ‖w_n‖", (_SINGLE,)),
    (
        "online_autoencoder_write_to_final_residual_grad",
        (T, A),
        "z · (w_n · g)",
        (_SINGLE, _GRADIENT),
    ),
    ("online_mlp_autoencoder_error", (T, F), "f - decode(z)", (_MLP,)),
    ("online_residual_mlp_autoencoder_error", (T, D), "x - decode(z), x the MLP's output", (_MLP,)),
    (
        "online_residual_attention_autoencoder_error",
        (T, D),
        "x - decode(z), x attention's output",
        (_ATTN,),
    ),
    (
        "online_mlp_autoencoder_error_act_times_grad",
        (T, F),
        "(f - decode(z)) · df",
        (_MLP, _GRADIENT),
    ),
    ("online_mlp_autoencoder_error_write_norm", (T, F), "(f - decode(z)) · ‖W_out[n]‖", (_MLP,)),
    (
        "online_mlp_autoencoder_error_write_to_final_residual_grad",
        (T, F),
        "(f - decode(z)) · (W_out[n] · g)",
        (_MLP, _GRADIENT),
    ),
    ("online_autoencoder_write", (T, A, D), "z · w_n", (_SINGLE,)),
    (
        "online_autoencoder_write_to_final_activation_residual_grad",
        (T, A),
        "z · (w_n · g~)",
        (_SINGLE, _TRACE),
    ),
    (
        "autoencoder_latent_grad_wrt_residual_input",
        (T, D),
        "gradient of Σ_t z[t, n] with respect to the autoencoder's input",
        (_SINGLE, _TRACE),
    ),
    (
        "autoencoder_latent_grad_wrt_mlp_post_act_input",
        (T, F),
        "gradient of Σ_t z[t, n] with respect to f",
        (_MLP, _TRACE),
    ),
    ("attn_write_to_latent", (T, S, H), "P v_k W_O^h · ∇_x z_n[q]", (_ATTN, _TRACE)),
    (
        "attn_write_to_latent_summed_over_heads",
        (T, S, ONE),
        "Σ_h P v_k W_O^h · ∇_x z_n[q]",
        (_ATTN, _TRACE),
    ),
    (
        "flattened_attn_write_to_latent_summed_over_heads",
        (PAIRS, ONE),
        "Σ_h P v_k W_O^h · ∇_x z_n[q] by token pair",
        (_ATTN, _TRACE),
    ),
    (
        "flattened_attn_write_to_latent_summed_over_heads_batched",
        (PAIRS, A),
        "Σ_h P v_k W_O^h · ∇_x z[q] by token pair, for every latent",
        (_ATTN,),
    ),
    (
        "attn_write_to_latent_per_sequence_token",
        (T, H),
        "Σ_k P v_k W_O^h · ∇_x z_n[q]",
        (_SINGLE, _TRACE),
    ),
    (
        "attn_write_to_latent_per_sequence_token_batched",
        (T, H, A),
        "Σ_k P v_k W_O^h · ∇_x z[q], for every latent",
        (_ATTN,),
    ),
)


def _typed(kind: str, autoencoder: Requirement, node_type: NodeType) -> tuple[Declaration, ...]:
    """The names that say which of two autoencoders is meant."""
    online = f"online_{kind}_autoencoder"
    rows: tuple[_Row, ...] = (
        (f"{kind}_autoencoder_latent", (T, A), "autoencoder_latent", ()),
        (f"{kind}_autoencoder_write_norm", (T, A), "autoencoder_write_norm", ()),
        (f"{online}_latent", (T, A), "online_autoencoder_latent", ()),
        (f"{online}_write", (T, A, D), "online_autoencoder_write", ()),
        (f"{online}_write_norm", (T, A), "online_autoencoder_write_norm", ()),
        (
            f"{online}_act_times_grad",
            (T, A),
            "online_autoencoder_act_times_grad",
            (_GRADIENT,),
        ),
        (
            f"{online}_write_to_final_residual_grad",
            (T, A),
            "online_autoencoder_write_to_final_residual_grad",
            (_GRADIENT,),
        ),
        (
            f"{online}_write_to_final_activation_residual_grad",
            (T, A),
            "online_autoencoder_write_to_final_activation_residual_grad",
            (_TRACE,),
        ),
    )
    return tuple(
        declare(
            name,
            dimensions,
            f"as {generic}, of the {kind} autoencoder",
            requires=(autoencoder, *requires),
            node_type=node_type if dimensions[-1] is A else None,
        )
        for name, dimensions, generic, requires in rows
    )


DECLARATIONS: tuple[Declaration, ...] = (
    *(
        declare(name, dimensions, formula, requires=requires)
        for name, dimensions, formula, requires in _ROWS
    ),
    *_typed("mlp", _MLP, NodeType.MLP_AUTOENCODER_LATENT),
    *_typed("attention", _ATTN, NodeType.ATTENTION_AUTOENCODER_LATENT),
)
