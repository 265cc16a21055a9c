"""The denoising loss: how well a frozen decoder, driven by a conditioning, tells the noise in latents of the wanted medium.

Owns the forward noising, the targets of the three prediction types and the Min-SNR weights. All of them follow the decoder's own noise schedule
(alpha-bar of its scheduler's config), whatever sampler that config names: with a sigma-based sampler such as EulerDiscrete the denoiser still expects
variance-preserving latents, which is what that sampler's scale_model_input restores. Input: a decoder, clean latents and a conditioning; output: one
loss per item, whose gradients reach the conditioning only.

Shape letters: B batch, T steps of the noise schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from infra.step import AnyloomError
from mmcore.decoders.base import Conditioning, Decoder
from mmcore.decoders.contract import PREDICTIONS


@dataclass(frozen=True, slots=True)
class Noised:
    """Latents at random steps of the noise schedule, and what the denoiser should say about them."""

    noisy: torch.Tensor
    """[B, *latent] sqrt(alpha-bar) * latents + sqrt(1 - alpha-bar) * noise."""
    timesteps_B: torch.Tensor
    """int64."""
    target: torch.Tensor
    """[B, *latent], see target_of."""
    alphas_B: torch.Tensor
    """float32 alpha-bar of each item."""


def target_of(prediction_type: str, latents: torch.Tensor, noise: torch.Tensor, alphas_B: torch.Tensor) -> torch.Tensor:
    """What a denoiser of this type should predict: epsilon: the noise (Ho et al. 2020, arXiv 2006.11239); v_prediction: sqrt(a) * noise - sqrt(1 - a) *
    latents (Salimans & Ho 2022, arXiv 2202.00512); sample: the latents. Raises AnyloomError for another type."""
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    if prediction_type == "v_prediction":
        alphas = _beside(alphas_B, latents)
        return alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    raise AnyloomError(f"prediction type '{prediction_type}' has no target here; there are: {', '.join(PREDICTIONS)}")


def min_snr_weights(prediction_type: str, alphas_B: torch.Tensor, gamma: float) -> torch.Tensor:
    """[B] Min-SNR-gamma weights of the squared error (Hang et al. 2023, arXiv 2303.09556): the error of the clean latent counts min(SNR, gamma).

    With SNR = a / (1 - a), the squared errors of the three types differ by factors of the SNR only: an error of the noise is SNR times smaller than the
    same error of the latent, one of the velocity SNR + 1 times, hence min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v_prediction, / 1 for sample.
    At SNR 0 (a schedule that ends in pure noise) the weight of epsilon is its limit, 1. Raises AnyloomError for another type or a gamma that is not > 0.
    """
    if not gamma > 0:
        raise AnyloomError(f"min_snr_gamma is {gamma}: set it above 0 (the paper uses 5), or leave it out")
    snr_B = alphas_B / (1 - alphas_B)
    clipped_B = snr_B.clamp(max=gamma)
    if prediction_type == "epsilon":
        return torch.where(snr_B > 0, clipped_B / snr_B, torch.ones_like(snr_B))
    if prediction_type == "v_prediction":
        return clipped_B / (snr_B + 1)
    if prediction_type == "sample":
        return clipped_B
    raise AnyloomError(f"prediction type '{prediction_type}' has no Min-SNR weight here; there are: {', '.join(PREDICTIONS)}")


Draws = torch.Generator | Sequence[torch.Generator]
"""Where steps and noise are drawn from: one generator for a batch, or one per item, which makes an item's draws independent of its company."""


def noised(decoder: Decoder, latents: torch.Tensor, generator: Draws) -> Noised:
    """Draw a uniform step and noise for every item (on the generator's device, so a CPU generator gives the same draws everywhere) and mix them in.

    Raises AnyloomError for a decoder without a noise schedule, and when the latents' channels are not the contract's.
    """
    if not decoder.contract.denoises:
        raise AnyloomError(f"{decoder.contract.family} has no noise schedule, so there is no denoising loss: set denoise_loss to 0, or name another decoder")
    wanted = decoder.contract.latent_shape
    axis = 1 if decoder.part == "transformer" else 0
    if latents.ndim != len(wanted) + 1 or latents.shape[axis + 1] != wanted[axis]:
        raise AnyloomError(
            f"{decoder.contract.family}: latents of the shape [batch, {', '.join(map(str, wanted))}] are wanted, {list(latents.shape)} were given"
        )
    count, device = len(latents), decoder.device
    if isinstance(generator, torch.Generator):
        timesteps_B, noise = _drawn(len(decoder.alphas_T), latents.shape, generator)
    else:
        parts = [_drawn(len(decoder.alphas_T), torch.Size((1, *latents.shape[1:])), one) for one in generator]
        if len(parts) != count:
            raise AnyloomError(f"{decoder.contract.family}: {count} latents and {len(parts)} generators were given; one per item")
        timesteps_B, noise = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    timesteps_B, noise = timesteps_B.to(device), noise.to(device)
    latents, alphas_B = latents.to(device, torch.float32), decoder.alphas_T[timesteps_B]
    alphas = _beside(alphas_B, latents)
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    return Noised(noisy, timesteps_B, target_of(decoder.contract.prediction_type, latents, noise, alphas_B), alphas_B)


def _drawn(steps: int, shape: torch.Size, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """(uniform steps [B], standard normal noise of `shape`)."""
    timesteps_B = torch.randint(0, steps, (shape[0],), generator=generator, device=generator.device)
    return timesteps_B, torch.randn(shape, generator=generator, device=generator.device)


def denoising_loss(decoder: Decoder, latents: torch.Tensor, conditioning: Conditioning, generator: Draws, min_snr_gamma: float | None = None) -> torch.Tensor:
    """[B] mean squared error of each item's prediction, times its Min-SNR weight where a gamma is given.

    latents [B, *latent_shape]: clean, in the decoder's units (contract.latent_scale); sizes may differ from the contract's. Raises AnyloomError when
    latents and conditioning are of different batches.
    """
    if len(latents) != len(conditioning):
        raise AnyloomError(f"{decoder.contract.family}: {len(latents)} latents and {len(conditioning)} conditionings were given; one of each per item")
    drawn = noised(decoder, latents, generator)
    predicted = decoder.predict(drawn.noisy, drawn.timesteps_B, conditioning)
    loss_B = (predicted - drawn.target).square().flatten(1).mean(1)
    if min_snr_gamma is None:
        return loss_B
    return loss_B * min_snr_weights(decoder.contract.prediction_type, drawn.alphas_B, min_snr_gamma)


def _beside(alphas_B: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """[B] -> [B, 1, ...], to multiply latents with."""
    return alphas_B.reshape(-1, *[1] * (latents.ndim - 1))
