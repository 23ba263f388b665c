"""Train the model of own_model.py on the digits below five, and save it for `model.init_from`.

python examples/pretrain.py pretrained
"""

import sys
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from own_model import two_layers
from sklearn.datasets import load_digits


def main(folder: Path) -> None:
    """Train, and write the module's state to a new folder."""
    pixels, digits = map(np.asarray, load_digits(return_X_y=True))
    labels = digits[digits < 5]
    # As members see them: normalised, with a channel.
    images = ((pixels - pixels.mean()) / pixels.std())[digits < 5].reshape(-1, 8, 8, 1)
    images = images.astype(np.float32)
    model = two_layers((8, 8, 1), 5, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model: nnx.Module, optimizer: nnx.Optimizer) -> jax.Array:
        def loss(model: nnx.Module) -> jax.Array:
            logits = model(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradient = nnx.value_and_grad(loss)(model)
        optimizer.update(model, gradient)
        return value

    losses = [step(model, optimizer) for _ in range(300)]
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.absolute(), nnx.state(model))
    print(f"loss {losses[-1]:.3f}: {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit("name a folder that does not exist yet: python examples/pretrain.py pretrained")
    main(Path(sys.argv[1]))
