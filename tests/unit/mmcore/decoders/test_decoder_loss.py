"""The denoising loss: each decoder's own schedule and target, Min-SNR per item and per prediction type, gradients into the conditioning only."""

from __future__ import annotations

import shutil

import pytest
import torch
from diffusers import CogVideoXDPMScheduler, DDPMScheduler
from toy_decoders import FAMILIES, conditioning, decoder, directory, latents, streams

from infra.step import AnyloomError
from mmcore.decoders import load_decoder
from mmcore.decoders.denoising import denoising_loss, min_snr_weights, noised, target_of
from mmcore.decoders.sampling import SamplingOptions, generate


def drawn(name: str, count: int = 6):
    """(latents, what `noised` makes of them, the noise it drew)."""
    clean = latents(name, count)
    made = noised(decoder(name), clean, torch.Generator().manual_seed(3))
    alphas = made.alphas_B.reshape(-1, *[1] * (clean.ndim - 1))
    same = torch.Generator().manual_seed(3)
    torch.randint(0, 1000, (count,), generator=same)
    noise = torch.randn(clean.shape, generator=same)
    torch.testing.assert_close(made.noisy, alphas.sqrt() * clean + (1 - alphas).sqrt() * noise)
    return clean, made, noise


@pytest.mark.parametrize("name", FAMILIES)
def test_noise_and_target_are_those_of_diffusers_own_scheduler(name):
    """DDPM's add_noise and get_velocity on the same config; CogVideoX's shifted schedule has its own class."""
    clean, made, noise = drawn(name)
    kind = CogVideoXDPMScheduler if "cogvideox" in name else DDPMScheduler
    scheduler = kind.from_config(decoder(name).scheduler.config)
    torch.testing.assert_close(made.noisy, scheduler.add_noise(clean, noise, made.timesteps_B), atol=2e-6, rtol=1e-5)
    velocity = scheduler.get_velocity(clean, noise, made.timesteps_B)
    wanted = velocity if decoder(name).contract.prediction_type == "v_prediction" else noise
    torch.testing.assert_close(made.target, wanted, atol=2e-6, rtol=1e-5)
    assert len(made.timesteps_B.unique()) > 1


