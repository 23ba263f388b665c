"""Committing the members that a test made up."""

import numpy as np

from training.arm import Made, Report


def commit(arm, unit, rows, made=None, **options):
    """Write a unit from the members of a whole arm."""
    members = arm.spec.unit_slice(unit)
    ends = np.cumsum(arm.panels)[:-1]
    outputs = np.split(rows.outputs[members], ends, axis=1)
    reports = {panel: Report(part, rows.status[members]) for panel, part in enumerate(outputs)}
    arm.commit(unit, rows.masks[members], reports, made or Made({}), **options)
