"""Model directories: what is read, and how whatever is wrong with one is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.scalars.model.packing import Packing
from services.scalars.model.subject import Subject, load_subject
from services.scalars.model.taps import Taps
from services.scalars.vocabulary.top_tokens import read_excluded_tokens
from shared.errors import ConfigurationError
from tests.unit.scalars_checkpoint import LAYERS, NEURONS, WIDTH, write_checkpoint

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def load(path: Path, device: str = "cpu") -> Subject:
    return load_subject("tiny", str(path), device)


def logits(subject: Subject) -> torch.Tensor:
    tokens = torch.tensor(subject.tokenizer.encode("The cat sat"))
    every = torch.arange(len(tokens))
    found = subject.model.forward(tokens, Taps(Packing([len(tokens)])), every)
    assert found is not None
    return found


def change_weights(path: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(path / WEIGHTS)
    for name, tensor in changes.items():
        if tensor is None:
            del tensors[name.replace("__", ".")]
        else:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, path / WEIGHTS)


def change_config(path: Path, **changes: Any) -> None:
    config = json.loads((path / "config.json").read_text())
    config.update(changes)
    (path / "config.json").write_text(
        json.dumps({key: value for key, value in config.items() if value is not None})
    )


def fails(path: Path, *words: str, key: str = "model.path", device: str = "cpu") -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(path, device)
    assert caught.value.key == key
    for word in words:
        assert word in caught.value.message


def test_shape_and_family(tmp_path: Path) -> None:
    subject = load(write_checkpoint(tmp_path))
    shape = subject.model.shape
    assert (shape.layers, shape.residual_stream_channels, shape.mlp_acts) == (3, WIDTH, NEURONS)
    assert subject.family == "gpt2"
    assert subject.model.weight_bytes == sum(
        tensor.nbytes for tensor in load_file(tmp_path / WEIGHTS).values()
    )


def test_names_without_prefix_give_the_same_model(tmp_path: Path) -> None:
    first = load(write_checkpoint(tmp_path / "a"))
    second = load(write_checkpoint(tmp_path / "b", prefix=""))
    torch.testing.assert_close(logits(first), logits(second), rtol=0, atol=0)


def test_shards_give_the_same_model(tmp_path: Path) -> None:
    whole = load(write_checkpoint(tmp_path / "whole"))
    path = write_checkpoint(tmp_path / "shards")
    tensors = load_file(path / WEIGHTS)
    (path / WEIGHTS).unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, path / file)
        weight_map |= dict.fromkeys(part, file)
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    torch.testing.assert_close(logits(whole), logits(load(path)), rtol=0, atol=0)
    (path / "model-00002-of-00002.safetensors").unlink()
    fails(path, "model-00002-of-00002.safetensors", "is missing")
    (path / INDEX).write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    fails(path, "outside.safetensors", "beside it")
    (path / INDEX).write_text("{}")
    fails(path, "weight_map")


def test_half_precision_is_upcast(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    embedding = load_file(path / WEIGHTS)["transformer.wte.weight"].half()
    change_weights(path, transformer__wte__weight=embedding)
    subject = load(path)
    assert subject.model.write.unembedding.dtype is torch.float32
    torch.testing.assert_close(subject.model.write.unembedding, embedding.float())


def test_untied_unembedding(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, config={"tie_word_embeddings": False})
    fails(path, "lm_head.weight", "is missing")
    vocab_size = json.loads((path / "config.json").read_text())["vocab_size"]
    change_weights(path, lm_head__weight=torch.ones(vocab_size, WIDTH))
    assert float(load(path).model.write.unembedding.sum()) == vocab_size * WIDTH
    change_config(path, tie_word_embeddings=True)
    fails(path, "tie_word_embeddings", "lm_head.weight differs")


@pytest.mark.parametrize("said", [True, None])
def test_a_tied_unembedding_may_be_there_twice(tmp_path: Path, said: bool | None) -> None:
    path = write_checkpoint(tmp_path, config={"tie_word_embeddings": said})
    embedding = load_file(path / WEIGHTS)["transformer.wte.weight"]
    change_weights(path, lm_head__weight=embedding.clone())
    model = load(path).model
    assert model.write.unembedding is model.token_embedding


def test_missing_files(tmp_path: Path) -> None:
    fails(tmp_path / "nowhere", "is not a directory")
    for name, word in (
        ("config.json", "is missing"),
        (WEIGHTS, INDEX),
        ("tokenizer.json", "is missing"),
    ):
        path = write_checkpoint(tmp_path / name)
        (path / name).unlink()
        fails(path, word)


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated_weights(tmp_path: Path, kept: int) -> None:
    path = write_checkpoint(tmp_path)
    content = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(content[:kept])
    fails(path, WEIGHTS, "can't be read")


@pytest.mark.parametrize(
    ("content", "word"),
    [("", "JSON"), ("{", "JSON"), ("[]", "object"), ("\udcff", "JSON"), ("[" * 100_000, "JSON")],
    ids=["empty", "torn", "list", "no text", "nested"],
)
def test_broken_configuration(tmp_path: Path, content: str, word: str) -> None:
    path = write_checkpoint(tmp_path)
    (path / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    fails(path, "config.json", word)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"model_type": "gpt_neox"}, "gpt2, llama"),
        ({"model_type": None}, "model_type"),
        ({"n_embd": None}, "n_embd is missing"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"n_head": "3"}, "n_head"),
        ({"n_head": True}, "n_head"),
        ({"n_head": 5}, "multiple"),
        ({"n_layer": LAYERS + 1}, "h.3.ln_1.weight is missing"),
        ({"activation_function": "relu"}, "activation_function"),
        ({"scale_attn_by_inverse_layer_idx": True}, "inverse"),
        ({"layer_norm_epsilon": "tiny"}, "layer_norm_epsilon"),
        ({"layer_norm_epsilon": True}, "layer_norm_epsilon"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ],
)
def test_impossible_configuration(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    path = write_checkpoint(tmp_path)
    change_config(path, **changes)
    fails(path, word)


def test_wrong_tensors(tmp_path: Path) -> None:
    name = "transformer__h__1__mlp__c_fc__weight"
    wrong: list[tuple[torch.Tensor | None, str]] = [
        (None, "missing"),
        (torch.zeros(NEURONS, WIDTH), f"[{WIDTH}, {NEURONS}] is needed"),
        (torch.zeros(WIDTH, NEURONS, dtype=torch.int32), "floating point"),
        (torch.full((WIDTH, NEURONS), float("nan")), "not finite"),
        (torch.full((WIDTH, NEURONS), float("inf")), "not finite"),
    ]
    for position, (tensor, word) in enumerate(wrong):
        path = write_checkpoint(tmp_path / str(position))
        change_weights(path, **{name: tensor})
        fails(path, "h.1.mlp.c_fc.weight", word)


def test_wrong_tokenizer(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path)
    content = (path / "tokenizer.json").read_text()
    (path / "tokenizer.json").write_text(content[: len(content) // 2])
    fails(path, "tokenizer.json", "can't be read")
    (path / "tokenizer.json").write_text(content)
    rows = load_file(path / WEIGHTS)["transformer.wte.weight"][:200].clone()
    change_weights(path, transformer__wte__weight=rows)
    change_config(path, vocab_size=200)
    fails(path, "vocabulary is 200")


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    fails(write_checkpoint(tmp_path), "cuda:97", key="model.device", device="cuda:97")


def test_excluded_tokens(tmp_path: Path) -> None:
    file = tmp_path / "excluded.json"
    file.write_text('["a", " b"]')
    assert read_excluded_tokens(str(file)) == {"a", " b"}
    assert read_excluded_tokens(None) == frozenset()
    for content in ("", "{}", "[1]", '["a"'):
        file.write_text(content)
        with pytest.raises(ConfigurationError, match="list of strings"):
            read_excluded_tokens(str(file))
    with pytest.raises(ConfigurationError, match="can't be read"):
        read_excluded_tokens(str(tmp_path / "nowhere"))
