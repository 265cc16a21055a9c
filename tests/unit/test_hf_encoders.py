"""Encoders of transformers (CLIP, SigLIP, DINOv2, CLAP, HuBERT) on tiny random models in the layout `save_pretrained` writes."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import transformers
from data_steps import png, wav
from PIL import Image

from mmcore.config import EncoderSpec
from mmcore.encoders import load_encoder
from mmcore.seeding import seeded
from pipelines.sources.clips import encode_mp4

BODY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 8}
SIZE = {"height": 32, "width": 32}


def vision(family):
    """(model, processor) of a family at toy size, under a seed."""
    with seeded(0):
        if family == "clip":
            model = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**BODY, **PICTURE, projection_dim=16))
            return model, transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE)
        if family == "siglip":
            return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**BODY, **PICTURE)), transformers.SiglipImageProcessor(size=SIZE)
        config = transformers.Dinov2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, **PICTURE)
        return transformers.Dinov2Model(config), transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE)


def audio(family):
    """(model, feature extractor) of a family at toy size, under a seed."""
    with seeded(0):
        if family == "hubert":
            config = transformers.HubertConfig(
                **BODY, conv_dim=(16, 16), conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4
            )
            return transformers.HubertModel(config), transformers.Wav2Vec2FeatureExtractor(sampling_rate=16000)
        config = transformers.ClapAudioConfig(patch_embeds_hidden_size=16, hidden_size=32, depths=[1, 1], num_attention_heads=[2, 2], projection_dim=16)
        return transformers.ClapAudioModelWithProjection(config), transformers.ClapFeatureExtractor(
            max_length_s=2, truncation="rand_trunc", padding="repeatpad"
        )


@pytest.fixture
def weights(tmp_path):
    def make(parts):
        for part in parts:
            part.save_pretrained(tmp_path / "encoder")
        return tmp_path

    return make


@pytest.mark.parametrize(("family", "pooled"), [("clip", 16), ("siglip", 32), ("dinov2", 32)])
def test_pictures_are_those_of_the_stock_model(family, pooled, weights):
    model, processor = vision(family)
    folder = weights((model, processor))
    data = [png(0), png(1)]
    inputs = processor(images=[Image.open(io.BytesIO(d)).convert("RGB") for d in data], return_tensors="pt")
    with torch.inference_mode():
        outputs = model.eval()(**inputs)
    vector = outputs.image_embeds if family == "clip" else outputs.pooler_output
    features = load_encoder(EncoderSpec(kind="hf_image", arch=family, width=pooled, batch=2), folder).encode(data)
    assert [f.shape for f in features] == [(1, pooled)] * 2 and features[0].dtype == np.float16
    np.testing.assert_allclose(np.concatenate(features), vector.numpy(), atol=2e-3)
    patches = outputs.last_hidden_state[:, -16:].numpy()
    whole = load_encoder(EncoderSpec(kind="hf_image", arch=family, width=32, grid=4, batch=2), folder).encode(data)
    np.testing.assert_allclose(np.stack(whole), patches, atol=5e-3)
    coarse = load_encoder(EncoderSpec(kind="hf_image", arch=family, width=32, grid=1, batch=2), folder).encode(data)
    np.testing.assert_allclose(np.concatenate(coarse), patches.mean(1), atol=5e-3)


def test_a_clip_is_its_frames(weights):
    folder = weights(vision("siglip"))
    clip = encode_mp4([Image.new("RGB", (48, 48), (40 * n, 0, 0)) for n in range(6)], 6)
    features = load_encoder(EncoderSpec(kind="hf_video", arch="siglip", width=32, grid=2, frames=3, batch=2), folder).encode([clip])[0]
    assert features.shape == (12, 32) and np.abs(features[:4].astype(float) - features[8:].astype(float)).max() > 1e-3


@pytest.mark.parametrize(("family", "pooled", "wide"), [("hubert", 32, 32), ("clap", 16, 32)])
def test_sounds_do_not_depend_on_their_neighbours(family, pooled, wide, weights):
    folder = weights(audio(family))
    sounds = [wav(0, 0.7), wav(1, 1.5)]
    for tokens, width in ((0, pooled), (3, wide)):
        spec = EncoderSpec(kind="hf_audio", arch=family, width=width, tokens=tokens, batch=2, max_seconds=2.0)
        encoder = load_encoder(spec, folder)
        both, alone = encoder.encode(sounds), encoder.encode(sounds[:1])
        assert [f.shape for f in both] == [(max(tokens, 1), width)] * 2
        np.testing.assert_array_equal(both[0], alone[0])
        assert np.abs(both[0].astype(float) - both[1].astype(float)).max() > 1e-3


def test_wrong_family_and_width_are_named(weights):
    folder = weights(vision("clip"))
    with pytest.raises(ValueError, match="unknown vision family 'resnext': choose one of clip, siglip, dinov2"):
        load_encoder(EncoderSpec(kind="hf_image", arch="resnext", width=16), folder)
    with pytest.raises(ValueError, match="gives width 16, the spec says 8"):
        load_encoder(EncoderSpec(kind="hf_image", arch="clip", width=8), folder).encode([png(0)])
