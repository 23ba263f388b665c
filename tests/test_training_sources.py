"""Every kind of source is loaded, and a source that is not there is named."""

import gzip
import json
import shutil
import subprocess

import datasets
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from tables import (
    assert_partition,
    fails,
    in_order,
    load,
    random_images,
    write_images,
    write_jsonl,
)

from training.data import DataConfig
from training.errors import UserError
from training.sources import FASHION_CLASSES

# Sources.


def test_digits_are_8x8_grey_bytes():
    split = load(DataConfig(source="digits"))
    inputs, labels = in_order(split)
    original = load_digits()
    assert inputs.shape == (1797, 8, 8, 1)
    assert inputs.dtype == np.uint8
    assert split.train.examples.labels.dtype == np.int32
    assert split.train.ids.dtype == np.int64
    np.testing.assert_array_equal(inputs[..., 0], np.round(original.images * 255 / 16))
    np.testing.assert_array_equal(labels, original.target)
    assert split.class_names == tuple("0123456789")


def test_breast_cancer_is_a_table_of_floats():
    split = load(DataConfig(source="breast_cancer"))
    inputs, labels = in_order(split)
    original = load_breast_cancer()
    assert inputs.dtype == np.float32
    np.testing.assert_array_equal(inputs, original.data.astype(np.float32))
    np.testing.assert_array_equal(labels, original.target)
    assert split.class_names == ("malignant", "benign")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_lines_and_json_arrays_are_read(tmp_path, suffix):
    rows = [{"a": i, "b": i / 4, "label": i % 2} for i in range(6)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "json":
        path.write_text(json.dumps(rows))
    else:
        write_jsonl(path, rows)
    inputs, labels = in_order(load(DataConfig(source=str(path))))
    np.testing.assert_array_equal(inputs, [[row["a"], row["b"]] for row in rows])
    np.testing.assert_array_equal(labels, [row["label"] for row in rows])


def test_glob_reads_all_files_in_the_order_of_their_names(tmp_path):
    for name, start in (("b", 2), ("c", 4), ("a", 0)):
        text = f"x,label\n{start},0\n{start + 1},1\n"
        (tmp_path / f"part_{name}.csv").write_text(text)
    (tmp_path / "other.csv").write_text("x,label\n99,0\n")
    inputs, labels = in_order(load(DataConfig(source=str(tmp_path / "part_*.csv"))))
    np.testing.assert_array_equal(inputs[:, 0], np.arange(6))
    np.testing.assert_array_equal(labels, [0, 1] * 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_image_folder_has_one_class_a_subfolder(tmp_path, channels):
    images = random_images(6, 5, 4, channels)
    files = {
        f"{'cat' if i < 2 else 'dog'}/{i}.png": image if channels == 3 else image[..., 0]
        for i, image in enumerate(images)
    }
    split = load(DataConfig(source=write_images(tmp_path / "pets", files)))
    inputs, labels = in_order(split)
    assert inputs.dtype == np.uint8
    np.testing.assert_array_equal(inputs, images)
    np.testing.assert_array_equal(labels, [0, 0, 1, 1, 1, 1])
    assert split.class_names == ("cat", "dog")


def test_transparency_is_dropped(tmp_path):
    images = random_images(4, 3, 3, 4)
    files = {f"{'ab'[i % 2]}/{i}.png": image for i, image in enumerate(images)}
    inputs, _ = in_order(load(DataConfig(source=write_images(tmp_path / "rgba", files))))
    np.testing.assert_array_equal(inputs, images[[0, 2, 1, 3], ..., :3])


def test_image_folder_with_splits_draws_targets_from_the_test_folder(tmp_path):
    images = random_images(8, 3, 3)
    folders = ["train/a", "train/a", "train/b", "train/b", "test/a", "test/a", "test/b", "test/b"]
    files = {f"{at}/{i}.png": images[i] for i, at in enumerate(folders)}
    source = write_images(tmp_path / "split", files)
    split = load(DataConfig(source=source, target_split="test", target_count=3))
    inputs, labels = in_order(split)
    np.testing.assert_array_equal(inputs[..., 0], images)
    np.testing.assert_array_equal(labels, [0, 0, 1, 1] * 2)
    assert set(split.train.ids) == {0, 1, 2, 3}
    assert set(split.targets.ids) < {4, 5, 6, 7}


def test_saved_dataset_is_read_with_its_class_names(tmp_path):
    features = datasets.Features(
        vector=datasets.List(datasets.Value("float32"), 2),
        kind=datasets.ClassLabel(names=["low", "high"]),
    )
    data = {"vector": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]], "kind": [0, 1, 1]}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(str(tmp_path / "saved"))
    split = load(DataConfig(source=str(tmp_path / "saved"), label="kind"))
    inputs, labels = in_order(split)
    np.testing.assert_array_equal(inputs, data["vector"])
    np.testing.assert_array_equal(labels, [0, 1, 1])
    assert split.class_names == ("low", "high")


