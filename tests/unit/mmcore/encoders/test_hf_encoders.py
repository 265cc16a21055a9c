"""Encoders of transformers (CLIP, SigLIP, DINOv2, CLAP, HuBERT) on tiny random models in the layout `save_pretrained` writes."""

from __future__ import annotations

import io
import shutil

import numpy as np
import pytest
import torch
import transformers
from data_steps import png, run_step, wav
from PIL import Image
from safetensors.torch import load_file, save_file

from mmcore.encoder_config import HfAudio, HfImage, HfText, HfVideo, encoder_config
from mmcore.encoders import MODALITY_OF, load_encoder
from mmcore.encoders.resample import resample
from mmcore.media.decode import decode_video_frames, decode_waveform
from mmcore.runtime.seeding import seeded
from pipelines.demo.clips import encode_mp4
from pipelines.weights.config import WeightsConfig

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


def unit(vectors):
    return vectors / vectors.norm(dim=-1, keepdim=True)


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
    vector = vector if family == "dinov2" else unit(vector)
    features = load_encoder(HfImage(arch=family, width=pooled, batch=2), folder).encode(data)
    assert [f.shape for f in features] == [(1, pooled)] * 2 and features[0].dtype == np.float16
    np.testing.assert_allclose(np.concatenate(features), vector.numpy(), atol=2e-3)
    patches = outputs.last_hidden_state[:, -16:].numpy()
    whole = load_encoder(HfImage(arch=family, width=32, grid=4, batch=2), folder).encode(data)
    np.testing.assert_allclose(np.stack(whole), patches, atol=5e-3)
    coarse = load_encoder(HfImage(arch=family, width=32, grid=1, batch=2), folder).encode(data)
    np.testing.assert_allclose(np.concatenate(coarse), patches.mean(1), atol=5e-3)


def test_a_clip_is_its_frames(weights):
    folder = weights(vision("siglip"))
    clip = encode_mp4([Image.new("RGB", (48, 48), (40 * n, 0, 0)) for n in range(6)], 6)
    features = load_encoder(HfVideo(arch="siglip", width=32, grid=2, frames=3, batch=2), folder).encode([clip])[0]
    assert features.shape == (12, 32) and np.abs(features[:4].astype(float) - features[8:].astype(float)).max() > 1e-3


def test_a_short_scene_is_seen_when_frames_are_spread_over_scenes(weights):
    folder = weights(vision("siglip"))
    clip = encode_mp4([Image.new("RGB", (48, 48), "red" if n < 4 else "blue") for n in range(24)], 12)
    differs = []
    for sampling in ("uniform", "scenes"):
        spec = HfVideo(arch="siglip", width=32, grid=1, frames=2, sampling=sampling)
        first, second = load_encoder(spec, folder).encode([clip])[0].astype(float)
        differs.append(bool(np.abs(first - second).max() > 1e-2))
    assert differs == [False, True]


@pytest.mark.parametrize(("family", "pooled", "wide"), [("hubert", 32, 32), ("clap", 16, 32)])
def test_sounds_do_not_depend_on_their_neighbours(family, pooled, wide, weights):
    folder = weights(audio(family))
    sounds = [wav(0, 0.7), wav(1, 1.5)]
    for tokens, width in ((0, pooled), (3, wide)):
        spec = HfAudio(arch=family, width=width, tokens=tokens, batch=2, max_seconds=2.0)
        encoder = load_encoder(spec, folder)
        both, alone = encoder.encode(sounds), encoder.encode(sounds[:1])
        assert [f.shape for f in both] == [(max(tokens, 1), width)] * 2
        np.testing.assert_array_equal(both[0], alone[0])
        assert np.abs(both[0].astype(float) - both[1].astype(float)).max() > 1e-3


@pytest.mark.parametrize("samples", [1, 9, 10, 44, 45, 46])
def test_the_shortest_audio_is_padded_to_a_window_of_hubert(samples, weights):
    encoder = load_encoder(HfAudio(arch="hubert", width=32, tokens=0, batch=1), weights(audio("hubert")))
    (features,) = encoder.encode([wav(0, samples / 16000)])
    assert encoder._shortest == 45 and features.shape == (1, 32) and np.isfinite(features.astype(float)).all()


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """Weights of the three families with two sides, as their step writes them."""
    root = tmp_path_factory.mktemp("joint")
    for family, part in (("clip", "image"), ("siglip", "image"), ("clap", "audio")):
        run_step(root, f"weights_{family}", f"pipelines.weights.parts:run_{part}", WeightsConfig(kind="random", arch=f"tiny-{family}", seed=1), {})
    return root


def encoded(joint, family, modality, items, **more):
    spec = encoder_config(f"hf_{modality}", {"arch": family, "width": 16, "dtype": "float32", "batch": 2, **more})
    return np.concatenate(load_encoder(spec, joint / f"weights_{family}").encode(items))


