from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import convolution

from training.layers import Convolution, convolve_patches
from training.winograd import convolve_winograd


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


@partial(jax.jit, static_argnums=0)
def with_gradients(convolve, kernel, images, weights):
    """Outputs, and the gradients of their weighted sum by kernel and images."""
    outputs, pull = jax.vjp(convolve, kernel, images)
    return outputs, *pull(weights)


def by_patches(kernel, images):
    return convolve_patches(kernel, images, 3)


@settings(max_examples=15)
@given(
    channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(1, 9), st.integers(1, 6)),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_it_is_the_convolution_by_patches_and_so_are_its_gradients(channels, size, batch, seed):
    kernel, images = (
        normal(seed, 9 * channels[0], channels[1]),
        normal(1, channels[0], *size, batch),
    )
    weights = normal(2, channels[1], *size, batch)
    mine = with_gradients(convolve_winograd, kernel, images, weights)
    direct = with_gradients(by_patches, kernel, images, weights)
    for one, other in zip(mine, direct, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_it_loses_few_bits_to_its_sums():
    kernel, images = normal(0, 9 * 64, 8), normal(1, 64, 8, 5, 2)
    exact = convolution(np.asarray(kernel, np.float64), np.asarray(images, np.float64))
    error = np.abs(np.asarray(jax.jit(convolve_winograd)(kernel, images)) - exact).max()
    assert error < 5e-6 * np.abs(exact).max()


def test_members_side_by_side_get_what_each_gets_alone():
    kernels, images = normal(0, 3, 9 * 2, 4), normal(1, 3, 2, 5, 6, 2)
    weights = normal(2, 3, 4, 5, 6, 2)
    alone = partial(with_gradients, convolve_winograd)
    together = jax.vmap(alone)(kernels, images, weights)
    for member in range(3):
        one_by_one = alone(kernels[member], images[member], weights[member])
        for mine, other in zip(together, one_by_one, strict=True):
            np.testing.assert_allclose(mine[member], other, rtol=1e-4, atol=1e-4)


def lowered(platform, dtype=jnp.float32, window=3, height=8, channels=8):
    """The program of a layer for a platform; the products of Winograd's tiles are in sixes."""
    layer = Convolution(channels, 4, window, rngs=nnx.Rngs(0))
    layer.kernel = nnx.Param(layer.kernel[...].astype(dtype))
    layer.bias = nnx.Param(layer.bias[...].astype(dtype))
    images = jax.ShapeDtypeStruct((channels, height, 8, 2), dtype)
    return jax.jit(layer).trace(images).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(
    ("case", "sixes"),
    [
        ({"platform": "cpu"}, True),
        ({"platform": "tpu"}, False),
        ({"platform": "cuda"}, False),
        ({"platform": "cpu", "dtype": jnp.bfloat16}, False),
        ({"platform": "cpu", "window": 5}, False),
        ({"platform": "cpu", "height": 3}, False),
        ({"platform": "cpu", "channels": 7}, False),
    ],
)
def test_the_layer_uses_it_where_it_is_exact_and_pays(case, sixes):
    program = lowered(**case)
    products = [line for line in program.splitlines() if "dot_general" in line]
    assert products
    assert any("tensor<6x" in line for line in products) == sixes
