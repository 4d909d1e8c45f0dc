"""Loading small autoencoders beside a small model, and what is refused of them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from services.scalars.autoencoders import AutoencoderSet
from services.scalars.autoencoders.loading import load_autoencoders
from services.scalars.model.subject import Subject
from shared.errors import ConfigurationError
from shared.settings import Autoencoder
from tests.unit.scalars_autoencoders import Tensors, random_tensors
from tests.unit.scalars_checkpoint import WIDTH

LATENTS = 10


def small(activation: str = "relu", width: int = WIDTH, seed: int = 0) -> Tensors:
    """Weights of one layer, whose reconstructions are small."""
    return random_tensors(width, LATENTS, seed, activation, scale=0.1)


def without(tensors: Tensors, name: str) -> Tensors:
    """All tensors but one."""
    return {each: tensor for each, tensor in tensors.items() if each != name}


@dataclass(frozen=True)
class Load:
    """Loads autoencoders as the service does when it starts."""

    subject: Subject

    def __call__(self, *configured: Autoencoder) -> AutoencoderSet:
        return load_autoencoders(configured, self.subject.model, self.subject.tokenizer)

    def refused(self, words: str, *configured: Autoencoder) -> None:
        """The last one isn't served, for a reason that is told in these words."""
        with pytest.raises(ConfigurationError, match=words) as caught:
            self(*configured)
        assert caught.value.key == f"model.autoencoders[{len(configured) - 1}].path"
