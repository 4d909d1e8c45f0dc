"""Logits and gradients of every family and variant against `transformers`, in float32."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import ActivationLocationType as Location
from services.scalars.model.locations import PassType
from services.scalars.model.subject import load_subject
from services.scalars.model.taps import Overwrite, RawTensorId
from services.scalars.passes.inference import PreparedInference, Row, run_inference, run_rows
from services.scalars.passes.losses import Loss, LossKind
from tests.unit.scalars_checkpoint import write_checkpoint
from tests.unit.scalars_llama_checkpoint import VARIANTS, write_llama_checkpoint

TOKENS = tuple(int(token) for token in torch.randint(0, 300, (24,), generator=torch.Generator()))
LOSS = Loss(LossKind.LOGIT_DIFF, targets=(5, 77), distractors=(9,), position=20)
Found = dict[tuple[Location, int | None, PassType], Tensor]


@dataclass(frozen=True)
class Names:
    """Where a family of the library has what we tap."""

    blocks: str
    attention: str
    mixed_to_residual: str
    neurons_to_residual: str
    before_nonlinearity: str
    final_norm: str


LLAMA = Names(
    "model.layers", "self_attn", "self_attn.o_proj", "mlp.down_proj", "mlp.gate_proj", "model.norm"
)
GPT2 = Names("transformer.h", "attn", "attn.c_proj", "mlp.c_proj", "mlp.c_fc", "transformer.ln_f")
CASES = {"gpt2": GPT2, **dict.fromkeys(VARIANTS, LLAMA)}


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SubjectModel, Any, Names]:
    """Our model, the library's, and its names."""
    directory = tmp_path_factory.mktemp("model")
    if request.param == "gpt2":
        write_checkpoint(directory)
    else:
        write_llama_checkpoint(directory, request.param)
    model = load_subject("tiny", str(directory), "cpu").model
    return model, load_reference(directory), CASES[request.param]


def load_reference(directory: Path) -> Any:
    with (directory / "config.json").open() as file:
        family = json.load(file)["model_type"]
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", dtype=torch.float32
    )
    assert reference.config.model_type == family
    return reference.requires_grad_(False)


def run_ours(model: SubjectModel, places: list[tuple[Location, int | None]]) -> Found:
    captures = frozenset(
        RawTensorId(location, layer, pass_type)
        for location, layer in places
        for pass_type in PassType
    )
    prepared = PreparedInference(TOKENS[: model.shape.context], (), LOSS)
    store = run_inference(model, prepared, captures).raw_store
    return {
        (each.location, each.layer, each.pass_type): store.get(
            each.location, each.pass_type
        ).activations_by_layer_index[each.layer]
        for each in captures
    }


@contextmanager
def hooked(
    reference: Any, names: Names, found: dict[tuple[Location, int | None], Tensor]
) -> Iterator[None]:
    """Keeps the library's tensors, with their gradients."""
    handles = []

    def keep(location: Location, layer: int | None, tensor: Tensor) -> None:
        if tensor.requires_grad:
            tensor.retain_grad()
        found[location, layer] = tensor

    def outputs(
        module: Any, location: Location, layer: int | None, item: int | None = None
    ) -> None:
        def hook(_: Any, __: Any, output: Any) -> None:
            if item is None and isinstance(output, tuple):
                output = output[0]
            keep(location, layer, output if item is None else output[item])

        handles.append(module.register_forward_hook(hook))

    def inputs(module: Any, location: Location, layer: int | None) -> None:
        handles.append(
            module.register_forward_pre_hook(
                lambda _, arguments: keep(location, layer, arguments[0])
            )
        )

    for layer, block in enumerate(reference.get_submodule(names.blocks)):
        at = block.get_submodule
        outputs(at(names.attention), Location.ATTN_QK_PROBS, layer, 1)
        inputs(at(names.mixed_to_residual), Location.ATTN_WEIGHTED_SUM_OF_VALUES, layer)
        outputs(at(names.mixed_to_residual), Location.RESID_DELTA_ATTN, layer)
        outputs(at(names.before_nonlinearity), Location.MLP_PRE_ACT, layer)
        inputs(at(names.neurons_to_residual), Location.MLP_POST_ACT, layer)
        outputs(at(names.neurons_to_residual), Location.RESID_DELTA_MLP, layer)
        outputs(block, Location.RESID_POST_MLP, layer)
        inputs(block, Location.RESID_POST_EMBEDDING, layer)
    outputs(reference.get_submodule(names.final_norm), Location.RESID_POST_FINAL_LAYER_NORM, None)
    yield
    for handle in handles:
        handle.remove()


