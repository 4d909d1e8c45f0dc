"""A gate that shares the encoder's weights, as a threshold."""

from __future__ import annotations

from torch import Tensor


def gated_as_threshold(
    encoder: Tensor, magnitude_bias: Tensor, gate_bias: Tensor, magnitude_scale: Tensor
) -> tuple[Tensor, Tensor]:
    """The encoder (A, I) of the magnitudes, and each latent's threshold (A,) on its magnitude.

    With p the product of input and encoder, a latent's gate is open where p + gate_bias > 0 and its
    magnitude is m = p · exp(s) + magnitude_bias; so the gate is open where m is above
    magnitude_bias - exp(s) · gate_bias (Rajamanoharan et al. 2024, "Improving Dictionary Learning
    with Gated Sparse Autoencoders", its equivalence to JumpReLU).
    """
    scale = magnitude_scale.exp()
    return encoder * scale[:, None], magnitude_bias - scale * gate_bias
