"""Checkpoints: `<run>/checkpoints/step-00000200/` with `state.pt` and `meta.json`, in a folder or at a URL.

What is stored is the truth: a checkpoint counts once it is complete and its checksum holds, even where the process
died before Ray heard of it. Writing goes to a temporary name, is flushed, then renamed; at a URL, which knows no
renaming, `meta.json` comes last: what lacks it there is an upload that was not finished, and does not count.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from drwr_dist.data.remote import is_remote, join, read_remote, remote_names, remove_remote, upload
from drwr_dist.durable import flush
from drwr_dist.errors import DataError, DrwrError, TrainingError, UsageError

FOLDER = "checkpoints"
STATE, META = "state.pt", "meta.json"
LOWER_IS_BETTER = ("chamfer",)  # validation metrics; of all others, more is better
_NAME = re.compile(r"step-(\d{8})")

Run = str | os.PathLike[str]  # folder or URL of a run


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was read and checked, and the damaged ones that were passed over."""

    content: bytes  # of state.pt
    state: dict[str, Any]
    meta: dict[str, Any]
    step: int
    path: str
    damaged: tuple[str, ...] = ()  # a line each
    damaged_names: tuple[str, ...] = ()


def name_of(step: int) -> str:
    """Return the name of the checkpoint after so many steps."""
    return f"step-{step:08d}"


def step_of(name: str) -> int:
    """Return the step of a checkpoint's name."""
    return int(name.removeprefix("step-"))


def names(run: Run) -> list[str]:
    """Return the checkpoints of a run, newest first; unfinished ones are not among them."""
    return [name for name in _listed(run) if _is_finished(run, name)]


def folders(run: Path) -> list[Path]:
    """Return the checkpoints of a run that lies in a folder, newest first."""
    return [run / FOLDER / name for name in names(run)]


def _listed(run: Run) -> list[str]:
    """Return the names that are there, newest first; at a URL some may be of uploads that were not finished."""
    place = _place(run)
    if is_remote(place):
        found = remote_names(join(place, FOLDER))
    else:
        found = [path.name for path in Path(place, FOLDER).glob("step-*")]
    return sorted((name for name in found if _NAME.fullmatch(name)), reverse=True)


def _is_finished(run: Run, name: str) -> bool:
    """Say whether a name that is there is of a whole checkpoint; at a URL, whether its last file has arrived."""
    if not is_remote(_place(run)):
        return True  # it got its name when it was whole: a file that it lacks is damage
    try:
        _read(run, name, META)
    except FileNotFoundError:
        return False
    return True


# --- writing ---------------------------------------------------------------------------------------------------


