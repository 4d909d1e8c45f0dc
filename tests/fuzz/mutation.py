"""Changes to inputs that keep them nearly right: most random bytes are refused at once."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError

from shared.formats.text import without_surrogates
from tests.fuzz.targets import REQUESTS

Mutate = Callable[[bytes, int], bytes]

# What changed fields may raise where they are to be those of a message.
_UNFIT = (
    DecodeError,
    json_format.Error,
    ArithmeticError,
    AttributeError,
    LookupError,
    SystemError,
    TypeError,
    ValueError,
)

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, -0.0, 0.5, 1e308, -1e-320, float("nan"), float("inf"),
    2**31, 2**63 - 1, 2**63, 10**300, 1.0, "", "a", "1", "007", "\ud800", "\ufffd", "\u2028",
    "\x00", "🙂", [], {}, [[]], [None], [1.5, float("-inf")], ["a", "b"], "NeuronRecord",
    "NeuronId", "ScoredExplanationOrBaseline", "neuron_activations", "..", "/allowed/../etc",
    "/allowed//x/.",
    "az://acc/box/in/x", "https://acc.blob.core.windows.net/box/in/%2e%2e",
    "AZ://acc/box/in", "file:///etc/passwd", "demo", "DERIVED_SCALAR_TYPE_MLP_POST_ACT",
    "mlp_post_act", "attn_write_norm", " 1 ", "1.0", "+1", "1.5", "1_0", "9223372036854775808",
]  # fmt: skip
_KEYS = [
    "dataclass_name", "neuron_id", "idx", "layer", "neuron_index", "layer_index", "activations",
    "tokens", "random_sample", "random_sample_by_quantile", "most_positive_activation_records",
    "explanation", "explanation_or_baseline", "scored_explanations", "unit", "activation_scale",
    "scored_explanation_or_baseline_list", "attention_id", "attention_head_id", "simulation",
    "sequence_simulation", "response", "uncalibrated_simulation", "mean", "extra", "dst",
    "layerIndex", "activationIndex", "datasets", "explanationDatasets", "neuronDataset",
    "maxSequences", "includeMoments", "include_quantile_samples",
]  # fmt: skip


def mutated_json(data: bytes, max_size: int, seed: int, bytewise: Mutate) -> bytes:
    """`data` with some values replaced, keys renamed, items dropped or doubled."""
    chance = random.Random(seed)
    if chance.random() < 0.2:
        return bytewise(data, max_size)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return bytewise(data, max_size)
    for _ in range(chance.choice([1, 1, 2, 4])):
        value = _changed(value, chance)
    try:
        text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
        changed = text.encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return bytewise(data, max_size)
    return changed if len(changed) <= max_size else bytewise(data, max_size)


def mutated_body(data: bytes, max_size: int, seed: int, bytewise: Mutate) -> bytes:
    """`data`, a byte that chooses the route and JSON, with some of the JSON changed."""
    if not data or seed % 16 == 0:
        return bytewise(data, max_size)
    return data[:1] + mutated_json(data[1:] or b"{}", max_size - 1, seed, bytewise)


def mutated_request(data: bytes, max_size: int, seed: int, bytewise: Mutate) -> bytes:
    """`data`, a byte that chooses the request and its bytes, with some fields changed."""
    chance = random.Random(seed)
    if not data or chance.random() < 0.3:
        return bytewise(data, max_size)
    kind = REQUESTS[data[0] % len(REQUESTS)]
    try:
        fields = json_format.MessageToDict(kind.FromString(data[1:]))
        fields = without_surrogates(_changed(fields, chance))
        message = json_format.ParseDict(fields, kind(), ignore_unknown_fields=True)
    except _UNFIT:
        return bytewise(data, max_size)
    changed = data[:1] + message.SerializeToString()
    return changed if len(changed) <= max_size else bytewise(data, max_size)


MUTATORS: dict[str, Callable[[bytes, int, int, Mutate], bytes]] = {
    "records": mutated_json,
    "explanations": mutated_json,
    "requests": mutated_request,
    "bodies": mutated_body,
}
"""By target; the inputs of the others are changed byte by byte."""


def _changed(value: Any, chance: random.Random) -> Any:
    """`value` with one change somewhere within."""
    if not isinstance(value, dict | list) or not value or chance.random() < 0.15:
        return chance.choice(_VALUES)
    if isinstance(value, list):
        items = list(value)
        place = chance.randrange(len(items))
        match chance.randrange(8):
            case 0:
                del items[place]
            case 1:
                items.insert(place, items[place])
            case 2:
                items.append(chance.choice(_VALUES))
            case _:
                items[place] = _changed(items[place], chance)
        return items
    fields = dict(value)
    key = chance.choice(sorted(fields))
    match chance.randrange(10):
        case 0:
            del fields[key]
        case 1:
            fields[chance.choice(_KEYS)] = fields.pop(key)
        case 2:
            fields[chance.choice(_KEYS)] = chance.choice(_VALUES)
        case _:
            fields[key] = _changed(fields[key], chance)
    return fields
