from __future__ import annotations

import base64
import io
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shard_tools import RADIUS, encoded, make_balls, make_sample, write_samples
from toy import drwr, make_meshes

from drwr_dist.cli import run_verb
from drwr_dist.data.inspection import LABEL
from drwr_dist.shards import main

DEMO = Path(__file__).parent.parent / "shards" / "demo"


@pytest.fixture
def shards(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `shards ARGUMENTS …` in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exit:
            run_verb(main, arguments)
        streams = capsys.readouterr()
        return int(exit.value.code or 0), streams.out, streams.err

    return run


Shards = Callable[..., tuple[int, str, str]]


def test_help_lists_every_key(shards: Shards):
    assert all(word in shards("--help")[1] for word in ("import", "verify", "inspect", "stream"))
    code, text, _ = shards("import", "--help")
    assert code == 0
    for key in (
        "source=",
        "input=",
        "output=",
        "views=None",
        "camera=position",
        "up=None",
        "axes=opengl",
        "focal_length=1.875",
    ):
        assert key in text
    for key in ("elevation_min=-20.0", "degrees"):
        assert key in text
    assert "data=" in shards("verify", "--help")[1]
    assert "global_batch=8" in shards("stream", "--help")[1]


MESHES = ["import", "source=meshes", "input=x", "output=x"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["improt"], "unknown action 'improt'"),
        (["import", "source=meshes"], "input=… is needed"),
        (["import", "source=meshes", "input=/nowhere", "output=x"], "input=/nowhere: no such folder"),
        (["import", "source=magic", "input=x", "output=x"], "source=magic: unknown; there are meshes, open_shapes"),
        (["import", "source=open_shapes", "input=x", "output=x"], "needs manifest=FILE"),
        ([*MESHES, "views=0"], "views=0: must be positive"),
        ([*MESHES, "views=many"], "views"),
        ([*MESHES, "image_size=5000"], "at most 4096 pixels"),
        ([*MESHES, "elevation_min=95"], "(-90, 90) degrees"),
        ([*MESHES, "distance=0.3"], "distance=0.3"),
        ([*MESHES, "veiws=3"], "did you mean views"),
        ([*MESHES, "workers=-1"], "must not be negative"),
        ([*MESHES, "seed=-1"], "must not be negative"),
        ([*MESHES, "ground_truth_voxel=.nan"], "must not be negative"),
        ([*MESHES, "shard_megabytes=.inf"], "shard_megabytes=inf: must be positive"),
        ([*MESHES, "distance=.inf"], "distance=inf"),
        (["verify"], "data=… is needed"),
    ],
)
def test_usage_errors(shards: Shards, arguments: list[str], reason: str):
    code, _, error = shards(*arguments)
    assert code == 2
    assert reason in error and len(error.splitlines()) == 1


def test_rows_of_a_manifest_that_would_share_a_name_are_refused(shards: Shards, tmp_path: Path):
    (tmp_path / "manifest.csv").write_text("category,name\nchair,Arm chair\nchair,Arm_chair\n")
    places = [f"input={tmp_path}", f"output={tmp_path / 'data'}", f"manifest={tmp_path / 'manifest.csv'}"]
    code, _, error = shards("import", "source=open_shapes", *places)
    assert code == 1 and "chair,Arm_chair would be called chair/Arm_chair, as another row is" in error


def test_no_action(shards: Shards):
    code, text, _ = shards()
    assert code == 2 and "usage" in text


def test_verify(shards: Shards, tmp_path: Path):
    index = make_balls(tmp_path)
    code, text, _ = shards("verify", f"data={tmp_path}")
    assert code == 0 and text == f"sound: 11 objects in {tmp_path}\n"
    os.truncate(tmp_path / index.shards[0].url, index.shards[0].offsets[2])
    code, text, error = shards("verify", f"data={tmp_path}")
    found = text.splitlines()
    assert code == 1 and "damaged: 3 findings" in error
    assert all(line.startswith(f"{index.shards[0].url}: ") for line in found) and len(found) == 3
    assert index.shards[0].keys[2] in found[1] and "truncated" in found[1]


def test_verify_without_a_dataset(shards: Shards, tmp_path: Path):
    reason = f"error: no index.json in {tmp_path}: not a dataset, or an import that did not finish\n"
    assert shards("verify", f"data={tmp_path}") == (1, "", reason)


