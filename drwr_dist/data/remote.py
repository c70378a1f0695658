"""Files behind s3://, gs://, http(s):// and whatever else fsspec addresses; failed requests are tried again.

A request that fails in a way that may pass (an answer 5xx, a dropped connection, silence) is repeated after a pause.
A file that isn't there, or that we may not touch, is not asked for again.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from drwr_dist.errors import DataError

Result = TypeVar("Result")

RETRY_PAUSES = (0.5, 2.0, 5.0)  # seconds before the second, third and fourth try
CONNECT_TIMEOUT = 10.0  # seconds until a server must have answered
READ_TIMEOUT = 30.0  # seconds of silence after which a request has failed
_READ_ONLY = ("http", "https")
_GOOGLE = ("gs", "gcs")
_ZONAL_BUCKETS = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"  # gcsfs's variable; set it to true to use such buckets


def is_remote(root: str) -> bool:
    """Say whether a root is a URL (http://, s3://, memory://, …) and not a local path."""
    return "://" in root and not root.startswith("file://")


def absolute(address: str) -> str:
    """Return a folder's absolute path, also of a file:// URL; the URL of anything else without a slash at its end.

    >>> absolute("file:///shared/runs/")
    '/shared/runs'
    >>> absolute("s3://bucket/runs/")
    's3://bucket/runs'
    """
    if is_remote(address):
        return address.rstrip("/")
    return os.path.abspath(os.path.expanduser(address.removeprefix("file://")))


def join(root: str, name: str) -> str:
    """Return the address of a file below a root."""
    return f"{root.rstrip('/')}/{name}"


@functools.lru_cache(maxsize=16)
def _filesystem(root: str, process: int) -> tuple[Any, str]:
    """Open a remote root once per process (fsspec's event loop does not survive a fork)."""
    del process
    protocol = root.split("://", 1)[0]
    try:
        system, path = _open(root, protocol)
    except (ImportError, ValueError) as error:  # no such protocol, or its package is not installed
        hint = "; pip install 'drwr-dist[cloud]'" if protocol in ("s3", *_GOOGLE) else ""
        raise DataError(f"{root}: {error}{hint}") from error
    _try_once(system, protocol)
    return system, path


def _open(root: str, protocol: str) -> tuple[Any, str]:
    if protocol in _GOOGLE and _ZONAL_BUCKETS not in os.environ:
        # The class that gcsfs registers asks over gRPC what kind of bucket it is, for up to a minute a request.
        from gcsfs.core import GCSFileSystem

        return GCSFileSystem(**_timeouts(protocol)), str(GCSFileSystem._strip_protocol(root))
    system, path = fsspec.core.url_to_fs(root, **_timeouts(protocol))
    return system, str(path)


def _try_once(system: Any, protocol: str) -> None:
    """Switch off the retries of s3fs and gcsfs, which would multiply with ours."""
    if protocol == "s3":
        system.retries = 1
    elif protocol in _GOOGLE:
        # gcsfs binds its six tries, half a minute of pauses and a logged traceback to the method itself.
        system._request = functools.partial(inspect.unwrap(type(system)._request), system)


def _timeouts(protocol: str) -> dict[str, Any]:
    if protocol in ("http", "https", *_GOOGLE):
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT)
        return {"client_kwargs": {"timeout": limits}} if protocol[0] == "h" else {"requests_timeout": limits}
    if protocol == "s3":
        once = {"max_attempts": 0}
        return {
            "config_kwargs": {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT, "retries": once},
        }
    return {}


def _try(call: Callable[[], Result]) -> Result:
    """Call until it succeeds, at most once more than there are pauses.

    Raises:
        FileNotFoundError, PermissionError: at once.
        OSError: every try failed; says how the last one did.
    """
    for pause in (*RETRY_PAUSES, None):
        try:
            return call()
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # every protocol brings its own kinds of errors
            if _out_of_range(error):
                raise
            if pause is None:
                tries = len(RETRY_PAUSES) + 1
                raise OSError(f"{type(error).__name__}: {error or 'no answer'}; tried {tries} times") from error
            time.sleep(pause)
    raise AssertionError("the last try either returns or raises")


def _out_of_range(error: Exception) -> bool:
    codes = (getattr(error, "status", None), getattr(error, "code", None))  # of aiohttp, of gcsfs
    return 416 in codes or "416" in str(error)[:8] or "InvalidRange" in str(error)


def read_remote(root: str, name: str, start: int = 0, stop: int | None = None) -> bytes:
    """Read bytes [start, stop) of a file below a root; fewer where the file ends before.

    Raises:
        FileNotFoundError: it isn't there.
        OSError: it can't be read; every try failed.
    """
    system, path = _filesystem(root, os.getpid())
    limits = {} if stop is None else {"start": start, "end": stop}
    try:
        data = _try(lambda: bytes(system.cat_file(join(path, name), **limits)))
    except Exception as error:
        if _out_of_range(error):
            return b""  # the range begins beyond the end of the file
        raise
    if stop is not None and len(data) > stop - start:
        return data[start:stop]  # a server without range requests, which sends the whole file
    return data


def check_writable(root: str) -> None:
    """Raise DataError where nothing can be written to the protocol of a root, or it can't be opened."""
    if root.split("://", 1)[0] in _READ_ONLY:
        raise DataError(f"{root}: http(s) can only be read; write to a folder, s3:// or gs://")
    _filesystem(root, os.getpid())


def remote_names(root: str) -> list[str]:
    """Return the names of the files directly below a root, none where there is nothing.

    Raises:
        DataError: it can't be listed; names the root.
    """
    system, path = _filesystem(root, os.getpid())

    def names() -> list[str]:
        system.invalidate_cache()
        return [str(entry).rstrip("/").rsplit("/", 1)[-1] for entry in system.ls(path, detail=False)]

    try:
        return _try(names)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{root}: can't be listed ({error})") from error


def upload(file: Path, root: str) -> None:
    """Write a local file below a root under its own name.

    Raises:
        DataError: it can't be written; names it.
    """
    system, path = _filesystem(root, os.getpid())
    try:
        _try(lambda: system.put_file(str(file), join(path, file.name)))
    except OSError as error:
        raise DataError(f"{join(root, file.name)}: can't be written ({error})") from error


def remove_remote(root: str, name: str) -> None:
    """Remove a file below a root, if it is there.

    Raises:
        DataError: it can't be removed; names it.
    """
    system, path = _filesystem(root, os.getpid())
    try:
        _try(lambda: system.rm_file(join(path, name)))
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{join(root, name)}: can't be removed ({error})") from error


def remove_tree(root: str) -> None:
    """Remove everything below a root, if there is anything.

    Raises:
        DataError: it can't be removed; names it.
    """
    system, path = _filesystem(root, os.getpid())

    def remove() -> None:
        system.invalidate_cache()
        system.rm(path, recursive=True)

    try:
        _try(remove)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{root}: can't be removed ({error})") from error