def write(run: Path, step: int, state: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Write the state after `step` steps into a run's folder and return the checkpoint's.

    Raises:
        TrainingError: the disk is full or the folder can't be written; earlier checkpoints stay as they are.
    """
    final = run / FOLDER / name_of(step)
    partial = final.with_name(f".{final.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        torch.save(state, partial / STATE)
        content = {"step": step, "sha256": _sha256(partial / STATE), **meta}
        (partial / META).write_text(json.dumps(content, indent=1))
        for name in (STATE, META):
            flush(partial / name)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        flush(final.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(
            f"checkpoint {final} could not be written: {error}; the checkpoints before it are untouched, "
            "make room and run the same command again"
        ) from error
    return final


def send(run: Path, name: str, url: str) -> None:
    """Copy a checkpoint of a run's folder to the run's URL, whole even if it is pruned in the folder meanwhile.

    Raises:
        FileNotFoundError: it is not in the folder, or no longer; nothing was sent.
        DataError: it can't be written; it doesn't count there then.
    """
    target = join(join(url, FOLDER), name)
    with _held(run / FOLDER / name) as held:
        remove_remote(target, META)  # what stands there, if anything, does not count while it is being replaced
        upload(held / STATE, target)
        upload(held / META, target)


@contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """Yield a folder with the files of a checkpoint, which stay there whatever becomes of the checkpoint."""
    held = folder.with_name(f".{folder.name}.sending")
    try:
        _hold(folder, held)
        yield held
    finally:
        shutil.rmtree(held, ignore_errors=True)


def _hold(folder: Path, held: Path) -> None:
    try:
        shutil.rmtree(held, ignore_errors=True)
        held.mkdir()
        for file in (STATE, META):
            try:
                os.link(folder / file, held / file)
            except FileNotFoundError:
                raise
            except OSError:  # a file system without hard links
                shutil.copyfile(folder / file, held / file)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise DataError(f"{folder}: can't be sent ({error})") from error


def prune(run: Run, keep: int, metric: str | None = None, drop: tuple[str, ...] = ()) -> None:
    """Remove all but the `keep` newest checkpoints and the best one, and leftovers of interrupted writes.

    Among these are uploads that were not finished, where a newer checkpoint was. So who uploads to a URL calls this
    between two uploads, not during one.

    Args:
        run: folder or URL.
        keep: how many of the newest stay.
        metric: of the validation, that decides which is the best; None: none is.
        drop: names of damaged checkpoints, which go.
    """
    place, listed = _place(run), _listed(run)
    finished = [name for name in listed if _is_finished(run, name)]
    sound = [name for name in finished if name not in drop]
    unfinished = [name for name in listed if name not in finished and name < max(finished, default="")]
    best = best_of(run, metric, drop) if metric else None
    for name in [*sound[keep:], *unfinished, *(name for name in finished if name in drop)]:
        if name != best:
            _remove(place, name)
    for path in Path(place, FOLDER).glob(".step-*.partial") if not is_remote(place) else ():
        shutil.rmtree(path, ignore_errors=True)


def _remove(place: str, name: str) -> None:
    if is_remote(place):
        for file in (META, STATE):  # without its meta.json it doesn't count
            remove_remote(join(join(place, FOLDER), name), file)
    else:
        shutil.rmtree(Path(place, FOLDER, name), ignore_errors=True)


# --- choosing and reading --------------------------------------------------------------------------------------


def best_of(run: Run, metric: str, without: tuple[str, ...] = ()) -> str | None:
    """Return the checkpoint with the best validation score, the earlier one of equals; None: none was validated.

    Checkpoints whose names are in `without`, because they are damaged, do not count.
    """
    scores = {}
    for name in reversed(_listed(run)):  # an unfinished one has no score
        value = _meta(run, name).get("validation", {}).get(metric)
        if isinstance(value, (int, float)) and name not in without:
            scores[name] = value if metric in LOWER_IS_BETTER else -value
    return min(scores, key=scores.__getitem__) if scores else None


def score_of(run: Run, name: str, metric: str) -> float:
    """Return the validation score of a checkpoint that `best_of` named."""
    return float(_meta(run, name)["validation"][metric])


def is_better(score: float, best: float | None, metric: str) -> bool:
    """Say whether a validation score beats the best one so far."""
    if best is None:
        return True
    return score < best if metric in LOWER_IS_BETTER else score > best


def choose(run: Run, which: str, metric: str) -> str | None:
    """Return the name of the checkpoint that `last`, `best` or a step number names; None: there is none at all.

    Raises:
        UsageError: there are checkpoints, but not this one.
    """
    known = names(run)
    if which == "last" or not known:
        return known[0] if known else None
    if which == "best":
        best = best_of(run, metric)
        if best is None:
            raise UsageError(
                f"checkpoint=best: {run} has no checkpoint with a validation score; train with validation.every=STEPS"
            )
        return best
    name = name_of(int(which)) if which.isdigit() else which.rstrip("/").rsplit("/", 1)[-1]
    if name not in known:
        steps = ", ".join(str(step_of(entry)) for entry in known)
        raise UsageError(f"checkpoint={which}: {run} has last, best and the steps {steps}")
    return name


def load_newest(run: Run) -> Loaded | None:
    """Read the newest sound checkpoint of a run, or return None where there is none yet.

    An upload that was not finished is none, and no damage either.

    Raises:
        TrainingError: there are checkpoints, but every one of them is damaged.
    """
    damaged: dict[str, str] = {}
    for name in names(run):
        try:
            found = load(run, name)
        except TrainingError as error:
            damaged[name] = str(error)
            continue
        return Loaded(
            found.content, found.state, found.meta, found.step, found.path, tuple(damaged.values()), tuple(damaged)
        )
    if damaged:
        first = next(iter(damaged.values()))
        raise TrainingError(f"{run}/{FOLDER}: no sound checkpoint is left; {first}; start afresh: overwrite=true")
    return None


def load(run: Run, name: str) -> Loaded:
    """Read one checkpoint. Nothing in it can run code.

    Raises:
        TrainingError: a file is missing, its checksum is wrong, or it holds more than tensors and plain values.
        DataError: the URL can't be reached; that says nothing about the checkpoint.
    """
    path = join(join(_place(run), FOLDER), name)
    try:
        meta = json.loads(_read(run, name, META))
        content = _read(run, name, STATE)
        if hashlib.sha256(content).hexdigest() != meta["sha256"]:
            raise TrainingError(f"{path}/{STATE}: damaged (its checksum differs from {META})")
        if meta["step"] != step_of(name):
            raise TrainingError(f"{path}/{META}: damaged (it says step {meta['step']})")
        return Loaded(content, state_of(content), meta, step_of(name), path)
    except DrwrError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TrainingError(f"{path}: not a sound checkpoint: {reason}") from error


def state_of(content: bytes) -> dict[str, Any]:
    """Decode the bytes of a state.pt: tensors and plain values only, anything else is refused."""
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _meta(run: Run, name: str) -> dict[str, Any]:
    try:
        meta = json.loads(_read(run, name, META))
    except (OSError, ValueError):  # damaged: it has no score
        return {}
    return meta if isinstance(meta, dict) else {}


def _read(run: Run, name: str, file: str) -> bytes:
    place = _place(run)
    if is_remote(place):
        try:
            return read_remote(join(join(place, FOLDER), name), file)
        except FileNotFoundError:
            raise
        except Exception as error:  # every protocol brings its own kinds of errors
            raise DataError(f"{place}/{FOLDER}/{name}/{file}: can't be read ({error})") from error
    return Path(place, FOLDER, name, file).read_bytes()


def _place(run: Run) -> str:
    return os.fspath(run).removeprefix("file://").rstrip("/")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
