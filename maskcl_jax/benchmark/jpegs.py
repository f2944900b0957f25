"""JPEG files made from nothing, as large and as detailed as photographs: what the input pipeline is timed on."""

import pathlib

import numpy as np
from PIL import Image

from maskcl_jax.views.randomness import generator

WIDTH, HEIGHT, QUALITY = 500, 375, 92  # the usual image of ImageNet
CLASSES = 4
DECAY = 0.88  # of the strength of detail, an octave: 105 kB a file, about ImageNet's; 0.8 makes 76


def write(folder: str, count: int, decay: float = DECAY) -> None:
    """Writes `count` JPEGs into folders of classes, each another picture: noise of all scales, as photographs have."""
    for i in range(count):
        path = pathlib.Path(folder) / f"class_{i % CLASSES}" / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(i, decay)).save(path, quality=QUALITY)


def picture(number: int, decay: float = DECAY) -> np.ndarray:
    """(375, 500, 3) uint8: nine octaves of noise, mostly of light; `decay`: how much weaker a finer one is."""
    draw = generator(0, "jpegs", epoch=number)
    total = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for octave in range(9):
        shape = HEIGHT * 2**octave // 256 + 2, WIDTH * 2**octave // 256 + 2
        noise = draw.standard_normal((*shape, 1)) + 0.3 * draw.standard_normal((*shape, 3))
        coarse = Image.fromarray(np.clip(128 + 40 * noise, 0, 255).astype(np.uint8))
        fine = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        total += decay**octave * (fine - 128)
    return np.clip(total, 0, 255).astype(np.uint8)
