"""Datasets at gs://, behind a server of the Google Cloud Storage API on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from gcsfs.core import GCSFileSystem
from servers import Proxy, first, serve, server_program
from shard_tools import assert_reads_like, encoded, make_balls, make_sample, write_samples

from drwr_dist.data import remote
from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError, UsageError


@pytest.fixture
def bucket(own_cache: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with server_program("gcp_storage_emulator", "start", "--host=127.0.0.1", "--port={port}", "--in-memory") as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        forget_connections()
        monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
        GCSFileSystem().mkdir("bucket")
        yield "gs://bucket"
    forget_connections()


def forget_connections() -> None:
    remote._filesystem.cache_clear()
    GCSFileSystem.clear_instance_cache()


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between gcsfs and the server from here on."""
    with serve(Proxy(os.environ["STORAGE_EMULATOR_HOST"])) as (url, found):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        forget_connections()
        yield found


def test_what_is_written_is_read(bucket: str, tmp_path: Path):
    root = f"{bucket}/deep/balls"
    index = make_balls(root)  # type: ignore[arg-type]
    make_balls(tmp_path / "local")
    assert_reads_like(root, tmp_path / "local")
    assert verify_dataset(root) == []
    with pytest.raises(UsageError, match="overwrite=true"):
        make_balls(root)  # type: ignore[arg-type]
    write_samples(root, [encoded(make_sample("ball/z"))], overwrite=True)  # type: ignore[arg-type]
    assert sorted(remote.remote_names(root)) == ["index.json", "train-000000.tar"]
    remote.remove_remote(root, index.shards[0].url)
    assert any("the shard is missing" in str(finding) for finding in verify_dataset(root))
    with pytest.raises(DataError, match=r"no index\.json in gs://bucket/elsewhere"):
        load_index(f"{bucket}/elsewhere")


@pytest.mark.parametrize(("fault", "reason"), [("500", "500"), ("drop", "Disconnected"), ("slow", "Timeout")])
def test_faults(
    bucket: str, proxy: Proxy, fault: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog
):
    """Reading and writing go on after two faults; after four tries the object is named, and nothing else is said."""
    monkeypatch.setattr(remote, "READ_TIMEOUT", 0.3)
    local = make_balls(tmp_path / "local")
    proxy.fault = first(2, fault)
    index = make_balls(f"{bucket}/balls")  # type: ignore[arg-type]
    proxy.fault = first(2, fault)
    assert read_sample(index, 0, 0) == read_sample(local, 0, 0)
    proxy.fault, proxy.requests = first(1000, fault), 0
    with pytest.raises(DataError, match=f"{index.shards[0].url}: {index.shards[0].keys[0]}: can't be read") as caught:
        read_sample(index, 0, 0)
    assert reason in str(caught.value) and "tried 4 times" in str(caught.value)
    assert 4 <= proxy.requests <= 8  # aiohttp asks once more by itself where a kept connection turns out to be closed
    proxy.fault = first(1000, fault, "/")
    with pytest.raises(DataError, match=r"gs://bucket/balls/index\.json: can't be read \(.*tried 4 times"):
        load_index(f"{bucket}/balls")
    proxy.fault, proxy.requests = first(1000, fault, "/upload/"), 0
    with pytest.raises(DataError, match=r"gs://bucket/other/train-000000\.tar: can't be written \(.*tried 4 times"):
        write_samples(f"{bucket}/other", [encoded(make_sample())])  # type: ignore[arg-type]
    assert not [record for record in caplog.records if record.name.startswith(("gcsfs", "fsspec"))]


def test_an_upload_in_parts_that_breaks_off_is_sent_anew(bucket: str, proxy: Proxy, tmp_path: Path):
    """From 5 MiB on gcsfs asks for a place and sends to it."""
    data = np.random.default_rng(0).bytes(6 * 2**20)
    (tmp_path / "large.tar").write_bytes(data)
    seen: list[str] = []

    def drop_the_first_part(request):
        seen.append(f"{request.method} {request.query.get('uploadType', '')}")
        return "drop" if request.headers.get("Content-Range") and seen.count("POST resumable") == 1 else None

    proxy.fault = drop_the_first_part
    remote.upload(tmp_path / "large.tar", f"{bucket}/balls")
    assert seen.count("POST resumable") == 2
    assert remote.read_remote(f"{bucket}/balls", "large.tar") == data


def test_a_shard_that_was_cut(bucket: str, proxy: Proxy):
    """A range beyond the end is an answer, not a fault."""
    index = make_balls(f"{bucket}/balls")  # type: ignore[arg-type]
    system = GCSFileSystem()
    path = f"{index.root}/{index.shards[0].url}"
    system.pipe_file(path, system.cat_file(path)[: index.shards[0].offsets[2]])
    proxy.requests = 0
    with pytest.raises(DataError, match="truncated"):
        read_sample(index, 0, 3)
    assert proxy.requests == 1


def test_a_server_that_is_gone_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    forget_connections()
    with pytest.raises(DataError, match=r"gs://bucket/balls/index\.json: can't be read \(.*tried 4 times"):
        load_index(f"{bucket}/balls")
