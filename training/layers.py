"""Layers whose `vmap` over members is a batched matrix product.

`vmap` of `lax.conv` over kernels becomes a grouped convolution, which on CPU is 15 to 20 times
slower than the same sum written as patches times a matrix; on accelerators the batched product
feeds the matrix units. Equality with `lax.conv_general_dilated` and with flax's own layers is
tested.

Features come first: images are (channels, height, width, batch), sequences (features, batch,
length). All products are then kernel^T times columns, forward and backward, which is the fastest
orientation on CPU; every neighbourhood is a copy of long contiguous rows, and elementwise loops run
over whole vectors whatever the number of channels.
"""

from collections.abc import Callable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from training.winograd import ROWS as WINOGRAD_ROWS
from training.winograd import convolve_winograd


def patches(
    images: Float[Array, "c h w b"], window: int
) -> Float[Array, "{window}*{window}*c h w b"]:
    """The `window` x `window` neighbourhood of every pixel, zero beyond the border ("SAME").

    The first axis runs over (row offset, column offset, channel), the order of an HWIO kernel.
    """
    before = (window - 1) // 2
    after = window - 1 - before
    padded = jnp.pad(images, ((0, 0), (before, after), (before, after), (0, 0)))
    # Columns, then rows: fewer and longer copies than every shift by itself.
    return _shifts(_shifts(padded, window, 2), window, 1)


def _shifts(padded: Float[Array, "c h w b"], window: int, axis: int) -> Float[Array, "wc h2 w2 b"]:
    """The `window` parts of an axis that start at 0, 1, ..., one after the other along the first.

    The axis, padded before, gets shorter by `window` - 1.
    """
    size = padded.shape[axis] - window + 1
    parts = [jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(window)]
    return jnp.concatenate(parts)


def mean_pool(images: Float[Array, "c h w b"], window: int) -> Float[Array, "c h2 w2 b"]:
    """Mean over windows of `window` x `window` pixels that do not overlap.

    Rows and columns beyond the last whole window are left out ("VALID").
    """
    return _pool(images, window, jnp.add) / (window * window)


def max_pool(images: Float[Array, "c h w b"], window: int) -> Float[Array, "c h2 w2 b"]:
    """The largest of each window of `window` x `window` pixels; else as `mean_pool`.

    Where several pixels are the largest, each gets a share of the gradient.
    """
    return _pool(images, window, jnp.maximum)


def _pool(
    images: Float[Array, "c h w b"], window: int, combine: Callable[[Array, Array], Array]
) -> Float[Array, "c h2 w2 b"]:
    channels, height, width, batch = images.shape
    rows, columns = height // window, width // window
    cut = images[:, : rows * window, : columns * window]
    split = cut.reshape(channels, rows, window, columns, window, batch)
    # Two at a time: a reduction over the short axes takes three times as long on CPU.
    pooled_rows = reduce(combine, jnp.split(split, window, axis=2))
    pooled = reduce(combine, jnp.split(pooled_rows, window, axis=4))
    return pooled.reshape(channels, rows, columns, batch)


def _project(
    kernel: Float[Array, "d e"], columns: Float[Array, "d *rest"], bias: Float[Array, " e"] | None
) -> Float[Array, "e *rest"]:
    """kernel^T columns + bias, over the first axis."""
    products = jnp.tensordot(kernel, columns.reshape(columns.shape[0], -1), (0, 0))
    if bias is not None:
        products += bias[:, None]
    return products.reshape(-1, *columns.shape[1:])


class Convolution(nnx.Module):
    """A square "SAME" convolution of stride 1, as patches times a matrix.

    On CPU, where Winograd's algorithm does the same with half the products, by that.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        window: int,
        *,
        use_bias: bool = True,
        rngs: nnx.Rngs,
    ):
        self.window = window
        shape = (window * window * channels_in, channels_out)
        self.kernel = nnx.Param(jax.nn.initializers.he_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(channels_out)) if use_bias else None

    def __call__(self, images: Float[Array, "c h w b"]) -> Float[Array, "d h w b"]:
        """Convolve a batch of images."""
        by_patches = partial(convolve_patches, window=self.window)
        kernel = self.kernel[...]
        if self.window == 3 and _suits_winograd(images):
            # Products of accelerators round float32 inputs, which Winograd's sums would magnify.
            convolved = jax.lax.platform_dependent(
                kernel, images, cpu=convolve_winograd, default=by_patches
            )
        else:
            convolved = by_patches(kernel, images)
        return convolved if self.bias is None else convolved + self.bias[...][:, None, None, None]


def _suits_winograd(images: Float[Array, "c h w b"]) -> bool:
    """Whether its sums over rows and channels take less than the products that they save."""
    channels, height = images.shape[:2]
    return images.dtype == jnp.float32 and channels >= 8 and height >= WINOGRAD_ROWS


def convolve_patches(
    kernel: Float[Array, "wwc d"], images: Float[Array, "c h w b"], window: int
) -> Float[Array, "d h w b"]:
    """The convolution as one product; the kernel's first axis is that of `patches`."""
    return _project(kernel, patches(images, window), None)


Statistic = Float[Array, "c b"]


class GroupNorm(nnx.Module):
    """Group normalisation of images: each example by itself, over pixels and groups of channels.

    Unlike batch normalisation, no example (and no member) sees another one. Statistics are float32
    whatever the images are. Wu and He (2018), equations 1, 2 and 7.
    """

    def __init__(self, channels: int, groups: int, *, epsilon: float = 1e-6):
        self.groups, self.epsilon = groups, epsilon
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, images: Float[Array, "c h w b"]) -> Float[Array, "c h w b"]:
        """Normalise a batch of images."""
        return _group_norm(images, self.scale[...], self.bias[...], self.groups, self.epsilon)


