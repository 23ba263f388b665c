"""What the stages write into a run directory, and read back."""

import dataclasses
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool

from datamodels.additive import AdditiveDatamodel, FitDiagnostics
from influence.attribution import Quality
from influence.audit import Scores, Suspicion
from influence.experiment import Experiment
from influence.run import Run
from training.errors import UserError, reason


def save_datamodel(run: Run, model: AdditiveDatamodel, quality: Quality) -> None:
    """Write weights, diagnostics and quality of every target."""
    run.datamodel.parent.mkdir(exist_ok=True)
    temporary = run.datamodel.with_suffix(".partial.npz")
    np.savez(
        temporary,
        weights=model.weights,
        intercept=model.intercept,
        **dataclasses.asdict(model.diagnostics),
        **quality._asdict(),
    )
    temporary.replace(run.datamodel)


def load_datamodel(run: Run) -> tuple[AdditiveDatamodel, Quality]:
    """The fitted datamodels and their quality.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return _read_datamodel(run.datamodel)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{run.datamodel} is damaged ({reason(error)}); run again: accomplice fit {run.path}"
        ) from error


def _read_datamodel(path: Path) -> tuple[AdditiveDatamodel, Quality]:
    with np.load(path, allow_pickle=False) as stored:
        diagnostics = FitDiagnostics(
            **{field.name: stored[field.name] for field in dataclasses.fields(FitDiagnostics)}
        )
        model = AdditiveDatamodel(stored["intercept"], stored["weights"], diagnostics)
        return model, Quality(*(stored[name] for name in Quality._fields))


def save_scores(
    run: Run,
    experiment: Experiment,
    scores: Scores,
    suspicion: Suspicion,
    flagged: Bool[np.ndarray, " n"],
) -> None:
    """Write scores.parquet, with the truth about planted poison as a column of its own."""
    planted = np.full(len(flagged), "", dtype=object)
    for attack in experiment.attacks:
        planted[attack.positions] = attack.name
    columns: dict[str, Any] = {
        "id": experiment.train.ids,
        "label": np.asarray(experiment.train.examples.labels),
        **scores._asdict(),
        "rank_blind": suspicion.blind,
        **({} if suspicion.incident is None else {"rank_incident": suspicion.incident}),
        "suspicion": 1 - (suspicion.rank - 1) / len(flagged),
        "rank": suspicion.rank,
        "flagged": flagged,
        "planted": planted,
    }
    temporary = run.scores.with_suffix(".partial")
    pq.write_table(pa.table(columns), temporary)
    temporary.replace(run.scores)


def read_scores(run: Run) -> dict[str, np.ndarray]:
    """The columns of scores.parquet."""
    table = pq.read_table(run.scores)
    return {name: table[name].to_numpy() for name in table.column_names}
