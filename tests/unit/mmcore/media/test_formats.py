"""Formats: every listed image is read, HEIC is refused by its name, and grey of 16 bits is scaled by its type."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmcore.media.decode import MediaError, decode_image, probe, sniff
from mmcore.media.formats import FORMATS, listed

CASES = Path(__file__).parents[3] / "cases" / "images"
NAMES = {"jpg": "JPEG", "jp2": "JPEG2000"}


@pytest.mark.parametrize("ext", [ext for ext, modalities in FORMATS.items() if modalities == ("image",)])
def test_every_listed_image_is_read(ext):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 24), "red").save(buffer, NAMES.get(ext, ext.upper()))
    data = buffer.getvalue()
    found = probe(data, "image")
    assert (found.ext, found.width, found.height) == (ext, 40, 24)
    assert np.abs(np.asarray(decode_image(data)).reshape(-1, 3).mean(axis=0) - (255, 0, 0)).max() < 8
    with pytest.raises(MediaError, match=f"a {ext} file cannot be audio, which is one of "):
        probe(data, "audio")
    with pytest.raises(MediaError):
        probe(data[: len(data) // 2], "image")


def test_a_photo_of_a_phone_is_read_or_refused_by_its_name():
    assert probe((CASES / "photo.avif").read_bytes(), "image").width == 64
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic", b"heix\0\0\0\0mif1", b"msf1\0\0\0\0hevc"):
        box = b"ftyp" + brands
        with pytest.raises(MediaError, match=f"not_media: HEIC images are not read: convert them to one of {listed('image')}"):
            probe((len(box) + 4).to_bytes(4, "big") + box, "image")
    assert sniff(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf")[0] == "avif" and sniff(b"\0\0\0\x18ftypisom\0\0\0\0isomavc1")[0] == "mp4"


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_by_its_type(form):
    shown = []
    for value in (0, 1, 255, 256, 4095, 32768, 65535):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4), value, np.uint16)).save(buffer, form)
        shown.append(int(np.asarray(decode_image(buffer.getvalue())).max()))
    assert shown == [0, 0, 0, 1, 15, 128, 255]
    assert np.asarray(decode_image((CASES / "all_255.png").read_bytes())).max() <= np.asarray(decode_image((CASES / "all_256.png").read_bytes())).min()


def test_floating_point_grey_is_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(buffer, "TIFF")
    with pytest.raises(MediaError, match="floating-point"):
        decode_image(buffer.getvalue())


@pytest.mark.parametrize("modality", ["image", "video", "audio"])
def test_the_page_of_lists_names_what_is_read(modality: str) -> None:
    assert f"| {modality} | {listed(modality)} |" in (Path(__file__).parents[4] / "docs" / "lists.md").read_text()
