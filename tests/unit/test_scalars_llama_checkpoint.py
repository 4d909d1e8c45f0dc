"""Checkpoints of the Llama family: what is read, and what is refused, by its key."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import PassType
from services.scalars.model.subject import Subject, load_subject
from services.scalars.model.taps import RawTensorId
from services.scalars.passes.inference import PreparedInference, run_inference
from services.scalars.passes.losses import Loss, LossKind
from shared.errors import ConfigurationError
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_llama_checkpoint import (
    CHANNELS,
    CONTEXT,
    HEADS,
    LAYERS,
    NEURONS,
    VARIANTS,
    WIDTH,
    write_llama_checkpoint,
)

WEIGHTS = "model.safetensors"
TOKENS = (5, 17, 5, 200, 31, 90, 2)


def load(path: Path, dtype: str = "float32") -> Subject:
    return load_subject("tiny", str(path), "cpu", dtype)


def logits(subject: Subject) -> torch.Tensor:
    place = RawTensorId(Location.LOGITS, None, PassType.FORWARD)
    store = run_inference(subject.model, PreparedInference(TOKENS, (), None), {place}).raw_store
    found = store.get(Location.LOGITS, PassType.FORWARD).activations_by_layer_index[None]
    return found.clone()


def everything(subject: Subject) -> dict[RawTensorId, torch.Tensor]:
    """All tensors of the middle layer and those without one, and their gradients."""
    captures = {
        RawTensorId(location, 1 if location.has_layers else None, pass_type)
        for location in Location
        if location.exists_by_default
        for pass_type in PassType
    }
    loss = Loss(LossKind.LOGIT_DIFF, (3,), (4,), len(TOKENS) - 1)
    store = run_inference(subject.model, PreparedInference(TOKENS, (), loss), captures).raw_store
    return {
        each: store.get(each.location, each.pass_type).activations_by_layer_index[each.layer]
        for each in captures
    }


def change_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(path: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors: dict[str, torch.Tensor | None] = {**load_file(path / WEIGHTS), **changes}
    save_file({name: each for name, each in tensors.items() if each is not None}, path / WEIGHTS)


def fails(path: Path, *words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert caught.value.key == "model.path"
    for word in words:
        assert word in caught.value.message


@pytest.mark.parametrize("variant", VARIANTS)
def test_shape_family_and_size(tmp_path: Path, variant: str) -> None:
    subject = load(write_llama_checkpoint(tmp_path, variant))
    shape = subject.model.shape
    channels = VARIANTS[variant].get("head_dim", CHANNELS)
    assert subject.family == VARIANTS[variant].get("model_type", "llama")
    assert (shape.layers, shape.residual_stream_channels, shape.mlp_acts, shape.context) == (
        LAYERS,
        WIDTH,
        NEURONS,
        CONTEXT,
    )
    assert (shape.attn_heads, shape.query_and_key_channels) == (HEADS, channels)
    assert subject.model.weight_bytes == sum(
        tensor.nbytes for tensor in load_file(tmp_path / WEIGHTS).values()
    )
    assert subject.model.write.mlp[0].shape == (NEURONS, WIDTH)
    assert subject.model.write.attn[0].shape == (HEADS, channels, WIDTH)


def test_shards_and_half_precision_and_names_without_prefix(tmp_path: Path) -> None:
    whole = load(write_llama_checkpoint(tmp_path / "whole"))
    path = write_llama_checkpoint(tmp_path / "shards")
    tensors = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    weight_map: dict[str, str] = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        save_file({name: tensors[name] for name in names}, path / f"part-{number}.safetensors")
        weight_map |= dict.fromkeys(names, f"part-{number}.safetensors")
    (path / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.testing.assert_close(logits(whole), logits(load(path)), rtol=0, atol=0)
    bare = load(write_llama_checkpoint(tmp_path / "bare", prefix=""))
    torch.testing.assert_close(logits(whole), logits(bare), rtol=0, atol=0)
    half = load(write_llama_checkpoint(tmp_path / "half", dtype=torch.bfloat16))
    assert half.model.write.mlp[0].dtype == torch.float32
    assert half.model.weight_bytes == whole.model.weight_bytes
    assert 0 < float((logits(half) - logits(whole)).abs().max()) < 0.3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_bfloat16_weights(tmp_path: Path, family: str) -> None:
    path = write_checkpoint(tmp_path) if family == "gpt2" else write_llama_checkpoint(tmp_path)
    exact, subject = load(path), load(path, "bfloat16")
    assert 0.5 < subject.model.weight_bytes / exact.model.weight_bytes < 0.9
    error = (logits(subject) - logits(exact)).abs().max() / logits(exact).abs().max()
    assert 1e-5 < float(error) < 0.05
    # Whatever is captured is float32, and what weights are used for elsewhere is too.
    expected = everything(exact)
    for target, tensor in everything(subject).items():
        assert tensor.dtype == torch.float32
        finite = torch.isfinite(tensor)
        difference = (tensor - expected[target])[finite].norm()
        assert difference <= 0.1 * expected[target][finite].norm() + 1e-6, target
    for weights in (subject.model.write.mlp, subject.model.write.attn):
        assert [each.dtype for each in weights] == [torch.float32] * subject.model.shape.layers
    heads = subject.model.attention_heads(1, torch.randn(4, WIDTH))
    assert heads.mixed.dtype == torch.float32
    assert subject.model.attention_output(1, heads.mixed).dtype == torch.float32


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    "experts": ({"num_local_experts": 4}, "num_local_experts is 4"),
    "quantized": ({"quantization_config": {"bits": 4}}, "quantization_config"),
    "groups that don't fit": ({"num_key_value_heads": 3}, "num_key_value_heads 3"),
    "heads that don't fit": ({"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size"),
    "odd head": ({"head_dim": 5}, "head_dim is 5"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "epsilon": ({"rms_norm_eps": 0}, "rms_norm_eps"),
    "epsilon that is text": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    "flag": ({"attention_bias": 1}, "attention_bias is 1"),
    "tied is text": ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    "window": ({"model_type": "mistral", "sliding_window": 8}, "sliding_window is 8"),
    "window of llama": ({"sliding_window": 8}, "sliding_window is 8"),
    "window of qwen": (
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 1,
        },
        "sliding_window is 8",
    ),
    "windowed layers": (
        {
            "model_type": "qwen3",
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        "sliding_window is 8",
    ),
    "windowed layers without a window": (
        {"model_type": "qwen3", "layer_types": ["sliding_attention"] * 3},
        "sliding_window",
    ),
    "unknown layers": ({"layer_types": ["linear_attention"] * 3}, "layer_types"),
    "first windowed layer": (
        {
            "model_type": "qwen2",
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": -1,
        },
        "max_window_layers",
    ),
    "yarn": ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type is 'yarn'"),
    "dynamic, older": (
        {"rope_parameters": None, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_type is 'dynamic'",
    ),
    "longrope": ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope'"),
    "rotary positions a layer": (
        {"rope_parameters": {"full_attention": {"rope_theta": 1.0}}},
        "differs between layers",
    ),
    "part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "part of a head, newer": (
        {"rope_parameters": {"partial_rotary_factor": 0.25}},
        "rope_parameters.partial_rotary_factor is 0.25",
    ),
    "base": ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta is -1.0"),
    "base that isn't finite": ({"rope_parameters": {"rope_theta": "x"}}, "rope_theta is 'x'"),
    "no factor": ({"rope_parameters": {"rope_type": "linear"}}, "factor is None"),
    "factors in the wrong order": (
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 2.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 1.0,
            }
        },
        "high_freq_factor is 1.0",
    ),
    "rotary parameters": ({"rope_parameters": [1]}, "rope_parameters is [1]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_computed_wrongly_is_refused(tmp_path: Path, name: str) -> None:
    changes, words = REFUSED[name]
    change_config(write_llama_checkpoint(tmp_path), **changes)
    fails(tmp_path, "config.json", words)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "mistral", "sliding_window": CONTEXT},
        {"hidden_act": "swish"},
        {"rope_scaling": None},
        {"layer_types": ["full_attention"] * LAYERS},
        {"num_local_experts": 0},
    ],
)
def test_what_changes_nothing_is_served(tmp_path: Path, changes: dict[str, Any]) -> None:
    wanted = logits(load(write_llama_checkpoint(tmp_path)))
    change_config(tmp_path, **changes)
    torch.testing.assert_close(logits(load(tmp_path)), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": LAYERS},
        {"use_sliding_window": True, "sliding_window": CONTEXT, "max_window_layers": 0},
        {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0},
    ],
)
def test_a_window_that_isn_t_active_is_served(tmp_path: Path, changes: dict[str, Any]) -> None:
    wanted = logits(load(write_llama_checkpoint(tmp_path, "qwen2")))
    change_config(tmp_path, **changes)
    torch.testing.assert_close(logits(load(tmp_path)), wanted, rtol=0, atol=0)


def test_a_window_that_isn_t_said_is_the_library_s(tmp_path: Path) -> None:
    path = write_llama_checkpoint(tmp_path, "mistral", without=("sliding_window",))
    load(path)
    change_config(path, max_position_embeddings=8192)
    fails(path, "sliding_window is 4096")
    change_config(path, sliding_window=None)
    load(path)
    path = write_llama_checkpoint(tmp_path / "qwen", "qwen2", without=("sliding_window",))
    change_config(path, max_position_embeddings=8192, max_window_layers=0)
    load(path)
    change_config(path, use_sliding_window=True)
    fails(path, "sliding_window is 4096")


def test_tensors_that_have_no_place(tmp_path: Path) -> None:
    for number, name in enumerate(
        ("model.layers.0.self_attn.q_proj.bias", "model.layers.1.mlp.experts.0.w1.weight")
    ):
        path = write_llama_checkpoint(tmp_path / str(number))
        change_weights(path, {name: torch.zeros(WIDTH)})
        fails(path, name, "no place for")
    # Frequencies that older files hold are known from the configuration.
    path = write_llama_checkpoint(tmp_path / "older")
    change_weights(path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(3)})
    load(path)


def test_missing_and_misshaped_tensors(tmp_path: Path) -> None:
    path = write_llama_checkpoint(tmp_path / "missing")
    change_weights(path, {"model.layers.2.mlp.up_proj.weight": None})
    fails(path, "model.layers.2.mlp.up_proj.weight", "is missing")
    path = write_llama_checkpoint(tmp_path / "shape", "qwen3")
    change_weights(path, {"model.layers.1.self_attn.k_norm.weight": torch.ones(3)})
    fails(path, "k_norm", "has shape [3]; [10] is needed")
    path = write_llama_checkpoint(tmp_path / "nan")
    change_weights(path, {"model.norm.weight": torch.full((WIDTH,), float("nan"))})
    fails(path, "model.norm.weight", "not finite")
    path = write_llama_checkpoint(tmp_path / "infinite")
    change_weights(path, {"model.norm.weight": torch.tensor([1.0] * (WIDTH - 1) + [-torch.inf])})
    fails(path, "model.norm.weight", "not finite")


def test_tied_or_not(tmp_path: Path) -> None:
    path = write_llama_checkpoint(tmp_path)
    change_config(path, tie_word_embeddings=True)
    fails(path, "tie_word_embeddings", "lm_head.weight differs")
    change_weights(path, {"lm_head.weight": load_file(path / WEIGHTS)["model.embed_tokens.weight"]})
    model = load(path).model
    assert model.write.unembedding is model.token_embedding
    change_weights(path, {"lm_head.weight": None})
    change_config(path, tie_word_embeddings=False)
    fails(path, "lm_head.weight", "is missing")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_takes_hardly_more_than_the_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    path = write_llama_checkpoint(
        tmp_path,
        config={"intermediate_size": NEURONS * 10_000},
        dtype=dtype,
    )
    program = """
import pathlib, sys
import services.scalars.model.subject as subject
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
loaded = subject.load_subject("tiny", sys.argv[1], "cpu")
print(peak() - before, loaded.model.weight_bytes)
"""
    answer = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    added, weights = map(int, answer.stdout.split())
    assert added > weights > 300 << 20
    # One matrix, in the precision of the file, may be there besides.
    assert added < 1.2 * weights + (40 << 20)
