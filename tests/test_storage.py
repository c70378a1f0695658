"""Runs in a bucket of a real S3-compatible server, and folders that nodes do not share."""

from __future__ import annotations

import doctest
import errno
import json
import os
import subprocess
import threading
import time
from pathlib import Path

import fsspec
import pytest
import torch
from aiohttp import web
from ray.cluster_utils import Cluster
from runs import start, train, wait_for
from servers import Proxy, first, forget_connections, serve
from toy import drwr, rows

from drwr_dist import checkpoint, lease
from drwr_dist.data import remote
from drwr_dist.engine import uploads
from drwr_dist.engine.uploads import Uploads
from drwr_dist.errors import DataError, TrainingError, UsageError
from drwr_dist.lease import sole_owner
from drwr_dist.storage import Storage

pytestmark = pytest.mark.usefixtures("own_cache")


def state(value: float) -> dict[str, object]:
    return {"model": {"weight": torch.full((3,), value)}, "skipped": 0}


def write(storage: Storage, step: int, **scores: float) -> str:
    return checkpoint.write(storage.folder, step, state(step), {"validation": scores} if scores else {}).name


def half_send(storage: Storage, step: int) -> None:
    """Do what is left of an upload whose machine died before the last file."""
    checkpoint.send(storage.folder, write(storage, step), str(storage.url))
    fsspec.filesystem("s3").rm(f"{storage.url}/checkpoints/{checkpoint.name_of(step)}/meta.json")


