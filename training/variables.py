"""Trees of variables as plain numbers: what programs hand on to one another, and what is stored."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey
from jaxtyping import Array, PyTree


def to_numbers(tree: PyTree) -> list[Array]:
    """The arrays of a tree; random keys as their data."""
    return [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]


def from_numbers(numbers: Sequence[Array], like: PyTree) -> PyTree:
    """What `to_numbers` was given, from what it returned and any tree of the same shape."""
    leaves, structure = jax.tree.flatten(like)
    typed = [
        jax.random.wrap_key_data(plain, impl=_implementation(leaf)) if _is_key(leaf) else plain
        for plain, leaf in zip(numbers, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, typed)


def to_named(tree: PyTree) -> dict[str, Array]:
    """`to_numbers` by the name of each variable in its module, as in "first.convolution.kernel"."""
    return dict(zip(names(tree), to_numbers(tree), strict=True))


def from_named(numbers: Mapping[str, Array], like: PyTree) -> PyTree:
    """What `to_named` was given, from what it returned and any tree of the same shape."""
    return from_numbers([numbers[name] for name in names(like)], like)


def with_named(tree: PyTree, values: Mapping[str, Array | np.ndarray]) -> PyTree:
    """The same tree with some of its variables, by name, replaced."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = zip(names(tree), leaves, strict=True)
    replaced = [jnp.asarray(values[n]) if n in values else leaf for n, leaf in pairs]
    return jax.tree.unflatten(structure, replaced)


def names(tree: PyTree) -> list[str]:
    """The name of each variable of a tree in its module."""
    # Attributes are those of the containers, which say nothing of the variable.
    return [
        jax.tree_util.keystr(
            tuple(key for key in path if not isinstance(key, GetAttrKey)),
            simple=True,
            separator=".",
        )
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _implementation(key: Any) -> Any:
    # `key` may be a shape alone.
    return jax.random.key_impl(jnp.zeros((), key.dtype))
