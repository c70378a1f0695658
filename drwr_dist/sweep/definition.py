"""The sweep on disk: `sweep.yaml`, and what may change when the same sweep is started again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from drwr_dist.config import FREE_GROUPS, FREE_KEYS, TuneConfig, flat_keys, to_plain
from drwr_dist.errors import DataError, UsageError

DEFINITION = "sweep.yaml"

# Neither the planned candidates nor what they learn depends on these; `candidates` only adds some, but under pbt, where
# members that are added, or left out, were never compared with those that have exchanged without them.
FREE_SWEEP_KEYS = {"candidates", "concurrent", "driver_cpus", "max_failures", "retry_failed", "keep", "test_split"}
FREE_SWEEP_KEYS |= {"report"}


def save_definition(sweep: Path, config: TuneConfig) -> None:
    """Write the resolved definition of a sweep."""
    sweep.mkdir(parents=True, exist_ok=True)
    partial = sweep / f".{DEFINITION}.partial"
    partial.write_text(yaml.safe_dump(to_plain(config), sort_keys=False), encoding="utf-8")
    partial.replace(sweep / DEFINITION)


def refuse_changes(sweep: Path, config: TuneConfig) -> None:
    """Raise UsageError where this folder holds a sweep that tries or learns something else."""
    path = sweep / DEFINITION
    if not path.exists():
        return
    free = FREE_SWEEP_KEYS - ({"candidates"} if config.sweep.scheduler == "pbt" else set())
    try:
        before = _fixed(yaml.safe_load(path.read_text(encoding="utf-8")), free)
    except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: can't be read ({' '.join(str(error).split())}); overwrite=true starts afresh"
        ) from error
    after, default = _fixed(to_plain(config), free), _fixed(to_plain(TuneConfig()), free)
    for key in sorted(set(before) | set(after)):
        old = before.get(key, default.get(key))  # a key that is younger than the sweep
        if old != after.get(key):
            raise UsageError(
                f"{key}={after.get(key)}: sweep {sweep} was started with {key}={old}; give that, another "
                "name=…, or overwrite=true"
            )


def _fixed(content: dict[str, Any], free: set[str]) -> dict[str, Any]:
    """Return the keys that may not change. `steps` is one here: candidates are compared at their end."""
    return {
        key: value
        for key, value in flat_keys(content).items()
        if (key not in FREE_KEYS or key == "steps")
        and key.split(".")[0] not in FREE_GROUPS
        and not (key.startswith("sweep.") and key.removeprefix("sweep.") in free)
    }