class TestBucket:
    def test_files_go_there_and_come_back(self, bucket: str):
        storage = Storage.at(f"{bucket}/runs/one")
        (storage.folder / "predictions" / "chair").mkdir(parents=True)
        (storage.folder / "result.json").write_text("{}")
        (storage.folder / "predictions" / "chair" / "a.00.ply").write_text("ply")
        storage.publish("result.json", "predictions", "not there")
        assert fsspec.filesystem("s3").cat_file(f"{storage.url}/predictions/chair/a.00.ply") == b"ply"
        (storage.folder / "result.json").write_text("old")
        (storage.folder / "config.yaml").write_text("of another run")
        storage.fetch("result.json", "config.yaml")
        assert (storage.folder / "result.json").read_text() == "{}"
        assert not (storage.folder / "config.yaml").exists(), "what is not at the URL is not in its working copy"
        assert storage.clear() == ["predictions", "result.json"] and storage.clear() == []

    def test_checkpoints_are_uploaded_pruned_and_read_back(self, bucket: str):
        storage, told = Storage.at(f"{bucket}/run"), []
        sender = Uploads(storage, keep=2, metric="chamfer", timeout=30, tell=told.append)
        for step, score in ((10, 3.0), (20, 1.0), (30, 2.0), (40, 2.5), (50, 2.6)):
            sender.add(write(storage, step, chamfer=score))
            wait_for(lambda: not sender._waiting)
        sender.close()
        assert checkpoint.names(storage.address) == ["step-00000050", "step-00000040", "step-00000020"] and not told
        loaded = checkpoint.load_newest(storage.address)
        assert loaded and loaded.step == 50 and torch.equal(loaded.state["model"]["weight"], torch.full((3,), 50.0))
        assert checkpoint.choose(storage.address, "best", "chamfer") == "step-00000020"

    def test_a_damaged_object_is_passed_over_and_a_lost_connection_is_not_damage(
        self,
        bucket: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        storage = Storage.at(f"{bucket}/run")
        for step in (10, 20):
            checkpoint.send(storage.folder, write(storage, step), str(storage.url))
        system, path = fsspec.filesystem("s3"), f"{storage.url}/checkpoints/step-00000020/state.pt"
        content = bytearray(system.cat_file(path))
        content[len(content) // 2] ^= 1
        system.pipe_file(path, bytes(content))
        loaded = checkpoint.load_newest(storage.address)
        assert loaded and loaded.step == 10 and loaded.damaged_names == ("step-00000020",)
        system.rm(f"{storage.url}/checkpoints/step-00000020/meta.json")
        loaded = checkpoint.load_newest(storage.address)
        assert loaded and loaded.step == 10, "without meta.json the upload was not finished"
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        forget_connections()
        with pytest.raises(DataError):
            checkpoint.load_newest(storage.address)
        with pytest.raises(DataError):
            checkpoint.best_of(storage.address, "chamfer")

    def test_what_was_half_uploaded_is_no_checkpoint(self, bucket: str):
        """The machine died during its first upload: the run has not begun, and is neither damaged nor lost."""
        storage = Storage.at(f"{bucket}/run")
        half_send(storage, 10)
        assert checkpoint.remote_names(f"{storage.url}/checkpoints") == ["step-00000010"]
        assert checkpoint.names(storage.address) == []
        assert checkpoint.load_newest(storage.address) is None
        assert checkpoint.choose(storage.address, "best", "chamfer") is None
        checkpoint.send(storage.folder, write(storage, 20), str(storage.url))
        loaded = checkpoint.load_newest(storage.address)
        assert loaded and loaded.step == 20 and not loaded.damaged

    def test_half_uploads_are_removed_and_take_no_place_of_whole_ones(self, bucket: str):
        storage = Storage.at(f"{bucket}/run")
        for step, score in ((5, 1.0), (10, 3.0), (20, 3.0), (30, 3.0)):
            checkpoint.send(storage.folder, write(storage, step, chamfer=score), str(storage.url))
        for step in (15, 25, 35):
            half_send(storage, step)
        checkpoint.prune(storage.address, 2, "chamfer")
        assert checkpoint.names(storage.address) == ["step-00000030", "step-00000020", "step-00000005"]
        left = sorted(checkpoint.remote_names(f"{storage.url}/checkpoints"))
        assert left == [*reversed(checkpoint.names(storage.address)), "step-00000035"], "a newer one may be on its way"

    @pytest.mark.parametrize("links", [True, False])
    def test_a_checkpoint_that_is_pruned_while_it_is_sent_arrives_whole(
        self,
        bucket: str,
        s3_server: str,
        links: bool,
        monkeypatch: pytest.MonkeyPatch,
    ):
        """The network is slower than training: newer checkpoints come while the first one's state is under way."""

        def refuse(*names: object) -> None:
            raise OSError(errno.EPERM, "this file system has no hard links")

        if not links:
            monkeypatch.setattr(os, "link", refuse)
        with serve(Proxy(s3_server)) as (url, proxy):
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
            forget_connections()
            storage, told, written = Storage.at(f"{bucket}/run"), [], []

            def write_next(request: web.Request) -> None:
                if request.method == "PUT" and request.path.endswith("step-00000010/state.pt") and not written:
                    written.append(write(storage, 20))
                    checkpoint.prune(storage.folder, 1)

            proxy.fault = write_next
            sender = Uploads(storage, keep=2, metric="chamfer", timeout=30, tell=told.append)
            sender.add(write(storage, 10))
            wait_for(lambda: written)
            sender.add(written[0])
            sender.close()
            assert checkpoint.names(storage.folder) == ["step-00000020"]
            assert checkpoint.names(storage.address) == ["step-00000020", "step-00000010"] and not told
            loaded = checkpoint.load(storage.address, "step-00000010")
            assert torch.equal(loaded.state["model"]["weight"], torch.full((3,), 10.0))
            assert [path.name for path in (storage.folder / "checkpoints").iterdir()] == ["step-00000020"]
        forget_connections()

    def test_the_newest_goes_first_and_the_best_has_its_turn(
        self,
        bucket: str,
        s3_server: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr(remote, "READ_TIMEOUT", 120)
        with serve(Proxy(s3_server)) as (url, proxy):
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
            forget_connections()
            storage, told, begun = Storage.at(f"{bucket}/run"), [], []
            gate = threading.Event()

            def note(request: web.Request) -> None:
                if request.method == "PUT" and request.path.endswith("state.pt"):
                    begun.append(int(request.path.split("/")[-2].removeprefix("step-")))
                    gate.wait(100)

            proxy.fault = note
            sender = Uploads(storage, keep=3, metric="chamfer", timeout=30, tell=told.append)
            for step, score in ((1, 5.0), (2, 1.0), (3, 5.0), (4, 5.0), (5, 5.0), (6, 5.0)):
                name = write(storage, step, chamfer=score)
                checkpoint.prune(storage.folder, 3, "chamfer")
                sender.add(name)
                wait_for(lambda: begun)
            gate.set()
            sender.close()
            assert begun == [1, 6, 2, 5, 4]
            assert checkpoint.names(storage.address) == [checkpoint.name_of(step) for step in (6, 5, 4, 2)]
            assert told == ["step-00000003 was not uploaded: newer checkpoints came before its turn"]
        forget_connections()

    def test_uploads_do_not_block_and_what_waits_is_bounded(
        self,
        bucket: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        storage, told, gate = Storage.at(f"{bucket}/run"), [], threading.Event()
        send = checkpoint.send

        def slow(*arguments: object) -> None:
            gate.wait(30)
            send(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(checkpoint, "send", slow)
        sender = Uploads(storage, keep=1, metric="chamfer", timeout=30, tell=told.append)
        for step in range(1, 8):
            name = write(storage, step, chamfer=1.0 if step == 2 else 5.0)
            checkpoint.prune(storage.folder, 1, "chamfer")
            sender.add(name)
        assert len(sender._waiting) <= 3, "the one being sent, the best and the newest"
        gate.set()
        sender.close()
        assert checkpoint.names(storage.address) == ["step-00000007", "step-00000002"]
        for step in (1, 4):  # one that was about to be sent, and one that waited
            assert len([line for line in told if checkpoint.name_of(step) in line and "newer" in line]) == 1

    def test_a_failing_upload_is_told_tried_again_and_ends_the_run_with_an_error(
        self,
        bucket: str,
        s3_server: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr(uploads, "AGAIN", 0.1)
        with serve(Proxy(s3_server)) as (url, proxy):
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
            forget_connections()
            storage, told = Storage.at(f"{bucket}/run"), []
            sender = Uploads(storage, keep=2, metric="chamfer", timeout=30, tell=told.append)
            proxy.fault = first(20, "500", "")
            sender.add(write(storage, 10))
            sender.close()
            assert told and "upload failed" in told[0] and told[-1] == "uploads work again"
            assert checkpoint.names(storage.address) == ["step-00000010"]
            stubborn = Uploads(storage, keep=2, metric="chamfer", timeout=1, tell=told.append)
            proxy.fault = first(10**6, "500", "")
            stubborn.add(write(storage, 20))
            with pytest.raises(TrainingError, match=rf"gave up after 1 s: the checkpoints are in {storage.folder}"):
                stubborn.close()
        forget_connections()

    def test_two_who_train_the_same_run_are_noticed(
        self,
        bucket: str,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr(lease, "RENEWAL", 0.2)
        monkeypatch.setattr(lease, "PATIENCE", 1.5)
        monkeypatch.setattr(lease, "LOOK", 0.1)
        storage, told = Storage.at(f"{bucket}/runs/one"), []
        with sole_owner(storage, told.append) as taken_by:
            with pytest.raises(UsageError, match=r"process \d+ on .* is training this run"), sole_owner(storage, print):
                pass
            assert not taken_by() and not told
            theirs = {"owner": "they", "host": "elsewhere", "process": 1, "machine": "another"}
            fsspec.filesystem("s3").pipe_file(f"{bucket}/runs/.one.lease.json", json.dumps(theirs).encode())
            wait_for(taken_by, timeout=10)
            assert taken_by() == "process 1 on elsewhere"
        begin = time.monotonic()
        with sole_owner(storage, told.append):  # they renew nothing: gone
            assert time.monotonic() - begin > 1.4 and "process 1 on elsewhere was at this run" in told[0]
        assert checkpoint.remote_names(f"{bucket}/runs") == [], "who ends properly leaves nothing behind"

    def test_a_killed_owner_on_this_machine_is_not_waited_for(
        self,
        bucket: str,
    ):
        ended = subprocess.Popen(["true"])
        ended.wait()
        theirs = {"owner": "they", "host": "here", "process": ended.pid, "machine": lease._machine()}
        fsspec.filesystem("s3").pipe_file(f"{bucket}/runs/.one.lease.json", json.dumps(theirs).encode())
        begin = time.monotonic()
        with sole_owner(Storage.at(f"{bucket}/runs/one"), print):
            assert time.monotonic() - begin < 5


def test_urls_that_cannot_be_written_are_refused():
    with pytest.raises(UsageError, match=r"storage=http://.*only be read"):
        Storage.at("http://127.0.0.1:1/runs")
    with pytest.raises(UsageError, match="storage=nonsense://"):
        Storage.at("nonsense://bucket/runs")


def test_addresses_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    for given, wanted in {
        "runs/": f"{tmp_path}/runs",
        "../runs": f"{tmp_path.parent}/runs",
        "~/runs": "/home/someone/runs",
        "file:///shared/runs": "/shared/runs",
        "file://runs": f"{tmp_path}/runs",
        "s3://bucket/~/runs/": "s3://bucket/~/runs",
        "https://host/data": "https://host/data",
    }.items():
        assert remote.absolute(given) == wanted and remote.absolute(wanted) == wanted
    examples = doctest.testmod(remote)
    assert examples.attempted > 0 and examples.failed == 0


@pytest.mark.slow
def test_a_worker_may_keep_its_working_copy_elsewhere_than_the_driver(
    bucket: str,
    toy_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Nodes of a cluster differ in HOME or XDG_CACHE_HOME; a run at a URL needs nothing that they share."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of the node"))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    try:
        settings = ("workers=2", "steps=4", "checkpoint.every=2", f"cluster.address={cluster.address}")
        driver = str(tmp_path / "of the driver")
        done = train(toy_dataset, f"{bucket}/runs", "name=far", *settings, XDG_CACHE_HOME=driver)
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    assert checkpoint.names(f"{bucket}/runs/far") == ["step-00000004", "step-00000002"]
    assert list((tmp_path / "of the node").rglob("state.pt")), "the worker did not write where its node says"


@pytest.mark.slow
def test_a_run_in_a_bucket_is_killed_resumed_and_evaluated(
    bucket: str,
    toy_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    joins_ray: str,
):
    """SIGKILL, then the same command on a machine that has never seen the run; then evaluation from the bucket."""
    runs = f"{bucket}/deep/runs"
    settings = ("workers=2", "steps=50", "checkpoint.every=5", "validation.every=20", "precision=float64")
    process = start(toy_dataset, runs, "name=far", *settings)
    wait_for(lambda: "step-00000010" in checkpoint.names(f"{runs}/far"), process)
    process.kill()
    process.communicate()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another machine"))
    done = train(toy_dataset, runs, "name=far", *settings)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stdout and f"results:      {runs}/far/result.json" in done.stdout
    near = train(toy_dataset, tmp_path, "name=near", *settings, joins_ray)
    assert near.returncode == 0, near.stderr
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a third machine"))
    far = Storage.at(f"{runs}/far")
    far.fetch("metrics.jsonl", "validation.jsonl", "result.json")
    one, other = rows(far.folder), rows(tmp_path / "near")
    assert [row["step"] for row in one] == list(range(1, 51))
    assert [row["loss"] for row in one] == pytest.approx([row["loss"] for row in other], rel=1e-8)
    result = json.loads((far.folder / "result.json").read_text())
    assert result["step"] == 50 and "test" in result["splits"]
    assert checkpoint.names(far.address)[:2] == ["step-00000050", "step-00000045"]
    validated = drwr("evaluate", f"run={runs}/far", "split=val", "checkpoint=best")
    assert validated.returncode == 0, validated.stderr
    fresh = train(toy_dataset, runs, "name=far", "steps=2", "overwrite=true", "evaluation.split=")
    assert fresh.returncode == 0 and "overwrite=true: removed from s3://" in fresh.stdout, fresh.stderr
    assert checkpoint.names(far.address) == ["step-00000002"]
