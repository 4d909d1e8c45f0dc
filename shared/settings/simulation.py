"""`simulators`, `explainers`: what predicts activations, and what proposes explanations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shared.settings.values import Count, Seconds, Section, Text, no_bool

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
Method = Literal["auto", "all_at_once", "one_at_a_time"]
"""Whether one prompt asks for all tokens of a sequence; `auto` takes what the model can do."""
Attempts = Annotated[int, BeforeValidator(no_bool), Field(gt=0, le=100)]


class EmbeddingSimulator(Section):
    """Sentence embeddings of explanation and tokens; needs no service and no key."""

    name: Text
    kind: Literal["embedding"]


class CausalLmSimulator(Section):
    """A local Hugging Face language model."""

    name: Text
    kind: Literal["causal_lm"]
    path: Text
    """A folder: config.json, the tokenizer, and weights as safetensors."""
    device: Device = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    method: Method = "auto"
    prompt: Text | None = None
    """Name of a prompt; absent: the one for the method that fits the model's context."""
    batch_tokens: Count = 4096
    """Tokens of sequences that run together at most."""
    cache_megabytes: Count = 512
    """Memory for computed beginnings of prompts."""


class CompletionsSimulator(Section):
    """An OpenAI-compatible server, by completions with log probabilities."""

    name: Text
    kind: Literal["completions"]
    base_url: Annotated[str, Field(pattern=r"^https?://")]
    model: Text
    api_key_env: str | None = None
    """Name of the environment variable that holds the key."""
    method: Method = "auto"
    prompt: Text | None = None
    max_concurrent: Count = 8
    """Requests to the server that run at once."""
    timeout_seconds: Seconds = 60.0
    """Longest that one request may take."""
    max_attempts: Attempts = 5
    """How often a request is sent at most."""


class ChatSimulator(Section):
    """An OpenAI-compatible server, by chat with structured answers and no probabilities."""

    name: Text
    kind: Literal["chat"]
    base_url: Annotated[str, Field(pattern=r"^https?://")]
    model: Text
    api_key_env: str | None = None
    prompt: Text | None = None
    max_concurrent: Count = 8
    timeout_seconds: Seconds = 60.0
    max_attempts: Attempts = 5


class TokenHeadSimulator(Section):
    """A local token-classification model with 11 labels."""

    name: Text
    kind: Literal["token_head"]
    path: Text
    device: Device = "auto"


Simulator = Annotated[
    EmbeddingSimulator
    | CausalLmSimulator
    | CompletionsSimulator
    | ChatSimulator
    | TokenHeadSimulator,
    Field(discriminator="kind"),
]


class ContextExplainer(Section):
    """Explains by the most activating tokens in context; asks no language model."""

    name: Text
    kind: Literal["context"]


class LanguageModelExplainer(Section):
    """Asks the language model of a simulator."""

    name: Text
    kind: Literal["language_model"]
    simulator: Text
    """Name of a simulator that runs a language model."""


Explainer = Annotated[ContextExplainer | LanguageModelExplainer, Field(discriminator="kind")]