# The derivative is written out: it takes two passes over the images, the automatic one five.
@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _group_norm(
    images: Float[Array, "c h w b"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    epsilon: float,
) -> Float[Array, "c h w b"]:
    return _group_norm_forward(images, scale, bias, groups, epsilon)[0]


def _group_norm_forward(
    images: Float[Array, "c h w b"],
    scale: Float[Array, " c"],
    bias: Float[Array, " c"],
    groups: int,
    epsilon: float,
) -> tuple[Float[Array, "c h w b"], tuple]:
    # Sums over pixels first: in another shape the images would be in memory once more.
    wide = images.astype(jnp.float32)
    mean = _mean_over_group(wide.mean((1, 2)), groups)
    squares = _mean_over_group(jnp.square(wide).mean((1, 2)), groups)
    inverse = jax.lax.rsqrt(jnp.maximum(squares - jnp.square(mean), 0) + epsilon)
    factor = scale.astype(jnp.float32)[:, None] * inverse
    shift = bias.astype(jnp.float32)[:, None] - factor * mean
    return _times(images, factor) + _broad(shift, images), (images, scale, mean, inverse)


def _group_norm_backward(
    groups: int, epsilon: float, saved: tuple, gradient: Float[Array, "c h w b"]
) -> tuple[Float[Array, "c h w b"], Float[Array, " c"], Float[Array, " c"]]:
    images, scale, mean, inverse = saved
    wide = gradient.astype(jnp.float32)
    sums = wide.sum((1, 2))
    # Of the gradient times the normalised images.
    products = ((wide * images.astype(jnp.float32)).sum((1, 2)) - mean * sums) * inverse

    columns = scale.astype(jnp.float32)[:, None]
    pixels = images[0, :, :, 0].size
    slope = -jnp.square(inverse) * _mean_over_group(columns * products / pixels, groups)
    offset = -slope * mean - inverse * _mean_over_group(columns * sums / pixels, groups)
    through = _times(gradient, columns * inverse)
    of_images = through + _times(images, slope) + _broad(offset, images)
    return of_images, products.sum(1).astype(scale.dtype), sums.sum(1).astype(scale.dtype)


def _mean_over_group(values: Statistic, groups: int) -> Statistic:
    """The mean of a group of channels, for each of its channels."""
    channels, batch = values.shape
    means = values.reshape(groups, -1, batch).mean(1)
    return jnp.repeat(means, channels // groups, axis=0)


def _broad(statistic: Statistic, images: Float[Array, "c h w b"]) -> Float[Array, "c 1 1 b"]:
    return statistic.astype(images.dtype)[:, None, None]


def _times(images: Float[Array, "c h w b"], statistic: Statistic) -> Float[Array, "c h w b"]:
    return images * _broad(statistic, images)


_group_norm.defvjp(_group_norm_forward, _group_norm_backward)


class Dense(nnx.Module):
    """A dense layer over the first axis."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        shape = (features_in, features_out)
        self.kernel = nnx.Param(jax.nn.initializers.lecun_normal()(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(features_out))

    def __call__(self, columns: Float[Array, "d *rest"]) -> Float[Array, "e *rest"]:
        """kernel^T columns + bias."""
        return _project(self.kernel[...], columns, self.bias[...])


class LayerNorm(nnx.Module):
    """Layer normalisation over the first axis (Ba et al. 2016); float32 statistics."""

    def __init__(self, features: int, *, epsilon: float = 1e-6):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, columns: Float[Array, "d *rest"]) -> Float[Array, "d *rest"]:
        """Normalise each column."""
        wide = columns.astype(jnp.float32).reshape(columns.shape[0], -1)
        centred = wide - wide.mean(0, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.square(centred).mean(0, keepdims=True) + self.epsilon)
        normal = (centred * inverse).astype(columns.dtype)
        scaled = normal * self.scale[...][:, None] + self.bias[...][:, None]
        return scaled.reshape(columns.shape)


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2), without dropout."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.inward = Dense(features, 3 * features, rngs=rngs)
        self.outward = Dense(features, features, rngs=rngs)

    def __call__(
        self, sequences: Float[Array, "d b s"], valid: Bool[Array, "b s"] | None = None
    ) -> Float[Array, "d b s"]:
        """Every position looks at every `valid` position of its own sequence (None: at all)."""
        features, batch, length = sequences.shape
        shape = (self.heads, features // self.heads, batch, length)
        projected = self.inward(sequences)

        def by_head(part: int) -> Float[Array, "h b f s"]:
            # By slices: the gradient of a split is one concatenation, three times as slow.
            rows = projected[part * features : (part + 1) * features]
            return jnp.swapaxes(rows.reshape(shape), 1, 2)

        queries, keys, values = by_head(0) * shape[1] ** -0.5, by_head(1), by_head(2)
        # Keys before queries: sums over the short last axis would take longer than the products.
        scores = jnp.einsum("hbdk,hbdq->hbkq", keys, queries)
        if valid is not None:
            scores = jnp.where(valid[None, :, :, None], scores, jnp.finfo(scores.dtype).min)
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(2, keepdims=True)))
        mixed = jnp.einsum("hbdk,hbkq->hbdq", values, weights) / weights.sum(2)[:, :, None]
        return self.outward(jnp.swapaxes(mixed, 1, 2).reshape(sequences.shape))
