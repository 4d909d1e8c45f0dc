"""The derived-scalars service on the Llama family, through a socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from numpy.typing import NDArray

from neuropil import names
from neuropil.channel import open_channel
from neuropil.common import v1 as common
from neuropil.errors import NeuropilError, translated
from neuropil.scalars import v1 as scalars
from neuropil.tensors import to_array
from services.scalars.catalogue import CATALOGUE, Declaration, Requirement
from services.scalars.catalogue.declaration import NodeRole
from services.scalars.model.locations import Dimension, NodeType
from tests.integration.scalars_deployment import scalars_service
from tests.unit.scalars_autoencoders import latents_by_definition, random_tensors, write_own_layout
from tests.unit.scalars_llama_checkpoint import (
    CONTEXT,
    GROUPS,
    HEADS,
    LAYERS,
    NEURONS,
    VARIANTS,
    WIDTH,
    byte_level_tokenizer,
    make_config,
    make_weights,
    metaspace_tokenizer,
    write_llama_checkpoint,
)

PROMPT = "The cat sat on the mat, and the dog"
TYPE = names.DERIVED_SCALAR_TYPES.value
LOSS = scalars.LossFunction(
    kind=names.LOSS_KINDS.value("logit_diff"), target_tokens=[" cat"], distractor_tokens=[" the"]
)
Stub = scalars.DerivedScalarsStub
Array = NDArray[np.float32]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and deployments of them."""
    folder = tmp_path_factory.mktemp("deployment")
    write_llama_checkpoint(
        folder / "llama3", "llama 3, wide heads", config={"num_key_value_heads": GROUPS}
    )
    write_llama_checkpoint(folder / "llama2", tokenizer=metaspace_tokenizer())
    write_llama_checkpoint(folder / "qwen3", "qwen3", dtype=torch.bfloat16)
    neurons = {layer: random_tensors(NEURONS, 9, layer) for layer in range(LAYERS)}
    write_own_layout(folder / "neurons.safetensors", "mlp_post_act", neurons)
    heads = {layer: random_tensors(WIDTH, 8, layer) for layer in range(LAYERS)}
    write_own_layout(folder / "heads.safetensors", "resid_delta_attn", heads)
    output = {layer: random_tensors(WIDTH, 7, layer) for layer in range(LAYERS)}
    write_own_layout(folder / "output.safetensors", "resid_delta_mlp", output)
    for name, path, changes in (
        ("llama3", "llama3", {}),
        ("bfloat16", "llama3", {"dtype": "bfloat16"}),
        ("llama2", "llama2", {}),
        ("qwen3", "qwen3", {}),
        ("both", "llama3", {"autoencoders": ["neurons", "heads"]}),
        ("neurons", "llama3", {"autoencoders": ["neurons"]}),
        ("heads", "llama3", {"autoencoders": ["heads"]}),
        ("output", "llama3", {"autoencoders": ["output"]}),
    ):
        model: dict[str, Any] = {"name": name, "path": path, "device": "cpu", **changes}
        model["autoencoders"] = [
            {"name": each, "path": f"{each}.safetensors"}
            for each in changes.get("autoencoders", ())
        ]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"model": model}))
    return folder


