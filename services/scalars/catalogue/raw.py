"""Activations and gradients themselves."""

from __future__ import annotations

from services.scalars.catalogue.declaration import Declaration, Derivers, Make, Requirement, declare
from services.scalars.deriving.deriver import ScalarDeriver
from services.scalars.deriving.layer_indexers import IDENTITY, NO_LAYERS, OffsetLayerIndexer
from services.scalars.deriving.scalar_types import RAW_SCALAR_NAMES
from services.scalars.deriving.sources import RawScalarSource
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import LocationWithinLayer, PassType


def _of_location(location: Location) -> Make:
    indexer = IDENTITY if location.has_layers else NO_LAYERS

    def make(derivers: Derivers) -> ScalarDeriver:
        return ScalarDeriver(
            dst=derivers.dst(RAW_SCALAR_NAMES[location]),
            dst_config=derivers.config,
            sources=(RawScalarSource(location, PassType.FORWARD, indexer),),
            backward_sources=(RawScalarSource(location, PassType.BACKWARD, indexer),),
            function=lambda tensors, layer, pass_type: tensors[0],
        )

    return make


def _raw(location: Location, formula: str) -> Declaration:
    return declare(
        RAW_SCALAR_NAMES[location],
        location.dimensions,
        formula,
        _of_location(location),
        requires=() if location.has_layers else (Requirement.NO_LAYER,),
        backward=True,
        at=location.location_within_layer,
    )


def _previous_residual(derivers: Derivers) -> ScalarDeriver:
    def sources(pass_type: PassType) -> tuple[RawScalarSource, RawScalarSource]:
        return (
            RawScalarSource(Location.RESID_POST_MLP, pass_type, OffsetLayerIndexer(-1)),
            RawScalarSource(Location.RESID_POST_EMBEDDING, pass_type, NO_LAYERS),
        )

    return ScalarDeriver(
        dst=derivers.dst("previous_layer_resid_post_mlp"),
        dst_config=derivers.config,
        sources=sources(PassType.FORWARD),
        backward_sources=sources(PassType.BACKWARD),
        function=lambda tensors, layer, pass_type: tensors[1] if layer == 0 else tensors[0],
    )


RAW = (
    _raw(Location.LOGITS, "LN_f(x_L) · Wteᵀ"),
    _raw(Location.RESID_POST_EMBEDDING, "x0 = wte[token] + wpe[position]"),
    _raw(Location.MLP_PRE_ACT, "LN2(x_mid) · W_in + b_in"),
    _raw(Location.MLP_POST_ACT, "f = gelu(pre-activation), tanh approximation"),
    _raw(Location.RESID_DELTA_MLP, "f · W_out + b_out"),
    _raw(Location.RESID_POST_MLP, "x_l, the residual stream after the MLP"),
    _raw(Location.ATTN_QUERY, "q · dh^-1/4"),
    _raw(Location.ATTN_KEY, "k · dh^-1/4"),
    _raw(Location.ATTN_VALUE, "v, its bias included"),
    _raw(Location.ATTN_QK_LOGITS, "q · k / sqrt(dh); -inf where the key comes after the query"),
    _raw(Location.ATTN_QK_PROBS, "P = softmax of the attention logits over keys"),
    _raw(Location.ATTN_WEIGHTED_SUM_OF_VALUES, "Σ_k P v"),
    _raw(Location.RESID_DELTA_ATTN, "concat_h(Σ_k P v) · W_O + b_O"),
    _raw(Location.RESID_POST_ATTN, "x_mid, the residual stream after attention"),
    _raw(Location.RESID_FINAL_LAYER_NORM_SCALE, "sqrt(var(x_L) + eps)"),
    _raw(Location.ATTN_INPUT_LAYER_NORM_SCALE, "sqrt(var(x) + eps) at attention's input"),
    _raw(Location.MLP_INPUT_LAYER_NORM_SCALE, "sqrt(var(x_mid) + eps) at the MLP's input"),
)

PREVIOUS_RESIDUAL = declare(
    "previous_layer_resid_post_mlp",
    Location.RESID_POST_MLP.dimensions,
    "x that enters attention of layer l: x_(l-1), for l = 0 the embedding x0",
    _previous_residual,
    backward=True,
    at=LocationWithinLayer.END_OF_PREVIOUS_LAYER,
)

DECLARATIONS = (*RAW, PREVIOUS_RESIDUAL)
