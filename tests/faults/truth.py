"""What the files say, read by plain Python: a healthy service's answers are compared with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from neuropil.names import component_id
from neuropil.records import v1
from neuropil.tensors import to_array
from tests.faults.mix import HEADS, Ask


class Truth:
    """The files of a dataset; every dataset of the mix holds the same ones."""

    def __init__(self, folder: Path, roots: Mapping[str, str]) -> None:
        self._folder = folder
        self._roots = roots

    def check(self, ask: Ask, answered: Sequence[Any]) -> None:
        """AssertionError where an answer is not what the files say."""
        match ask.kind:
            case "token record":
                self._check_record(ask, "mlp", answered[0])
            case "pair record":
                self._check_record(ask, "attn", answered[0])
            case "batch":
                indices = [each.component_index for each in ask.request.components]
                assert [each.position for each in answered] == list(range(len(indices))), ask
                for item, index in zip(answered, indices, strict=True):
                    assert item.token_record.component.component_index == index, ask
                    self._check_record(ask, "mlp", item.token_record)
            case "explanations":
                index = ask.request.component.component_index
                stored = self._json(f"explanations/0/{index}.jsonl")["scored_explanations"]
                found = [each.text for each in answered[0].explanations]
                assert found == [each["explanation"] for each in stored], ask
            case "list":
                self._check_list(ask, answered[0])

    def _check_record(self, ask: Ask, kind: str, answered: Any) -> None:
        """The dataset that was asked for first, and every token and activation of the file."""
        assert answered.dataset == f"{self._roots[ask.source]}/records/{kind}", ask
        stored = self._json(f"records/{kind}/0/{answered.component.component_index}.json")
        parts = (
            ("most_positive_activation_records", answered.top_sequences),
            ("random_sample", answered.random_sequences),
        )
        for name, sent in parts:
            tokens = [token for each in stored[name] for token in each["tokens"]]
            values = [value for each in stored[name] for value in each["activations"]]
            assert list(sent.tokens) == tokens, ask
            assert list(sent.sequence_lengths) == [len(each["tokens"]) for each in stored[name]]
            got = to_array(sent.activations)
            np.testing.assert_array_equal(got, np.array(values, float).astype(got.dtype))

    def _check_list(self, ask: Ask, answered: Any) -> None:
        kind = "attn" if ask.request.dataset.derived_scalar_type == _HEADS else "mlp"
        if isinstance(answered, v1.ListLayersResponse):
            assert list(answered.layer_indices) == [0], ask
            return
        files = self._folder / "records" / kind / "0"
        indices = sorted(int(path.stem) for path in files.iterdir())
        assert list(answered.component_indices) == indices[:50], ask

    def _json(self, name: str) -> Any:
        return json.loads((self._folder / name).read_text())


_HEADS = component_id(HEADS, 0, 0).derived_scalar_type
