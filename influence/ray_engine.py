"""A sweep on a Ray cluster: one unit a task, written by the worker that made it.

Workers share nothing but the place of the bank. A task whose worker or node is lost is made again
elsewhere; whatever happens, the bank is as if one process had made it.
"""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from datamodels.design import from_description
from influence.arms import main_task, stored_in
from influence.config import RayConfig, parse_config, write_toml
from influence.engines import Work
from influence.experiment import Experiment, prepare
from influence.interruption import end_in_good_order
from influence.jax_setup import set_up_jax
from influence.layout import sweeper_for, with_layout
from influence.progress import say, sweep_progress
from training.bank import Bank
from training.errors import UserError, reason
from training.sweep import Sweeper, Task, sweep


class RayEngine:
    """The workers of a Ray cluster."""

    def __init__(self, ray: Any, config: RayConfig):
        """Use a cluster.

        Args:
            ray: the module, connected (`cluster`).
            config: what a task needs.
        """
        self._ray = ray
        self._config = config

    def with_layout(self, experiment: Experiment, out: Path) -> Experiment:
        """As the run at `out` has it, or found by a timed search of a worker."""
        if experiment.config.sweep.width:
            return experiment
        find = self._remote(_find_layout)
        text = self._get(find.remote(write_toml(experiment.config), str(out.absolute())))
        return replace(experiment, config=parse_config(text, "the config of a worker"))

    def require_memory(self, experiment: Experiment) -> None:
        """Each worker does that for itself, before its first unit."""

    def make(
        self, experiment: Experiment, bank: Bank, task: Task, works: list[Work], log: Path
    ) -> None:
        """Give every unit to the cluster as a task; workers know the task from the config."""
        del task
        text, config = write_toml(experiment.config), experiment.config.sweep
        make, ray = self._remote(_make_unit), self._ray
        place = bank.store
        location = str(place.folder.absolute()) if place.folder else place.location
        if works:
            say(f"Retraining on a Ray cluster of {len(ray.nodes())} node(s)")
        with end_in_good_order(config.grace, say) as stop:
            for work in works:
                arm = work.arm.spec
                with sweep_progress(work.title, arm, work.own, work.todo, log) as tell:
                    waiting = [make.remote(text, location, arm.name, unit) for unit in work.todo]
                    while waiting and not stop():
                        done, waiting = ray.wait(waiting, timeout=1.0)
                        for reference in done:
                            unit, status = self._get(reference)
                            tell(unit, status)
                    for reference in waiting:
                        ray.cancel(reference)

    def _remote(self, function: Callable[..., Any]) -> Any:
        """The function as a task, with the resources that the config asks for."""
        config = self._config
        return self._ray.remote(
            num_cpus=config.cpus,
            num_gpus=config.gpus,
            resources={"TPU": config.tpus} if config.tpus else {},
            max_retries=config.retries,
            # Keeps the process of a task with GPUs, and what it has compiled, for the next one.
            max_calls=0,
        )(function)

    def _get(self, reference: Any) -> Any:
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from error
            raise
        except errors.RayError as error:
            raise UserError(
                f"Ray lost a unit more than ray.retries = {self._config.retries} times "
                f"({reason(error)}); raise it, or give tasks more resources"
            ) from error


@contextmanager
def cluster(config: RayConfig) -> Iterator[Any]:
    """The `ray` module, connected.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError(
            "--engine ray needs Ray, which is not installed: pip install ray"
        ) from error
    address = None if config.address == "local" else config.address
    try:
        if ":" in config.address:
            # Ray itself would try for minutes.
            host, _, port = config.address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f'no Ray cluster at ray.address = "{config.address}" ({reason(error)}); start one with '
            f'"ray start --head", or set ray.address to "local"'
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _find_layout(text: str, out: str) -> str:
    """In a worker: the config with the fastest layout here."""
    set_up_jax()
    experiment = prepare(parse_config(text, "the config of the driver"))
    return write_toml(with_layout(experiment, Path(out)).config)


def _make_unit(
    text: str, location: str, arm: str, unit: int
) -> tuple[int, UInt8[np.ndarray, " u"]]:
    """In a worker: make a unit, and return its number and the status of its members."""
    worker = _worker(text, location)
    design = from_description(worker.bank.arm(arm).spec.design)
    config = worker.experiment.config.sweep
    # Nothing is made twice that was committed by a node that was lost just then.
    todo = worker.bank.arm(arm).unfinished_units([unit])
    sweep(
        worker.sweeper,
        worker.bank.arm(arm),
        design,
        todo,
        keep_params=config.keep_params,
        allow_mixed=config.allow_mixed,
    )
    return unit, worker.bank.arm(arm).read_status(worker.bank.arm(arm).spec.unit_slice(unit))


@dataclass(frozen=True)
class _Worker:
    experiment: Experiment
    bank: Bank
    sweeper: Sweeper


@cache
def _worker(text: str, location: str) -> _Worker:
    """What a worker keeps from task to task: data, bank, and the compiled program."""
    set_up_jax()
    config, bank = parse_config(text, "the config of the driver"), Bank.open(location)
    experiment = prepare(config, stored_in(bank.manifest, config))
    sweeper = sweeper_for(experiment, main_task(experiment, bank.manifest))
    sweeper.require_memory()
    if not experiment.config.sweep.allow_mixed:
        for arm in bank.arms.values():
            arm.check_made_on(sweeper.made_on())
    return _Worker(experiment, bank, sweeper)
