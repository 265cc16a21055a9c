"""The image_decoder step: a small text-conditioned diffusion model of the training images, saved as an ordinary diffusers pipeline.

Input: `weights` (the text encoder whose token states the `targets` step stores) and `shards_cc3m`; of the latter only images of the training
split. It depends on nothing else, so it may run beside the stages. Output: `pipeline/` (what StableDiffusionPipeline.from_pretrained opens: our
autoencoder, UNet and noise schedule, the frozen text encoder and its tokenizer), the losses of both fits, and which images were learned from.
Killed and continued it gives the same bytes; it uses one thread, so they do not depend on the number of cores it is given.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.step import AnyloomError, Progress, StepContext
from infra.storage import link, sha256_file, write_atomic
from mmcore.concepts.config import ImageDecoderConfig
from mmcore.concepts.latent_diffusion import (
    build_scheduler,
    build_unet,
    build_vae,
    decode,
    diffusion_loss,
    encode,
    load_text_parts,
    noisy,
    prompt_states,
    save_pipeline,
    standardise,
    vae_loss,
)
from mmcore.concepts.shapes import CONCEPTS, WORDINGS, captioned_crops
from mmcore.decoders.texts import write_empty
from mmcore.stores.shards import ShardSet
from mmcore.training.fit import batch_rows, draws, fit

if TYPE_CHECKING:
    import torch

    from mmcore.concepts.shapes import Crops
    from mmcore.training.loop import LossLog

PIPELINE = "pipeline"
LEARNED = "learned.json"


def run(ctx: StepContext[ImageDecoderConfig]) -> dict[str, Any]:
    """Entry of the step. Returns counts, parameters and the losses at the end."""
    import torch

    torch.set_num_threads(1)
    config = ctx.config
    crops = captioned_crops(ShardSet(ctx.inputs["shards_cc3m"].path, ctx.stores), config.source, config.side)
    given = ctx.inputs["weights"].path / "encoder"
    tokenizer, text_encoder = load_text_parts(given, config.tokens)
    try:
        vae = build_vae(config)
        unet = build_unet(config, text_encoder.config.hidden_size)
        vae_log, latents, quality_db = _fit_vae(ctx, vae, crops)
        unet_log = _fit_unet(ctx, unet, latents, crops, tokenizer, text_encoder)
    except ValueError as error:
        raise AnyloomError(f"{ctx.name}: {error}") from error
    save_pipeline(ctx.output / PIPELINE, vae, unet, tokenizer, text_encoder)
    write_empty(ctx.output / PIPELINE)
    _share_bytes(given, ctx.output / PIPELINE / "text_encoder")
    for name, log in (("vae", vae_log), ("unet", unet_log)):
        log.write(ctx.output / f"losses_{name}.parquet")
    learned = {"source": config.source, "keys": crops.keys, "media_sha256": crops.sha256}
    write_atomic(ctx.output / LEARNED, json.dumps(learned, indent=1, sort_keys=True) + "\n")
    return {
        "pictures": len(crops),
        "concepts": len(set(crops.concepts.tolist())),
        "vae_parameters": sum(p.numel() for p in vae.parameters()),
        "unet_parameters": sum(p.numel() for p in unet.parameters()),
        "reconstruction_psnr_db": round(quality_db, 2),
        "final_vae_loss": vae_log.tail_means()["loss"],
        "final_unet_loss": unet_log.tail_means()["loss"],
    }


def _part(progress: Progress, before: int, of_all: int, name: str) -> Progress:
    """Progress of one fit as a part of the step's."""

    def report(done: float, total: float, note: str = "") -> None:
        progress(before + done, of_all, f"{name}: {note}")

    return report


def _fit_vae(ctx: StepContext[ImageDecoderConfig], vae: Any, crops: Crops) -> tuple[LossLog, torch.Tensor, float]:
    """Train the autoencoder and standardise its latents. Returns (log, latents [2, N, C, h, w] of the crops and their mirror images, PSNR in dB)."""
    import torch

    config = ctx.config
    pixels, mask = torch.from_numpy(crops.pixels).float() / 127.5 - 1, torch.from_numpy(crops.shape_mask)

    def loss(step: int) -> torch.Tensor:
        generator = draws("vae", config.vae.seed, step)
        rows = torch.from_numpy(batch_rows(len(crops), config.vae, step, "vae"))
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        shown, shape = pixels[rows], mask[rows]
        shown = torch.where(mirrored[:, None, None, None], shown.flip(-1), shown)
        shape = torch.where(mirrored[:, None, None], shape.flip(-1), shape)
        return vae_loss(vae, shown, shape, config, generator)

    progress = _part(ctx.progress, 0, config.vae.steps + config.unet.steps, "autoencoder")
    log = fit(dict(vae.named_parameters()), config.vae, loss, ctx.work / "vae", {"pictures": len(crops)}, progress)
    vae.requires_grad_(False).eval()
    standardise(vae, torch.cat([encode(vae, pixels), encode(vae, pixels.flip(-1))]))
    latents = torch.stack([encode(vae, pixels), encode(vae, pixels.flip(-1))])
    error = (decode(vae, latents[0]) - pixels).square().mean() / 4  # of images in [0, 1]
    return log, latents, float(-10 * torch.log10(error))


def _fit_unet(ctx: StepContext[ImageDecoderConfig], unet: Any, latents: torch.Tensor, crops: Crops, tokenizer: Any, text_encoder: Any) -> LossLog:
    """Train the UNet on cached latents and prompt states. Returns its log."""
    import torch

    config = ctx.config
    prompts = [concept.worded(wording) for concept in CONCEPTS for wording in WORDINGS]
    states, mask = prompt_states(tokenizer, text_encoder, [*prompts, ""])
    spread = states[mask].std(0)
    scheduler, concepts = build_scheduler(), torch.from_numpy(crops.concepts)

    def loss(step: int) -> torch.Tensor:
        generator = draws("unet", config.unet.seed, step)
        rows = torch.from_numpy(batch_rows(len(crops), config.unet, step, "unet"))
        coins = torch.rand(3, len(rows), generator=generator)
        wordings = torch.randint(len(WORDINGS), (len(rows),), generator=generator)
        chosen = torch.where(coins[0] < config.empty_share, len(prompts), concepts[rows] * len(WORDINGS) + wordings)
        shown = mask[chosen] | (coins[1] < config.padded_share)[:, None]
        given = noisy(states[chosen] * shown[..., None], spread, config.state_noise, generator)
        return diffusion_loss(unet, scheduler, latents[(coins[2] < 0.5).long(), rows], given, generator)

    progress = _part(ctx.progress, config.vae.steps, config.vae.steps + config.unet.steps, "diffusion")
    return fit(dict(unet.named_parameters()), config.unet, loss, ctx.work / "unet", {"pictures": len(crops)}, progress)


def _share_bytes(given: Path, saved: Path) -> None:
    """The text encoder's weights are those of the weights step: where the bytes are the same, one file on the disk serves both."""
    for path in sorted(saved.glob("*.safetensors")):
        other = given / path.name
        if other.is_file() and sha256_file(other) == sha256_file(path):
            link(other, path)