def run_theirs(reference: Any, names: Names, tokens: tuple[int, ...]) -> Found:
    found: dict[tuple[Location, int | None], Tensor] = {}
    embedded = reference.get_input_embeddings()(torch.tensor([tokens])).requires_grad_()
    with hooked(reference, names, found):
        logits = reference(inputs_embeds=embedded, output_attentions=True).logits
    logits.retain_grad()
    LOSS.of_logits(logits[0, LOSS.position]).backward()  # type: ignore[no-untyped-call]
    found[Location.LOGITS, None] = logits
    # What enters the first block is the embedding, positions included.
    found[Location.RESID_POST_EMBEDDING, None] = found[Location.RESID_POST_EMBEDDING, 0]
    answers: Found = {}
    for (location, layer), tensor in found.items():
        if location is Location.RESID_POST_EMBEDDING and layer is not None:
            continue
        for pass_type, value in (
            (PassType.FORWARD, tensor),
            (PassType.BACKWARD, tensor.grad),
        ):
            if value is not None:
                whole = value.detach()[0]
                pairs = location is Location.ATTN_QK_PROBS
                answers[location, layer, pass_type] = whole.permute(1, 2, 0) if pairs else whole
    return answers


def test_logits_activations_and_gradients(case: tuple[SubjectModel, Any, Names]) -> None:
    model, reference, names = case
    theirs = run_theirs(reference, names, TOKENS[: model.shape.context])
    ours = run_ours(model, list({(location, layer) for location, layer, _ in theirs}))
    assert len(theirs) > 2 * 7 * model.shape.layers
    for key, wanted in theirs.items():
        got = ours[key].reshape(wanted.shape)
        scale = float(wanted.abs().max())
        assert scale > 1e-3, key
        assert float((got - wanted).abs().max()) <= 2e-5 * scale, key


def test_rows_of_a_batch_are_as_alone(case: tuple[SubjectModel, Any, Names]) -> None:
    model = case[0]
    captures = frozenset(
        RawTensorId(location, layer, pass_type)
        for location in Location
        if location.exists_by_default and location is not Location.LOGITS
        for layer in (range(model.shape.layers) if location.has_layers else (None,))
        for pass_type in PassType
    )
    ablated = Overwrite(
        RawTensorId(Location.ATTN_KEY, 0, PassType.FORWARD), (2, 1, slice(None)), 0.5
    )
    rows = [
        Row(PreparedInference(TOKENS[start : start + length], overwrites, loss), captures)
        for start, length, overwrites, loss in (
            (0, 11, (), Loss(LossKind.LOGIT_MINUS_MEAN, (3,), (), 10)),
            (3, 7, (ablated,), Loss(LossKind.PROBS, (3, 8), (), 2)),
            (5, 11, (ablated,), Loss(LossKind.LOGIT_DIFF, (3,), (4,), 9)),
            (1, 1, (), Loss(LossKind.LOGIT_DIFF, (3,), (4,), 0)),
        )
    ]
    for row, together in zip(rows, run_rows(model, rows), strict=True):
        alone = run_inference(model, row.prepared, row.captures)
        assert together.loss == pytest.approx(alone.loss, rel=1e-5, abs=1e-5)
        for target in captures:
            got, wanted = (
                result.raw_store.get(target.location, target.pass_type).activations_by_layer_index[
                    target.layer
                ]
                for result in (together, alone)
            )
            size = float(wanted.nan_to_num(neginf=0).abs().max())
            torch.testing.assert_close(got, wanted, rtol=0, atol=3e-5 * max(0.1, size))
