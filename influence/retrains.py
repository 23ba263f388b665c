"""Retrains that were decided one by one, in a bank of their own beside the run's."""

import dataclasses
import hashlib
import json
from typing import NamedTuple

from datamodels.design import Listed
from influence.arms import unit_size
from influence.banks import bank_location, new_manifest
from influence.experiment import Experiment
from influence.run import Run
from training.arm import Arm, ArmSpec
from training.bank import Bank, Panel
from training.data import examples_hash
from training.examples import Examples
from training.store import Store


class Planned(NamedTuple):
    """Retrains of one arm."""

    bank: Bank
    design: Listed

    @property
    def arm(self) -> Arm:
        """The bank's only one."""
        (arm,) = self.bank.arms.values()
        return arm


def spec_of(experiment: Experiment, name: str, stream: int, design: Listed) -> ArmSpec:
    """The arm of listed masks over the training examples."""
    config, masks = experiment.config, design.listed
    return ArmSpec(
        name=name,
        members=len(masks),
        groups=masks.shape[1],
        unit=unit_size(config.sweep),
        seed=config.audit.seed,
        stream=stream,
        design=design.describe(),
    )


def beside(
    run: Run,
    experiment: Experiment,
    spec: ArmSpec,
    design: Listed,
    inputs: Examples,
    ids: tuple[str, ...],
) -> Planned:
    """The bank of these retrains. Nothing is written.

    Args:
        run: beside whose bank.
        experiment: of the run.
        spec: of the arm.
        design: the masks; others, or other inputs, make another bank.
        inputs: that every member evaluates.
        ids: of the columns of its outputs.
    """
    content = examples_hash(inputs)
    digest = hashlib.sha256(
        json.dumps([design.describe() | {"inputs": content}, spec.seed]).encode()
    )
    manifest = dataclasses.replace(
        new_manifest(experiment, {spec.name: spec}),
        target_ids=ids,
        panels=(Panel(len(ids), content),),
    )
    location = Store(bank_location(experiment.config, run.path))
    place = location / "verification" / digest.hexdigest()[:16]
    return Planned(Bank.find(place.location) or Bank(place, manifest), design)
