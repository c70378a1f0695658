"""Imports that are killed and run again: nothing finished is redone, and the bytes are those of an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_tools import encoded, make_sample
from toy import REPOSITORY, command, drwr, make_meshes
from view_layouts import Rendered, example, features_of, render_blender, write_dpc, write_records

from drwr_dist.data.journal import JOURNAL_NAME, Journal, input_fingerprint
from drwr_dist.data.writer import ShardLimits, open_journal, write_dataset
from drwr_dist.errors import DataError, UsageError
from drwr_dist.sources import meshes as meshes_module

SMALL = ("views=2", "image_size=32", "supersample=2", "ground_truth_voxel=0.05", "shard_samples=3", "name=same")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def write(output: Path, count: int, *, stop_at: int | None = None, fingerprint: str = "f", overwrite: bool = False):
    """Write so many samples, 2 a shard; break off before sample `stop_at`. Returns the keys that were asked for."""
    journal = open_journal(output, fingerprint, overwrite)
    made = []

    def samples():
        for number in range(count):
            key = f"ball/{number}"
            if key in journal.done:
                continue
            if number == stop_at:
                raise KeyboardInterrupt
            made.append(key)
            yield encoded(make_sample(key))

    settings = {"name": "t", "image_size": 32, "focal_length": 1.875, "limits": ShardLimits(samples=2)}
    write_dataset(output, samples(), journal=journal, **settings)
    return made


class TestJournal:
    def test_finished_shards_are_kept_and_the_rest_is_made(self, tmp_path: Path):
        write(tmp_path / "whole", 7)
        for stop in range(1, 7):
            output = tmp_path / str(stop)
            with pytest.raises(KeyboardInterrupt):
                write(output, 7, stop_at=stop)
            assert not (output / "index.json").exists()
            done = 2 * ((stop - 1) // 2)  # a shard is finished when the next one begins
            assert write(output, 7) == [f"ball/{number}" for number in range(done, 7)]
            assert contents(output) == contents(tmp_path / "whole")
            assert not (output / ".partial").exists()

    def test_another_import_starts_afresh(self, tmp_path: Path):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "a", 7, stop_at=6)
        assert len(write(tmp_path / "a", 7, fingerprint="g")) == 7

    @pytest.mark.parametrize("damage", ["torn line", "rot", "missing", "not json", "escape"])
    def test_what_is_not_whole_is_made_again(self, tmp_path: Path, damage: str):
        write(tmp_path / "whole", 7)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "a", 7, stop_at=6)
        partial = tmp_path / "a/.partial"
        journal = partial / JOURNAL_NAME
        lines = journal.read_text().splitlines()
        assert len(lines) == 3
        if damage == "torn line":
            journal.write_text("\n".join(lines)[:-50])
        elif damage == "rot":
            data = bytearray((partial / "train-000001.tar").read_bytes())
            data[3000] ^= 1
            (partial / "train-000001.tar").write_bytes(data)
        elif damage == "missing":
            (partial / "train-000001.tar").unlink()
        elif damage == "escape":
            journal.write_text("\n".join(lines).replace("train-000001", "../../whole/train-000001"))
        else:
            journal.write_bytes(b"\xff")
        expected = 0 if damage == "not json" else 2
        assert len(write(tmp_path / "a", 7)) == 7 - expected
        assert contents(tmp_path / "a") == contents(tmp_path / "whole")

    @pytest.mark.parametrize("moved", [1, 2, 4])
    def test_killed_while_shards_were_moved_to_their_place(self, tmp_path: Path, moved: int):
        write(tmp_path / "whole", 7)
        journal = Journal(tmp_path / "a/.partial", "f")
        whole = tmp_path / "whole"
        shards = json.loads((whole / "index.json").read_text())["shardlist"]
        source = tmp_path / "b"
        with pytest.raises(KeyboardInterrupt):
            write(source, 9, stop_at=8)  # four whole shards, the last of which differs from that of seven
        del journal, shards
        os.replace(source / ".partial", tmp_path / "a/.partial.new")
        shutil.rmtree(tmp_path / "a/.partial")
        (tmp_path / "a/.partial.new").rename(tmp_path / "a/.partial")
        for number in range(min(moved, 3)):
            name = f"train-{number:06d}.tar"
            (tmp_path / "a/.partial" / name).rename(tmp_path / "a" / name)
        write(tmp_path / "nine", 9)
        assert len(write(tmp_path / "a", 9)) == 3
        assert contents(tmp_path / "a") == contents(tmp_path / "nine")

    def test_a_dataset_that_is_there_stays_until_the_new_one_is_whole(self, tmp_path: Path):
        write(tmp_path / "a", 3)
        before = contents(tmp_path / "a")
        with pytest.raises(UsageError, match="overwrite=true"):
            write(tmp_path / "a", 7)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "a", 7, stop_at=5, overwrite=True)
        assert contents(tmp_path / "a") == before
        assert len(write(tmp_path / "a", 7, overwrite=True)) == 3

    def test_a_key_twice_is_found_across_the_interruption(self, tmp_path: Path):
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "a", 7, stop_at=6)
        journal = open_journal(tmp_path / "a", "f")
        again = [encoded(make_sample("ball/0"))]
        with pytest.raises(DataError, match="two objects have the key"):
            write_dataset(tmp_path / "a", again, name="t", image_size=32, focal_length=1.0, journal=journal)


class TestLock:
    def test_two_imports_into_one_output(self, tmp_path: Path):
        journal = open_journal(tmp_path / "a", "f")
        with pytest.raises(UsageError, match=r"another import is at work in .*a/\.partial"):
            open_journal(tmp_path / "a", "f", overwrite=True)
        open_journal(tmp_path / "b", "f").discard()
        journal.discard()
        assert not (tmp_path / "a").exists()
        write(tmp_path / "a", 3)

    def test_an_import_that_failed_leaves_no_lock(self, tmp_path: Path):
        for stop in (1, 5):  # without and with a finished shard
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path / "a", 7, stop_at=stop)
        write(tmp_path / "a", 7)

    def test_the_folder_is_removed_while_another_waits_at_the_door(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        """A lock on a file that its owner has removed since is worth nothing."""
        import fcntl

        first = open_journal(tmp_path / "a", "f")
        flock = fcntl.flock

        def late(file, how):
            monkeypatch.setattr(fcntl, "flock", flock)
            first.discard()
            flock(file, how)

        monkeypatch.setattr(fcntl, "flock", late)
        second = open_journal(tmp_path / "a", "f")
        with pytest.raises(UsageError, match="another import is at work"):
            open_journal(tmp_path / "a", "f")
        second.discard()

    def test_of_processes(self, tmp_path: Path):
        """The second is refused with one line; a killed one leaves no lock behind."""
        make_meshes(tmp_path / "meshes", {"brick": 12})
        arguments = ["source=meshes", f"input={tmp_path / 'meshes'}", *SMALL, f"output={tmp_path / 'out'}", "workers=2"]
        process = start(*arguments)
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "out/.partial" / JOURNAL_NAME).exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            process.send_signal(signal.SIGSTOP)
            refused = drwr("shards import", *arguments)
            assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1, refused.stderr
            assert "error: output: another import is at work in " in refused.stderr
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)
        done = drwr("shards import", *arguments)
        assert done.returncode == 0, done.stderr


def test_the_fingerprint_changes_with_options_and_inputs(tmp_path: Path):
    (tmp_path / "in/deep").mkdir(parents=True)
    (tmp_path / "in/deep/a.ply").write_text("1")
    found = [input_fingerprint(1, [str(tmp_path / "in")])]
    assert input_fingerprint(1, [str(tmp_path / "in")]) == found[0]
    found.append(input_fingerprint(2, [str(tmp_path / "in")]))
    (tmp_path / "in/deep/a.ply").write_text("12")
    found.append(input_fingerprint(1, [str(tmp_path / "in")]))
    (tmp_path / "in/b.ply").write_text("1")
    found.append(input_fingerprint(1, [str(tmp_path / "in")]))
    assert len(set(found)) == 4
    (tmp_path / "in/out").mkdir()
    (tmp_path / "in/out/x.tar").write_text("1")
    assert input_fingerprint(1, [str(tmp_path / "in")], str(tmp_path / "in/out")) == found[3]


def test_only_the_missing_objects_are_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from rich.console import Console

    from drwr_dist.shards import ImportOptions, import_dataset

    make_meshes(tmp_path / "meshes", {"brick": 8})
    rendered: list[str] = []
    render_job = meshes_module.render_job

    def counted(job):
        if len(rendered) == 5:
            rendered.append("")
            raise KeyboardInterrupt
        rendered.append(job.key)
        return render_job(job)

    monkeypatch.setattr(meshes_module, "render_job", counted)
    options = {"source": "meshes", "input": str(tmp_path / "meshes"), "views": 1, "image_size": 32, "shard_samples": 2}

    def build(name: str) -> None:
        import_dataset(ImportOptions(output=str(tmp_path / name), name="n", workers=1, **options), Console(quiet=True))

    with pytest.raises(KeyboardInterrupt):
        build("a")
    first = set(rendered[:4])
    rendered[:] = ["after"] * 6
    build("a")
    assert len(rendered) == 6 + 4 and not first & set(rendered)
    build("b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command("shards import", *arguments), cwd=REPOSITORY, stderr=subprocess.DEVNULL, start_new_session=True
    )


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def kill_and_resume(arguments: list[str], output: Path, moments: list[Callable[[int], bool]]) -> None:
    """Start an import and SIGKILL it at each of the moments (of the journal's lines so far); then let it end.

    Its worker processes must follow.
    """
    journal = output / ".partial" / JOURNAL_NAME
    for due in moments:
        process = start(*arguments, f"output={output}")
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if due(journal.read_bytes().count(b"\n") if journal.exists() else 0):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        assert process.wait(60) in (-signal.SIGKILL, 0)
        if "engine=ray" not in arguments:
            while alive(process.pid) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not alive(process.pid)
    if not (output / "index.json").exists():
        last = drwr("shards import", *arguments, f"output={output}")
        assert last.returncode == 0, last.stderr
        assert "going on with an interrupted import" in last.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "shards"), [("processes", (0, 1, 3, 4)), ("ray", (0, 3))])
def test_killed_at_any_moment(tmp_path: Path, engine: str, shards: tuple[int, ...]):
    """SIGKILL a real import when so many shards are finished; then let it end."""
    make_meshes(tmp_path / "meshes", {"brick": 9, "slab": 9})
    arguments = ["source=meshes", f"input={tmp_path / 'meshes'}", *SMALL]
    done = drwr("shards import", *arguments, f"output={tmp_path / 'whole'}", "workers=1")
    assert done.returncode == 0, done.stderr
    output = tmp_path / "out"
    moments = [lambda lines, finished=finished: lines > finished for finished in shards]
    kill_and_resume([*arguments, "workers=2", f"engine={engine}"], output, moments)
    assert contents(output) == contents(tmp_path / "whole")
    assert sorted(path.name for path in output.iterdir()) == sorted(contents(tmp_path / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["dpc", "tfrecords", "posed"])
def test_sources_of_views_killed_at_random_moments(tmp_path: Path, source: str):
    """Whatever the source: the bytes after some kills, with two workers, are those of one undisturbed process."""
    models = {f"03001627/chair{number}": render_blender(number, views=3) for number in range(6)}
    folder = tmp_path / "in"
    if source == "dpc":
        write_dpc(folder, models)
    elif source == "tfrecords":
        records = [example(features_of(key.split("/")[1], model)) for key, model in models.items()]
        write_records(folder / "03001627_train.tfrecords", records)
    else:
        for key, model in models.items():
            write_posed(folder / key, model)
    arguments = [f"source={source}", f"input={folder}", "image_size=64", "shard_samples=1", "name=same"]
    done = drwr("shards import", *arguments, f"output={tmp_path / 'whole'}", "workers=1")
    assert done.returncode == 0, done.stderr
    random = np.random.default_rng()
    finished = sorted(int(number) for number in random.integers(1, 6, 2))
    moments = [lambda lines, least=least: lines > least and random.random() < 0.2 for least in (0, *finished)]
    kill_and_resume([*arguments, "workers=2"], tmp_path / "out", moments)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def write_posed(folder: Path, model: Rendered) -> None:
    """Write a rendered model as a NeRF folder: OpenGL cameras, Blender's world."""
    (folder / "images").mkdir(parents=True)
    frames = []
    for view, matrix in enumerate(model.extrinsics):
        rgba = np.concatenate([model.images[view], model.masks[view][..., None]], axis=-1)
        Image.fromarray(rgba).save(folder / f"images/{view}.png")
        pose = np.linalg.inv(matrix) @ np.diag([1.0, -1.0, -1.0, 1.0])
        frames.append({"file_path": f"images/{view}.png", "transform_matrix": pose.tolist()})
    side = len(model.images[0])
    lens = {"fl_x": 1.875 * side, "fl_y": 1.875 * side, "cx": side / 2, "cy": side / 2, "w": side, "h": side}
    (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))


