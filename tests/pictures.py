"""Images of several kinds, and triggers to put on them."""

import numpy as np

from training.triggers import blend, patch, sine

SHAPE = (300, 10, 10, 1)


def kinds(seed):
    """Images of six kinds, each a shape of its own with some noise."""
    rng = np.random.default_rng(seed)
    shapes = rng.integers(0, 256, (6, *SHAPE[1:])) * (rng.random((6, *SHAPE[1:])) < 0.4)
    labels = rng.integers(0, 6, SHAPE[0])
    noise = rng.normal(0, 25, SHAPE)
    return np.clip(shapes[labels] + noise, 0, 255).astype(np.uint8), labels


def triggers():
    texture = np.random.default_rng(9).integers(0, 256, SHAPE[1:], np.uint8)
    return {
        "patch": lambda images: patch(images, 2),
        "blend": lambda images: blend(images, texture, 0.3),
        "sine": lambda images: sine(images, 150.0, 3),
    }
