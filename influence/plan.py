"""What a sweep would do, told before it starts."""

from pathlib import Path

from influence.arms import arm_specs, main_task
from influence.banks import bank_location, check_same, find_bank
from influence.experiment import Experiment
from influence.layout import fixed_layout, with_layout
from influence.progress import duration
from training.arm import ArmSpec
from training.bank import Bank
from training.cost import member_flops
from training.layouts import find_layout
from training.parallel import Memory
from training.sweep import Sweeper


def plan(experiment: Experiment, out: Path) -> str:
    """The plan of a sweep as text; nothing is written to `out`.

    Raises:
        UserError: whatever the sweep itself would refuse before its first member: another run at
            `out`, or too little memory.
    """
    experiment = with_layout(experiment, out)
    specs = arm_specs(experiment)
    bank = find_bank(experiment.config, out)
    if bank is not None:
        check_same(out, bank, experiment, specs, growing=True)
    task, layout, optim = main_task(experiment), fixed_layout(experiment), experiment.config.optim
    memory = Sweeper(task, layout).require_memory()
    flops = member_flops(task)
    rate = find_layout(task, layout.width, layout.microbatch).flops
    left = sum(_missing_members(bank, spec) for spec in specs.values())
    arms = [f"{spec.members:,} {name}" for name, spec in specs.items()]
    units = [f"{spec.units} of {spec.unit} {name}" for name, spec in specs.items()]
    training = f"{optim.steps} steps of {optim.batch_size} examples"
    rows = {
        "members": f"{', '.join(arms)}; {left:,} left to train",
        "units": f"{', '.join(units)}",
        "a member": f"{training}, then {len(task.targets):,} targets: {flops / 1e9:.3g} GFLOP",
        "where": str(layout),
        "time": f"about {duration(left * flops / rate)}, at {rate / 1e9:.0f} GFLOP/s",
        "memory": _memory(memory, len(layout.devices)),
        "disk": f"{_size(sum(spec.bytes(len(task.targets)) for spec in specs.values()))} in "
        f"{bank_location(experiment.config, out)}",
    }
    lines = [f"{name:9s} {text}" for name, text in rows.items()]
    return "\n".join(lines + [f"Note: {note}" for note in experiment.notes])


def _missing_members(bank: Bank | None, spec: ArmSpec) -> int:
    if bank is None:
        return spec.members
    if spec.name not in bank.arms:
        return spec.members
    arm = bank.arm(spec.name)
    more = spec.members - arm.spec.members
    return more + sum(len(arm.spec.unit_rows(unit)) for unit in arm.missing_units())


def _memory(memory: Memory, devices: int) -> str:
    needed = (
        f"{_size(memory.needed)} and {_size(memory.data)} of data on each of {devices} device(s)"
    )
    return needed if memory.free is None else f"{needed}; {_size(memory.free)} is free"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
