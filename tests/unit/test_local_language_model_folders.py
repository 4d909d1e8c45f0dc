"""What is wrong with a model's folder is said in a sentence, and never becomes a number."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from services.simulation.language_models.local.loading import check_folder, fingerprint
from services.simulation.language_models.local.model import LocalModel
from services.simulation.language_models.local.prefixes import Prefix
from services.simulation.language_models.local.rows import Row
from shared.errors import ConfigurationError, FailedPrecondition, ResourceExhausted, Unavailable
from tests.unit import small_language_models as small

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.save(small.configurations()["llama"], tmp_path_factory.mktemp("models") / "good")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: int) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return work


def changed(**values: object) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return work


def weights_without(part: str) -> Callable[[Path], None]:
    def work(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        kept = {name: tensor for name, tensor in tensors.items() if part not in name}
        assert len(kept) < len(tensors)
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return work


def sentence_model(folder: Path) -> None:
    """A BERT with a head: transformers loads it as a causal model, which it is not."""
    import transformers

    shutil.rmtree(folder)
    config = transformers.BertConfig(
        vocab_size=small.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    transformers.BertLMHeadModel(config).save_pretrained(folder)
    small.tokenizer().save_pretrained(folder)


def shard_missing(folder: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert LocalModel.load(str(folder), "cpu").shares_prefix
    shards[1].unlink()


def few_positions(folder: Path) -> None:
    shutil.rmtree(folder)
    configuration = small.configurations()["gpt2"]
    configuration.n_positions = 4
    small.save(configuration, folder)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no folder": (shutil.rmtree, "is not a folder"),
    "no configuration": (without("config.json"), "no config.json"),
    "no weights": (without("model.safetensors"), "no weights in the safetensors format"),
    "no tokenizer": (without("tokenizer.json"), "no tokenizer.json"),
    "half a configuration": (cut("config.json", 40), "config.json"),
    "half of the weights": (cut("model.safetensors", 20_000), "SafetensorError"),
    "empty weights": (cut("model.safetensors", 0), "SafetensorError"),
    "half a tokenizer": (cut("tokenizer.json", 300), "can't be loaded"),
    "a shard too few": (shard_missing, "model-00002-of"),
    "unknown kind": (changed(model_type="nothing_known"), "nothing_known"),
    "code of its own": (
        changed(model_type="mine", auto_map={"AutoConfig": "code.Mine"}),
        "it needs code of the folder, and none is run",
    ),
    "no causal kind": (changed(model_type="t5"), "T5"),
    "another width": (changed(intermediate_size=50), "another shape: model.layers.0.mlp"),
    "another depth": (changed(num_hidden_layers=4), "missing"),
    "a weight too few": (weights_without("layers.1.mlp.up_proj"), "missing: model.layers.1.mlp"),
    "a smaller vocabulary": (changed(vocab_size=100), "another shape"),
    "too few positions": (few_positions, "a prompt of 6 tokens is longer than the 4"),
    "a sentence model": (sentence_model, "no causal language model"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_refused(case: str, folder: Path) -> None:
    breaks, said = BROKEN[case]
    breaks(folder)
    with pytest.raises(Unavailable) as refused:
        LocalModel.load(str(folder), "cpu")
    assert said in refused.value.message
    assert refused.value.reason == "MODEL_NOT_LOADED"
    assert "\n" not in refused.value.message


def test_a_folder_is_checked_by_its_files_names(folder: Path) -> None:
    check_folder(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ConfigurationError, match=r"simulators\[0\].path: .* no tokenizer.json"):
        check_folder(str(folder), "simulators[0].path")


@pytest.mark.parametrize(
    ("device", "dtype", "said"),
    [("cuda", "float32", "torch sees no GPU"), ("cpu", "int8", "neither float32")],
)
def test_what_the_machine_has_not_is_refused(
    device: str, dtype: str, said: str, good: Path
) -> None:
    import torch

    if device == "cuda" and torch.cuda.is_available():
        assert LocalModel.load(str(good), device, dtype).shares_prefix
        return
    with pytest.raises(Unavailable, match=said):
        LocalModel.load(str(good), device, dtype)


def of_roberta(folder: Path) -> None:
    import transformers

    config = transformers.RobertaConfig(
        vocab_size=small.VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=66,
        pad_token_id=1,
        is_decoder=True,
    )
    small.save(config, folder)


def of_mpt(folder: Path) -> None:
    import transformers

    config = transformers.MptConfig(
        vocab_size=small.VOCABULARY, d_model=32, n_layers=2, n_heads=2, max_seq_len=64
    )
    small.save(config, folder)


@pytest.mark.parametrize("make", [of_roberta, of_mpt])
def test_models_read_as_many_tokens_as_they_have_positions_for(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path)
    model = LocalModel.load(str(tmp_path), "cpu")
    assert model.max_positions == 64
    columns = np.asarray([3, 4])
    longest = Row(tuple(range(4, 68)), np.asarray([63]), columns)
    assert model.logits(Prefix(), [longest])[0].values.shape == (1, 2)
    with pytest.raises(ResourceExhausted) as refused:
        model.logits(Prefix(), [Row((*longest.ids, 5), np.asarray([64]), columns)])
    assert refused.value.reason == "PROMPT_TOO_LONG"
    # Where no configuration tells of a bound that is there, the pass fails with a reason.
    model.max_positions = None
    with pytest.raises(FailedPrecondition, match="a pass of 80 tokens") as failed:
        model.logits(Prefix(), [Row(tuple(range(4, 84)), np.asarray([79]), columns)])
    assert failed.value.reason == "FORWARD_PASS_FAILED"


def test_a_device_without_memory_is_said_so(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = LocalModel.load(str(good), "cpu")

    def takes_too_much(*args: object, **given: object) -> None:
        torch.empty(2**60)

    monkeypatch.setattr(model.loaded.model, "forward", takes_too_much)
    with pytest.raises(ResourceExhausted, match="no memory for a pass of 2 tokens") as refused:
        model.logits(Prefix(), [Row((5, 6), np.asarray([1]), np.asarray([3]))])
    assert refused.value.reason == "OUT_OF_DEVICE_MEMORY"
    assert refused.value.metadata == {"tokens": "2"}


def spoiled(folder: Path, name: str, row: int | None, value: float) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors[name][... if row is None else row] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_weights_that_are_nan_are_refused(folder: Path) -> None:
    spoiled(folder, "model.layers.1.mlp.up_proj.weight", None, float("nan"))
    with pytest.raises(Unavailable, match="not a finite number"):
        LocalModel.load(str(folder), "cpu")


@pytest.mark.parametrize("shares", [True, False])
def test_a_logit_that_is_nan_is_an_error(folder: Path, shares: bool) -> None:
    model = LocalModel.load(str(folder), "cpu")
    model.shares_prefix = shares
    embedding = model.loaded.model.get_input_embeddings().weight
    embedding.requires_grad_(False)[77] = float("nan")
    columns = np.asarray([3, 4])
    fine = Row((5, 6), np.asarray([1]), columns)
    assert np.isfinite(model.logits(Prefix(), [fine])[0].values).all()
    with pytest.raises(FailedPrecondition) as refused:
        model.logits(Prefix(), [Row((5, 77, 6), np.asarray([2]), columns)])
    assert refused.value.reason == "NON_FINITE_LOGITS"
    with pytest.raises(FailedPrecondition, match="not a finite number"):
        model.logits(model.prefix([(77,)]), [fine])
    from services.simulation.language_models.interface import GenerationOptions

    with pytest.raises(FailedPrecondition, match="not a finite number"):
        model.generate(Prefix(), (5, 77), GenerationOptions(max_tokens=2))


def test_the_fingerprint_depends_on_what_answers(folder: Path) -> None:
    prints = {fingerprint(folder, "float32"), fingerprint(folder, "bfloat16")}
    assert fingerprint(folder, "float32") in prints
    spoiled(folder, "model.layers.2.mlp.down_proj.weight", 3, 0.5)
    prints.add(fingerprint(folder, "float32"))
    changed(rms_norm_eps=1e-3)(folder)
    prints.add(fingerprint(folder, "float32"))
    assert len(prints) == 4
