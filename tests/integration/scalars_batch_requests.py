"""Requests of batches, and a service that answers them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

import neuropil
from neuropil import names
from neuropil.channel import open_channel
from neuropil.errors import translated
from neuropil.scalars import v1
from tests.integration.scalars_deployment import scalars_service, write_deployment
from tests.unit.scalars_autoencoders import random_tensors, write_own_layout
from tests.unit.scalars_checkpoint import LAYERS, NEURONS, WIDTH

PROMPT = "The cat sat on the mat"
LATENTS = 50
LOSS = neuropil.Loss("logit_diff", [" cat"], [" dog"])
SCORINGS = {
    "out": v1.TOKEN_SCORING_UPVOTED_OUTPUT_TOKENS,
    "mlp": v1.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_MLP,
    "q": v1.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_ATTN_Q,
    "k": v1.TOKEN_SCORING_INPUT_TOKENS_THAT_UPVOTE_ATTN_K,
}
TYPE = names.DERIVED_SCALAR_TYPES.value


@contextmanager
def batch_service(folder: Path) -> Iterator[v1.DerivedScalarsStub]:
    """Serves a small model in `folder` with two autoencoders, and messages of a megabyte."""
    deployment = write_deployment(folder)
    settings = yaml.safe_load(deployment.read_text())
    settings["model"]["autoencoders"] = [
        write_own_layout(
            folder / f"{dst}.safetensors",
            dst,
            {layer: random_tensors(width, LATENTS, layer) for layer in range(LAYERS)},
        ).model_dump(exclude_none=True)
        for dst, width in (("mlp_post_act", NEURONS), ("resid_delta_attn", WIDTH))
    ]
    settings["limits"] = {"message_megabytes": 1}
    deployment.write_text(yaml.safe_dump(settings))
    with scalars_service(deployment) as address, open_channel(address) as channel:
        yield v1.DerivedScalarsStub(channel)


def inference(prompt: str = PROMPT, *ablations: neuropil.Ablation) -> v1.InferenceSpec:
    """A prompt with a loss."""
    return v1.InferenceSpec(
        prompt=prompt, loss=LOSS.message(), ablations=[each.message() for each in ablations]
    )


def top_nodes(*types: str, count: int = 4, **fields: Any) -> v1.TopNodesSpec:
    """The nodes that rank first by one group of types."""
    group = v1.ScalarGroup(
        group_id=v1.GROUP_ID_SINGLETON, derived_scalar_types=[TYPE(each) for each in types]
    )
    return v1.TopNodesSpec(groups=[group], top_and_bottom_count=count, **fields)


def scored(name: str, count: int = 5, of: str = "top") -> v1.NamedSpec:
    """Tokens scored by the nodes that another request lists; `name` is one of SCORINGS."""
    spec = v1.ScoredTokensSpec(scoring=SCORINGS[name], token_count=count, depends_on=of)
    return v1.NamedSpec(name=name, scored_tokens=spec)


def attributed(count: int = 3, of: str = "top") -> v1.NamedSpec:
    """Token pairs of the nodes that another request lists."""
    spec = v1.TokenPairAttributionSpec(attended_to_token_count=count, depends_on=of)
    return v1.NamedSpec(name="pairs", token_pair_attribution=spec)


def top(name: str = "top", *types: str, **fields: Any) -> v1.NamedSpec:
    """`top_nodes` under a name."""
    return v1.NamedSpec(name=name, top_nodes=top_nodes(*types, **fields))


def run(
    stub: v1.DerivedScalarsStub, *inferences: v1.BatchInference
) -> list[dict[str, v1.NamedResult]]:
    """Results of each inference by name, all there and in order."""
    with translated():
        answers = list(stub.BatchDerive(v1.BatchDeriveRequest(inferences=inferences), timeout=60))
    assert [each.position for each in answers] == list(range(len(inferences)))
    for each, asked in zip(answers, inferences, strict=True):
        assert [result.name for result in each.results] == [spec.name for spec in asked.specs]
    return [{result.name: result for result in each.results} for each in answers]


def batch(spec: v1.InferenceSpec, *specs: v1.NamedSpec) -> v1.BatchInference:
    """One inference of a batch."""
    return v1.BatchInference(inference=spec, specs=specs)
