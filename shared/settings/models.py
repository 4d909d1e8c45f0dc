"""`model`: the subject model, and what runs on it together."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shared.settings.values import (
    Count,
    Section,
    Text,
    no_bool,
)


class Autoencoder(Section):
    """A sparse autoencoder beside the subject model."""

    name: Text
    path: Text
    """One safetensors file, or a folder in the layout that SAELens writes."""


class Batching(Section):
    """What runs together on a device, over all callers."""

    window_milliseconds: Annotated[
        float, BeforeValidator(no_bool), Field(ge=0, allow_inf_nan=False)
    ] = 2.0
    """How long a device that is free waits for more requests at most."""
    rows: Count = 16
    tokens: Count = 512
    megabytes: Count = 512
    """Memory of what runs together; a request that needs more runs alone."""
    queue: Count = 256
    """Inferences that may wait for the device."""


class Model(Section):
    """The subject model whose scalars are derived."""

    name: Text
    path: Text
    """A Hugging Face directory: config.json, model.safetensors, tokenizer.json."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights of layers, factors and results of products with them; all else is float32."""
    excluded_tokens: str | None = None
    """A JSON list of token strings that top-token lists leave out."""
    autoencoders: tuple[Autoencoder, ...] = ()
    batching: Batching = Batching()
    reuse_megabytes: Annotated[int, BeforeValidator(no_bool), Field(ge=0)] = 192
    """Memory for runs that later requests may need again; 0 keeps none."""