TEXTS = ["A dog.", "zwei Katzen, schön & weich 🐈", "tree " * 100]


@pytest.mark.parametrize("family", ["clip", "siglip", "clap"])
def test_both_sides_give_the_unit_vectors_of_the_stock_model(family, joint):
    folder = joint / f"weights_{family}" / "encoder"
    model, tokenizer = transformers.AutoModel.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    inputs = dict(tokenizer(TEXTS, padding="max_length", truncation=True, return_tensors="pt"))
    if family == "siglip":
        del inputs["attention_mask"]  # its texts were never masked in training
    assert inputs["input_ids"].shape == (3, 64)
    with torch.inference_mode():
        expected = unit(model.get_text_features(**inputs).pooler_output)
    vectors = encoded(joint, family, "text", [text.encode() for text in TEXTS])
    assert MODALITY_OF["hf_text"] == "text" and vectors.shape == (3, 16)
    np.testing.assert_allclose(vectors, expected.numpy(), atol=1e-5)
    assert (1 - vectors @ vectors.T)[np.triu_indices(3, 1)].min() > 1e-4  # different texts differ
    np.testing.assert_array_equal(
        encoded(joint, family, "text", [TEXTS[0].encode(), TEXTS[2].encode()])[0], encoded(joint, family, "text", [TEXTS[0].encode()] * 2)[1]
    )
    if family == "clap":
        front = transformers.AutoFeatureExtractor.from_pretrained(folder)
        sounds = [wav(0, 0.7), wav(1, 1.5)]
        heard = [front(resample(*decode_waveform(sound, 2.0), 48000), sampling_rate=48000, return_tensors="pt") for sound in sounds]
        with torch.inference_mode():
            expected = unit(torch.cat([model.get_audio_features(**one).pooler_output for one in heard]))
        np.testing.assert_allclose(encoded(joint, family, "audio", sounds), expected.numpy(), atol=1e-5)
        return
    pictures, front = [png(0), png(1)], transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        seen = front(images=[Image.open(io.BytesIO(p)).convert("RGB") for p in pictures], return_tensors="pt")
        expected = unit(model.get_image_features(**seen).pooler_output)
    np.testing.assert_allclose(encoded(joint, family, "image", pictures), expected.numpy(), atol=1e-5)


