"""Where a bank lives: small files and Zarr arrays under one location, on disk or in the cloud.

tensorstore reads and writes both alike. A file is seen whole or not at all.
"""

import contextlib
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tensorstore as ts

from training.errors import UserError, reason

CLOUD = {"s3": "s3", "gs": "gcs"}
"""Schemes of locations that are no folders, and tensorstore's names of their drivers."""

ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "gcs": "TENSORSTORE_GCS_HTTP_URL"}
"""Environment variables that name another service than Amazon's and Google's."""

FAILURES = (OSError, ValueError, RuntimeError)
"""What tensorstore raises when a read or a write does not succeed."""


class Damaged(Exception):
    """Something is stored that cannot be what was written."""


class Store:
    """Files and arrays by name, under one location.

    The location is a folder, gs://BUCKET/PREFIX or s3://BUCKET/PREFIX. Credentials are found as
    Google's and Amazon's own tools find them; `AWS_ENDPOINT_URL` and `TENSORSTORE_GCS_HTTP_URL`
    name other services.
    """

    def __init__(self, location: str | Path):
        self.location = str(location).rstrip("/")
        scheme = self.location.partition("://")[0] if "://" in self.location else None
        if scheme is not None and scheme not in CLOUD:
            raise UserError(f"{location}: a bank is kept in a folder, in gs:// or in s3://")
        self._driver = CLOUD[scheme] if scheme else "file"

    def __str__(self) -> str:
        return self.location

    def __truediv__(self, name: str) -> "Store":
        return Store(f"{self.location}/{name}")

    @property
    def folder(self) -> Path | None:
        """The folder on disk; None in the cloud."""
        return Path(self.location) if self._driver == "file" else None

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""
        return self.read_all([name])[name]

    def read_all(self, names: Sequence[str]) -> dict[str, bytes | None]:
        """Several files at once, which is what the cloud is fast at."""
        with self._told("read"):
            waiting = {name: self._files.read(name) for name in names}
            found = {name: future.result() for name, future in waiting.items()}
        return {name: file.value if file.state == "value" else None for name, file in found.items()}

    def write(self, name: str, content: bytes) -> None:
        """Write a file, over an older one if there is one."""
        with self._told("write"):
            self._files.write(name, content).result()

    def replace(self, name: str, content: bytes, before: bytes | None) -> bool:
        """Write a file if it holds what is given (None: if there is none); whether it did."""
        with self._told("write"):
            found = self._files.read(name).result()
            if (found.value if found.state == "value" else None) != before:
                return False
            stamp = self._files.write(name, content, if_equal=found.stamp.generation).result()
        return bool(stamp.generation)

    def names(self) -> list[str]:
        """Names of all files below here, in order; arrays count with the files they are made of."""
        with self._told("list"):
            found = [name.decode() for name in self._files.list().result()]
        # Files that somebody is writing at this moment, or was when it died.
        return sorted(name for name in found if not name.endswith(".__lock"))

    def delete(self, name: str) -> None:
        """Delete a file, if there is one."""
        with self._told("delete"):
            self._files.delete_range(ts.KvStore.KeyRange(name, name + "\0")).result()

    def open_array(self, name: str, metadata: dict[str, Any], *, create: bool = False) -> Any:
        """A Zarr v3 array.

        Args:
            name: of its folder.
            metadata: what it must have. The number of rows may be another in what is stored.
            create: make it where there is none.

        Raises:
            FAILURES: there is none, or it has other metadata.
        """
        spec = {
            "driver": "zarr3",
            "kvstore": self._spec(name),
            # A chunk of zeros is a chunk that was written.
            "store_data_equal_to_fill_value": True,
        }
        of_any_length = {key: value for key, value in metadata.items() if key != "shape"}
        try:
            return ts.open(spec | {"metadata": of_any_length}, open=True).result()
        except FAILURES:
            if not create:
                raise
        return ts.open(spec | {"metadata": metadata}, open=True, create=True).result()

    def free_bytes(self) -> int | None:
        """Space that is left; None in the cloud."""
        if self.folder is None:
            return None
        existing = next(path for path in [self.folder, *self.folder.parents] if path.exists())
        return shutil.disk_usage(existing).free

    @cached_property
    def _files(self) -> Any:
        with self._told("open"):
            variable = ENDPOINTS.get(self._driver)
            if variable and (endpoint := os.environ.get(variable)):
                _require_service(variable, endpoint)
            return ts.KvStore.open(self._spec("")).result()

    def _spec(self, name: str) -> dict[str, Any]:
        if self._driver == "file":
            path = Path(self.location).resolve()  # tensorstore takes no ".."
            return {"driver": "file", "path": f"{path}/{name}/" if name else f"{path}/"}
        bucket, _, prefix = self.location.partition("://")[2].partition("/")
        path = "/".join(part for part in (prefix, name) if part)
        spec = {"driver": self._driver, "bucket": bucket, "path": f"{path}/" if path else ""}
        if self._driver == "s3" and (endpoint := os.environ.get(ENDPOINTS["s3"])):
            spec["endpoint"] = endpoint
        return spec

    @contextlib.contextmanager
    def _told(self, action: str) -> Iterator[None]:
        """Raises: UserError: naming the location, for whatever goes wrong."""
        try:
            yield
        except FAILURES as error:
            raise UserError(f"cannot {action} {self.location} ({reason(error)})") from error


@cache
def _require_service(variable: str, endpoint: str) -> None:
    """See that somebody listens: tensorstore would try for minutes before it says so.

    Raises:
        OSError: nobody does.
    """
    url = urlsplit(endpoint)
    port = url.port or (80 if url.scheme == "http" else 443)
    try:
        socket.create_connection((url.hostname or "", port), timeout=10).close()
    except OSError as error:
        raise OSError(f"no service at {variable} = {endpoint}: {error}") from error


def seal(content: dict[str, Any]) -> bytes:
    """JSON that carries a checksum of itself."""
    sealed = content | {"checksum": _checksum(content)}
    return (json.dumps(sealed, indent=1) + "\n").encode()


def unseal(text: bytes) -> dict[str, Any]:
    """The content of sealed JSON.

    Raises:
        Damaged: it is not what was sealed.
    """
    try:
        content = json.loads(text)
        checksum = content.pop("checksum")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise Damaged(reason(error)) from error
    if checksum != _checksum(content):
        raise Damaged("it does not match its checksum")
    return content


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