class Servers:
    """Stubs on servers, each started once it is asked for."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._stubs: dict[str, Stub] = {}

    def __getitem__(self, name: str) -> Stub:
        if name not in self._stubs:
            address = self._stack.enter_context(scalars_service(self._folder / f"{name}.yaml"))
            self._stubs[name] = Stub(self._stack.enter_context(open_channel(address)))
        return self._stubs[name]


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(folder, stack)


def derive(
    stub: Stub, selections: list[scalars.ScalarSelection], **inference: Any
) -> tuple[scalars.InferenceResult, list[dict[int, Array]]]:
    """Tensors of each selection by layer; -1 where it has none."""
    request = scalars.DeriveRequest(
        inference=scalars.InferenceSpec(**{"prompt": PROMPT, **inference}), selections=selections
    )
    first, *rest = stub.Derive(request, timeout=60)
    found: list[dict[int, list[Array]]] = [{} for _ in selections]
    for each in rest:
        frame = each.frame
        layer = frame.layer_index if frame.HasField("layer_index") else -1
        found[frame.selection].setdefault(layer, []).append(to_array(frame.rows))
    return first.inference, [
        {layer: np.concatenate(rows) for layer, rows in by_layer.items()} for by_layer in found
    ]


def whole(name: str, **settings: Any) -> scalars.ScalarSelection:
    return scalars.ScalarSelection(derived_scalar_type=TYPE(name), **settings)


def test_the_model_says_what_it_is(servers: Servers) -> None:
    for name, family, beginning in (
        ("llama3", "llama", "<|endoftext|>"),
        ("llama2", "llama", "<s>"),
        ("qwen3", "qwen3", "<|endoftext|>"),
    ):
        info = servers[name].GetModelInfo(scalars.GetModelInfoRequest(), timeout=30)
        assert (info.family, info.beginning_token) == (family, beginning)
        assert (info.layer_count, info.head_count, info.neuron_count) == (LAYERS, HEADS, NEURONS)
        assert info.context_size == CONTEXT


def test_the_beginning_token_is_put_on_request(servers: Servers) -> None:
    for name, token in (("llama3", "<|endoftext|>"), ("llama2", "<s>")):
        plain, _ = derive(servers[name], [whole("resid_post_embedding")])
        begun, (x,) = derive(
            servers[name], [whole("resid_post_embedding")], prepend_beginning_token=True
        )
        assert begun.tokens[0] == token
        assert list(begun.token_ids[1:]) == list(plain.token_ids)
        assert len(x[-1]) == len(begun.token_ids)
    written, _ = derive(servers["llama3"], [whole("logits")], prompt="<|endoftext|>" + PROMPT)
    begun, _ = derive(servers["llama3"], [whole("logits")], prepend_beginning_token=True)
    assert list(written.token_ids) == list(begun.token_ids)
    with pytest.raises(NeuropilError) as caught, translated():
        derive(
            servers["llama3"],
            [whole("logits")],
            prompt=" cat" * CONTEXT,
            prepend_beginning_token=True,
        )
    assert (caught.value.code, caught.value.field) == ("INVALID_ARGUMENT", "inference.prompt")
    assert f"{CONTEXT + 1} tokens" in caught.value.message


def test_tokens_in_sentencepiece_s_manner(servers: Servers) -> None:
    answer, _ = derive(servers["llama2"], [whole("resid_post_embedding")])
    assert "".join(answer.tokens) == f" {PROMPT}"
    # What an answer calls a token names it in a loss.
    answer, (effects,) = derive(
        servers["llama2"], [whole("mlp_write_to_final_residual_grad")], loss=LOSS
    )
    assert answer.HasField("loss")
    assert effects[0].any()


@pytest.mark.parametrize("name", ["llama3", "llama2", "qwen3"])
def test_logits_are_those_of_transformers(servers: Servers, folder: Path, name: str) -> None:
    answer, (found,) = derive(servers[name], [whole("logits")])
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder / name, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        wanted = reference(torch.tensor([list(answer.token_ids)])).logits[0].numpy()
    np.testing.assert_allclose(found[-1], wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())


def test_bfloat16_is_close_and_answers_float32(servers: Servers) -> None:
    wanted = [whole(name) for name in ("logits", "mlp_act_times_grad", "attn_write_norm")]
    _, exact = derive(servers["llama3"], wanted, loss=LOSS)
    _, rough = derive(servers["bfloat16"], wanted, loss=LOSS)
    for one, other in zip(exact, rough, strict=True):
        for layer, array in one.items():
            assert other[layer].dtype == np.float32
            difference = np.linalg.norm(other[layer] - array)
            assert 0 < difference < 0.05 * np.linalg.norm(array)


def shape_of(declaration: Declaration, n_tokens: int) -> tuple[int | None, ...]:
    """A type's shape; None where it is neither of the prompt nor of the model."""
    sizes = {
        Dimension.SEQUENCE_TOKENS: n_tokens,
        Dimension.ATTENDED_TO_SEQUENCE_TOKENS: n_tokens,
        Dimension.SEQUENCE_TOKEN_PAIRS: n_tokens * (n_tokens + 1) // 2,
        Dimension.RESIDUAL_STREAM_CHANNELS: WIDTH,
        Dimension.ATTN_HEADS: HEADS,
        Dimension.QUERY_AND_KEY_CHANNELS: 8,
        Dimension.VALUE_CHANNELS: 8,
        Dimension.MLP_ACTS: NEURONS,
        Dimension.SINGLETON: 1,
    }
    return tuple(sizes.get(each) for each in declaration.dst.dimensions)


