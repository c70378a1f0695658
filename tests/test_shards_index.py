from __future__ import annotations

import functools
import http.server
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from shard_tools import assert_reads_like, encoded, make_balls, make_sample, write_samples

from drwr_dist.data import remote
from drwr_dist.data.index import load_index, read_sample
from drwr_dist.errors import DataError


@pytest.fixture
def balls(tmp_path: Path) -> Path:
    make_balls(tmp_path / "balls")
    return tmp_path / "balls"


def test_select_and_split(tmp_path: Path):
    samples = [encoded(make_sample(key), split) for key, split in [("a/1", "train"), ("b/2", "train"), ("a/3", "test")]]
    index = write_samples(tmp_path, samples)
    assert index.select("train") == [(0, 0, "a/1"), (0, 1, "b/2")]
    assert index.select("train", ["b"]) == [(0, 1, "b/2")]
    assert index.select("test", ["a"]) == [(1, 0, "a/3")]
    assert index.select("val") == []
    with pytest.raises(DataError, match="no category 'c'; the dataset has a, b"):
        index.select("train", ["c"])
    with pytest.raises(DataError, match="unknown split 'dev'"):
        index.split("dev")


class TestBadIndex:
    def test_no_index(self, tmp_path: Path):
        with pytest.raises(DataError, match=re.escape(f"no index.json in {tmp_path}")):
            load_index(tmp_path)
        with pytest.raises(DataError, match="there is no such folder on "):
            load_index(tmp_path / "nowhere")

    def test_not_json(self, balls: Path):
        text = (balls / "index.json").read_text()
        (balls / "index.json").write_text(text[: len(text) // 2])
        with pytest.raises(DataError, match=r"index\.json: not JSON"):
            load_index(balls)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (lambda raw: raw.pop("drwr"), "'drwr' is missing"),
            (lambda raw: raw.pop("shardlist"), "'shardlist' is missing"),
            (lambda raw: raw["drwr"].update(schema_version=2), "schema_version is 2, this release reads 1"),
            (lambda raw: raw["drwr"].update(views="8"), "drwr: field 'views' is str"),
            (lambda raw: raw["drwr"].update(categories={"ball": 3}), "'ball'"),
            (lambda raw: raw["drwr"].update(categories={"lamp": {"train": 3}}), "categories lacks that of ball/"),
            (lambda raw: raw["shardlist"][1].pop("offsets"), "shardlist[1]: field 'offsets' is missing"),
            (lambda raw: raw["shardlist"][0]["keys"].pop(), "keys has 3 entries for nsamples = 4"),
            (lambda raw: raw["shardlist"][0]["crc32"].append(1), "crc32 has 5 entries"),
            (lambda raw: raw["shardlist"][0].update(url="../x.tar"), "must lie below"),
            (lambda raw: raw["shardlist"][0].update(url="/etc/x.tar"), "must lie below"),
            (lambda raw: raw["shardlist"][0].update(split="dev"), "split 'dev' is none of"),
            (lambda raw: raw["shardlist"][0]["offsets"].reverse(), "offsets must start at 0 and grow"),
            (lambda raw: raw["shardlist"][0].update(end=10**9), "offsets must start at 0 and grow"),
            (lambda raw: raw["shardlist"][0]["offsets"].__setitem__(1, 1.5), "must be a list of int"),
            (lambda raw: raw["shardlist"][0]["keys"].__setitem__(1, "ball/train0"), "is both in"),
            (lambda raw: raw["shardlist"][0]["keys"].__setitem__(1, "ball"), "is not <category>/<object id>"),
            (lambda raw: raw["shardlist"].append(raw["shardlist"][0]), "is listed twice"),
            (lambda raw: raw["shardlist"].append("x"), "must be a JSON object"),
        ],
    )
    def test_the_error_names_file_and_field(self, balls: Path, change: Callable[[Any], object], reason: str):
        raw = json.loads((balls / "index.json").read_text())
        change(raw)
        (balls / "index.json").write_text(json.dumps(raw))
        with pytest.raises(DataError) as caught:
            load_index(balls)
        assert str(balls / "index.json") in str(caught.value) and reason in str(caught.value), caught.value


