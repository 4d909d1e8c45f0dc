"""All golden tensors of derived scalars through the service, on servers with their autoencoders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from neuropil.channel import open_channel
from neuropil.errors import NeuropilError, translated
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_array
from tests.golden.scalars_manifest import disagreement, runs
from tests.golden.scalars_requests import (
    ablation,
    autoencoder_files,
    derive_request,
    selected,
    write_deployment,
)
from tests.load.processes import server

pytestmark = pytest.mark.golden

CONFIGURATIONS = {
    "loss_logit_diff": 714,
    "loss_logit_diff_detach_lnf": 50,
    "loss_logit_minus_mean": 13,
    "loss_probs": 13,
    "loss_zero": 13,
    "trace_mlp_post": 129,
    "trace_mlp_post_nodetach": 43,
    "trace_mlp_pre": 43,
    "trace_attn_pre_QK": 43,
    "trace_attn_post_QK": 43,
    "trace_attn_pre_Q": 43,
    "trace_attn_post_Q": 43,
    "trace_attn_pre_K": 43,
    "trace_attn_post_K": 43,
    "trace_attn_V_loss": 9,
    "trace_attn_V_downstream_mlp": 9,
    "ablate_mlp_and_attn": 17,
    "ae_mlp_post_act": 216,
    "ae_resid_delta_mlp": 60,
    "ae_resid_delta_attn": 60,
    "ae_mlp_post_act_topk": 72,
    "ae_multi_resid_mlp_attn": 64,
    "ae_multi_postact_attn": 76,
    "trace_ae_mlp_post_act_pre": 18,
    "trace_ae_mlp_post_act_post": 18,
    "trace_ae_resid_delta_mlp_pre": 18,
    "trace_ae_resid_delta_mlp_post": 18,
    "trace_ae_resid_delta_attn_pre": 18,
    "trace_ae_resid_delta_attn_post": 18,
    "trace_ae_multi_mlp_pre": 18,
    "trace_ae_multi_mlp_post": 18,
    "latent_grad_mlp_post_act_L1": 2,
    "latent_grad_resid_delta_mlp_L1": 4,
    "latent_grad_resid_delta_attn_L0": 7,
    "latent_grad_resid_delta_attn_L1": 14,
    "latent_batched_resid_delta_attn_L1": 2,
    "vocab_write_mlp": 1,
    "vocab_write_ae_postact": 1,
    "vocab_write_ae_resid_mlp": 1,
    "edge_in_from_attn": 76,
    "edge_in_from_attn_detach": 38,
    "edge_in_from_mlp": 52,
    "edge_in_from_latent": 52,
    "edge_out_to_attn_query": 14,
    "edge_out_to_attn_key": 14,
    "edge_out_to_attn_value": 14,
    "edge_out_to_mlp": 52,
    "edge_out_to_latent": 52,
}
"""Number of tensors that are compared, by configuration of the manifest."""

OFFLINE = {
    "autoencoder_latent",
    "autoencoder_write_norm",
    "mlp_autoencoder_latent",
    "mlp_autoencoder_write_norm",
}
"""Of these the reference leaves out the MLP's output bias, where an autoencoder reads that output.

Here they are what the online ones are; the reference's values are held against the deriver without
the bias in test_scalars_autoencoders_golden.
"""

Tensors = dict[tuple[str, str, int | None], NDArray[Any]]
"""By scalar type, pass type and layer."""
Serve = Callable[[Sequence[str]], scalars.DerivedScalarsStub]
"""A server of the golden model with some autoencoders."""


@pytest.fixture(scope="module")
def serve(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Starts a server for each set of autoencoders once."""
    running: dict[tuple[str, ...], scalars.DerivedScalarsStub] = {}
    with ExitStack() as stack:

        def serve(autoencoders: Sequence[str]) -> scalars.DerivedScalarsStub:
            key = tuple(autoencoders)
            if key not in running:
                path = tmp_path_factory.mktemp("deployment") / "deployment.yaml"
                write_deployment(path, golden, key)
                arguments = ("--config", str(path), "--port", "0", "--metrics-port", "0")
                address, _ = stack.enter_context(server("services.scalars", *arguments))
                channel = stack.enter_context(open_channel(address))
                running[key] = scalars.DerivedScalarsStub(channel)
            return running[key]

        yield serve


def derived(
    stub: scalars.DerivedScalarsStub,
    request: scalars.DeriveRequest,
    keys: Sequence[tuple[str, str]],
) -> tuple[scalars.InferenceResult, Tensors]:
    """The answer, its tensors by the scalar and pass types that the selections stand for."""
    result = scalars.InferenceResult()
    tensors: Tensors = {}
    with translated():
        for response in stub.Derive(request, timeout=120):
            if response.HasField("inference"):
                result = response.inference
                continue
            frame = response.frame
            layer = frame.layer_index if frame.HasField("layer_index") else None
            rows = to_array(frame.rows)
            whole = tensors.setdefault(
                (*keys[frame.selection], layer), np.full(tuple(frame.shape), np.nan, rows.dtype)
            )
            whole[frame.first_row : frame.first_row + len(rows)] = rows
    return result, tensors


