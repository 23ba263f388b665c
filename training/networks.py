"""The built-in networks, as flax nnx modules that map a batch of inputs to logits."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from training.examples import PADDING
from training.layers import (
    Attention,
    Convolution,
    Dense,
    GroupNorm,
    LayerNorm,
    max_pool,
    mean_pool,
)

Inputs = Float[Array, "b *shape"]
Tokens = Int[Array, "b s"]
Logits = Float[Array, "b classes"]
Features = Float[Array, "b d"]


class Linear(nnx.Module):
    """Multinomial logistic regression on the flattened input."""

    def __init__(self, shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs):
        self.output = nnx.Linear(math.prod(shape), classes, rngs=rngs)

    def features(self, inputs: Inputs) -> Features:
        """What the last layer reads: the input itself."""
        return inputs.reshape(inputs.shape[0], -1)

    def __call__(self, inputs: Inputs) -> Logits:
        """Logits of a batch."""
        return self.output(self.features(inputs))


class MLP(nnx.Module):
    """One hidden layer of rectified units on the flattened input."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, *, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(math.prod(shape), width, rngs=rngs)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def features(self, inputs: Inputs) -> Features:
        """What the last layer reads."""
        return nnx.relu(self.hidden(inputs.reshape(inputs.shape[0], -1)))

    def __call__(self, inputs: Inputs) -> Logits:
        """Logits of a batch."""
        return self.output(self.features(inputs))


def _batch_innermost(images: Float[Array, "b h w c"]) -> Float[Array, "c h w b"]:
    """Images as `training.layers` wants them."""
    return jnp.moveaxis(images, (0, 3), (3, 0))


