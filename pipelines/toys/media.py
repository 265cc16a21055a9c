"""One small generated medium per modality, to see that an encoder opens its weights. Nothing random."""

from __future__ import annotations

import io
import wave


def medium(modality: str) -> bytes:
    """A small generated image, video, audio or text."""
    if modality == "text":
        return b"a red circle"
    if modality == "audio":
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(16000)
            out.writeframes(bytes(range(256)) * 63)  # half a second of a sawtooth
        return buffer.getvalue()
    from PIL import Image

    images = [Image.radial_gradient("L").rotate(90 * turn).convert("RGB").resize((64, 64)) for turn in range(4)]
    if modality == "video":
        from pipelines.demo.clips import encode_mp4

        return encode_mp4(iter(images), 4)
    buffer = io.BytesIO()
    images[0].save(buffer, "PNG")
    return buffer.getvalue()
