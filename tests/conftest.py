from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from golden_report import compare, print_table  # noqa: F401 (a fixture)
from hypothesis import settings
from servers import bucket, own_cache, s3_server  # noqa: F401 (fixtures)
from toy import make_dataset

# Ray's workers would give way to whatever else runs, and the tests of the other process would keep them waiting.
os.environ.setdefault("RAY_worker_niceness", "0")

# Nothing is timed: machines are shared, and a slow example is no wrong one.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


@pytest.fixture(autouse=True)
def _one_seed() -> None:
    """Give every test the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that the other process has something left to do beside them."""
    longest = ["test_train.py", "test_tune.py"]
    items.sort(key=lambda item: longest.index(item.path.name) if item.path.name in longest else len(longest))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    print_table(terminalreporter)


RAY = """
import sys, ray
ray.init(address="local", num_cpus=8, include_dashboard=False, object_store_memory=2**27, log_to_driver=False)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of a Ray that ends with the tests: what joins it saves the seconds of starting its own."""
    line = [sys.executable, "-c", RAY]
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdin and holder.stdout
        address = holder.stdout.readline().strip()
        assert address, "Ray does not start"
        yield address
        holder.stdin.close()


@pytest.fixture
def joins_ray(ray_address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The argument by which a run joins the tests' Ray, as it would join a cluster."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    return f"cluster.address={ray_address}"


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 24 rendered boxes: 2 categories, 5 views of 64 × 64, shards of 4 objects. Never write to it."""
    return make_dataset(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def cluster():
    """A head without CPUs for training, and two nodes of one worker each."""
    from ray.cluster_utils import Cluster  # seconds, which most tests need not spend

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    yield cluster, nodes
    cluster.shutdown()
