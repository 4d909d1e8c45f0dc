"""What the demo does: read, derive, simulate, calibrate, score.

Everything goes through the public client, as in a user's own script.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

import neuropil
from neuropil.scalars.v1 import GetModelInfoResponse
from shared.errors import NotFound

NEURON = "mlp_post_act"
NEURON_EFFECT = "mlp_write_to_final_residual_grad"
HEAD_EFFECT = "unflattened_attn_write_to_final_residual_grad"

PROMPT = "And the children of Israel went up out of the land of"
TARGET = " Egypt"
DISTRACTOR = " Judah"

SCORED_AFRESH = 12
"""Most explanations that are simulated again: so few that a busy machine is done soon, too."""
DISTINCT_TOP_TOKENS = 3
"""Of the neuron that is shown in full: one that always fires at the same token tells little."""
EFFECTS_SHOWN = 8
"""Direct effects of each sign."""


@dataclass(frozen=True)
class Neuron:
    """An explained neuron."""

    dataset: str
    layer_index: int
    index: int
    explanation: str
    stored_score: float | None

    @property
    def name(self) -> str:
        """As people write it."""
        return f"layer {self.layer_index}, neuron {self.index}"


@dataclass(frozen=True)
class Effects:
    """Direct effects of the model's parts on how it ends a prompt."""

    prompt: str
    tokens: list[str]
    target: str
    distractor: str
    difference: float
    """Logit of the target minus that of the distractor."""
    nodes: list[neuropil.Node]
    """Strongest first, whatever the sign; their only group is direct_write_to_grad."""


@dataclass(frozen=True)
class OwnEffects:
    """Direct effects of one neuron, token by token, on a text that it responds to."""

    tokens: list[str]
    target: str
    activations: list[float]
    effects: list[float]
    """On the target's logit above the mean of the vocabulary."""


@dataclass
class DemoResult:
    """All that the table and the report show."""

    model: GetModelInfoResponse
    neurons: list[Neuron]
    """All that are explained, best stored score first."""
    scored: dict[Neuron, neuropil.ScoredExplanation]
    featured: Neuron
    """The one that is shown in full."""
    record: neuropil.TokenRecord
    effects: Effects
    own_effects: OwnEffects | None
    """None where none of its top texts can be encoded again."""
    seconds: dict[str, float] = field(default_factory=dict)
    """How long each step took."""


Step = Callable[[str, int], Callable[[], None]]
"""Begins a step of so many parts, and gives what to call after each part."""


def do_main_job(client: neuropil.Client, step: Step) -> DemoResult:
    """Do the main job on a running deployment with a model and explained neurons.

    Raises:
        neuropil.NeuropilError: if a call fails.
        shared.errors.NotFound: if no neuron is explained.
    """
    clock = _Clock()
    model = client.scalars.model_info()
    neurons = _explained(client, model.layer_count, step)
    clock.lap("read the explanations")
    afresh = neurons[:SCORED_AFRESH]
    done = step("Simulate, calibrate and score explanations", len(afresh))
    scored = {}
    for neuron in afresh:
        scored[neuron] = client.simulation.score(
            neuron.explanation,
            NEURON,
            neuron.layer_index,
            neuron.index,
            datasets=[neuron.dataset],
        )
        done()
    clock.lap(f"simulate, calibrate and score {len(afresh)} explanations")
    done = step("Read a record and derive direct effects", 3)
    featured, record = _featured(client, scored)
    clock.lap("read a record")
    done()
    effects = _effects(client)
    done()
    own_effects = _own_effects(client, featured, record)
    clock.lap("derive direct effects on two prompts")
    done()
    return DemoResult(model, neurons, scored, featured, record, effects, own_effects, clock.seconds)


