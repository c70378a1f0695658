"""The package without the repository: a wheel, in an environment of its own, run from elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from toy import REPOSITORY, untrained_run

import drwr_dist
from drwr_dist.cli import preset_names
from drwr_dist.point_cloud import read_ply

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git has, or would add: a `build` folder that lies about must not get in."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "-co", "--exclude-standard", "drwr_dist", "configs", "pyproject.toml", "README.md"]
    names = subprocess.run([*listed, "LICENSE"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in names.split():
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = REPOSITORY / name
        target.symlink_to(os.readlink(source)) if source.is_symlink() else target.write_bytes(source.read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run([*build, str(folder / "source")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel installed; everything else is this environment's."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    found = folder / "bin/python"
    install = [sys.executable, "-m", "pip", "--python", str(found), "install", "--quiet", "--no-deps", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return found


def run(python: Path, folder: Path, *words: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_in_it(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    kept = {name for name in names if not name.startswith("drwr_dist/")}
    assert all(".dist-info/" in name for name in kept), kept  # no tests, no benchmarks
    for name in ("py.typed", "report/page.html", "report/vendor/viewer.min.js", "report/vendor/LICENSES.txt"):
        assert f"drwr_dist/{name}" in names
    assert {name for name in names if name.startswith("drwr_dist/configs/")} == {
        f"drwr_dist/configs/{preset}.yaml" for preset in preset_names()
    }
    licences = [name for name in names if "/licenses/" in name]
    assert any(name.endswith("/LICENSE") for name in licences)
    assert any(name.endswith("vendor/LICENSES.txt") for name in licences)
    modules = {f"{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "drwr_dist").rglob("*.py")}
    assert modules <= set(names)
    assert wheel.stat().st_size < 12 * 2**20  # 8 of them are the network that comes with it


def test_it_is_the_wheel_that_runs(python: Path, tmp_path: Path):
    code = "import drwr_dist as d, importlib.metadata as m; print(d.__file__, d.__version__, m.version('drwr-dist'))"
    file, version, declared = run(python, tmp_path, "-c", code).split()
    assert Path(file).is_relative_to(python.parent.parent)
    assert version == declared == drwr_dist.__version__


def test_verbs_and_presets_without_the_repository(python: Path, tmp_path: Path):
    assert "python -m drwr_dist.train" in run(python, tmp_path, "-m", "drwr_dist")
    assert "presets 2dpm, cluster, demo" in run(python, tmp_path, "-m", "drwr_dist.train", "--help")


def test_predict_without_the_repository(python: Path, tmp_path: Path):
    untrained_run(tmp_path / "runs/mine", points=64)
    Image.new("RGB", (90, 60), "white").save(tmp_path / "photo.jpg")
    run(python, tmp_path, "-m", "drwr_dist.predict", "run=runs/mine", "images=photo.jpg", "output=clouds")
    assert read_ply(tmp_path / "clouds/photo.ply").shape == (64, 3)