def indices(*values: int) -> list[common.DimensionIndex]:
    return [common.DimensionIndex(index=value) for value in values]


NODES = {
    role: common.NodeIndex(
        node_type=names.NODE_TYPES.value(NodeType.MLP_NEURON),
        layer_index=layer,
        tensor_indices=indices(10, 7),
    )
    for role, layer in ((NodeRole.UPSTREAM, 0), (NodeRole.DOWNSTREAM, 1))
}
TRACE = scalars.Trace(
    node_index=common.NodeIndex(
        node_type=names.NODE_TYPES.value(NodeType.ATTENTION_HEAD),
        layer_index=2,
        tensor_indices=indices(7, 3, 1),
    ),
    attention_trace_type=scalars.ATTENTION_TRACE_TYPE_QK,
)
ACTIVATION = common.ActivationIndex(
    location_type=names.ACTIVATION_LOCATION_TYPES.value("mlp.pre_act"),
    layer_index=1,
    tensor_indices=indices(6, 7),
)


def settings(declaration: Declaration) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the inference and the selection of a type need."""
    needs = declaration.requirements
    inference: dict[str, Any] = {}
    selection: dict[str, Any] = {}
    if Requirement.TRACE in needs:
        inference["trace"] = TRACE
    elif Requirement.GRADIENT in needs:
        inference["loss"] = LOSS
    if declaration.node_role is not None:
        selection["node_index"] = NODES[declaration.node_role]
    if Requirement.ACTIVATION_INDEX in needs:
        selection["activation_index"] = ACTIVATION
    if Requirement.WITHIN_LAYER_LATENT in needs:
        location = "online_autoencoder_latent"
        inference["within_layer_gradient_index"] = common.ActivationIndex(
            location_type=names.ACTIVATION_LOCATION_TYPES.value(location),
            layer_index=1,
            tensor_indices=[common.DimensionIndex(), common.DimensionIndex(index=2)],
        )
    return inference, selection


def test_every_type_can_be_derived(servers: Servers) -> None:
    order = ("llama3", "neurons", "heads", "output")
    available = {
        name: {
            each.name
            for each in servers[name]
            .ListScalarTypes(scalars.ListScalarTypesRequest(), timeout=30)
            .scalar_types
            if each.available
        }
        for name in order
    }
    # Of the model alone nothing lacks a meaning in this family.
    without = [
        each
        for each in CATALOGUE
        if not any("AUTOENCODER" in needed.name for needed in each.requirements)
    ]
    assert available["llama3"] == {each.dst.name for each in without}
    assert len(without) >= 60
    for each in CATALOGUE:
        server = next(name for name in order if each.dst.name in available[name])
        inference, selection = settings(each)
        answer, (found,) = derive(servers[server], [whole(each.dst.name, **selection)], **inference)
        assert found, each.dst.name
        for layer, array in found.items():
            expected = shape_of(each, len(answer.token_ids))
            assert len(array.shape) == len(expected)
            for got, size in zip(array.shape, expected, strict=True):
                assert size in (None, got), (each.dst.name, layer)
            if each.dst.name != "attn_qk_logits":
                assert np.isfinite(array).all(), (each.dst.name, layer)
        assert any(np.nan_to_num(array, neginf=0).any() for array in found.values()), each.dst.name


def test_latents_of_a_gated_mlp(servers: Servers) -> None:
    """Latents read what the output weights read: gate times the other factor."""
    names_ = ["mlp_post_act", "online_autoencoder_latent", "autoencoder_latent"]
    names_ += ["online_autoencoder_write_norm", "online_autoencoder_write_to_final_residual_grad"]
    wanted = [whole(name) for name in names_]
    wanted.append(whole("resid_post_mlp", pass_type=common.PASS_TYPE_BACKWARD))
    _, found = derive(servers["neurons"], wanted, loss=LOSS)
    config = make_config(0, **VARIANTS["llama 3, wide heads"])
    vocabulary = byte_level_tokenizer().get_vocab_size() + 3
    weights = make_weights({**config, "num_key_value_heads": GROUPS, "vocab_size": vocabulary})
    gradient = found[5][LAYERS - 1]
    for layer in range(LAYERS):
        tensors = random_tensors(NEURONS, 9, layer)
        latents = latents_by_definition(
            torch.from_numpy(found[0][layer].copy()), tensors, "relu"
        ).numpy()
        written = (
            tensors["decoder.weight"].T.double()
            @ weights[f"model.layers.{layer}.mlp.down_proj.weight"].T.double()
        ).numpy()
        for got, expected in (
            (found[1], latents),
            (found[2], latents),
            (found[3], latents * np.linalg.norm(written, axis=1)),
            (found[4], latents * (gradient @ written.T)),
        ):
            scale = np.abs(expected).max()
            assert scale > 0
            np.testing.assert_allclose(got[layer], expected, rtol=0, atol=1e-4 * scale)


def test_a_page_of_the_debugger(servers: Servers) -> None:
    """Nodes, the tokens that they promote and that drive them, and what they attend to."""
    stub = servers["both"]
    groups = [
        (scalars.GROUP_ID_WRITE_NORM, ("mlp_write_norm", "unflattened_attn_write_norm")),
        (
            scalars.GROUP_ID_ACT_TIMES_GRAD,
            ("mlp_act_times_grad", "unflattened_attn_act_times_grad"),
        ),
    ]
    nodes = scalars.TopNodesSpec(
        groups=[
            scalars.ScalarGroup(group_id=group, derived_scalar_types=[TYPE(each) for each in types])
            for group, types in groups
        ],
        top_and_bottom_count=5,
    )
    scoring = (
        scalars.TOKEN_SCORING_UPVOTED_OUTPUT_TOKENS,
        scalars.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_MLP,
        scalars.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_ATTN_Q,
        scalars.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_ATTN_K,
    )
    specs = [scalars.NamedSpec(name="nodes", top_nodes=nodes)]
    specs += [
        scalars.NamedSpec(
            name=str(each),
            scored_tokens=scalars.ScoredTokensSpec(scoring=each, token_count=4, depends_on="nodes"),
        )
        for each in scoring
    ]
    request = scalars.BatchDeriveRequest(
        inferences=[
            scalars.BatchInference(
                inference=scalars.InferenceSpec(prompt=PROMPT, loss=LOSS), specs=specs
            )
        ]
    )
    (answer,) = stub.BatchDerive(request, timeout=60)
    first, *scored = answer.results
    table = first.top_nodes.nodes
    heads = [each == common.NODE_TYPE_ATTENTION_HEAD for each in table.node_types]
    assert any(heads)
    assert not all(heads)
    output, mlp, query, key = (
        [bool(node.top) for node in each.scored_tokens.nodes] for each in scored
    )
    assert output == [True] * len(heads)
    assert mlp == [not head for head in heads]
    assert query == key == heads
