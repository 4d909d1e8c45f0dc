"""Writes the first inputs of the corpus, with our own writer: `python -m tests.fuzz.seeds`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from neuropil.common import v1 as common
from neuropil.records import v1
from neuropil.simulation import v1 as simulation
from neuropil.tensors import to_tensor
from shared.formats.encoding import encode
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord
from shared.formats.simulations import (
    ActivationScale,
    AttentionSimulation,
    AttentionSimulationResults,
    NeuronSimulationResults,
    ScoredAttentionExplanation,
    ScoredAttentionSimulation,
    ScoredExplanation,
    ScoredSequenceSimulation,
    ScoredSimulation,
    SequenceSimulation,
)
from tests.fuzz.targets import REQUESTS

CORPUS = Path(__file__).parent / "corpus"

_SEQUENCE = ActivationRecord([0.5, -1.0, math.nan], ["the", " cat", "🙂"])
_PAIRS = ActivationRecord([1.0, 0.25, 0.5], ["a", "b"])
_CAPPED = ActivationRecord([1.0, 2.0, 3.0], ["a", "b", "c"])
_SIMULATION = SequenceSimulation(
    ["a", "b"], [1.0, 2.0], ActivationScale.NEURON_ACTIVATIONS, [[0.0], [1.0]], [[1.0], [1.0]]
)
_KIND: Any = 2
_VALUES = to_tensor(np.array([0.5, 1.0], np.float32))


def records() -> Iterator[bytes]:
    """Record files by token and by token pair, whole and old."""
    for sequence in (_SEQUENCE, _PAIRS, _CAPPED):
        yield encode(
            NeuronRecord(
                NeuronId(3, 1),
                [sequence],
                [[sequence], []],
                [0.5],
                0.1,
                1.0,
                None,
                3.0,
                [sequence, sequence],
            )
        )
    yield b'{"neuron_id":{"idx":1,"layer":"2"},"mean":NaN,"random_sample":[]}'
    yield b'{"neuron_id":{"idx":1,"layer":2},"random_sample":[{"activations":[1e999,-0.0,' + (
        b'Infinity,null],"tokens":["\\ud800","","\\u0000","x"]}]}'
    )
    yield b'{"dataclass_name":"Other","neuron_id":{"neuron_index":99999999999999999999}}'


def explanations() -> Iterator[bytes]:
    """Explanation files of neurons and of attention heads, and an old one."""
    scored = ScoredSequenceSimulation(_SIMULATION, [0.0, 3.0], 0.5, None, math.nan)
    yield encode(
        NeuronSimulationResults(
            NeuronId(3, 1), [ScoredExplanation("vowels", ScoredSimulation([scored], 0.75))]
        )
    )
    pairs = ScoredAttentionSimulation([AttentionSimulation(["a", "b"], (1, 0), 1, 0.9)], 0.8)
    yield encode(
        AttentionSimulationResults(NeuronId(2, 0), [ScoredAttentionExplanation("first", pairs)])
    )
    old = json.loads(encode(_SIMULATION))
    old["unit"] = old.pop("activation_scale")
    sequence = {"simulation": old, "true_activations": [1], "ev_correlation_score": None}
    explanation = {
        "dataclass_name": "ScoredExplanationOrBaseline",
        "explanation_or_baseline": "old",
        "scored_simulation": {"scored_sequence_simulations": [sequence]},
    }
    null: dict[str, Any] = {"explanation": None, "scored_simulation": {}}
    for named in ({"dataclass_name": "NeuronSimulationResults"}, {}):
        yield json.dumps(
            named
            | {
                "neuron_id": {"idx": 3, "layer": "1"},
                "scored_explanation_or_baseline_list": [null, explanation],
            }
        ).encode()


def requests() -> Iterator[bytes]:
    """A good request of every kind, and paths of every form."""
    component = common.ComponentId(derived_scalar_type=_KIND, layer_index=1, component_index=2)
    dataset = v1.DatasetId(dataset="demo", derived_scalar_type=_KIND)
    view = v1.RecordView(include_moments=True)
    good: list[Any] = [
        v1.ListDatasetsRequest(),
        v1.ListLayersRequest(dataset=dataset, page_size=2, page_token="1"),
        v1.ListComponentsRequest(dataset=dataset, layer_index=3),
        v1.GetTokenRecordRequest(component=component, datasets=["demo"], view=view),
        v1.GetTokenPairRecordRequest(component=component, datasets=["/data/attn"]),
        v1.BatchGetRecordsRequest(components=[component] * 2, datasets=["demo"]),
        v1.ListExplanationsRequest(component=component, neuron_dataset="demo"),
        v1.GetScoredSimulationsRequest(component=component, explanation_dataset="/data/expl"),
        v1.PutExplanationRequest(
            component=component, explanation_dataset="/allowed/e", explanation="x"
        ),
        v1.SearchExplanationsRequest(dataset=dataset, query="cats"),
        v1.PutExplanationRequest(
            component=component,
            explanation_dataset="/allowed/e",
            explanation="x",
            scored_simulation=simulation.ScoredSimulation(
                sequences=[
                    simulation.ScoredSequenceSimulation(
                        simulation=simulation.SequenceSimulation(
                            tokens=["a", "b"],
                            expected_activations=_VALUES,
                            activation_scale=simulation.ACTIVATION_SCALE_NEURON_ACTIVATIONS,
                        ),
                        true_activations=_VALUES,
                    )
                ]
            ),
        ),
        v1.PutExplanationRequest(
            component=common.ComponentId(
                derived_scalar_type=common.DERIVED_SCALAR_TYPE_ATTN_WRITE_NORM,
                layer_index=1,
                component_index=2,
            ),
            explanation_dataset="/allowed/e",
            explanation="x",
            scored_attention_simulation=v1.ScoredAttentionSimulation(),
        ),
    ]
    for path in ("/allowed/../x", "/allowed/%2e%2e", "az://acc/box/in/a", "/data/cached/f"):
        good.append(
            v1.ListExplanationsRequest(
                component=component, explanation_datasets=v1.ExplanationDatasets(paths=[path])
            )
        )
    for request in good:
        yield bytes([REQUESTS.index(type(request))]) + request.SerializeToString()


def shapes() -> Iterator[bytes]:
    """Numbers of tokens and of values, and the index of one."""
    for tokens, values, index in ((0, 0, 0), (3, 6, 5), (3, 5, 2), (64, 2080, 77), (64, 64, 3)):
        yield bytes([tokens, *values.to_bytes(2, "little"), index, 0])


def bodies() -> Iterator[bytes]:
    """A good body of every route, and one in snake_case with numbers as texts."""
    place = {"dst": "mlp_post_act", "layerIndex": 1, "activationIndex": 2}
    good: list[dict[str, Any]] = [
        {"datasets": ["demo", "/data/mlp"], "includeMoments": True},
        {"explanationDatasets": [], "neuronDataset": "demo"},
        {"datasets": ["demo"], "explanation": "cats", "maxSequences": 3},
    ]
    for route, fields in enumerate(good):
        yield bytes([route]) + json.dumps(place | fields).encode()
    old = {"dst": "attn_write_norm", "layer_index": "1", "activation_index": 2.0, "datasets": []}
    yield b"\0" + json.dumps(old).encode()


def queries() -> Iterator[bytes]:
    """Words, phrases, what other search engines take for syntax, scripts, and no word at all."""
    syntax = 'dogs AND "running"~2 -birds words:*'
    texts = ("cats", syntax, "東京 cafe\u0301", "🙂 …", "x" * 300, "1_000")
    for selected, query in enumerate(texts):
        yield bytes([selected]) + query.encode()


def changes() -> Iterator[bytes]:
    """Files that are written, changed, looked at, forgotten, and a restart between."""
    yield bytes([0, 0, 3, 0, 1, 200, 3, 0, 0, 0, 0, 2, 4, 0, 0, 2, 1, 0])
    yield bytes([0, 3, 255, 5, 3, 255, 2, 3, 0, 0, 3, 1, 4, 0, 0, 0, 3, 0, 3, 0, 0])


def write() -> None:
    """Put every seed into the corpus, named by its content."""
    for make in (records, explanations, requests, shapes, bodies, queries, changes):
        folder = CORPUS / make.__name__
        folder.mkdir(parents=True, exist_ok=True)
        for data in make():
            (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    write()
