"""Datasets behind a real S3-compatible server and a real HTTP server on this machine, well and badly behaved."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import aiohttp
import fsspec
import pytest
import yarl
from aiohttp import web
from shard_tools import encoded, make_balls, make_sample, write_samples
from test_shards_index import assert_reads_like
from toy import drwr, make_meshes

from drwr_dist.config import DataConfig, LoaderConfig
from drwr_dist.data import remote
from drwr_dist.data.index import load_index, read_sample
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.data.verify import verify_dataset
from drwr_dist.errors import DataError, UsageError

DEMO = Path(__file__).parent.parent / "shards" / "demo"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "RETRY_PAUSES", (0.05, 0.05, 0.05))
    yield
    forget_connections()


def forget_connections() -> None:
    remote._filesystem.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    fsspec.get_filesystem_class("http").clear_instance_cache()


# --- an HTTP server with faults --------------------------------------------------------------------------------


class Site:
    """Serves a folder with range support; counts body bytes; `fault` may answer a request in its own way."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sent, self.requests = folder, 0, 0
        self.fault: Callable[[web.Request], str | None] = lambda request: None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self.fault(request)
        if fault == "500":
            return web.Response(status=500)
        path = self.folder / request.match_info["path"]
        if not path.is_file():
            return web.Response(status=404)
        data, wanted = path.read_bytes(), request.http_range
        start, stop = wanted.start or 0, len(data) if wanted.stop is None else min(wanted.stop, len(data))
        if start >= len(data):
            return web.Response(status=416)
        body = data[start:stop]
        headers = {"Content-Length": str(len(body)), "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        response = web.StreamResponse(status=206 if request.headers.get("Range") else 200, headers=headers)
        await response.prepare(request)
        half = len(body) // 2
        await response.write(body[:half])
        self.sent += half
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
            return response
        if fault == "slow":
            await asyncio.sleep(1)
        await response.write(body[half:])
        self.sent += len(body) - half
        await response.write_eof()
        return response


class Proxy:
    """Passes requests on to an S3-compatible server, unless `fault` spoils them."""

    def __init__(self, target: str) -> None:
        self.target, self.requests = target, 0
        self.fault: Callable[[web.Request], str | None] = lambda request: None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        fault = self.fault(request)
        if fault == "500":
            return web.Response(status=500, text="<Error><Code>InternalError</Code></Error>")
        if fault == "drop":
            assert request.transport is not None
            request.transport.abort()
        if fault == "slow":
            await asyncio.sleep(1)
        url = self.target + request.raw_path
        body = await request.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, yarl.URL(url, encoded=True), headers=request.headers, data=body) as found,
        ):
            kept = {k: v for k, v in found.headers.items() if k.lower() not in ("transfer-encoding", "connection")}
            return web.Response(status=found.status, headers=kept, body=await found.read())


Served = TypeVar("Served", Site, Proxy)


@contextmanager
def serve(site: Served) -> Iterator[tuple[str, Served]]:
    loop, ready = asyncio.new_event_loop(), threading.Event()
    port: list[int] = []

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**28)
        app.router.add_route("*", "/{path:.*}", site.answer)
        runner = web.AppRunner(app)
        await runner.setup()
        listener = web.TCPSite(runner, "127.0.0.1", 0)
        await listener.start()
        port.append(listener._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]
        ready.set()
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    yield f"http://127.0.0.1:{port[0]}", site
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


def first(count: int, fault: str, name: str = ".tar") -> Callable[[web.Request], str | None]:
    """Spoil the first so many requests for files of this name."""
    left = [count]

    def decide(request: web.Request) -> str | None:
        if name not in request.path or left[0] <= 0:
            return None
        left[0] -= 1
        return fault

    return decide


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


# --- an S3-compatible server -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3_server() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert server.poll() is None, "the server did not start"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(10)


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A fresh bucket, found through the environment as users' programs find theirs."""
    for name, value in {
        "AWS_ENDPOINT_URL_S3": s3_server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    name = f"bucket-{abs(hash(str(tmp_path)))}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


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