def test_velocity_and_noise_models_get_different_targets():
    """Stable Diffusion 2 predicts the velocity: its target is not the noise, and only a right prediction gives it loss zero."""
    clean, epsilon, noise = drawn("tiny-sd15")
    _, velocity, same_noise = drawn("tiny-sd2")
    assert torch.equal(noise, same_noise) and torch.equal(epsilon.target, noise)
    torch.testing.assert_close(epsilon.noisy, velocity.noisy)
    assert (epsilon.target - velocity.target).square().mean() > 0.1
    alphas = velocity.alphas_B.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(alphas.sqrt() * velocity.noisy - (1 - alphas).sqrt() * velocity.target, clean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(target_of("sample", clean, noise, velocity.alphas_B), clean)
    with pytest.raises(AnyloomError, match="prediction type 'flow' has no target"):
        target_of("flow", clean, noise, velocity.alphas_B)


def test_a_sigma_based_sampler_is_trained_on_the_scaled_input_it_samples_with():
    """Euler's add_noise gives latents + sigma * noise and scales before the UNet; unscaled, the denoiser would see another input."""
    clean, made, noise = drawn("tiny-sd2")
    scheduler = type(decoder("tiny-sd2").scheduler).from_config(decoder("tiny-sd2").scheduler.config)
    scheduler.set_timesteps(1000)
    for row, step in enumerate(made.timesteps_B.tolist()):
        at = scheduler.timesteps[999 - step]
        assert round(float(at)) == step
        unscaled = scheduler.add_noise(clean[row : row + 1], noise[row : row + 1], at[None])
        scheduler._step_index = None
        torch.testing.assert_close(scheduler.scale_model_input(unscaled, at), made.noisy[row : row + 1], atol=1e-4, rtol=1e-3)
        assert step < 100 or (unscaled - made.noisy[row : row + 1]).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weighs_the_error_of_the_clean_latent_by_the_clipped_snr(kind):
    """Whatever is predicted, an error of the prediction is turned into the error of the clean latent it means; that error counts min(SNR, gamma)."""
    alphas_B = decoder("tiny-sd15").alphas_T[[5, 200, 500, 800, 999]]
    clean, noise = latents("tiny-sd15", 5), torch.randn(5, 4, 4, 4, generator=torch.Generator().manual_seed(7))
    alphas = alphas_B.reshape(-1, 1, 1, 1)
    noisy = alphas.sqrt() * clean + (1 - alphas).sqrt() * noise
    predicted = target_of(kind, clean, noise, alphas_B) + 0.1
    guess = {
        "epsilon": (noisy - (1 - alphas).sqrt() * predicted) / alphas.sqrt(),
        "v_prediction": alphas.sqrt() * noisy - (1 - alphas).sqrt() * predicted,
        "sample": predicted,
    }[kind]
    of_latent_B = (guess - clean).square().flatten(1).mean(1)
    of_prediction_B = torch.full((5,), 0.01)
    snr_B = alphas_B / (1 - alphas_B)
    torch.testing.assert_close(min_snr_weights(kind, alphas_B, 5.0) * of_prediction_B, snr_B.clamp(max=5.0) * of_latent_B, rtol=2e-3, atol=1e-6)
    with pytest.raises(AnyloomError, match="set it above 0"):
        min_snr_weights(kind, alphas_B, 0.0)


def test_min_snr_stays_finite_where_the_schedule_ends_in_pure_noise():
    alphas_B = decoder("tiny-cogvideox").alphas_T[[0, 500, 999]]
    assert alphas_B[2] == 0
    assert min_snr_weights("epsilon", alphas_B, 5.0)[2] == 1
    assert min_snr_weights("v_prediction", alphas_B, 5.0)[2] == 0
    assert all(torch.isfinite(min_snr_weights(kind, alphas_B, 5.0)).all() for kind in ("epsilon", "v_prediction", "sample"))


@pytest.mark.parametrize("name", ["tiny-sd15", "tiny-sd2"])
def test_min_snr_weighs_every_item_by_its_own_step(name):
    """Not one mean over the batch times some weight: the loss of item i is its own error times its own weight."""
    clean, made, _ = drawn(name)
    plain_B = denoising_loss(decoder(name), clean, conditioning(name, 6), torch.Generator().manual_seed(3))
    weighted_B = denoising_loss(decoder(name), clean, conditioning(name, 6), torch.Generator().manual_seed(3), min_snr_gamma=5.0)
    assert plain_B.shape == weighted_B.shape == (6,)
    weights_B = weighted_B / plain_B
    torch.testing.assert_close(weights_B, min_snr_weights(decoder(name).contract.prediction_type, made.alphas_B, 5.0))
    assert weights_B.max() / weights_B.min() > 1.5
    predicted = decoder(name).predict(made.noisy, made.timesteps_B, conditioning(name, 6))
    torch.testing.assert_close(plain_B, torch.stack([(predicted[i] - made.target[i]).square().mean() for i in range(6)]))


@pytest.mark.parametrize("name", [*FAMILIES, "tiny-cogvideox-rotary"])
def test_one_gradient_step_into_the_conditioning_and_a_medium_through_the_contract(name):
    before = {key: value.clone() for key, value in decoder(name).denoiser.state_dict().items()}
    given = [tensor.requires_grad_() for tensor in streams(name)]
    loss = denoising_loss(decoder(name), latents(name), decoder(name).condition(*given), torch.Generator().manual_seed(5), min_snr_gamma=5.0).mean()
    loss.backward()
    for tensor in given:
        assert torch.isfinite(tensor.grad).all() and (tensor.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in decoder(name).denoiser.parameters())
    length = sum(tensor.grad.square().sum() for tensor in given).sqrt()
    moved = [tensor.detach() - 0.1 * tensor.grad / length for tensor in given]
    after = denoising_loss(decoder(name), latents(name), decoder(name).condition(*moved), torch.Generator().manual_seed(5), min_snr_gamma=5.0).mean()
    assert after < loss
    assert all(torch.equal(value, before[key]) for key, value in decoder(name).denoiser.state_dict().items())
    media = generate(decoder(name), decoder(name).condition(*moved), [0, 1], SamplingOptions(steps=2))
    assert [medium.modality for medium in media] == [decoder(name).contract.modality] * 2


def test_the_loss_is_reproducible_and_the_schedule_is_the_directorys(tmp_path):
    again = [denoising_loss(decoder("tiny-sd15"), latents("tiny-sd15"), conditioning("tiny-sd15"), torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(again[0], again[1]) and not torch.equal(again[0], again[2])
    copy = tmp_path / "copy"
    shutil.copytree(directory("tiny-sd15"), copy)
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(path.read_text().replace('"scaled_linear"', '"linear"'))
    other = noised(load_decoder(copy), latents("tiny-sd15"), torch.Generator().manual_seed(0))
    mine = noised(decoder("tiny-sd15"), latents("tiny-sd15"), torch.Generator().manual_seed(0))
    assert torch.equal(other.timesteps_B, mine.timesteps_B) and not torch.allclose(other.alphas_B, mine.alphas_B)
