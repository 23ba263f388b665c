"""What has to be set before JAX starts."""

import contextlib
import logging

from training.cache import OUT_OF_REACH, cache_folder
from training.parallel import keep_compiled_programs, use_all_cores


def set_up_jax() -> None:
    """A device for every core, and compiled programs kept from run to run."""
    # orbax logs what it does to standard error; what matters comes back as an exception.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    use_all_cores()
    with contextlib.suppress(*OUT_OF_REACH):
        keep_compiled_programs(cache_folder() / "compiled")
