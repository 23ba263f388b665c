"""Datamodels: what a bank of retrains says about its training examples.

Works on anyone's (masks, outputs) arrays, wherever they came from.
"""

from datamodels.additive import AdditiveDatamodel, FitDiagnostics, Prepared, fit, prepare
from datamodels.checks import Separation, separation
from datamodels.design import Bernoulli, FixedSize, Listed, Pairs, TwoLevel
from datamodels.estimates import Effects
from datamodels.inference import (
    PreparedEffects,
    average_marginal_effects,
    banzhaf,
    effects,
    prepare_effects,
)
from datamodels.joint import JointDatamodel, JointDiagnostics, fit_joint
from datamodels.knockoffs import knockoffs
from datamodels.marginal import Estimate, Marginal, influence, marginal
from datamodels.metrics import Calibration, calibration, ceiling, lds, noise_variance, r2
from datamodels.planning import (
    LearningCurve,
    how_many_more,
    learning_curve,
    members_for_width,
    top_width,
)
from datamodels.pooling import whitening
from datamodels.stability import stability
from datamodels.support import Hidden, HiddenSet, hidden_support
from datamodels.terms import Term

__all__ = [
    "AdditiveDatamodel",
    "Bernoulli",
    "Calibration",
    "Effects",
    "Estimate",
    "FitDiagnostics",
    "FixedSize",
    "Hidden",
    "HiddenSet",
    "JointDatamodel",
    "JointDiagnostics",
    "LearningCurve",
    "Listed",
    "Marginal",
    "Pairs",
    "Prepared",
    "PreparedEffects",
    "Separation",
    "Term",
    "TwoLevel",
    "average_marginal_effects",
    "banzhaf",
    "calibration",
    "ceiling",
    "effects",
    "fit",
    "fit_joint",
    "hidden_support",
    "how_many_more",
    "influence",
    "knockoffs",
    "lds",
    "learning_curve",
    "marginal",
    "members_for_width",
    "noise_variance",
    "prepare",
    "prepare_effects",
    "r2",
    "separation",
    "stability",
    "top_width",
    "whitening",
]
