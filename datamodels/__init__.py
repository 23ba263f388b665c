"""Datamodels: what a bank of retrains says about its training examples.

Works on anyone's (masks, outputs) arrays, wherever they came from.
"""

from datamodels.additive import AdditiveDatamodel, FitDiagnostics, Prepared, fit, prepare
from datamodels.design import Bernoulli, Listed
from datamodels.inference import Effects, effects, knockoffs
from datamodels.marginal import Estimate, Marginal, marginal
from datamodels.metrics import ceiling, lds, noise_variance, r2

__all__ = [
    "AdditiveDatamodel",
    "Bernoulli",
    "Effects",
    "Estimate",
    "FitDiagnostics",
    "Listed",
    "Marginal",
    "Prepared",
    "ceiling",
    "effects",
    "fit",
    "knockoffs",
    "lds",
    "marginal",
    "noise_variance",
    "prepare",
    "r2",
]