def _explained(client: neuropil.Client, layer_count: int, step: Step) -> list[Neuron]:
    datasets = [
        dataset.short_name
        for dataset in client.records.datasets()
        if dataset.derived_scalar_type_name == NEURON and dataset.explanation_dataset_paths
    ]
    found = []
    done = step("Find explained neurons", len(datasets) * layer_count)
    for dataset in datasets:
        for layer_index in range(layer_count):
            for index in client.records.components(dataset, NEURON, layer_index):
                listed = client.records.explanations(NEURON, layer_index, index, dataset=dataset)
                found += [
                    Neuron(dataset, layer_index, index, each.text, each.score) for each in listed
                ]
            done()
    return sorted(found, key=lambda neuron: -_or_lowest(neuron.stored_score))


def _featured(
    client: neuropil.Client, scored: dict[Neuron, neuropil.ScoredExplanation]
) -> tuple[Neuron, neuropil.TokenRecord]:
    """The best explained neuron of several top tokens, else the best explained; and its record."""
    best: tuple[Neuron, neuropil.TokenRecord] | None = None
    for neuron in sorted(scored, key=lambda each: -_or_lowest(scored[each].score)):
        record = client.records.token_record(
            NEURON, neuron.layer_index, neuron.index, [neuron.dataset], moments=True
        )
        if len(top_tokens(record)) >= DISTINCT_TOP_TOKENS:
            return neuron, record
        best = best or (neuron, record)
    if best is None:
        raise NotFound("no neuron of the demo deployment is explained")
    return best


def peak_of(sequence: neuropil.TokenSequence) -> int | None:
    """Position of the largest finite activation; None where none is finite."""
    finite = np.isfinite(sequence.activations)
    if not finite.any():
        return None
    return int(np.argmax(np.where(finite, sequence.activations, -np.inf)))


def top_tokens(record: neuropil.TokenRecord) -> list[tuple[str, float, int]]:
    """The tokens that a record is strongest at: token, largest activation, number of sequences."""
    counts: Counter[str] = Counter()
    largest: dict[str, float] = {}
    for sequence in record.top:
        peak = peak_of(sequence)
        if peak is None:
            continue
        token = sequence.tokens[peak]
        counts[token] += 1
        largest[token] = max(largest.get(token, -math.inf), float(sequence.activations[peak]))
    ranked = sorted(largest, key=lambda token: -largest[token])
    return [(token, largest[token], counts[token]) for token in ranked]


def _effects(client: neuropil.Client) -> Effects:
    loss = neuropil.Loss("logit_diff", targets=[TARGET], distractors=[DISTRACTOR])
    group = "direct_write_to_grad"
    nodes = client.scalars.top_nodes(
        PROMPT, {group: [NEURON_EFFECT, HEAD_EFFECT]}, count=EFFECTS_SHOWN, loss=loss
    )
    nodes.sort(key=lambda node: -abs(node.values[group]))
    run = client.scalars.derive(PROMPT, ["logits"], loss=loss)
    return Effects(PROMPT, run.tokens, TARGET, DISTRACTOR, run.loss or 0.0, nodes)


def _own_effects(
    client: neuropil.Client, neuron: Neuron, record: neuropil.TokenRecord
) -> OwnEffects | None:
    for sequence in record.top:
        peak = peak_of(sequence)
        if peak is None:
            continue
        text, following = sequence.tokens[: peak + 1], sequence.tokens[peak + 1 : peak + 2]
        prompt = "".join(text)
        # A token may hold a part of a letter, and then the text is not what the model saw.
        if not following or "\ufffd" in prompt or client.scalars.tokenize(prompt) != text:
            continue
        if client.scalars.tokenize(following[0]) != following:
            continue
        loss = neuropil.Loss("logit_minus_mean", targets=following)
        run = client.scalars.derive(
            prompt, [NEURON, NEURON_EFFECT], layers=[neuron.layer_index], loss=loss
        )
        return OwnEffects(
            run.tokens,
            following[0],
            run[NEURON, neuron.layer_index][:, neuron.index].tolist(),
            run[NEURON_EFFECT, neuron.layer_index][:, neuron.index].tolist(),
        )
    return None


def _or_lowest(score: float | None) -> float:
    return -2.0 if score is None else score


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = now - self._started
        self._started = now
