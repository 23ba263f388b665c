"""Augmentation of images: pure functions of a key for each image."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, Num

from training.errors import UserError

Augmentation = Literal["none", "flip", "crop", "flip_crop"]

MARGIN = 4
"""Pixels that a crop may move an image by, up, down, left or right; what comes in is zero."""

Image = Num[Array, "h w c"]


def check_augmentation(name: Augmentation, shape: tuple[int, ...]) -> None:
    """Refuse to augment what is no image.

    Raises:
        UserError: inputs of this shape (without the batch axis) are not images.
    """
    if name != "none" and len(shape) != 3:
        raise UserError(
            f'optim.augment = "{name}" needs images, but one input has shape {shape}; set "none"'
        )


def augment(
    name: Augmentation, keys: Key[Array, " b"], images: Num[Array, "b *shape"]
) -> Num[Array, "b *shape"]:
    """The images, each changed at random by its own key; "none" gives them back as they are."""
    if name == "none":
        return images

    def one(key: Key[Array, ""], image: Image) -> Image:
        flip_key, crop_key = jax.random.split(key)
        image = flip(flip_key, image) if name in ("flip", "flip_crop") else image
        return crop(crop_key, image) if name in ("crop", "flip_crop") else image

    return jax.vmap(one)(keys, images)


def flip(key: Key[Array, ""], image: Image) -> Image:
    """The image, mirrored left to right with probability 1/2."""
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def crop(key: Key[Array, ""], image: Image) -> Image:
    """The image, moved by up to `MARGIN` pixels along both sides, every move equally likely."""
    padded = jnp.pad(image, ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)))
    row, column = jax.random.randint(key, (2,), 0, 2 * MARGIN + 1)
    return jax.lax.dynamic_slice(padded, (row, column, 0), image.shape)
