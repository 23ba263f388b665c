"""The layout of a run: found when it first starts, and read ever after."""

import dataclasses
from pathlib import Path

from influence.arms import main_task, member_counts
from influence.banks import find_bank
from influence.experiment import Experiment
from influence.progress import say, working
from training.layouts import find_layout
from training.parallel import Layout, local_layout
from training.stepped import SteppedSweeper
from training.sweep import Sweeper, Task


def with_layout(experiment: Experiment, out: Path) -> Experiment:
    """The same experiment with a width and a microbatch.

    What the config leaves open is as the bank of the run at `out` has it, or else found by a timed
    search.
    """
    sweep = experiment.config.sweep
    if sweep.width:
        return experiment
    bank = find_bank(experiment.config, out)
    if bank is not None:
        stored = bank.manifest.parts["numerics"]
        width, microbatch = stored["width"], sweep.microbatch or stored["microbatch"]
    else:
        members = sum(member_counts(experiment).values())
        with working("Looking for the fastest layout on this machine"):
            found = find_layout(main_task(experiment), 0, sweep.microbatch, members)
        width, microbatch = found.layout.width, found.layout.microbatch
        source = {0: "from an earlier search", 1: "the sweep is too short for a search"}.get(
            found.timed, f"fastest of {found.timed} timed"
        )
        say(f"Layout: {found.layout} ({source}; {found.flops / 1e9:.0f} GFLOP/s)")
    sweep = dataclasses.replace(sweep, width=width, microbatch=microbatch)
    config = dataclasses.replace(experiment.config, sweep=sweep)
    return dataclasses.replace(experiment, config=config)


def fixed_layout(experiment: Experiment) -> Layout:
    """The layout that the config has, on the devices of this process."""
    sweep = experiment.config.sweep
    return local_layout(sweep.width, microbatch=sweep.microbatch)


def sweeper_for(experiment: Experiment, task: Task) -> Sweeper:
    """What trains the members of a task, at the layout that the config has."""
    layout, every_steps = fixed_layout(experiment), experiment.config.checkpoint.every_steps
    return SteppedSweeper(task, layout, every_steps) if every_steps else Sweeper(task, layout)
