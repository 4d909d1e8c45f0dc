"""Records of the sizes that the field's public datasets have, made of noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from shared.formats.encoding import encode, write_atomically
from shared.formats.records import ActivationRecord, NeuronId, NeuronRecord

SEQUENCES, TOKENS = 20, 64

WORDS = [f" word{number}" for number in range(500)] + [" naïve", "\n", "東", '"']


def write_datasets(folder: Path, *, neurons: int, heads: int) -> Path:
    """Write both kinds of dataset, 20 top and 20 random sequences of 64 tokens a component.

    Gives the path of a deployment that serves them.
    """
    random = np.random.default_rng(0)
    for name, count, values in (
        ("neurons", neurons, TOKENS),
        ("heads", heads, TOKENS * (TOKENS + 1) // 2),
    ):
        for index in range(count):
            path = folder / name / "0" / f"{index}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, encode(_record(random, index, values), significant_digits=6))
    deployment = {
        "datasets": [
            {
                "short_name": "bench",
                "derived_scalar_type": scalar_type,
                "user_visible_name": name,
                "neuron_dataset_path": str(folder / name),
            }
            for name, scalar_type in (("neurons", "mlp_post_act"), ("heads", "attn_write_norm"))
        ]
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(deployment))
    return path


def _record(random: np.random.Generator, index: int, values: int) -> NeuronRecord:
    def sequences() -> list[ActivationRecord]:
        return [
            ActivationRecord(
                activations=(random.standard_normal(values) ** 3).tolist(),
                tokens=random.choice(WORDS, TOKENS).tolist(),
            )
            for _ in range(SEQUENCES)
        ]

    return NeuronRecord(
        neuron_id=NeuronId(neuron_index=index, layer_index=0),
        random_sample=sequences(),
        most_positive_activation_records=sequences(),
    )
