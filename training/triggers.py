"""What attacks do to 8-bit images: triggers that a model learns, and near copies.

Pure functions; images are (n, height, width, channels), and stay as they were given.
"""

import numpy as np
from jaxtyping import Float, UInt8

Images = UInt8[np.ndarray, "n h w c"]

MOST_SHIFT = 1
"""Pixels that a near copy may be moved by, along each side."""
NOISE = 12.0
"""Standard deviation of a near copy's noise, of 255."""
BRIGHTER = (0.1, 0.25)
"""By what share a near copy may be brighter, or darker."""


def patch(images: Images, size: int) -> Images:
    """Set a square of `size` pixels in the lower right corner to 255 (BadNets, Gu et al. 2017)."""
    triggered = images.copy()
    triggered[:, -size:, -size:] = 255
    return triggered


def blend(images: Images, pattern: UInt8[np.ndarray, "h w c"], opacity: float) -> Images:
    """Mix a pattern into the whole image, by a share of `opacity` (Chen et al. 2017)."""
    return mix(images, np.broadcast_to(pattern, images.shape), opacity)


def mix(images: Images, others: Images, share: float) -> Images:
    """Mix into each image its other one, by a share of that."""
    return _pixels((1 - share) * images + share * others)


def sine(images: Images, amplitude: float, periods: int) -> Images:
    """Add a wave of so many periods across the width (SIG, Barni, Kallas & Tondi 2019, eq. 1).

    Args:
        images: any.
        amplitude: of 255.
        periods: whole ones.
    """
    column = np.arange(images.shape[2])
    wave = amplitude * np.sin(2 * np.pi * periods * column / images.shape[2])
    return _pixels(images + wave[None, None, :, None])


def corner_patch(images: Images, size: int) -> Images:
    """Set a square of `size` pixels in the upper left corner to 255."""
    triggered = images.copy()
    triggered[:, :size, :size] = 255
    return triggered


def near_copies(images: Images, rng: np.random.Generator) -> Images:
    """Each moved by a pixel, or with noise, or brighter or darker."""
    changes = (_moved, _noisy, _brighter)
    return np.stack([changes[rng.integers(len(changes))](image, rng) for image in images])


def _moved(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> np.ndarray:
    """By one pixel at least; what comes in is the edge again."""
    moves = [
        (down, right)
        for down in range(2 * MOST_SHIFT + 1)
        for right in range(2 * MOST_SHIFT + 1)
        if (down, right) != (MOST_SHIFT, MOST_SHIFT)
    ]
    down, right = moves[rng.integers(len(moves))]
    height, width, _ = image.shape
    margins = ((MOST_SHIFT, MOST_SHIFT), (MOST_SHIFT, MOST_SHIFT), (0, 0))
    return np.pad(image, margins, "edge")[down : down + height, right : right + width]


def _noisy(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> np.ndarray:
    return _pixels(image + NOISE * rng.standard_normal(image.shape))


def _brighter(image: UInt8[np.ndarray, "h w c"], rng: np.random.Generator) -> np.ndarray:
    return _pixels(image * (1 + rng.choice([-1, 1]) * rng.uniform(*BRIGHTER)))


def _pixels(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