def test_no_configuration_and_no_tensor_is_left_out(manifest: dict[str, Any]) -> None:
    right = [entry for entry in manifest["entries"] if "peer_bug" not in entry]
    assert Counter(entry["config"] for entry in right) == CONFIGURATIONS
    assert set(CONFIGURATIONS) == set(manifest["configs"])
    assert len(manifest["entries"]) == 2426
    assert len(right) == 2426 - 27


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_tensors_are_those_of_the_reference(
    name: str, manifest: dict[str, Any], stored: dict[str, NDArray[Any]], serve: Serve
) -> None:
    config = manifest["configs"][name]
    stub = serve(autoencoder_files(config))
    compared, wrong = 0, []
    for config_name, number, entries in runs(manifest):
        if config_name != name:
            continue
        prompt = manifest["prompts"][number]
        result, tensors = derived(
            stub, derive_request(config, prompt["prompt"], entries), list(selected(entries))
        )
        assert list(result.token_ids) == prompt["tokens"]
        for entry in entries:
            dst, way, layer = entry["dst"], entry["pass_type"], entry["layer"]
            full = tensors[dst, way, layer]
            compared += 1
            if dst in OFFLINE and "resid_delta_mlp" in (config["autoencoders"] or {}).values():
                online = tensors[f"online_{dst}", way, layer]
                np.testing.assert_allclose(full, online, atol=1e-5 * np.abs(online).max())
                continue
            reason = disagreement(entry, stored[entry["key"]], full)
            if reason:
                wrong.append(f"{entry['key']}: {reason}")
    assert not wrong, f"{len(wrong)} of {compared} disagree:\n" + "\n".join(wrong[:20])
    assert compared == CONFIGURATIONS[name]


def test_gradients_that_are_wrong_in_the_reference_are_those_of_finite_differences(
    manifest: dict[str, Any], serve: Serve
) -> None:
    wrong = [entry for entry in manifest["entries"] if "peer_bug" in entry]
    by_token_pair = {"flattened_attn_post_softmax", "attn_write_norm"}
    assert {entry["dst"] for entry in wrong} == by_token_pair | {"always_one"}
    assert {(entry["config"], entry["pass_type"]) for entry in wrong} == {
        ("loss_logit_diff", "backward")
    }
    config, stub = manifest["configs"]["loss_logit_diff"], serve(())
    layers = sorted({entry["layer"] for entry in wrong if entry["dst"] in by_token_pair})
    random = np.random.default_rng(0)
    keys = [(dst, way) for dst in sorted(by_token_pair) for way in ("forward", "backward")]
    for number in sorted({entry["prompt"] for entry in wrong}):
        prompt = manifest["prompts"][number]["prompt"]
        entries = [
            {"dst": dst, "pass_type": way, "layer": layer} for dst, way in keys for layer in layers
        ]
        result, tensors = derived(stub, derive_request(config, prompt, entries), keys)
        for layer in layers:
            probs = tensors["flattened_attn_post_softmax", "forward", layer]
            gradient = tensors["flattened_attn_post_softmax", "backward", layer]
            by_norm = tensors["attn_write_norm", "backward", layer]
            norms = tensors["attn_write_norm", "forward", layer]
            for _ in range(4):
                query = int(random.integers(len(result.token_ids)))
                key, head = int(random.integers(query + 1)), int(random.integers(probs.shape[1]))
                pair = query * (query + 1) // 2 + key
                step = 0.05
                around = []
                for sign in (-1, 1):
                    moved = derive_request(config, prompt, entries[:1])
                    index = {
                        "activation_location_type": "attn.qk_probs",
                        "layer_index": layer,
                        "tensor_indices": [query, key, head],
                        "pass_type": "forward",
                    }
                    value = float(probs[pair, head]) + sign * step
                    moved.inference.ablations.append(ablation({"index": index, "value": value}))
                    around.append(derived(stub, moved, keys[:1])[0].loss)
                slope = (around[1] - around[0]) / (2 * step)
                close = 0.02 * float(np.abs(gradient).max())
                assert gradient[pair, head] == pytest.approx(slope, abs=close)
                # A larger write norm at the same values is a larger probability.
                norm = norms[pair, head] / probs[pair, head]
                assert by_norm[pair, head] * norm == pytest.approx(slope, abs=close)


def test_what_has_no_backward_pass_says_what_has_one(
    manifest: dict[str, Any], serve: Serve
) -> None:
    config = manifest["configs"]["loss_logit_diff"]
    entry = {"dst": "always_one", "pass_type": "backward", "layer": None}
    with pytest.raises(NeuropilError, match="attn_write_norm") as refused:
        derived(serve(()), derive_request(config, "The cat", [entry]), [("always_one", "backward")])
    assert refused.value.code == "INVALID_ARGUMENT"
