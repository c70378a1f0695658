"""Datasets behind a real S3-compatible server and a real HTTP server on this machine, well and badly behaved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from servers import Proxy, Site, first, forget_connections, serve
from shard_tools import assert_reads_like, encoded, make_balls, make_sample, write_samples
from toy import drwr, make_meshes

from drwr_dist.config import DataConfig, LoaderConfig
from drwr_dist.data import remote
from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError, UsageError

DEMO = Path(__file__).parent.parent / "shards" / "demo"


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Site, Path]]:
    make_balls(tmp_path / "balls")
    with serve(Site(tmp_path / "balls")) as (url, server):
        yield url, server, tmp_path / "balls"


class TestHttp:
    def test_reads_and_verifies(self, site: tuple[str, Site, Path]):
        url, _, folder = site
        assert_reads_like(url, folder)
        assert verify_dataset(url) == []

    @pytest.mark.parametrize("fault", ["500", "drop", "slow"])
    def test_a_fault_that_passes_is_not_noticed(
        self, site: tuple[str, Site, Path], fault: str, monkeypatch: pytest.MonkeyPatch
    ):
        url, server, folder = site
        monkeypatch.setattr(remote, "READ_TIMEOUT", 0.4)
        index, local = load_index(url), load_index(folder)
        server.fault = first(2, fault)
        assert read_sample(index, 0, 1) == read_sample(local, 0, 1)

    @pytest.mark.parametrize(("fault", "reason"), [("500", "500"), ("drop", "ClientPayloadError"), ("slow", "Timeout")])
    def test_a_fault_that_stays_is_named(
        self, site: tuple[str, Site, Path], fault: str, reason: str, monkeypatch: pytest.MonkeyPatch
    ):
        url, server, _ = site
        monkeypatch.setattr(remote, "READ_TIMEOUT", 0.3)
        index = load_index(url)
        server.fault = first(1000, fault)
        server.requests = 0
        with pytest.raises(DataError) as caught:
            read_sample(index, 0, 1)
        text = str(caught.value)
        assert text.startswith(f"{index.shards[0].url}: {index.shards[0].keys[1]}: can't be read")
        assert reason in text and "tried 4 times" in text and server.requests == 4
        server.fault = first(1000, fault, "index.json")
        with pytest.raises(DataError, match=r"index\.json: can't be read"):
            load_index(url)

    def test_pauses_grow_between_tries(self, site: tuple[str, Site, Path], monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(remote, "RETRY_PAUSES", (0.5, 2.0, 5.0))
        slept: list[float] = []
        monkeypatch.setattr(time, "sleep", slept.append)
        url, server, _ = site
        index = load_index(url)
        server.fault = first(3, "500")
        assert read_sample(index, 0, 0)
        assert slept == [0.5, 2.0, 5.0]

    def test_what_is_not_there_is_asked_for_once(self, site: tuple[str, Site, Path]):
        url, server, folder = site
        index = load_index(url)
        (folder / index.shards[0].url).unlink()
        server.requests = 0
        with pytest.raises(DataError, match="the shard is missing"):
            read_sample(index, 0, 0)
        assert server.requests == 1

    def test_nothing_can_be_written(self):
        with pytest.raises(DataError, match=r"http\(s\) can only be read; write to a folder, s3:// or gs://"):
            write_samples("http://127.0.0.1:1/x", [encoded(make_sample())])  # type: ignore[arg-type]


def test_an_epoch_of_two_ranks_transfers_each_byte_once():
    """Both ranks together fetch at most 1.1 times the bytes of the split, indexes included."""
    with serve(Site(DEMO)) as (url, server):
        keys: list[str] = []
        for rank in range(2):
            table = SampleTable.select(load_index(url), "train")
            plan = table.plan(seed=0, global_batch=8)
            steps = {"start": 0, "stop": plan.steps_per_epoch, "rank": rank, "world_size": 2}
            data = DataConfig(path=url, supervision_views=4)
            for batch in batches(table, plan, data, LoaderConfig(workers=0), **steps):
                assert not batch.failures
                keys += batch.keys
        size = sum(shard.filesize for _, shard in load_index(DEMO).split("train"))
    assert sorted(keys) == sorted(table.keys)
    assert server.sent <= 1.1 * size, f"{server.sent / size:.3f} of the split's bytes"


class TestS3:
    def test_what_is_written_is_read(self, bucket: str, tmp_path: Path):
        index = make_balls(f"{bucket}/deep/balls")  # type: ignore[arg-type]
        make_balls(tmp_path / "local")
        assert index.root == f"{bucket}/deep/balls"
        assert_reads_like(index.root, tmp_path / "local")
        assert verify_dataset(index.root) == []
        assert not list((tmp_path / "cache").rglob("*.tar"))

    def test_a_dataset_is_replaced_only_when_asked(self, bucket: str, tmp_path: Path):
        root = f"{bucket}/balls"
        make_balls(root)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="overwrite=true"):
            make_balls(root)  # type: ignore[arg-type]
        write_samples(root, [encoded(make_sample("ball/z"))], overwrite=True)  # type: ignore[arg-type]
        assert sorted(remote.remote_names(root)) == ["index.json", "train-000000.tar"]
        assert [key for _, _, key in load_index(root).select("train")] == ["ball/z"]

    def test_damage_is_found(self, bucket: str):
        index = make_balls(f"{bucket}/balls")  # type: ignore[arg-type]
        system = fsspec.filesystem("s3")
        path = f"{index.root}/{index.shards[0].url}"
        system.pipe_file(path, system.cat_file(path)[:-3000])
        found = [str(finding) for finding in verify_dataset(index.root)]
        assert any("truncated" in line for line in found)
        system.rm(f"{index.root}/{index.shards[1].url}")
        assert any("the shard is missing" in str(finding) for finding in verify_dataset(index.root))

    def test_nothing_there(self, bucket: str):
        with pytest.raises(DataError, match=r"no index\.json in s3://"):
            load_index(f"{bucket}/elsewhere")
        with pytest.raises(DataError, match=r"s3://no-such-bucket-anywhere/x/.*tar: can't be written"):
            write_samples("s3://no-such-bucket-anywhere/x", [encoded(make_sample())])  # type: ignore[arg-type]

    @pytest.mark.parametrize("fault", ["500", "drop", pytest.param("slow", marks=pytest.mark.slow)])
    def test_faults(self, bucket: str, s3_server: str, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        """Reading and writing go on after two faults, and give up with the object's name after more."""
        monkeypatch.setattr(remote, "READ_TIMEOUT", 0.4)
        local = make_balls(tmp_path / "local")
        with serve(Proxy(s3_server)) as (url, proxy):
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
            forget_connections()
            proxy.fault = first(2, fault)
            index = make_balls(f"{bucket}/balls")  # type: ignore[arg-type]
            proxy.fault = first(2, fault)
            assert read_sample(index, 0, 0) == read_sample(local, 0, 0)
            proxy.fault = first(1000, fault)
            with pytest.raises(DataError, match=f"{index.shards[0].url}: {index.shards[0].keys[0]}: can't be read"):
                read_sample(index, 0, 0)
            with pytest.raises(DataError, match=r"s3://.*/other/train-000000\.tar: can't be written \(.*tried 4 times"):
                write_samples(f"{bucket}/other", [encoded(make_sample())])  # type: ignore[arg-type]
        forget_connections()

    def test_a_server_that_is_gone_is_named(self, monkeypatch: pytest.MonkeyPatch, bucket: str):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        forget_connections()
        with pytest.raises(DataError, match=r"s3://.*/balls/index\.json: can't be read \(.*tried 4 times"):
            load_index(f"{bucket}/balls")


@pytest.mark.slow
def test_a_real_import_into_a_bucket(bucket: str, tmp_path: Path):
    """An upload that fails leaves the rendered shards; the next try sends them without rendering anything."""
    make_meshes(tmp_path / "meshes", {"brick": 6})
    small = ["views=1", "image_size=32", "shard_samples=2", "name=same", "workers=1"]
    arguments = ["source=meshes", f"input={tmp_path / 'meshes'}", *small]
    assert drwr("shards import", *arguments, f"output={tmp_path / 'local'}").returncode == 0
    failed = drwr("shards import", *arguments, f"output={bucket}/x", AWS_ENDPOINT_URL_S3="http://127.0.0.1:9")
    assert failed.returncode == 1 and f"error: {bucket}/x" in failed.stderr
    done = drwr("shards import", *arguments, f"output={bucket}/x")
    assert done.returncode == 0, done.stderr
    assert_reads_like(f"{bucket}/x", tmp_path / "local")
    assert drwr("shards verify", f"data={bucket}/x").returncode == 0