@pytest.mark.parametrize("shape", [(2, 3, 1), (2, 2, 3)])
def test_saved_uint8_images_stay_uint8(tmp_path, shape):
    images = random_images(5, *shape)
    features = datasets.Features(
        image=datasets.Array3D(shape, "uint8"),
        weight=datasets.Value("float32"),
        label=datasets.Value("int64"),
    )
    data = {"image": images, "weight": np.zeros(5), "label": np.arange(5)}
    datasets.Dataset.from_dict(data, features=features).save_to_disk(str(tmp_path / "saved"))
    inputs, _ = in_order(load(DataConfig(source=str(tmp_path / "saved"))))
    assert inputs.dtype == np.uint8
    np.testing.assert_array_equal(inputs, images)


def write_fashion(folder):
    """Four tiny files in the idx format: 6 training and 4 test images of 3x2 pixels."""
    folder.mkdir(parents=True)
    content = {}
    for prefix, count in (("train", 6), ("t10k", 4)):
        images = random_images(10, 3, 2)[:count] // (1 if prefix == "train" else 2)
        labels = (np.arange(count) * 3 % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            path = folder / f"{prefix}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(header + array.tobytes(), mtime=0))
        content[prefix] = images, labels
    return content


@pytest.mark.parametrize("inside", ["", "usr/share/datasets/fashion-mnist"])
def test_fashion_mnist_is_read_from_its_four_files(tmp_path, inside):
    content = write_fashion(tmp_path / "fashion" / inside)
    config = DataConfig(
        source="fashion_mnist",
        folder=str(tmp_path / "fashion"),
        target_split="test",
        target_count=4,
    )
    split = load(config)
    for table, prefix in ((split.train, "train"), (split.targets, "t10k")):
        images, labels = content[prefix]
        assert table.examples.inputs.dtype == np.uint8
        np.testing.assert_array_equal(table.examples.inputs, images[..., None])
        np.testing.assert_array_equal(table.examples.labels, labels)
    np.testing.assert_array_equal(split.targets.ids, [6, 7, 8, 9])
    assert split.class_names == tuple(FASHION_CLASSES)
    assert len(FASHION_CLASSES) == 10


# Errors: a source that is not there.


def test_missing_file_is_named(tmp_path):
    source = str(tmp_path / "nothing.csv")
    fails(f'data.source = "{source}" matches no file', source=source)


def test_glob_without_a_match_is_named(tmp_path):
    source = str(tmp_path / "*" / "part_*.parquet")
    fails(f'data.source = "{source}" matches no file', source=source)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.jsonl"])
def test_file_of_no_bytes_is_named(tmp_path, name):
    (tmp_path / name).touch()
    fails(f"{tmp_path / name} is an empty file", source=str(tmp_path / name))


@pytest.mark.parametrize(("name", "text"), [("rows.csv", "number,label\n"), ("rows.json", "[]")])
def test_file_without_rows_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    fails(f'"{tmp_path / name}" holds no rows; write one', source=str(tmp_path / name))


def test_existing_file_with_brackets_in_its_name_is_read(tmp_path):
    path = tmp_path / "data[1].csv"
    path.write_text("x,label\n0,0\n1,1\n")
    assert_partition(load(DataConfig(source=str(path), target_count=1)), 2)


@pytest.mark.parametrize("source", ["nobody/no_such_data", "no_such_data"])
def test_unknown_hub_id_names_the_known_sources(source):
    known = "digits, breast_cancer, fashion_mnist, a .csv, .parquet or .json file, a folder"
    fails(f'data.source = "{source}" cannot be loaded as one of {known} or a hub id', source=source)


def test_empty_folder_is_named(tmp_path):
    fails(
        f'data.source = "{tmp_path}" is a folder without images',
        "Dataset.save_to_disk",
        "name a data file or fill the folder",
        source=str(tmp_path),
    )


def test_existing_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("x,label\n1,0\n2,1\n")
    fails(f'data.source = "{path}" cannot be loaded', ".csv, .parquet or .json", source=str(path))


@pytest.mark.parametrize("name", ["broken.parquet", "broken.json", "broken.csv"])
def test_broken_file_is_named(tmp_path, capfd, name):
    path = tmp_path / name
    path.write_bytes(b'a,label\n"x,0\n' if name.endswith("csv") else b"{not data")
    kind = name.split(".")[1]
    fails(f'data.source = "{path}" cannot be read as {kind} (', "; mend the file", source=str(path))
    assert capfd.readouterr().err == ""


def test_a_table_in_another_encoding_is_to_be_saved_as_utf_8(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("word,label\ncafé,0\n".encode("latin-1"))
    fails(f'data.source = "{path}" cannot be read as csv (', "; save it as UTF-8", source=str(path))


def test_missing_fashion_mnist_prints_the_two_commands(tmp_path):
    fails(
        'data.source = "fashion_mnist" finds no train-images-idx3-ubyte.gz',
        f'data.folder = "{tmp_path}"',
        "apt-get download dataset-fashion-mnist && ",
        f"dpkg -x dataset-fashion-mnist*.deb {tmp_path}",
        source="fashion_mnist",
        folder=str(tmp_path),
    )


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="not a Debian system")
def test_printed_commands_unpack_where_the_loader_looks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_fashion(tmp_path / "package/usr/share/datasets/fashion-mnist")
    (tmp_path / "package/DEBIAN").mkdir()
    fields = {
        "Package": "dataset-fashion-mnist",
        "Version": "1",
        "Architecture": "all",
        "Maintainer": "Nobody <nobody@example.org>",
        "Description": "tiny",
    }
    control = "".join(f"{key}: {value}\n" for key, value in fields.items())
    (tmp_path / "package/DEBIAN/control").write_text(control)
    build = ["dpkg-deb", "-b", "package", "dataset-fashion-mnist_1_all.deb"]
    subprocess.run(build, check=True, capture_output=True)

    config = DataConfig(source="fashion_mnist", target_split="test", target_count=2)
    with pytest.raises(UserError) as caught:
        load(config)
    commands = str(caught.value).split("fetch it on Debian with: ")[1]
    # The package lies here already, so nothing needs to be fetched.
    commands = commands.replace("apt-get download dataset-fashion-mnist", "true")
    done = subprocess.run(commands, shell=True, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(load(config).train) == 6


@pytest.mark.parametrize("name", ["t10k-labels-idx1", "train-labels-idx1", "t10k-images-idx3"])
@pytest.mark.parametrize("damage", ["missing", "not gzip", "cut short"])
def test_damaged_fashion_mnist_is_a_user_error(tmp_path, name, damage):
    folder = tmp_path / "fashion"
    write_fashion(folder)
    path = folder / f"{name}-ubyte.gz"
    if damage == "missing":
        path.unlink()
    elif damage == "not gzip":
        path.write_bytes(b"no gzip file")
    else:
        path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1]))
    fails("data.folder", f"{name}-ubyte.gz", source="fashion_mnist", folder=str(folder))
