"""What makes the units of a sweep: this process, or the workers of a cluster (`ray_engine`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from influence.arms import main_task, own_units
from influence.experiment import Experiment
from influence.interruption import end_in_good_order
from influence.layout import sweeper_for, with_layout
from influence.progress import say, sweep_progress
from training.arm import Arm
from training.bank import Bank
from training.checkpoints import delete_finished
from training.params import KeptParams
from training.shards import WHOLE, Shard
from training.sweep import Design, Task, sweep


@dataclass(frozen=True)
class Work:
    """Units of one arm."""

    title: str
    arm: Arm
    design: Design
    own: list[int]
    """Those that this call is to see done."""
    todo: list[int]
    """Those of them that are missing or damaged."""
    keep_params: bool
    """Whether its members keep their parameters."""


def find_work(
    arms: Mapping[str, tuple[Arm, Design]], shard: Shard = WHOLE, *, keep_params: bool = False
) -> list[Work]:
    """What a shard's part of the arms, given by title, lacks; arms that lack nothing are left out.

    Everything that is done is read, to find what is damaged.
    """
    units, found = own_units([arm.spec for arm, _ in arms.values()], shard), []
    for title, (arm, design) in arms.items():
        own = units[arm.spec.name]
        delete_finished(arm)
        KeptParams(arm).clean()
        found.append(Work(title, arm, design, own, arm.unfinished_units(own), keep_params))
    return [work for work in found if work.todo]


@runtime_checkable
class Engine(Protocol):
    """Makes the units of a sweep."""

    def with_layout(self, experiment: Experiment, out: Path) -> Experiment:
        """The experiment with the layout that suits where members will run."""
        ...

    def require_memory(self, experiment: Experiment) -> None:
        """Refuse members that do not fit where they will run, if that can be known here."""
        ...

    def make(
        self, experiment: Experiment, bank: Bank, task: Task, works: list[Work], log: Path
    ) -> None:
        """Make what is to do.

        Args:
            experiment: with its layout.
            bank: whose units they are.
            task: what every member does.
            works: by arm.
            log: the file of lines of progress.
        """
        ...


def _doing(works: list[Work]) -> str:
    """What is to be done with the units, of which some may have kept their parameters."""
    todo = sum(len(work.todo) for work in works)
    kept = sum(len(KeptParams(work.arm).units() & set(work.todo)) for work in works)
    if not kept:
        return "Retraining"
    return f"Evaluating kept parameters of {kept} and retraining {todo - kept} units"


class LocalEngine:
    """This process, on its own devices."""

    def with_layout(self, experiment: Experiment, out: Path) -> Experiment:
        """As the run at `out` has it, or found by a timed search here."""
        return with_layout(experiment, out)

    def require_memory(self, experiment: Experiment) -> None:
        """Compile, and compare what is needed with what is free."""
        sweeper_for(experiment, main_task(experiment)).require_memory()

    def make(
        self, experiment: Experiment, bank: Bank, task: Task, works: list[Work], log: Path
    ) -> None:
        """Train; compiled once for all arms."""
        del bank
        if not works:
            return
        config = experiment.config.sweep
        sweeper = sweeper_for(experiment, task)
        sweeper.require_memory()
        if not config.allow_mixed:
            for work in works:
                work.arm.check_made_on(sweeper.made_on())
        say(f"{_doing(works)} on {sweeper.layout}")
        with end_in_good_order(config.grace, say) as stop:
            for work in works:
                if stop():
                    break
                with sweep_progress(work.title, work.arm.spec, work.own, work.todo, log) as tell:
                    sweep(
                        sweeper,
                        work.arm,
                        work.design,
                        work.todo,
                        tell,
                        stop,
                        keep_params=work.keep_params,
                        allow_mixed=config.allow_mixed,
                    )
