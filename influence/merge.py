"""Two banks of one design, made in different places, as one."""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool

from influence.banks import open_bank, shown
from influence.config import Config, read_config, write_toml
from influence.run import Run, is_new
from training.arm import Arm, Made, Report
from training.bank import Bank, Manifest, differences
from training.errors import UserError
from training.params import KeptParams


def merge(first: Path, second: Path, out: Path, *, allow_mixed: bool = False) -> Bank:
    """Make a run directory with the units that either of two runs has.

    Args:
        first: a run directory; its config becomes that of the new one.
        second: another, of the same identity. Its arms may have more or fewer members, and be
            other arms; arms of the same name must be of the same design and seed.
        out: the new run directory; appears whole or not at all.
        allow_mixed: also where the two were made on different devices, layouts or JAX versions.

    Raises:
        UserError: the two do not belong together, naming what differs and both values; a unit
            that both have differs; `out` exists.
    """
    if not is_new(out):
        raise UserError(f"{out} exists; choose another --out")
    banks = [open_bank(path) for path in (first, second)]
    manifest = _merged(banks[0], banks[1])
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        merged = Bank.create(temporary, manifest)
        for name, arm in merged.arms.items():
            sources = [bank.arm(name) for bank in banks if name in bank.arms]
            if not allow_mixed:
                _check_made_alike(sources)
            _copy(sources, arm)
        config = _local(read_config(Run(first).config))
        (temporary / Run(out).config.name).write_text(write_toml(config), encoding="utf-8")
        temporary.chmod(0o755)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return Bank.open(out)


def _local(config: Config) -> Config:
    """The same config with the bank in the run directory."""
    return dataclasses.replace(config, sweep=dataclasses.replace(config.sweep, bank=""))


def _merged(first: Bank, second: Bank) -> Manifest:
    """The manifest of both together."""
    arms = second.manifest.arms | first.manifest.arms
    for bank in (first, second):
        for name, spec in bank.manifest.arms.items():
            members = max(spec.members, arms[name].members)
            arms[name] = dataclasses.replace(arms[name], members=members)

    def with_all_arms(manifest: Manifest) -> Manifest:
        own = {name: manifest.arms.get(name, spec) for name, spec in arms.items()}
        grown = {n: dataclasses.replace(own[n], members=spec.members) for n, spec in arms.items()}
        return dataclasses.replace(manifest, arms=grown)

    merged = with_all_arms(first.manifest)
    for name, left, right in differences(merged, with_all_arms(second.manifest)):
        raise UserError(
            f"{first.store} and {second.store} are different runs: {name} is {shown(left)} in the "
            f"first and {shown(right)} in the second"
        )
    return merged


def _check_made_alike(sources: list[Arm]) -> None:
    for source in sources:
        for record in sources[0].records().values():
            source.check_made_on(record["made_on"])


class _Found(NamedTuple):
    """Some members that a source has."""

    masks: Bool[np.ndarray, "m g"]
    reports: dict[int, Report]


def _copy(sources: list[Arm], to: Arm) -> None:
    """Every unit that a source has whole; where both have it, they must agree."""
    records = [source.records() for source in sources]
    for unit in range(to.spec.units):
        cut = to.spec.unit_slice(unit)
        found = [(number, _read(source, cut)) for number, source in enumerate(sources)]
        present = [(number, members) for number, members in found if members is not None]
        if not present:
            continue
        number, members = present[0]
        for other, same in present[1:]:
            if not _same(members, same):
                raise UserError(
                    f"members {cut.start} to {cut.stop - 1} are not the same in "
                    f"{sources[number].store} and {sources[other].store}; one of them was made by "
                    f"other code or on another machine"
                )
        _copy_params([sources[number] for number, _ in present], to, unit)
        record = records[number][cut.start // sources[number].spec.unit]
        made = Made(record["made_on"], record["time"], record["host"])
        to.commit(unit, members.masks, members.reports, made)


def _copy_params(sources: list[Arm], to: Arm, unit: int) -> None:
    """The kept parameters of a unit, if a source has its members as one unit, too."""
    for source in sources:
        if source.spec.unit == to.spec.unit:
            params = KeptParams(source).read(unit)
            if params is not None:
                KeptParams(to).write(unit, params)
                return


def _same(one: _Found, other: _Found) -> bool:
    left, right = jax.tree.leaves(one), jax.tree.leaves(other)
    return all(a.tobytes() == b.tobytes() for a, b in zip(left, right, strict=True))


def _read(arm: Arm, cut: slice) -> _Found | None:
    """Some members of an arm, if it has them, done and whole."""
    if cut.stop > arm.spec.members:
        return None
    try:
        reports = {panel: arm.read_report(panel, cut) for panel in range(len(arm.panels))}
        return _Found(arm.read_masks(cut), reports)
    except UserError:
        return None