class TestDamagedShards:
    def test_truncated(self, balls: Path):
        index = load_index(balls)
        shard = index.shards[0]
        os.truncate(balls / shard.url, shard.offsets[3] + 1000)
        assert read_sample(index, 0, 2)  # those before the cut are whole
        with pytest.raises(DataError, match=rf"{shard.url}: {shard.keys[3]}: truncated: 1000 of \d+ bytes"):
            read_sample(index, 0, 3)

    def test_rot(self, balls: Path):
        index = load_index(balls)
        shard = index.shards[0]
        data = bytearray((balls / shard.url).read_bytes())
        data[shard.offsets[2] + 700] ^= 1
        (balls / shard.url).write_bytes(data)
        assert read_sample(index, 0, 1)
        with pytest.raises(DataError, match=f"{shard.url}: {shard.keys[2]}: damaged: the bytes don't match"):
            read_sample(index, 0, 2)

    def test_missing(self, balls: Path):
        index = load_index(balls)
        (balls / index.shards[0].url).unlink()
        with pytest.raises(DataError, match=f"{index.shards[0].url}: {index.shards[0].keys[0]}: the shard is missing"):
            read_sample(index, 0, 0)

    def test_unreadable(self, balls: Path):
        index = load_index(balls)
        (balls / index.shards[0].url).unlink()
        (balls / index.shards[0].url).mkdir()
        with pytest.raises(DataError, match="can't be read"):
            read_sample(index, 0, 0)


def test_memory_filesystem(balls: Path):
    memory = fsspec.filesystem("memory")
    memory.put(str(balls), "/shards", recursive=True)
    assert_reads_like("memory://shards", balls)
    index = load_index("memory://shards")
    memory.rm(f"/shards/{index.shards[0].url}")
    with pytest.raises(DataError, match="the shard is missing"):
        read_sample(index, 0, 0)
    with pytest.raises(DataError, match=r"no index\.json in memory://elsewhere"):
        load_index("memory://elsewhere")


def test_file_url(balls: Path):
    assert_reads_like(f"file://{balls}", balls)


def test_unknown_protocol():
    with pytest.raises(DataError, match="gopher"):
        load_index("gopher://host/shards")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; ranges and failures as the test wants."""

    ranges = True
    failures = 0

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        kind = type(self)
        if kind.failures:
            kind.failures -= 1
            self.send_error(503)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        if not (kind.ranges and wanted and path.is_file()):
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2]), path.stat().st_size - 1)
        if first > last:
            self.send_error(416)
            return
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])


@pytest.fixture
def served(balls: Path) -> Iterator[tuple[str, type[Handler]]]:
    handler = type("Served", (Handler,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(balls)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("ranges", [True, False])
def test_http(balls: Path, served: tuple[str, type[Handler]], ranges: bool):
    url, handler = served
    handler.ranges = ranges
    assert_reads_like(url, balls)


def test_http_tries_again(balls: Path, served: tuple[str, type[Handler]], monkeypatch: pytest.MonkeyPatch):
    url, handler = served
    monkeypatch.setattr(remote, "RETRY_PAUSES", (0.01, 0.01))
    index = load_index(url)
    handler.failures = 2
    assert read_sample(index, 0, 0)
    handler.failures = 9
    with pytest.raises(DataError, match=f"{index.shards[0].url}: {index.shards[0].keys[0]}: can't be read .*503"):
        read_sample(index, 0, 0)


def test_http_without_index(served: tuple[str, type[Handler]]):
    with pytest.raises(DataError, match=r"no index\.json in http://"):
        load_index(served[0] + "/deeper")
