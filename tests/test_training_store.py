"""Files and arrays by name: on disk, and in S3 and Google Cloud services on this machine."""

import contextlib
import json
import os
import socket
import urllib.request

import numpy as np
import pytest
from gcs_service import serve
from moto.server import ThreadedMotoServer

from training.errors import UserError
from training.store import Damaged, Store, seal, unseal

METADATA = {
    "shape": [4, 2],
    "data_type": "float32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2]}},
    "fill_value": 0.0,
}


@pytest.fixture(scope="module")
def service():
    """An S3 service with one bucket; its address and credentials in the environment."""
    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
    urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT")).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield address
    server.stop()


@pytest.fixture(scope="module")
def google_service():
    """A Google Cloud Storage service with one bucket; its address in the environment."""
    with serve() as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", address)
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "somebody")
        yield


@pytest.fixture(params=["folder", "s3", "gs"])
def store(request, tmp_path):
    if request.param == "folder":
        return Store(tmp_path / "some" / "where")
    request.getfixturevalue("service" if request.param == "s3" else "google_service")
    return Store(f"{request.param}://bucket/{tmp_path.name}")


def test_files_come_back_and_go(store):
    assert store.read("a") is None
    assert store.names() == []
    store.write("a", b"one")
    (store / "deeper").write("b", b"two")
    store.write("a", b"three")
    assert store.read("a") == b"three"
    assert store.read_all(["a", "deeper/b", "c"]) == {"a": b"three", "deeper/b": b"two", "c": None}
    assert store.names() == ["a", "deeper/b"]
    assert (store / "deeper").names() == ["b"]
    store.delete("a")
    store.delete("a")
    assert store.names() == ["deeper/b"]


def test_a_file_is_replaced_only_if_it_is_what_was_read(store):
    assert store.replace("a", b"one", None)
    assert not store.replace("a", b"two", None)
    assert not store.replace("a", b"two", b"other")
    assert store.replace("a", b"two", b"one")
    assert store.read("a") == b"two"


def test_arrays_come_back(store):
    array = store.open_array("array", METADATA, create=True)
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    array.write(values).result()
    np.testing.assert_array_equal(store.open_array("array", METADATA).read().result(), values)
    assert json.loads(store.read("array/zarr.json"))["shape"] == [4, 2]


@pytest.mark.parametrize(
    "change", [{"data_type": "float64"}, {"fill_value": 1.0}], ids=["data_type", "fill_value"]
)
def test_an_array_of_another_kind_is_not_opened(store, change):
    store.open_array("array", METADATA, create=True)
    with pytest.raises(ValueError, match="FAILED_PRECONDITION"):
        store.open_array("array", METADATA | change, create=True)


def test_a_missing_array_is_not_made_unless_asked(store):
    with pytest.raises(ValueError, match="NOT_FOUND"):
        store.open_array("array", METADATA)
    assert store.names() == []


def test_other_places_are_refused():
    with pytest.raises(UserError, match="is kept in a folder, in gs:// or in s3://"):
        Store("ftp://somewhere/else")


def test_a_place_that_cannot_be_reached_is_named(service):
    with pytest.raises(UserError, match="cannot write s3://nobucket/x"):
        Store("s3://nobucket/x").write("a", b"one")


@pytest.mark.parametrize(
    ("scheme", "variable"), [("s3", "AWS_ENDPOINT_URL"), ("gs", "TENSORSTORE_GCS_HTTP_URL")]
)
def test_a_service_that_is_not_there_is_told_at_once(scheme, variable, monkeypatch):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        monkeypatch.setenv(variable, address)
        with pytest.raises(UserError, match=f"no service at {variable} = {address}"):
            Store(f"{scheme}://bucket/x").read("manifest.json")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/file/below"):
        Store(tmp_path / "file" / "below").write("a", b"one")


def test_a_path_may_go_up(tmp_path, monkeypatch):
    (tmp_path / "deep" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "here")
    Store("../../side/store").write("a", b"1")
    assert Store(tmp_path / "side" / "store").read("a") == b"1"


def test_free_space_is_that_of_the_disk(tmp_path, service):
    stats = os.statvfs(tmp_path)
    free = Store(tmp_path / "not" / "yet").free_bytes()
    assert free == pytest.approx(stats.f_bavail * stats.f_frsize, rel=0.05)
    assert Store("s3://bucket/x").free_bytes() is None


def test_every_flipped_bit_of_sealed_json_is_found():
    content = {"unit": 3, "sha256": ["ab", "cd"], "made_on": {"device_kind": "cpu"}}
    sealed = seal(content)
    assert unseal(sealed) == content
    for position in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[position] ^= 1 << bit
            with contextlib.suppress(Damaged):
                assert unseal(bytes(changed)) == content


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"3", b'{"checksum": "x"}', b"\xff\xfe"])
def test_what_was_never_sealed_is_damaged(content):
    with pytest.raises(Damaged):
        unseal(content)
