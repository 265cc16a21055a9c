"""Configs of encoders: every field is read by the encoder that it configures, identities are what they were, and older descriptions are read."""

from __future__ import annotations

import shutil
import sys
import typing
from dataclasses import replace
from pathlib import Path

import pytest
from toy_decoders import directory
from twins import weights_of

from infra.fingerprint import fingerprint, to_plain
from mmcore.encoder_config import (
    CONFIGS,
    RETIRED_FIELDS,
    BertText,
    DecoderText,
    EncoderConfig,
    HfAudio,
    HfImage,
    HfText,
    HfVideo,
    ImageBindAudio,
    ImageBindImage,
    ImageBindText,
    ImageBindVideo,
    TimmImage,
    TimmVideo,
    VaeAudio,
    VaeImage,
    VaeVideo,
    WhisperAudio,
    encoder_from_json,
    names,
)
from mmcore.encoders import ENCODERS, MODALITY_OF, OF_DECODERS, load_encoder
from mmcore.encoders.tiled import TiledEncoder
from mmcore.stores.embeddings import space_fields
from pipelines.embed.fill import cut
from pipelines.toys.media import medium

USED: list[tuple[EncoderConfig, str]] = [
    (TimmImage(arch="test_efficientnet", width=256, grid=2, image_size=32, tiles=4), "test_efficientnet"),
    (TimmVideo(arch="test_efficientnet", width=256, grid=2, image_size=32, frames=2, sampling="scenes"), "test_efficientnet"),
    (HfImage(arch="clip:tiny", width=32, grid=2, image_size=32, tiles=4, pad=True, layer=-1), "tiny-clip"),
    (HfVideo(arch="clip:tiny", width=32, grid=2, frames=2, sampling="scenes", layer=-1), "tiny-clip"),
    (WhisperAudio(arch="tiny-whisper", width=32, tokens=4, max_seconds=2.0), "tiny-whisper"),
    (HfAudio(arch="clap:tiny", width=32, tokens=4, max_seconds=2.0), "tiny-clap"),
    (HfText(arch="clip:tiny", width=16), "tiny-clip"),
    (BertText(arch="bert", width=32, tokens=16), "tiny-bert"),
    (ImageBindImage(arch="imagebind_toy", width=32, grid=2, tiles=4, pad=True), "imagebind_toy"),
    (ImageBindVideo(arch="imagebind_toy", width=32, grid=2), "imagebind_toy"),
    (ImageBindAudio(arch="imagebind_toy", width=32, tokens=4, max_seconds=2.0), "imagebind_toy"),
    (ImageBindText(arch="imagebind_toy", width=32), "imagebind_toy"),
    (VaeImage(arch="tiny-vae", width=4, image_size=32), "tiny-vae"),
    (VaeVideo(arch="tiny-text-to-video", width=4, image_size=32, frames=2), "tiny-text-to-video"),
    (VaeAudio(arch="tiny-audioldm", width=8, max_seconds=0.32), "tiny-audioldm"),
    (DecoderText(arch="tiny-sd2", width=32, tokens=64), "tiny-sd2"),
]
"""(a config of every kind, with all that it can be told to do; the toy that it opens)."""
READ_BY_ALL = {"width", "dtype", "compute", "batch"}
"""Fields of EncoderConfig that every encoder reads."""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("twins")


def weights(root: Path, kind: str, toy: str) -> Path:
    if kind not in OF_DECODERS:
        return weights_of(root, kind, toy)
    if not (root / toy).exists():
        shutil.copytree(directory(toy), root / toy / "pipeline")
    return root / toy


def recorded(config: EncoderConfig) -> tuple[EncoderConfig, set[tuple[str, str]]]:
    """(an equal config, the (field, module that reads it) that it notes down)."""
    fields, read = set(names(type(config))), set()

    def noting(self: EncoderConfig, name: str) -> object:
        if name in fields:
            read.add((name, sys._getframe(1).f_globals["__name__"]))
        return object.__getattribute__(self, name)

    spy = type(f"Recorded{type(config).__name__}", (type(config),), {"__slots__": (), "__getattribute__": noting})
    return spy(**{name: getattr(config, name) for name in fields}), read


