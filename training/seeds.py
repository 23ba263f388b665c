"""Training keys, as a function of who a member is and of nothing else.

Every key comes from `jax.random.fold_in` over small integers, so neither order, sharding, unit
size nor the process that ran a member can change it, and a lost member can be made again.
`datamodels.design` draws masks from the same root with the tag 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, UInt32

TRAINING_TAG = 1


def training_key(
    root: Key[Array, ""], row: Int[Array, ""] | int, replicate: Int[Array, ""] | int
) -> Key[Array, ""]:
    """The training key of one member.

    Args:
        root: the arm's root key.
        row: the member's mask row; members of one row share their mask.
        replicate: which retrain of that row this is, from 0.
    """
    base = jax.random.fold_in(root, TRAINING_TAG)
    return jax.random.fold_in(jax.random.fold_in(base, row), replicate)


def training_keys(
    root: Key[Array, ""], rows: Int[np.ndarray, " m"], replicates: Int[np.ndarray, " m"]
) -> UInt32[np.ndarray, "m 2"]:
    """The training keys of many members, as plain numbers (`jax.random.key_data`)."""
    keys = jax.vmap(training_key, (None, 0, 0))(root, jnp.asarray(rows), jnp.asarray(replicates))
    return np.asarray(jax.random.key_data(keys))


def root_key(seed: int, stream: int) -> Key[Array, ""]:
    """The root key of an arm: arms of one run differ in their stream."""
    return jax.random.fold_in(jax.random.key(seed), stream)
