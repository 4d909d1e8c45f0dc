"""How much each entry of the vocabulary drives a neuron or a latent, chunk by chunk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from services.scalars.autoencoders import AutoencoderSet
from services.scalars.catalogue import vocabulary
from services.scalars.deriving.indexing import ActivationIndex
from services.scalars.model.locations import ActivationLocationType
from services.scalars.passes.inference import PreparedInference
from services.scalars.passes.nodes import autoencoder_input
from services.scalars.requests.selected_nodes import SelectedNode
from tests.unit.scalars_derived import Given, Wanted, derive, make_autoencoder, make_model

Location = ActivationLocationType
TOKENS = (5, 17, 5)


@pytest.mark.parametrize("variant", ["gpt2", "qwen3, biases"])
@pytest.mark.parametrize("location", [Location.MLP_POST_ACT, Location.RESID_DELTA_MLP])
def test_is_the_pre_activation_for_every_embedding(
    variant: str, location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "_CHUNK", 100)  # several chunks, the last one shorter
    model = make_model(tmp_path / "model", variant)
    autoencoder = make_autoencoder(model, location)
    given = Given(model, AutoencoderSet([autoencoder]))
    places = (Location.MLP_POST_ACT, Location.MLP_PRE_ACT, Location.ONLINE_AUTOENCODER_LATENT)
    neurons, again, latents = (
        each[None]
        for each in derive(
            given,
            PreparedInference(TOKENS, (), None),
            [
                Wanted(
                    "vocab_token_write_to_input_direction",
                    SelectedNode(activation_index=ActivationIndex(place, (0, 5), 1)),
                )
                for place in places
            ],
        )
    )
    embeddings = model.token_embedding
    assert neurons.shape == (len(TOKENS), len(embeddings))
    torch.testing.assert_close(neurons[0], model.mlp_neurons(1, embeddings).pre_act[:, 5])
    read = autoencoder_input(model, location, 1, embeddings, detach_scale=False)
    torch.testing.assert_close(latents[2], autoencoder.encode_pre(1, read)[:, 5])
    assert torch.equal(neurons, again)
    # The same for every token of the prompt, and not written out for each of them.
    assert latents.stride(0) == 0