@pytest.mark.slow
def test_ray_gives_the_same_bytes_and_errors(tmp_path: Path):
    make_meshes(tmp_path / "meshes", {"brick": 6})
    arguments = ["source=meshes", f"input={tmp_path / 'meshes'}", *SMALL]
    for name, engine in (("ray", "engine=ray"), ("one", "workers=1")):
        done = drwr("shards import", *arguments, f"output={tmp_path / name}", engine)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "ray") == contents(tmp_path / "one")
    (tmp_path / "meshes/brick/box03.ply").write_bytes(b"ply rot")
    done = drwr("shards import", *arguments, f"output={tmp_path / 'bad'}", "engine=ray")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and "box03.ply: not a readable" in done.stderr
    assert not (tmp_path / "bad").exists()


def test_interrupted_by_hand(tmp_path: Path):
    """Ctrl-C reaches all processes of a terminal: one line, exit code 130, and the next try goes on."""
    make_meshes(tmp_path / "meshes", {"brick": 12})
    arguments = ["source=meshes", f"input={tmp_path / 'meshes'}", *SMALL, f"output={tmp_path / 'out'}", "workers=2"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command("shards import", *arguments), cwd=REPOSITORY, stderr=log, start_new_session=True
        )
        journal = tmp_path / "out/.partial" / JOURNAL_NAME
        deadline = time.monotonic() + 120
        while not (journal.exists() and journal.read_bytes().count(b"\n") > 1) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGINT)
        code = process.wait(60)
    if code == 0:
        pytest.skip("the import was done before it could be interrupted")
    text = (tmp_path / "log").read_text()
    assert code == 130 and text.splitlines()[-1] == "interrupted" and "Traceback" not in text, text
    assert journal.exists() and not (tmp_path / "out/index.json").exists()