def test_inspect(shards: Shards, tmp_path: Path):
    make_balls(tmp_path)
    code, text, _ = shards("inspect", f"data={tmp_path}", f"sheet={tmp_path / 'sheet.png'}", "rows=4")
    assert code == 0
    assert "ball" in text and "CC0-1.0 (11)" in text
    assert text.endswith(f"{tmp_path / 'sheet.png'}: 4 of 11 objects; rows=11 shows all\n")
    code, _, error = shards("inspect", f"data={tmp_path}", "sheet=/nowhere/sheet.png")
    assert code == 2 and "sheet=/nowhere/sheet.png" in error
    drawn = Image.open(tmp_path / "sheet.png")
    assert drawn.size == (3 * 32, 4 * (LABEL + 32))
    names = np.asarray(drawn.convert("L")).reshape(4, LABEL + 32, -1)[:, :LABEL]
    assert (names.min(axis=(1, 2)) < 128).all()  # each row has its own line of text


def test_inspect_page(shards: Shards, tmp_path: Path):
    """Self-contained: every view and the ground truth are in the file, and nothing is fetched from elsewhere."""
    index = make_balls(tmp_path)
    code, _, error = shards("inspect", f"data={tmp_path}", f"page={tmp_path / 'page.html'}", "rows=4")
    assert code == 0, error
    text = (tmp_path / "page.html").read_text()
    keys = re.findall(r"<h2>(\S+) <small>(\w+)", text)
    assert len(keys) == 4 and all((key, split) in keys for key, split in keys)
    assert {key for key, _ in keys} <= {key for shard in index.shards for key in shard.keys}
    views = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(views) == 4 * 3
    assert Image.open(io.BytesIO(base64.b64decode(views[0]))).size == (32, 32)
    clouds = re.findall(r'data-points="([^"]+)"', text)
    points = np.frombuffer(base64.b64decode(clouds[0]), "<i2").reshape(-1, 3) / 32767
    assert len(clouds) == 4 and np.allclose(np.linalg.norm(points, axis=1), RADIUS, atol=1e-3)
    assert not re.search(r"""(src|href)=["'](?!data:)|https?:|@import|url\(""", text)
    code, _, error = shards("inspect", f"data={tmp_path}", "page=/nowhere/page.html")
    assert code == 2 and "page=/nowhere/page.html" in error


def test_what_a_page_shows_is_text(shards: Shards, tmp_path: Path):
    sample = make_sample("ball/a", points=False)
    sample.meta["author"] = "<script>alert(1)</script>"
    write_samples(tmp_path, [encoded(sample)], name="<b>")
    assert shards("inspect", f"data={tmp_path}", f"page={tmp_path / 'page.html'}")[0] == 0
    text = (tmp_path / "page.html").read_text()
    assert "&lt;script&gt;alert(1)" in text and "<script>alert" not in text and "<b>" not in text
    assert "no ground truth" in text


def test_an_existing_dataset_is_not_replaced(shards: Shards, tmp_path: Path):
    make_meshes(tmp_path / "meshes", {"brick": 2})
    arguments = ["import", "source=meshes", f"input={tmp_path / 'meshes'}", f"output={tmp_path / 'out'}", "workers=1"]
    assert shards(*arguments, "views=1")[0] == 0
    code, _, error = shards(*arguments, "views=2")
    assert code == 2 and "overwrite=true" in error.splitlines()[-1]
    assert shards(*arguments, "views=2", "overwrite=true")[0] == 0
    assert shards("verify", f"data={tmp_path / 'out'}")[0] == 0


def test_an_output_that_can_not_be_written(shards: Shards, tmp_path: Path):
    make_meshes(tmp_path / "meshes", {"brick": 1})
    (tmp_path / "file").write_text("mine")
    code, _, error = shards("import", "source=meshes", f"input={tmp_path / 'meshes'}", f"output={tmp_path / 'file'}")
    assert code == 1 and error.startswith(f"error: import to {tmp_path / 'file'} failed: ")


def test_as_a_process():
    done = drwr("shards verify", f"data={DEMO}")
    assert (done.returncode, done.stdout) == (0, f"sound: 134 objects in {DEMO}\n")
    done = drwr("shards inspect", "data=/nowhere")
    assert done.returncode == 1 and done.stderr == (
        f"error: data=/nowhere: there is no such folder on {socket.gethostname()}\n"
    )