class CNN(nnx.Module):
    """Two 3x3 convolutions (`width`, then 2 `width` channels), each halved by mean pooling."""

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, *, rngs: nnx.Rngs):
        height, columns, channels = shape
        self.first = Convolution(channels, width, 3, rngs=rngs)
        self.second = Convolution(width, 2 * width, 3, rngs=rngs)
        self.output = nnx.Linear((height // 4) * (columns // 4) * 2 * width, classes, rngs=rngs)

    def features(self, inputs: Inputs) -> Features:
        """What the last layer reads."""
        hidden = mean_pool(nnx.relu(self.first(_batch_innermost(inputs))), 2)
        hidden = mean_pool(nnx.relu(self.second(hidden)), 2)
        return hidden.reshape(-1, hidden.shape[3]).T

    def __call__(self, inputs: Inputs) -> Logits:
        """Logits of a batch."""
        return self.output(self.features(inputs))


class _Block(nnx.Module):
    """A 3x3 convolution, group normalisation, max pooling where asked for, and rectification."""

    def __init__(self, channels_in: int, channels_out: int, pool: int = 1, *, rngs: nnx.Rngs):
        self.pool = pool
        self.convolution = Convolution(channels_in, channels_out, 3, use_bias=False, rngs=rngs)
        self.norm = GroupNorm(channels_out, math.gcd(channels_out, GROUPS))

    def __call__(self, images: Float[Array, "c h w b"]) -> Float[Array, "d h2 w2 b"]:
        # Pooling first is the same, and leaves less to rectify.
        return nnx.relu(max_pool(self.norm(self.convolution(images)), self.pool))


GROUPS = 4
"""Groups of channels that the resnet normalises together (fewer if they do not divide)."""


class ResNet(nnx.Module):
    """The ResNet-9 layout of Page (2018): 8 convolutions, two residual pairs, one dense layer.

    Channels are `width`, 2, 4 and 8 `width`. Group instead of batch normalisation, so that no
    example's output depends on another one.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, width: int, *, rngs: nnx.Rngs):
        self.first = _Block(shape[2], width, rngs=rngs)
        self.second = _Block(width, 2 * width, 2, rngs=rngs)
        self.second_a = _Block(2 * width, 2 * width, rngs=rngs)
        self.second_b = _Block(2 * width, 2 * width, rngs=rngs)
        self.third = _Block(2 * width, 4 * width, 2, rngs=rngs)
        self.fourth = _Block(4 * width, 8 * width, 2, rngs=rngs)
        self.fourth_a = _Block(8 * width, 8 * width, rngs=rngs)
        self.fourth_b = _Block(8 * width, 8 * width, rngs=rngs)
        self.output = nnx.Linear(8 * width, classes, rngs=rngs)

    def features(self, inputs: Inputs) -> Features:
        """What the last layer reads."""
        hidden = self.second(self.first(_batch_innermost(inputs)))
        hidden += self.second_b(self.second_a(hidden))
        hidden = self.fourth(self.third(hidden))
        hidden += self.fourth_b(self.fourth_a(hidden))
        return hidden.max((1, 2)).T

    def __call__(self, inputs: Inputs) -> Logits:
        """Logits of a batch."""
        return self.output(self.features(inputs))


class _EncoderLayer(nnx.Module):
    """Attention, then two dense layers, each on the normalised input and added to it."""

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(features)
        self.attention = Attention(features, heads, rngs=rngs)
        self.dense_norm = LayerNorm(features)
        self.dense = Dense(features, 4 * features, rngs=rngs)
        self.outward = Dense(4 * features, features, rngs=rngs)

    def __call__(
        self, hidden: Float[Array, "d b s"], valid: Bool[Array, "b s"] | None
    ) -> Float[Array, "d b s"]:
        hidden += self.attention(self.attention_norm(hidden), valid)
        return hidden + self.outward(nnx.gelu(self.dense(self.dense_norm(hidden))))


class _Encoder(nnx.Module):
    """`depth` encoder layers on embedded positions, then the mean over the valid ones."""

    def __init__(self, length: int, classes: int, width: int, depth: int, *, rngs: nnx.Rngs):
        normal = jax.nn.initializers.normal(0.02)
        self.positions = nnx.Param(normal(rngs.params(), (width, length)))
        heads = math.gcd(width, max(1, width // HEAD_FEATURES))
        self.layers = nnx.List([_EncoderLayer(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = LayerNorm(width)
        self.output = Dense(width, classes, rngs=rngs)

    def features(
        self, embedded: Float[Array, "d b s"], valid: Bool[Array, "b s"] | None
    ) -> Float[Array, "d b"]:
        hidden = embedded + self.positions[...][:, None]
        for layer in self.layers:
            hidden = layer(hidden, valid)
        hidden = self.norm(hidden)
        return hidden.mean(2) if valid is None else mean_of_valid(hidden, valid)

    def __call__(self, embedded: Float[Array, "d b s"], valid: Bool[Array, "b s"] | None) -> Logits:
        return self.output(self.features(embedded, valid)).T


HEAD_FEATURES = 32
"""Features of one attention head."""


def mean_of_valid(
    sequences: Float[Array, "d b s"], valid: Bool[Array, "b s"]
) -> Float[Array, "d b"]:
    """Mean over the valid positions of each sequence; zero where there is none."""
    weights = valid.astype(sequences.dtype)
    weights /= jnp.maximum(weights.sum(1, keepdims=True), 1)
    return (sequences * weights[None]).sum(2)


class Transformer(nnx.Module):
    """A small pre-norm encoder of token sequences; padding is never looked at."""

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        width: int,
        depth: int,
        vocabulary: int,
        *,
        rngs: nnx.Rngs,
    ):
        table = jax.nn.initializers.normal(0.02)(rngs.params(), (vocabulary, width))
        self.table = nnx.Param(table)
        self.encoder = _Encoder(shape[0], classes, width, depth, rngs=rngs)

    def _embedded(self, tokens: Tokens) -> Float[Array, "d b s"]:
        return jnp.moveaxis(self.table[...][tokens], 2, 0)

    def features(self, tokens: Tokens) -> Features:
        """What the last layer reads."""
        return self.encoder.features(self._embedded(tokens), tokens != PADDING).T

    def __call__(self, tokens: Tokens) -> Logits:
        """Logits of a batch."""
        return self.encoder(self._embedded(tokens), tokens != PADDING)


class PatchTransformer(nnx.Module):
    """The same encoder on square patches of an image (Dosovitskiy et al. 2021), mean pooled."""

    def __init__(
        self,
        shape: tuple[int, ...],
        classes: int,
        width: int,
        depth: int,
        patch: int,
        *,
        rngs: nnx.Rngs,
    ):
        height, columns, channels = shape
        self.patch = patch
        self.embed = Dense(patch * patch * channels, width, rngs=rngs)
        length = (height // patch) * (columns // patch)
        self.encoder = _Encoder(length, classes, width, depth, rngs=rngs)

    def features(self, inputs: Inputs) -> Features:
        """What the last layer reads."""
        return self.encoder.features(self._embedded(inputs), None).T

    def __call__(self, inputs: Inputs) -> Logits:
        """Logits of a batch."""
        return self.encoder(self._embedded(inputs), None)

    def _embedded(self, inputs: Inputs) -> Float[Array, "d b s"]:
        batch, height, columns, _ = inputs.shape
        rows, side = height // self.patch, columns // self.patch
        split = inputs.reshape(batch, rows, self.patch, side, self.patch, -1)
        # (row in patch, column in patch, channel, batch, row of patches, column of patches)
        pieces = jnp.transpose(split, (2, 4, 5, 0, 1, 3)).reshape(-1, batch, rows * side)
        return self.embed(pieces)


class Bag(nnx.Module):
    """Mean of the tokens' embeddings, then one dense layer; the order of tokens is not read.

    The mean is written as token shares (b, vocabulary) times the table: a matrix product, whose
    gradient needs no scatter into the table.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, width: int, vocabulary: int, *, rngs: nnx.Rngs
    ):
        table = jax.nn.initializers.normal(1.0)(rngs.params(), (vocabulary, width))
        self.table = nnx.Param(table)
        self.output = nnx.Linear(width, classes, rngs=rngs)

    def features(self, tokens: Tokens) -> Features:
        """What the last layer reads."""
        table = self.table[...]
        return token_shares(tokens, table.shape[0], table.dtype) @ table

    def __call__(self, tokens: Tokens) -> Logits:
        """Logits of a batch."""
        return self.output(self.features(tokens))


def token_shares(
    tokens: Tokens, vocabulary: int, dtype: jnp.dtype | type
) -> Float[Array, "b vocabulary"]:
    """How often each id occurs in each text, as a share of its tokens; padding is not counted."""
    valid = (tokens != PADDING).astype(dtype)
    shares = valid / jnp.maximum(valid.sum(1, keepdims=True), 1)
    rows = jnp.arange(tokens.shape[0])[:, None]
    return jnp.zeros((tokens.shape[0], vocabulary), dtype).at[rows, tokens].add(shares)
