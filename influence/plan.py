"""What a sweep would do, told before it starts."""

import dataclasses
from pathlib import Path

from influence.arms import arm_specs, kept_bytes, main_task, own_units, require_bank_space
from influence.artifacts import datamodel_bytes
from influence.banks import bank_location, check_new_targets, check_same, find_bank
from influence.experiment import Experiment
from influence.layout import fixed_layout, sweeper_for, with_layout
from influence.progress import duration
from training.arm import Arm, ArmSpec
from training.bank import Bank
from training.cost import member_flops
from training.layouts import find_layout
from training.parallel import Memory
from training.params import KeptParams
from training.shards import WHOLE, Shard


def plan(experiment: Experiment, out: Path, shard: Shard = WHOLE, *, retrain: bool = False) -> str:
    """The plan of a sweep as text; nothing is written to `out`.

    Args:
        experiment: what would be swept.
        out: the run directory.
        shard: the part of the units that this process would make.
        retrain: train members again for targets that the bank lacks.

    Raises:
        UserError: whatever the sweep itself would refuse before its first member: another run at
            `out`, targets that need `retrain`, or too little memory or disk.
    """
    experiment = with_layout(experiment, out)
    specs = arm_specs(experiment)
    bank = find_bank(experiment.config, out)
    new = 0
    if bank is not None:
        check_same(out, bank, experiment, specs, growing=True)
        new = check_new_targets(bank, experiment, retrain=retrain)
    task, layout, optim = main_task(experiment), fixed_layout(experiment), experiment.config.optim
    memory = sweeper_for(experiment, task).require_memory()
    if bank is None:
        require_bank_space(experiment, out)
    flops = member_flops(task)
    rate = find_layout(task, layout.width, layout.microbatch).flops
    left, kept = _members_to_make(bank, specs, shard, new_targets=bool(new))
    of_shard = "" if shard == WHOLE else f" by shard {shard}"
    arms = [f"{spec.members:,} {name}" for name, spec in specs.items()]
    units = [f"{spec.units} of {spec.unit} {name}" for name, spec in specs.items()]
    training = f"{optim.steps} steps of {optim.batch_size} examples"
    disk = sum(spec.bytes(len(task.targets), kept_bytes(experiment)) for spec in specs.values())
    rows = {
        "members": f"{', '.join(arms)}; {left:,} left to train{of_shard}"
        + (f", {kept:,} with kept parameters to evaluate on {new:,} new targets" if kept else ""),
        "units": f"{', '.join(units)}",
        "a member": f"{training}, then {len(task.targets):,} targets: {flops / 1e9:.3g} GFLOP",
        "where": str(layout),
        "time": f"about {duration(left * flops / rate)}, at {rate / 1e9:.0f} GFLOP/s",
        "memory": _memory(memory, len(layout.devices)),
        "disk": f"{_size(disk)} in {bank_location(experiment.config, out)}, and "
        f"{_size(datamodel_bytes(experiment))} for a fit in {out}",
    }
    lines = [f"{name:9s} {text}" for name, text in rows.items()]
    return "\n".join(lines + [f"Note: {note}" for note in experiment.notes])


def _members_to_make(
    bank: Bank | None, specs: dict[str, ArmSpec], shard: Shard, *, new_targets: bool
) -> tuple[int, int]:
    """How many members are left to train, and to evaluate alone, as they kept their parameters."""
    train = evaluate = 0
    for name, units in own_units(specs.values(), shard).items():
        spec, missing, kept = specs[name], set(units), set()
        if bank is not None and name in bank.arms:
            arm = bank.arm(name)
            spec = dataclasses.replace(arm.spec, members=spec.members)
            done = Arm(arm.store, spec, arm.panels)
            if new_targets:
                kept = KeptParams(done).units()
            else:
                missing &= set(done.missing_units())
        train += sum(len(spec.unit_rows(unit)) for unit in missing - kept)
        evaluate += sum(len(spec.unit_rows(unit)) for unit in missing & kept)
    return train, evaluate


def _memory(memory: Memory, devices: int) -> str:
    needed = (
        f"{_size(memory.needed)} and {_size(memory.data)} of data on each of {devices} device(s)"
    )
    return needed if memory.free is None else f"{needed}; {_size(memory.free)} is free"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
