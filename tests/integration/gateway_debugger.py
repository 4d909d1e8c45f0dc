"""Prompts of the debugger page, and what is ablated and traced in them."""

from __future__ import annotations

from typing import Any

PROMPT: dict[str, Any] = {
    "prompt": "The cat",
    "targetTokens": [" sat"],
    "distractorTokens": [" ran"],
    "componentTypeForMlp": "neuron",
    "componentTypeForAttention": "attention_head",
    "topAndBottomKForNodeTable": 3,
    "hideEarlyLayersWhenAblating": False,
}


def node(kind: str, *indices: int | None, layer: int | None = 2) -> dict[str, Any]:
    return {
        "nodeType": kind,
        "tensorIndices": list(indices),
        "layerIndex": layer,
        "passType": "forward",
    }


HEAD = node("attention_head", 1, 0, 3)
NEURON = node("mlp_neuron", 1, 7)


def ablated(*layers: int, **changes: Any) -> dict[str, Any]:
    ablations = [
        {"nodeIndex": node("mlp_neuron", 1, 7, layer=layer), "value": 0.0} for layer in layers
    ]
    return PROMPT | {"nodeAblations": ablations, **changes}
