"""Letting autoencoders reconstruct what the model computes on a probe.

A file of another model, another place or another normalisation has the right shapes; what gives it
away is its reconstruction error.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from services.scalars.autoencoders.autoencoder import Autoencoder
from services.scalars.model.family import SubjectModel
from services.scalars.model.locations import PassType
from services.scalars.model.taps import RawTensorId
from services.scalars.model.tokenizer import TextTokenizer
from services.scalars.passes.inference import PreparedInference, run_inference
from shared.errors import ConfigurationError

_log = structlog.get_logger(__name__)

PROBE = (
    "The old man walked down to the sea in 1950, and nobody asked him why. In Python, "
    "`def add(a, b): return a + b` adds two numbers; in Paris, the museum opens at nine."
)
_TOKENS = 32
WORST = 1000.0
"""A reconstruction error, in lengths of what is reconstructed, that is refused."""
_POOR = 1.0
"""One that is reported: nothing at all would do as well."""


def check_reconstruction(
    autoencoders: Mapping[str, Autoencoder], model: SubjectModel, tokenizer: TextTokenizer
) -> None:
    """Refuses and reports bad reconstructions; autoencoders by configuration key.

    ConfigurationError naming the key where an error is not finite or above `WORST`.
    """
    for key, autoencoder in autoencoders.items():
        errors = reconstruction_errors(autoencoder, model, tokenizer)
        for layer, error in errors.items():
            if not error <= WORST:
                raise ConfigurationError(
                    key,
                    f"{autoencoder.name} reconstructs {autoencoder.location.value} of layer "
                    f"{layer} with an error of {error:.3g} times its length; it was made for "
                    "another model, place or scale",
                )
        poor = [layer for layer, error in errors.items() if error >= _POOR]
        say = _log.warning if poor else _log.info
        say(
            "autoencoder_reconstruction",
            autoencoder=autoencoder.name,
            error_of_length={layer: round(error, 3) for layer, error in errors.items()},
            no_better_than_nothing_at_layers=poor,
        )


def reconstruction_errors(
    autoencoder: Autoencoder, model: SubjectModel, tokenizer: TextTokenizer
) -> dict[int, float]:
    """‖x - decode(encode(x))‖ / ‖x‖ over the tokens of the probe, by layer.

    A layer whose x is zero throughout tells nothing and is left out.
    """
    tokens = tuple(tokenizer.encode(PROBE)[: min(_TOKENS, model.shape.context)])
    targets = [
        RawTensorId(autoencoder.location, layer, PassType.FORWARD) for layer in autoencoder.layers
    ]
    run = run_inference(model, PreparedInference(tokens, (), None), targets)
    captured = run.raw_store.get(autoencoder.location, PassType.FORWARD)
    errors: dict[int, float] = {}
    for layer in autoencoder.layers:
        x = captured.activations_by_layer_index[layer].float()
        error = (x - autoencoder.decode(layer, autoencoder.encode(layer, x))).norm()
        length = float(x.norm())
        if length:
            errors[layer] = float(error) / length
    return errors