def test_a_clip_has_one_vector_the_mean_direction_of_its_frames(joint):
    frames = [Image.new("RGB", (48, 48), (40 * n, 0, 200 - 40 * n)) for n in range(6)]
    clip = encode_mp4(frames, 6)
    whole = encoded(joint, "clip", "video", [clip], frames=3)
    each = []
    for frame in decode_video_frames(clip, 3):
        buffer = io.BytesIO()
        frame.save(buffer, "PNG")
        each.append(encoded(joint, "clip", "image", [buffer.getvalue()])[0])
    mean = np.mean(each, axis=0)
    assert whole.shape == (1, 16)
    np.testing.assert_allclose(whole[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_a_text_side_saved_alone_gives_the_same_vectors(joint, tmp_path):
    for family, name in (("clip", "CLIPTextModelWithProjection"), ("siglip", "SiglipTextModel"), ("clap", "ClapTextModelWithProjection")):
        folder, alone = joint / f"weights_{family}" / "encoder", tmp_path / f"weights_{family}" / "encoder"
        getattr(transformers, name).from_pretrained(folder).save_pretrained(alone)
        transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(alone)
        vectors = encoded(tmp_path, family, "text", [b"a dog"])
        np.testing.assert_allclose(vectors, encoded(joint, family, "text", [b"a dog"]), atol=1e-6)  # last bits: tensors lie elsewhere in the file


def test_a_sound_longer_than_claps_window_is_cut_to_its_beginning(joint):
    long = wav(0, 5.0)
    first, second = encoded(joint, "clap", "audio", [long]), encoded(joint, "clap", "audio", [long])
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, encoded(joint, "clap", "audio", [long], max_seconds=2.0))


def test_weights_that_lack_a_tensor_are_named(joint, tmp_path):
    with pytest.raises(ValueError, match=r"the spec asks for clap, but \S+ holds clip$"):
        load_encoder(HfText(arch="clap", width=16), joint / "weights_clip")
    with pytest.raises(ValueError, match=r"the spec asks for clip, but \S+ holds no model of transformers \(config\.json\)$"):
        load_encoder(HfText(arch="clip", width=16), tmp_path)
    shutil.copytree(joint / "weights_clip", tmp_path / "cut")
    file = tmp_path / "cut" / "encoder" / "model.safetensors"
    state = load_file(file)
    del state["text_model.encoder.layers.1.mlp.fc2.bias"]
    save_file(state, file, {"format": "pt"})
    with pytest.raises(ValueError, match=r"holds no CLIPTextModelWithProjection: it lacks text_model\.encoder\.layers\.1\.mlp\.fc2\.bias$"):
        load_encoder(HfText(arch="clip", width=16), tmp_path / "cut")
    with pytest.raises(ValueError, match="gives width 16, the spec says 8"):
        load_encoder(HfText(arch="clip", width=8), joint / "weights_clip")
    with pytest.raises(ValueError, match="unknown text family 'bert': choose one of clip, siglip, clap"):
        load_encoder(HfText(arch="bert", width=16), joint / "weights_clip")


def test_wrong_family_and_width_are_named(weights):
    folder = weights(vision("clip"))
    with pytest.raises(ValueError, match="unknown vision family 'resnext': choose one of clip, siglip, dinov2"):
        load_encoder(HfImage(arch="resnext", width=16), folder)
    with pytest.raises(ValueError, match="gives width 16, the spec says 8"):
        load_encoder(HfImage(arch="clip", width=8), folder).encode([png(0)])


def test_a_padded_picture_keeps_its_rim_on_the_encoders_mean_colour(tmp_path):
    """As LLaVA prepares pictures for CLIP; a square one is left alone, and the features are another space's."""
    from dataclasses import replace

    from mmcore.encoders.squares import padded_square
    from mmcore.stores.embeddings import refuse_other_encoder, space_fields

    model, processor = vision("clip")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "encoder")
    spec = HfImage(arch="clip:tiny", width=16, pad=True, dtype="float32")
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 48, 3), dtype=np.uint8))
    square = padded_square(wide, processor.image_mean)
    pixels = np.asarray(square)
    assert square.size == (48, 48) and (pixels[16:32] == np.asarray(wide)).all()
    assert (pixels[:16] == (122, 116, 104)).all() and (pixels[32:] == (122, 116, 104)).all()
    tall = np.asarray(padded_square(wide.rotate(90, expand=True), processor.image_mean))
    assert tall.shape == (48, 48, 3) and (tall[:, :16] == (122, 116, 104)).all() and padded_square(square, processor.image_mean) is square
    padded, cut = (load_encoder(replace(spec, pad=pad), tmp_path) for pad in (True, False))
    expected = processor(images=[square], return_tensors="pt")["pixel_values"][0]
    assert torch.equal(padded.prepare_image(wide), expected) and not torch.equal(cut.prepare_image(wide), expected)
    assert torch.equal(padded.prepare(png(0)), cut.prepare(png(0)))
    assert "pad" not in space_fields(replace(spec, pad=False)) and space_fields(spec)["pad"] is True
    with pytest.raises(ValueError, match="pad is False there and True here"):
        refuse_other_encoder(space_fields(replace(spec, pad=False)), spec, tmp_path)


def test_patch_tokens_of_an_earlier_layer_are_those_of_the_stock_model(tmp_path):
    """layer -2, as LLaVA reads CLIP; its space has another name, that of layer 0 the name it always had."""
    from dataclasses import replace

    from mmcore.encoder_config import check_encoder
    from mmcore.stores.embeddings import refuse_other_encoder, space_fields

    model, processor = vision("clip")
    for part in (model, processor):
        part.save_pretrained(tmp_path / "encoder")
    spec = HfImage(arch="clip:tiny", width=32, grid=4, layer=-2, dtype="float32")
    encoder = load_encoder(spec, tmp_path)
    with torch.inference_mode():
        states = model.eval()(pixel_values=encoder.prepare(png(0))[None], output_hidden_states=True).hidden_states
    assert np.allclose(encoder.encode([png(0)])[0], states[1][0, 1:].numpy(), atol=1e-6) and len(states) == 3
    last = load_encoder(replace(spec, layer=0), tmp_path).encode([png(0)])[0]
    assert np.allclose(last, states[2][0, 1:].numpy(), atol=1e-6)
    with pytest.raises(ValueError, match="clip:tiny has 2 layers, so there is no layer -4"):
        load_encoder(replace(spec, layer=-4), tmp_path).encode([png(0)])
    for wrong in (replace(spec, layer=1), replace(spec, grid=0), HfVideo(arch="clip:tiny", width=32, layer=-1)):
        with pytest.raises(ValueError, match=r"with layer -?\d and grid \d: with a grid it takes 0"):
            check_encoder(wrong)
    assert "layer" not in space_fields(replace(spec, layer=0)) and space_fields(spec)["layer"] == -2
    before = space_fields(replace(spec, layer=0))
    refuse_other_encoder(before, replace(spec, layer=0), tmp_path)
    with pytest.raises(ValueError, match="layer is 0 there and -2 here"):
        refuse_other_encoder(before, spec, tmp_path)
    with pytest.raises(ValueError, match="layer is -2 there and 0 here"):
        refuse_other_encoder(space_fields(spec), replace(spec, layer=0), tmp_path)
