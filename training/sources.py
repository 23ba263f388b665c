"""Every source of examples as a Hugging Face `datasets` object."""

import glob
import gzip
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from jaxtyping import UInt8
from sklearn.datasets import load_breast_cancer, load_digits

from training.errors import UserError, reason

Splits = dict[str, datasets.Dataset]

FILE_BUILDERS = {".csv": "csv", ".parquet": "parquet", ".json": "json", ".jsonl": "json"}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
BUILTIN_SOURCES = ("digits", "breast_cancer", "fashion_mnist")
NO_ROWS = "corresponds to no data"
"""What `datasets` says of files without rows."""
FASHION_PACKAGE = "dataset-fashion-mnist"
FASHION_CLASSES = [
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
]  # fmt: skip


def load_source(source: str, folder: str) -> Splits:
    """All splits of a source; a source without splits has the one split "train".

    Args:
        source: digits, breast_cancer or fashion_mnist; else a parquet, csv or json file or glob;
            else a folder that `Dataset.save_to_disk` wrote or that holds images, one subfolder a
            class; else the id of a data set on the Hugging Face hub.
        folder: where the Fashion-MNIST package was unpacked; not read for other sources.

    Raises:
        UserError: the source does not exist or cannot be read.
    """
    datasets.disable_progress_bars()
    # What it has to say of a file it also raises.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    match source:
        case "digits":
            return {"train": _digits()}
        case "breast_cancer":
            return {"train": _breast_cancer()}
        case "fashion_mnist":
            return _fashion_mnist(Path(folder))
    try:
        if Path(source).suffix in FILE_BUILDERS:
            return _files(source)
        if Path(source).is_dir():
            return _folder(Path(source))
        return _as_splits(datasets.load_dataset(source))
    except UserError:
        raise
    except Exception as error:  # readers and the hub raise many types
        known = "digits, breast_cancer, fashion_mnist, a .csv, .parquet or .json file, a folder"
        raise UserError(
            f'data.source = "{source}" cannot be loaded as one of {known} or a hub id: '
            f"{reason(error.__cause__ or error)}"
        ) from error


def _as_splits(loaded: Any) -> Splits:
    if isinstance(loaded, datasets.DatasetDict):
        return {str(name): split for name, split in loaded.items()}
    return {"train": loaded}


def _image_dataset(
    images: UInt8[np.ndarray, "n h w c"], labels: np.ndarray, names: list[str]
) -> datasets.Dataset:
    features = datasets.Features(
        image=datasets.Array3D(images.shape[1:], "uint8"), label=datasets.ClassLabel(names=names)
    )
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def _digits() -> datasets.Dataset:
    """The 1,797 digits of 8x8 pixels in the scikit-learn wheel, its 17 greys spread to 0-255."""
    bunch: Any = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    return _image_dataset(images, bunch.target, [str(digit) for digit in range(10)])


def _breast_cancer() -> datasets.Dataset:
    """The 569 rows of 30 measurements in the scikit-learn wheel."""
    bunch: Any = load_breast_cancer()
    columns = dict(zip(bunch.feature_names, bunch.data.T, strict=True))
    return datasets.Dataset.from_dict({**columns, "label": bunch.target}).cast_column(
        "label", datasets.ClassLabel(names=[str(name) for name in bunch.target_names])
    )


def _read_idx(path: Path) -> UInt8[np.ndarray, "..."]:
    """An array of bytes in the idx format: 4-byte magic, big-endian sizes, then the data."""
    try:
        raw = gzip.decompress(path.read_bytes())
        sizes = np.frombuffer(raw, ">u4", count=raw[3], offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(
            f'data.folder = "{path.parent}": {path.name} is missing or damaged '
            f"({reason(error)}); unpack {FASHION_PACKAGE} again"
        ) from error


def _fashion_mnist(folder: Path) -> Splits:
    candidates = [folder, folder / "usr/share/datasets/fashion-mnist"]
    marker = "train-images-idx3-ubyte.gz"
    found = next((path for path in candidates if (path / marker).is_file()), None)
    if found is None:
        raise UserError(
            f'data.source = "fashion_mnist" finds no {marker} in data.folder = "{folder}"; fetch '
            f"it on Debian with: apt-get download {FASHION_PACKAGE} && "
            f"dpkg -x {FASHION_PACKAGE}*.deb {folder}"
        )
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(found / f"{prefix}-images-idx3-ubyte.gz")[..., None]
        labels = _read_idx(found / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
        splits[split] = _image_dataset(images, labels, FASHION_CLASSES)
    return splits


def _files(source: str) -> Splits:
    # A name that exists is meant as it stands, even with brackets in it.
    exact = Path(source).exists()
    paths = [source] if exact else sorted(glob.glob(source, recursive=True))
    if not paths:
        raise UserError(f'data.source = "{source}" matches no file under {Path.cwd()}')
    empty = next((path for path in paths if Path(path).stat().st_size == 0), None)
    if empty:
        raise UserError(f'data.source = "{source}": {empty} is an empty file')
    builder = FILE_BUILDERS[Path(source).suffix]
    try:
        return _as_splits(
            datasets.load_dataset(builder, data_files=[glob.escape(path) for path in paths])
        )
    except Exception as error:  # readers raise many types
        if NO_ROWS in str(error):
            raise UserError(
                f'data.source = "{source}" holds no rows; write one for each example'
            ) from error
        why = error.__cause__ or error
        remedy = "save it as UTF-8" if isinstance(why, UnicodeDecodeError) else "mend the file"
        raise UserError(
            f'data.source = "{source}" cannot be read as {builder} ({reason(why)}); {remedy}'
        ) from error


def _folder(folder: Path) -> Splits:
    if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists():
        return _as_splits(datasets.load_from_disk(str(folder)))
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.rglob("*")):
        return _as_splits(datasets.load_dataset("imagefolder", data_dir=str(folder)))
    raise UserError(
        f'data.source = "{folder}" is a folder without images and not one that '
        f"Dataset.save_to_disk wrote; name a data file or fill the folder"
    )
