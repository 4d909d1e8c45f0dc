"""`model`, `simulators`: what computes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from shared.settings.values import (
    Section,
    Text,
)


class Autoencoder(Section):
    """A sparse autoencoder beside the subject model."""

    name: Text
    path: Text
    """One safetensors file, or a folder in the layout that SAELens writes."""


class Model(Section):
    """The subject model whose scalars are derived."""

    name: Text
    path: Text
    """A Hugging Face directory: config.json, model.safetensors, tokenizer.json."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    excluded_tokens: str | None = None
    """A JSON list of token strings that top-token lists leave out."""
    autoencoders: tuple[Autoencoder, ...] = ()


class EmbeddingSimulator(Section):
    """Sentence embeddings of explanation and tokens; needs no service and no key."""

    name: Text
    kind: Literal["embedding"]


class CompletionsSimulator(Section):
    """An OpenAI-compatible completions server."""

    name: Text
    kind: Literal["completions"]
    base_url: Annotated[str, Field(pattern=r"^https?://")]
    model: Text
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""


class CausalLmSimulator(Section):
    """A local Hugging Face language model."""

    name: Text
    kind: Literal["causal_lm"]
    path: Text
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"


Simulator = Annotated[
    EmbeddingSimulator | CompletionsSimulator | CausalLmSimulator, Field(discriminator="kind")
]
