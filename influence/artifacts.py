"""What the stages write into a run directory, and read back."""

import dataclasses
import hashlib
import math
import shutil
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32

from datamodels.additive import AdditiveDatamodel, FitDiagnostics
from influence.attribution import Quality
from influence.audit import Scores, Suspicion
from influence.experiment import Experiment
from influence.run import Run
from training.arm import TARGET_BLOCK
from training.errors import UserError, reason
from training.files import writing


@dataclass(frozen=True)
class StoredDatamodel:
    """The datamodels of a run; their weights are read a block of targets at a time."""

    run: Run
    diagnostics: FitDiagnostics
    quality: Quality
    digests: tuple[str, ...]
    """Of the weights of each block of targets."""

    def weights(self, targets: slice) -> Float32[np.ndarray, "g b"]:
        """The weights of some targets.

        Raises:
            UserError: they are damaged.
        """
        first = targets.start // TARGET_BLOCK
        stored, parts = self._weights, []
        for number in range(first, math.ceil(targets.stop / TARGET_BLOCK)):
            columns = slice(number * TARGET_BLOCK, (number + 1) * TARGET_BLOCK)
            part = np.array(stored[:, columns])
            if _digest(part) != self.digests[number]:
                raise _damaged(self.run, "its weights do not match their digest")
            parts.append(part)
        start = targets.start - first * TARGET_BLOCK
        return np.concatenate(parts, axis=1)[:, start : start + targets.stop - targets.start]

    @property
    def _weights(self) -> np.ndarray:
        try:
            return np.load(self.run.weights, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise _damaged(self.run, reason(error)) from error


def _damaged(run: Run, why: str) -> UserError:
    return UserError(
        f"{run.datamodel.parent} is damaged ({why}); run again: accomplice fit {run.path}"
    )


def save_datamodel(
    run: Run,
    groups: int,
    target_ids: Sequence[str],
    parts: Iterable[tuple[AdditiveDatamodel, Quality]],
) -> None:
    """Write the datamodels of one block of `TARGET_BLOCK` targets after the other.

    They take the place of older ones when all are written.
    """
    folder = run.datamodel.parent
    partial = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        with (partial / run.weights.name).open("wb") as file:
            joined = _write_weights(file, (groups, len(target_ids)), parts)
        np.savez(partial / run.datamodel.name, target_ids=np.array(target_ids), **joined)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _write_weights(
    file: BinaryIO,
    shape: tuple[int, int],
    parts: Iterable[tuple[AdditiveDatamodel, Quality]],
) -> dict[str, Any]:
    """Write the weights as they come; returns all else, of all targets."""
    # Each target's weights together, as they are made and read. A memory-mapped file would do, but
    # where the disk is full it ends the process.
    header = {"descr": "<f4", "fortran_order": True, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    columns: dict[str, list[np.ndarray]] = defaultdict(list)
    for model, quality in parts:
        file.write(np.ascontiguousarray(model.weights.T).tobytes())
        own = dataclasses.asdict(model.diagnostics) | quality._asdict()
        own |= {"intercept": model.intercept, "weights_sha256": [_digest(model.weights)]}
        for name, values in own.items():
            columns[name].append(values)
    return {name: np.concatenate(values) for name, values in columns.items()}


def _digest(weights: Float32[np.ndarray, "g b"]) -> str:
    return hashlib.sha256(np.ascontiguousarray(weights.T).tobytes()).hexdigest()


def load_datamodel(run: Run) -> StoredDatamodel:
    """The fitted datamodels.

    Raises:
        UserError: the file is damaged.
    """
    try:
        # Opened here, since numpy leaves a file open that is no archive.
        with run.datamodel.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            names = [field.name for field in dataclasses.fields(FitDiagnostics)]
            diagnostics = FitDiagnostics(**{name: stored[name] for name in names})
            quality = Quality(*(stored[name] for name in Quality._fields))
            digests = tuple(stored["weights_sha256"].tolist())
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise _damaged(run, reason(error)) from error
    return StoredDatamodel(run, diagnostics, quality, digests)


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
    with writing(run.scores):
        pq.write_table(pa.table(columns), temporary)
        temporary.replace(run.scores)


def read_scores(run: Run) -> dict[str, np.ndarray]:
    """The columns of scores.parquet."""
    table = pq.read_table(run.scores)
    return {name: table[name].to_numpy() for name in table.column_names}
