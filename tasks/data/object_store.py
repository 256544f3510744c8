"""Reads files of an S3 store, by the addresses s3://BUCKET/KEY; credentials and endpoint come from AWS's variables."""

import io
import os
from typing import Any, cast
from urllib.parse import urlsplit

import pyarrow.fs as pafs

from tasks.core.errors import UsageError
from tasks.data.file_kinds import split_name

S3 = "s3://"
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # of a store that is not Amazon's
REQUEST_BYTES = 1 << 20  # each costs tens of milliseconds
STORE_TIMEOUT_S = 20.0


def is_remote(path: str) -> bool:
    """Return whether a path is an address of an object in a store."""
    return path.startswith(S3)


def open_remote(address: str) -> io.BufferedReader:
    """Open an object for reading and seeking.

    Raises:
        OSError: if there is none, or the store refuses or does not answer.
    """
    store, key = _locate(address)
    return io.BufferedReader(cast(io.RawIOBase, store.open_input_file(key)), REQUEST_BYTES)


def list_remote(address: str) -> list[str]:
    """Return the addresses of the data files at an address, in the order of their names: itself, or those below it.

    Raises:
        UsageError: if there is no such object, or none with the ending of a data file.
        OSError: if the store refuses or does not answer.
    """
    store, key = _locate(address)
    if store.get_file_info(key).type == pafs.FileType.File:
        return [address]
    below = store.get_file_info(pafs.FileSelector(key, recursive=True, allow_not_found=True))
    found = sorted(info.path for info in below if info.type == pafs.FileType.File and split_name(info.base_name)[1])
    if not found:
        raise UsageError(f"input {address!r} holds no data file; expected an object or a prefix: aws s3 ls {address}")
    return [f"{S3}{path}" for path in found]


def _locate(address: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path there."""
    endpoint = urlsplit(next(filter(None, map(os.environ.get, ENDPOINTS)), ""))
    store = pafs.S3FileSystem(
        endpoint_override=endpoint.netloc or None,
        scheme=endpoint.scheme or "https",
        connect_timeout=STORE_TIMEOUT_S,
        request_timeout=STORE_TIMEOUT_S,
    )
    return store, address.removeprefix(S3).rstrip("/")
