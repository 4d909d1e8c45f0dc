"""Every input of the fuzzers' corpus, without a fuzzer: what was found once stays found."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import mutation, seeds
from tests.fuzz.targets import TARGETS

INPUTS = sorted(path for path in seeds.CORPUS.glob("*/*") if path.is_file())


def test_there_is_a_small_corpus_of_every_target() -> None:
    assert {path.parent.name for path in INPUTS} == set(TARGETS)
    assert sum(path.stat().st_size for path in INPUTS) < 2**20


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_input_is_answered_rightly(name: str) -> None:
    for path in INPUTS:
        if path.parent.name == name:
            TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", sorted(mutation.MUTATORS))
def test_changed_seeds_are_answered_rightly(name: str) -> None:
    chance = random.Random(7)
    for data in getattr(seeds, name)():
        changed = data
        for _ in range(40):
            changed = mutation.MUTATORS[name](changed, 4096, chance.getrandbits(32), _flipped)
            TARGETS[name](changed)


def _flipped(data: bytes, max_size: int) -> bytes:
    """One bit changed: atheris is not needed here."""
    if not data:
        return b"{"
    changed = bytearray(data)
    changed[len(data) // 2] ^= 4
    return bytes(changed[:max_size])


_numbers = st.floats() | st.integers(-(2**70), 2**70) | st.none()
_values = st.recursive(
    _numbers | st.booleans() | st.text(max_size=5) | st.sampled_from(["NeuronId", "1", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
_sequences = st.fixed_dictionaries(
    {
        "activations": st.lists(_numbers, max_size=6) | _values,
        "tokens": st.lists(st.text(max_size=3), max_size=4) | _values,
    },
    optional={"dataclass_name": st.just("ActivationRecord") | _values, "extra": _values},
)
_ids = st.fixed_dictionaries(
    {"layer_index": st.integers(0, 9) | _values},
    optional={"neuron_index": st.integers(0, 9), "idx": st.integers(0, 9) | _values},
)
_records = st.fixed_dictionaries(
    {"neuron_id": _ids},
    optional={
        "random_sample": st.lists(_sequences, max_size=2),
        "random_sample_by_quantile": st.none() | st.lists(st.lists(_sequences), max_size=2),
        "most_positive_activation_records": st.lists(_sequences, max_size=2) | _values,
        "mean": _numbers | _values,
        "quantile_boundaries": st.none() | st.lists(_numbers, max_size=2),
    },
)


@settings(max_examples=400, deadline=None)
@given(_records)
def test_two_readings_of_a_record_agree(record: Any) -> None:
    TARGETS["records"](json.dumps(record).encode())


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=8))
def test_shapes_of_token_pairs_are_those_that_counting_gives(data: bytes) -> None:
    TARGETS["shapes"](data)


def test_the_seeds_are_part_of_the_corpus() -> None:
    for name in TARGETS:
        kept = {path.read_bytes() for path in Path(seeds.CORPUS / name).iterdir()}
        assert set(getattr(seeds, name)()) & kept
