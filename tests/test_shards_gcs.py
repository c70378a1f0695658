"""Datasets at gs://, behind a server of the Google Cloud Storage API on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from shard_tools import encoded, make_balls, make_sample, write_samples
from test_shards_index import assert_reads_like

from drwr_dist.data import remote
from drwr_dist.data.index import load_index
from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError, UsageError


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    server = subprocess.Popen([*command, "--in-memory"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # asks over gRPC, which the server doesn't speak
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "RETRY_PAUSES", (0.05, 0.05, 0.05))
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server did not start"
            time.sleep(0.1)
        fsspec.filesystem("gs").mkdir("bucket")
        yield "gs://bucket"
    finally:
        server.terminate()
        server.wait(10)
        remote._filesystem.cache_clear()
        fsspec.get_filesystem_class("gs").clear_instance_cache()


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
