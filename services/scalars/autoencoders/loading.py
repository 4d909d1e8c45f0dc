"""Loading the autoencoders of a deployment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from services.scalars.autoencoders.autoencoder import Autoencoder
from services.scalars.autoencoders.autoencoder_set import AutoencoderSet
from services.scalars.autoencoders.own_layout import read_own_layout
from services.scalars.autoencoders.probe import check_reconstruction
from services.scalars.autoencoders.saelens_layout import is_saelens, read_saelens
from services.scalars.model.family import SubjectModel
from services.scalars.model.tokenizer import TextTokenizer
from shared.errors import ConfigurationError
from shared.settings import Autoencoder as ConfiguredAutoencoder


def load_autoencoders(
    configured: Sequence[ConfiguredAutoencoder], model: SubjectModel, tokenizer: TextTokenizer
) -> AutoencoderSet:
    """Reads the autoencoders onto the model's device, and lets them reconstruct a probe.

    Raises ConfigurationError naming `model.autoencoders[i].path` for whatever is wrong with a file
    or doesn't fit the model, for a second autoencoder of one kind, and where a reconstruction is
    not finite or of another size altogether than what it reconstructs.
    """
    found: list[Autoencoder] = []
    keys: list[str] = []
    for position, each in enumerate(configured):
        key = f"model.autoencoders[{position}].path"
        path = Path(each.path)
        read = read_saelens if is_saelens(path) else read_own_layout
        autoencoder = read(each.name, path, key, model.shape, model.device)
        for other in found:
            if other.node_type is autoencoder.node_type:
                raise ConfigurationError(
                    key,
                    f"{each.name} is a second autoencoder of the kind {autoencoder.node_type}, "
                    f"beside {other.name}",
                )
        found.append(autoencoder)
        keys.append(key)
    if found:
        check_reconstruction(dict(zip(keys, found, strict=True)), model, tokenizer)
    return AutoencoderSet(found)
