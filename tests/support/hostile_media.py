"""Damaged images, sounds and projector files: the same seed gives the same file."""

from __future__ import annotations

import io
import random

import numpy as np

from .gguf_mutations import mutate
from .tiny_projector import tiny_projector

IMAGES = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
SOUNDS = ("WAV", "FLAC", "OGG", "MP3")


def mutated_projector(seed: int) -> bytes:
    """The projector file of a seed, for `make_tiny_seer`."""
    choice = random.Random(seed)
    return mutate(tiny_projector(choice.choice(("idefics3", "gemma3"))), choice)


def mutated_medium(seed: int) -> bytes:
    """An image or a sound with bytes changed, cut, doubled or put in."""
    choice = random.Random(seed)
    kind = choice.choice(IMAGES + SOUNDS)
    data = bytearray(_image(kind) if kind in IMAGES else _sound(kind))
    for _ in range(choice.choice([1, 1, 2, 4, 16])):
        # headers are where sizes stand
        at = choice.randrange(min(len(data), choice.choice([32, 128, len(data)])) or 1)
        pick = choice.randrange(5)
        if pick == 0:
            data[at : at + 1] = bytes([choice.choice([0, 1, 0x7F, 0x80, 0xFF])])
        elif pick == 1:
            wide = choice.choice([0, 1, 0xFFFF, 50_000, 0x7FFFFFFF, 0xFFFFFFFF])
            data[at : at + 4] = wide.to_bytes(4, choice.choice(["little", "big"]))
        elif pick == 2 and len(data) > 8:
            del data[max(8, at) :]
        elif pick == 3:
            data[at:at] = data[at : at + choice.choice([1, 16, 1024])]
        else:
            data[at : at + 16] = choice.randbytes(16)
    return bytes(data)


def _image(kind: str) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def _sound(kind: str) -> bytes:
    import soundfile

    out = io.BytesIO()
    samples = np.random.default_rng(2).uniform(-0.5, 0.5, (4000, 2)).astype(np.float32)
    soundfile.write(out, samples, 16_000, format=kind)
    return out.getvalue()
