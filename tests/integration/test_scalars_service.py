"""The derived-scalars service, through a socket, the client and the generated stubs."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml

import neuropil
from neuropil import names
from neuropil.channel import open_channel
from neuropil.common import v1 as common
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_array
from services.scalars.catalogue import CATALOGUE
from tests.integration.scalars_deployment import scalars_service, write_deployment
from tests.load.processes import REPOSITORY
from tests.unit.scalars_checkpoint import CONTEXT, HEADS, LAYERS, NEURONS

PROMPT = "The cat sat on the mat"
DIFFERENCE = neuropil.Loss("logit_diff", [" cat"], [" dog"])
TYPE = names.DERIVED_SCALAR_TYPES.value


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_deployment(tmp_path_factory.mktemp("deployment"))


@pytest.fixture(scope="module")
def address(deployment: Path) -> Iterator[str]:
    with scalars_service(deployment) as found:
        yield found


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[neuropil.Client]:
    with neuropil.connect(scalars=address, timeout=60) as connected:
        yield connected


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[scalars.DerivedScalarsStub]:
    with open_channel(address) as channel:
        yield scalars.DerivedScalarsStub(channel)


def test_the_model_says_what_it_is(client: neuropil.Client) -> None:
    info = client.scalars.model_info()
    assert (info.name, info.family, info.device) == ("tiny", "gpt2", "cpu")
    assert (info.layer_count, info.head_count, info.neuron_count) == (LAYERS, HEADS, NEURONS)
    assert (info.context_size, info.beginning_token) == (CONTEXT, "")


def test_the_catalogue_has_every_type(client: neuropil.Client) -> None:
    types = client.scalars.scalar_types()
    assert [each.name for each in types] == [each.dst.name for each in CATALOGUE]
    assert all(each.available != bool(each.unavailable_reason) for each in types)
    by_name = {each.name: each for each in types}
    norm = by_name["attn_write_norm"]
    assert list(norm.dimensions) == [
        names.DIMENSIONS.value("sequence_token_pairs"),
        names.DIMENSIONS.value("attn_heads"),
    ]
    assert len(norm.pass_types) == 2
    assert by_name["logits"].requirements == [scalars.SCALAR_REQUIREMENT_NO_LAYER]
    latent = by_name["online_autoencoder_latent"]
    assert not latent.available
    assert latent.unavailable_reason


def test_texts_are_encoded(stub: scalars.DerivedScalarsStub) -> None:
    texts = ["", "<|endoftext|>The cat", "naïve 東京 \U0001f600"]
    answer = stub.Tokenize(scalars.TokenizeRequest(texts=texts), timeout=30)
    assert [len(each.token_ids) == len(each.tokens) for each in answer.texts] == [True] * 3
    assert list(answer.texts[0].tokens) == []
    assert answer.texts[1].tokens[0] == "<|endoftext|>"
    assert "\N{REPLACEMENT CHARACTER}" in answer.texts[2].tokens


def test_a_large_answer_comes_whole(client: neuropil.Client) -> None:
    derived = client.scalars.derive(PROMPT, ["mlp_write", "mlp_post_act", "logits"])
    tokens = len(derived.tokens)
    assert derived.loss is None
    assert derived["mlp_write", 2].shape == (tokens, NEURONS, 24)
    assert derived["logits"].shape[0] == tokens
    lengths = np.linalg.norm(derived["mlp_write", 1], axis=2)
    norms = client.scalars.derive(PROMPT, ["mlp_write_norm"], layers=[1])["mlp_write_norm", 1]
    np.testing.assert_allclose(np.abs(norms), lengths, rtol=1e-4, atol=1e-6)


def test_frames_are_about_a_megabyte(stub: scalars.DerivedScalarsStub) -> None:
    request = scalars.DeriveRequest(
        inference=scalars.InferenceSpec(prompt=" cat" * CONTEXT),
        selections=[
            scalars.ScalarSelection(derived_scalar_type=TYPE("mlp_write"), layer_indices=[0]),
            scalars.ScalarSelection(derived_scalar_type=TYPE("attn_write"), layer_indices=[1]),
        ],
    )
    first, *frames = stub.Derive(request, timeout=60)
    assert len(first.inference.tokens) == CONTEXT
    assert all(1 <= len(each.frame.rows.data) <= 1 << 20 for each in frames)
    for number in (0, 1):
        mine = [each.frame for each in frames if each.frame.selection == number]
        shape = list(mine[0].shape)
        assert sum(each.rows.shape[0] for each in mine) == shape[0] == CONTEXT
        rows = [each.first_row for each in mine]
        assert rows == sorted(rows)


def test_slices(client: neuropil.Client, stub: scalars.DerivedScalarsStub) -> None:
    whole = client.scalars.derive(PROMPT, ["attn_qk_probs"], layers=[1])["attn_qk_probs", 1]
    request = scalars.DeriveRequest(
        inference=scalars.InferenceSpec(prompt=PROMPT),
        selections=[
            scalars.ScalarSelection(
                derived_scalar_type=TYPE("attn_qk_probs"),
                layer_indices=[1],
                ranges=[
                    scalars.DimensionRange(dimension=names.DIMENSIONS.value("attn_heads"), start=2),
                    scalars.DimensionRange(
                        dimension=names.DIMENSIONS.value("sequence_tokens"), start=1, stop=3
                    ),
                ],
            )
        ],
    )
    _, frame = stub.Derive(request, timeout=30)
    np.testing.assert_array_equal(to_array(frame.frame.rows), whole[1:3, :, 2:])


def test_one_component_is_a_column_of_the_whole(
    client: neuropil.Client, stub: scalars.DerivedScalarsStub
) -> None:
    for name, index in (("mlp_post_act", 3), ("attn_write_norm", 1)):
        whole = client.scalars.derive(PROMPT, [name], layers=[1])[name, 1]
        answer = stub.DeriveComponent(
            scalars.DeriveComponentRequest(
                inference=scalars.InferenceSpec(prompt=PROMPT),
                spec=scalars.ComponentSpec(
                    component=common.ComponentId(
                        derived_scalar_type=TYPE(name), layer_index=1, component_index=index
                    ),
                    top_token_count=4,
                ),
            ),
            timeout=30,
        )
        np.testing.assert_array_equal(to_array(answer.scalars.activations), whole[:, index])
        table = answer.scalars.nodes
        assert list(table.tensor_indices[:6]) == [0, index, -1, 1, index, -1]
        assert set(table.layer_indices) == {1}
        top, bottom = answer.scalars.top_tokens.top, answer.scalars.top_tokens.bottom
        assert (len(top), len(bottom)) == (4, 4)
        assert max(abs(each.normalized_scalar) for each in (*top, *bottom)) == pytest.approx(1)
        assert " the" not in [each.token for each in (*top, *bottom)]


def test_token_pairs_are_summed_up(stub: scalars.DerivedScalarsStub) -> None:
    answer = stub.DeriveComponentByTokenPair(
        scalars.DeriveComponentByTokenPairRequest(
            inference=scalars.InferenceSpec(prompt=PROMPT),
            spec=scalars.ComponentByTokenPairSpec(
                component=common.ComponentId(
                    derived_scalar_type=TYPE("attn_qk_probs"), layer_index=0, component_index=1
                )
            ),
        ),
        timeout=30,
    )
    pairs = answer.scalars
    tokens = len(answer.inference.tokens)
    assert list(pairs.sequence_lengths) == list(pairs.attended_to_caps) == [tokens]
    assert len(to_array(pairs.activations)) == tokens * (tokens + 1) // 2
    np.testing.assert_allclose(to_array(pairs.total_in.values), np.ones(tokens), rtol=1e-5)
    assert to_array(pairs.normalized_activations).max() == pytest.approx(1)


def test_top_nodes_agree_with_whole_tensors(client: neuropil.Client) -> None:
    whole = client.scalars.derive(PROMPT, ["mlp_act_times_grad"], loss=DIFFERENCE)
    nodes = client.scalars.top_nodes(
        PROMPT,
        {"act_times_grad": ["mlp_act_times_grad"], "activation": ["mlp_post_act"]},
        count=5,
        loss=DIFFERENCE,
    )
    values = np.concatenate([whole["mlp_act_times_grad", n].ravel() for n in range(LAYERS)])
    ordered = np.sort(values)[::-1]
    listed = [each.values["act_times_grad"] for each in nodes[:10]]
    np.testing.assert_array_equal(np.float32(listed), np.r_[ordered[:5], ordered[-5:]])
    for each in nodes:
        here = whole["mlp_act_times_grad", each.layer_index][each.indices]
        assert here == np.float32(each.values["act_times_grad"])


def test_top_nodes_of_the_vocabulary_have_their_text(stub: scalars.DerivedScalarsStub) -> None:
    answer = stub.ListTopNodes(
        scalars.ListTopNodesRequest(
            inference=scalars.InferenceSpec(prompt=PROMPT),
            spec=scalars.TopNodesSpec(
                groups=[
                    scalars.ScalarGroup(
                        group_id=scalars.GROUP_ID_LOGITS, derived_scalar_types=[TYPE("logits")]
                    )
                ],
                token_index=-1,
                top_and_bottom_count=3,
                exclude_bottom=True,
            ),
        ),
        timeout=30,
    ).top_nodes
    assert len(answer.vocabulary_tokens) == 3
    assert set(answer.nodes.layer_indices) == {-1}
    (total,) = answer.sums
    assert total.derived_scalar_type == TYPE("logits")
    assert to_array(total.values).ndim == 1


def test_gradients_flow_and_ablations_stop_them(client: neuropil.Client) -> None:
    plain = client.scalars.derive(
        PROMPT, ["resid_post_attn"], loss=DIFFERENCE, pass_type="backward"
    )
    assert plain.loss is not None
    stopped = client.scalars.derive(
        PROMPT,
        ["resid_post_attn"],
        loss=DIFFERENCE,
        pass_type="backward",
        ablations=[
            neuropil.Ablation("resid.post_mlp", LAYERS - 1, [None, None], 0.0, "backward"),
        ],
    )
    assert np.abs(plain["resid_post_attn", 0]).max() > 0
    assert np.abs(stopped["resid_post_attn", 0]).max() == 0


def test_a_passed_deadline_leaves_the_service_well(stub: scalars.DerivedScalarsStub) -> None:
    request = scalars.DeriveRequest(
        inference=scalars.InferenceSpec(prompt=" cat" * CONTEXT),
        selections=[scalars.ScalarSelection(derived_scalar_type=TYPE("attn_write"))],
    )
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Derive(request, timeout=0.001))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    first, *frames = stub.Derive(request, timeout=60)
    assert first.HasField("inference")
    assert {each.frame.layer_index for each in frames} == set(range(LAYERS))


def test_many_callers_get_their_own_answers(client: neuropil.Client) -> None:
    prompts = [f"The cat sat on {number} mats" for number in range(24)]
    alone = [client.scalars.derive(prompt, ["resid_post_mlp"]) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(
            pool.map(lambda prompt: client.scalars.derive(prompt, ["resid_post_mlp"]), prompts)
        )
    for one, other in zip(alone, together, strict=True):
        assert one.token_ids == other.token_ids
        np.testing.assert_array_equal(
            one["resid_post_mlp", LAYERS - 1], other["resid_post_mlp", LAYERS - 1]
        )


def start(config: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "services.scalars"),
            *("--config", str(config), "--port", "0", "--metrics-port", "0"),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_ends_cleanly_when_told_to(deployment: Path) -> None:
    process = start(deployment)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("serving scalars 127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    process.communicate()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (None, "scalars: model"),
        ({"name": "x", "path": "nowhere"}, "scalars: model.path"),
        ({"name": "x", "path": "half"}, "scalars: model.path"),
        ({"name": "x", "path": "model", "device": "cuda:97"}, "scalars: model.device"),
        ({"name": "x", "path": "model", "excluded_tokens": "bad.json"}, "model.excluded_tokens"),
        (
            {"name": "x", "path": "model", "autoencoders": [{"name": "a", "path": "bad.json"}]},
            "model.autoencoders[0].path",
        ),
    ],
)
def test_a_deployment_that_can_not_be_served_ends_with_a_line(
    deployment: Path, model: dict[str, Any] | None, words: str
) -> None:
    folder = deployment.parent
    (folder / "half").mkdir(exist_ok=True)
    (folder / "half" / "config.json").write_text("{")
    (folder / "bad.json").write_text("[1")
    path = folder / "wrong.yaml"
    path.write_text(yaml.safe_dump({} if model is None else {"model": model}))
    process = start(path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert words in errors
    assert "Traceback" not in errors
