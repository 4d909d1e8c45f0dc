"""Traces, edges and read directions against the reference's tensors, at the derivers' level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from services.scalars.autoencoders import AutoencoderSet
from services.scalars.autoencoders.loading import load_autoencoders
from services.scalars.catalogue import CATALOGUE, Derivers
from services.scalars.convert.requests import activation_index, inference_spec, node_index
from services.scalars.deriving.config import DstConfig
from services.scalars.model.blocks import AttentionPart
from services.scalars.model.locations import PassType
from services.scalars.model.subject import Subject, load_subject
from services.scalars.passes.inference import Row, prepare_inference, run_rows
from services.scalars.passes.nodes import resolve_node
from shared.settings import Autoencoder
from tests.golden import scalars_requests
from tests.golden.scalars_manifest import Run, disagreement
from tests.golden.scalars_manifest import runs as right_runs

pytestmark = pytest.mark.golden

PREFIXES = ("loss_", "trace_", "edge_", "vocab_write_", "ablate_")


@pytest.fixture(scope="module")
def subject(golden: Path) -> Subject:
    return load_subject("golden", str(golden / "model"), "cpu")


def autoencoders_of(config: dict[str, Any], golden: Path, subject: Subject) -> AutoencoderSet:
    files = scalars_requests.autoencoder_files(config)
    return load_autoencoders(
        [
            Autoencoder(name=name, path=str(golden / "model" / f"{name}.safetensors"))
            for name in files
        ],
        subject.model,
        subject.tokenizer,
    )


def runs(manifest: dict[str, Any]) -> Iterator[Run]:
    return (each for each in right_runs(manifest) if each[0].startswith(PREFIXES))


def derivation(
    config: dict[str, Any], subject: Subject, autoencoders: AutoencoderSet, n_tokens: int
) -> dict[str, Any]:
    """What a configuration sets of `DstConfig` beside its inference."""
    given = config["dst_config"]
    fields: dict[str, Any] = {
        "detach_layer_norm_scale": given.get("detach_layer_norm_scale_for_attribution", False)
    }
    node = given.get("node_index_for_attribution")
    if node is not None:
        fields["node_index"] = resolve_node(
            node_index(scalars_requests.node_index(node)),
            subject.model.shape,
            autoencoders,
            n_tokens,
            "node_index",
        )
        part = node.get("q_k_or_v")
        fields["attention_part"] = None if part is None else AttentionPart(part[-1])
    activation = given.get("activation_index_for_fake_grad")
    if activation is not None:
        fields["activation_index"] = activation_index(scalars_requests.activation_index(activation))
    return fields


def test_every_golden_tensor(
    manifest: dict[str, Any], stored: dict[str, NDArray[Any]], subject: Subject, golden: Path
) -> None:
    compared, wrong = 0, []
    for config_name, prompt, entries in runs(manifest):
        config = manifest["configs"][config_name]
        autoencoders = autoencoders_of(config, golden, subject)
        message = scalars_requests.inference(config, manifest["prompts"][prompt]["prompt"])
        prepared = prepare_inference(
            inference_spec(message), subject.model, subject.tokenizer, "inference", autoencoders
        )
        derivers = Derivers(
            CATALOGUE,
            DstConfig(
                subject.model,
                derive_gradients=True,
                autoencoders=autoencoders,
                trace=prepared.trace,
                has_loss=prepared.loss is not None,
                **derivation(config, subject, autoencoders, len(prepared.tokens)),
            ),
        )
        wanted = {
            key: layers or [None] for key, layers in scalars_requests.selected(entries).items()
        }
        captures = frozenset().union(
            *(
                derivers[dst].raw_tensors(PassType(pass_type), layers)
                for (dst, pass_type), layers in wanted.items()
            )
        )
        (result,) = run_rows(subject.model, [Row(prepared, captures, lambda: None)], autoencoders)
        for entry in entries:
            layers = wanted[entry["dst"], entry["pass_type"]]
            derived = derivers[entry["dst"]].derive_from_raw(
                result.raw_store, PassType(entry["pass_type"]), layers
            )
            full = derived.activations_by_layer_index[entry["layer"]].numpy()
            reason = disagreement(entry, stored[entry["key"]], full)
            compared += 1
            if reason:
                wrong.append(f"{entry['key']}: {reason}")
    assert not wrong, f"{len(wrong)} of {compared} disagree:\n" + "\n".join(wrong[:40])
    assert compared >= 1694