def test_there_is_one_of_every_kind():
    assert sorted(config.kind for config, _ in USED) == sorted(CONFIGS)
    registered = ENCODERS | OF_DECODERS
    assert {kind: config for kind, (config, _) in registered.items()} == CONFIGS and all(config.kind == kind for kind, config in CONFIGS.items())


@pytest.mark.parametrize(("config", "toy"), USED, ids=[config.kind for config, _ in USED])
def test_every_field_is_read_by_the_encoder_that_it_configures(config, toy, root):
    """By the modules of the encoder's own classes: a field that only another kind, a check or the identity reads does not count."""
    folder = weights(root, config.kind, toy)
    spy, read = recorded(config)
    encoder = load_encoder(spy, folder)
    opened = encoder._inner if isinstance(encoder, TiledEncoder) else encoder
    encoder.encode([medium(MODALITY_OF[config.kind])])
    own = {one.__module__ for encoding in (encoder, opened) for one in type(encoding).__mro__ if one.__module__.startswith("mmcore.encoders.")}
    found = {name for name, module in read if module in own}
    assert set(names(type(config))) - set(names(EncoderConfig)) | READ_BY_ALL <= found
    assert typing.get_type_hints(type(opened))["spec"] is type(config)  # what mypy holds the encoder's code to


def test_the_fields_of_all_kinds_are_read_where_all_kinds_pass():
    """arch by the encoders that open several architectures (above), part_rows by the plan of the store, revision by its addresses."""
    spy, read = recorded(USED[0][0])
    cut(["a"], 1, spy)
    assert {name for name, _ in read} == {"batch", "part_rows"}
    assert space_fields(BertText(arch="bert", width=32)) != space_fields(BertText(arch="bert", width=32, revision=1))
    assert set(names(EncoderConfig)) == READ_BY_ALL | {"arch", "part_rows", "revision"}


@pytest.mark.parametrize(
    ("config", "space", "identity"),
    [
        (TimmImage(arch="tf_efficientnet_lite0", width=1280, grid=3, image_size=192), "8e381aafffda", "c4d0cd982cba"),
        (TimmVideo(arch="tf_efficientnet_lite0", width=1280, grid=2, frames=4, image_size=192, part_rows=32), "dbc680baef5d", "2f1cf2016b76"),
        (WhisperAudio(arch="whisper", width=384, tokens=8, max_seconds=6.0, part_rows=16), "90df1e119d35", "076c63468477"),
        (BertText(arch="bert", width=384, tokens=16, batch=32, part_rows=1024), "e977781a8a76", "ce788d0854a9"),
        (VaeVideo(arch="tiny-text-to-video", width=4, image_size=32, frames=4, batch=4, part_rows=16), "f73e1d296593", "542ced226126"),
    ],
    ids=lambda value: value.kind if isinstance(value, EncoderConfig) else value,
)
def test_identities_and_addresses_are_those_of_the_one_class_that_all_kinds_once_had(config, space, identity):
    then = replace(config, revision=1)
    assert fingerprint({"spec": to_plain(space_fields(then)), "weights": "w"})[:12] == space
    assert fingerprint(then)[:12] == identity


@pytest.mark.parametrize(("config", "_"), USED, ids=[config.kind for config, _ in USED])
def test_a_description_with_the_fields_of_all_kinds_is_read_unless_it_says_something_else(config, _):
    described = to_plain(config)
    assert {"kind", *RETIRED_FIELDS, *names(EncoderConfig)} == set(described)
    assert encoder_from_json(described) == config
    for name in set(RETIRED_FIELDS) - set(names(type(config))):
        with pytest.raises(ValueError, match=f"{config.kind} has no {name}; it has arch, width"):
            encoder_from_json(described | {name: "other"})


def test_a_description_that_nothing_can_be_made_of_is_named():
    described = to_plain(HfImage(arch="clip", width=16))
    older = {name: value for name, value in described.items() if name not in ("pad", "layer", "batch")}
    assert encoder_from_json(older) == HfImage(arch="clip", width=16)
    with pytest.raises(ValueError, match="unknown encoder kind 'beats_audio': choose one of bert_text, "):
        encoder_from_json(described | {"kind": "beats_audio"})
    with pytest.raises(ValueError, match="names no kind"):
        encoder_from_json({"arch": "clip"})
    with pytest.raises(ValueError, match="hf_image needs width"):
        encoder_from_json({"kind": "hf_image", "arch": "clip"})
