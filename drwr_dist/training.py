"""Train a network on the shards, evaluate it, and show what came out: the work of the verb `train`."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from drwr_dist import checkpoint, terminal
from drwr_dist.config import TrainConfig, flat_keys, is_learnt, to_plain
from drwr_dist.data.index import DatasetIndex, load_index
from drwr_dist.data.remote import absolute, is_remote, join
from drwr_dist.data.stream import SampleTable, check_views
from drwr_dist.engine import driver
from drwr_dist.engine.initial_weights import TF_PREFIX, initial_weights
from drwr_dist.engine.validation import SPLIT
from drwr_dist.errors import DataError, TrainingError, UsageError, refusals_of
from drwr_dist.evaluate import PREDICTIONS, EvaluateOptions, evaluate_run
from drwr_dist.gallery import GALLERY, write_gallery
from drwr_dist.lease import sole_owner
from drwr_dist.model import HALVINGS
from drwr_dist.monitor import METRICS, TENSORBOARD, write_hparams
from drwr_dist.pretrained import is_bundled
from drwr_dist.report import REPORT
from drwr_dist.results import RESULT_TEXT, print_table
from drwr_dist.run import CONFIG, RESULT, load_result, load_run, refuse_changes, remove, save_config
from drwr_dist.storage import Storage
from drwr_dist.validation import workers_range

INTERRUPTED = 130
WITHOUT_3D = "silhouette_iou"  # the metric that needs no ground truth


def run_training(config: TrainConfig, arguments: Sequence[str]) -> int:
    """Train, or go on, or say that nothing is left to do; return the exit code.

    Args:
        config: validated.
        arguments: of the command line, to tell how to go on.

    Raises:
        UsageError: what the configuration asks of the dataset, or of an earlier run of this name, can't be.
        DataError, TrainingError: with what is saved and how to go on printed before.
    """
    config = resolve_paths(config)
    storage = Storage.at(join(config.storage, config.name))
    index = load_index(config.data.path)
    table = check_against_data(config, index)
    console = terminal.console()
    here = storage.folder
    with driver.run_lock(here), sole_owner(storage, console.print) as taken_by, refusals_of(str(here)):
        prepare(storage, config, index, console)
        if is_complete(storage, config):
            console.print(
                f"{storage.address}: complete after {config.steps} steps, nothing to do (overwrite=true starts afresh)"
            )
            block = load_result(storage.folder)["splits"].get(config.evaluation.split or "")
            show(storage.address, config, block, console)
            return 0
        describe(config, table, console)
        with what_is_left_told(storage, config, arguments, console):
            with driver.ray_session(config.cluster, workers_range(config.workers)[1]):
                outcome = driver.train(config, console, should_stop=lambda: bool(taken_by()))
            if taken_by():
                raise TrainingError(f"{storage.address}: {taken_by()} has taken this run over, so it ends here")
            if outcome["outcome"] == "interrupted":
                console.print(f"interrupted after step {outcome['step']}; the same command continues from there")
                tell_what_is_left(storage, config, arguments, console)
                return INTERRUPTED
            if outcome["skipped"]:
                counts = ", ".join(f"{shard}: {count}" for shard, count in sorted(outcome["skips"].items()))
                line = f"{outcome['skipped']} damaged samples were skipped (data.on_bad_sample=skip): {counts}"
                console.print(line, highlight=False, soft_wrap=True)
            block = finish(storage, config, console)
        show(storage.address, config, block, console)
    return 0


@contextlib.contextmanager
def what_is_left_told(
    storage: Storage, config: TrainConfig, arguments: Sequence[str], console: Console
) -> Iterator[None]:
    """However training or its evaluation ends early, say what is saved and how to go on; what happened follows."""
    try:
        yield
    except UsageError:  # nothing was begun
        raise
    except (Exception, KeyboardInterrupt):
        tell_what_is_left(storage, config, arguments, console)
        raise


def tell_what_is_left(storage: Storage, config: TrainConfig, arguments: Sequence[str], console: Console) -> None:
    """Say what a run that ended early has saved, and how to go on; the line about the error itself follows."""
    saved = checkpoint.names(storage.address)
    if saved:
        step = max(map(checkpoint.step_of, saved))
        place = f"{storage.address}/{checkpoint.FOLDER}/{checkpoint.name_of(step)}"
        lines = [f"saved:        {step} of {config.steps} steps in {place}, the history in {METRICS}"]
    else:
        lines = [f"saved:        no checkpoint yet (checkpoint.every={config.checkpoint.every}); training starts anew"]
    again = [argument for argument in arguments if argument not in ("overwrite=true", "overwrite=True")]
    lines += [f"to go on:     {shlex.join([Path(sys.executable).name, '-m', 'drwr_dist.train', *again])}"]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def resolve_paths(config: TrainConfig) -> TrainConfig:
    """Make local paths absolute: workers run in other folders."""
    config.storage, config.data.path = absolute(config.storage), absolute(config.data.path)
    if config.init is not None and not is_bundled(config.init):
        prefix = TF_PREFIX if config.init.startswith(TF_PREFIX) else ""
        config.init = prefix + absolute(config.init.removeprefix(prefix))
    return config


def check_against_data(config: TrainConfig, index: DatasetIndex) -> SampleTable:
    """Check what the configuration asks of the dataset, before any worker starts; return the training samples.

    Raises:
        UsageError: names the key and the fix.
        DataError: the split has no samples.
    """
    check_views(config.data, index)
    if index.image_size % config.loss.grid:
        raise UsageError(f"loss.grid={config.loss.grid}: must divide the image size {index.image_size} of {index.root}")
    if index.image_size % 2**HALVINGS:
        raise UsageError(
            f"data={index.root}: images of {index.image_size} pixels; the network needs a multiple of {2**HALVINGS}, "
            "import the data again with another size"
        )
    own = join(config.storage, config.name)
    if config.overwrite and config.init and lies_in(config.init.removeprefix(TF_PREFIX), own):
        raise UsageError(
            f"init={config.init}: lies in the run that overwrite=true would remove; give the new run another name=…"
        )
    begins = config.overwrite or not checkpoint.names(own)
    if config.init is not None and begins:
        initial_weights(config.init, config, index.image_size)
    table = SampleTable.select(index, config.data.split, config.data.categories)
    if config.validation.every and not index.select(SPLIT, config.data.categories):
        raise UsageError(
            f"validation.every={config.validation.every}: {index.root} has no samples in its {SPLIT} split; set "
            "validation.every=0, or import the data again with a split of that name"
        )
    if config.validation.every and config.validation.metric != WITHOUT_3D:
        require_ground_truth(SampleTable.select(index, SPLIT, config.data.categories), config.validation.metric)
    if config.evaluation.split and not index.select(config.evaluation.split, config.data.categories):
        raise UsageError(
            f"evaluation.split={config.evaluation.split}: {index.root} has no samples in this split; set "
            "evaluation.split= for no evaluation or give another one, or import more objects"
        )
    return table


def lies_in(address: str, run: str) -> bool:
    """Say whether an address is that of a run, or of something in it; links are followed."""
    if is_remote(address) or is_remote(run):
        return f"{address}/".startswith(f"{run}/")
    return Path(address).resolve().is_relative_to(Path(run).resolve())


def require_ground_truth(table: SampleTable, metric: str) -> None:
    """Raise UsageError where no object that validation looks at has what its metric needs."""
    for number in range(len(table.keys)):
        try:
            if table.read(number, views=[0], with_points=True).points is not None:
                return
        except DataError:
            return  # damaged: whether it is skipped or ends the run, the stream says
    raise UsageError(
        f"validation.metric={metric}: no object of the {SPLIT} split of {table.index.root} has ground truth; "
        f"set validation.metric={WITHOUT_3D}"
    )


def prepare(storage: Storage, config: TrainConfig, index: DatasetIndex, console: Console) -> None:
    """Make the run's folder ready: afresh with overwrite=true, else as it was, if it learns the same."""
    run = storage.folder
    if storage.url:
        remove(run)  # a working copy that another start has left; the truth is at the URL
    storage.fetch(CONFIG, RESULT)
    if config.overwrite and (run / CONFIG).exists():
        gone = ", ".join(sorted({*storage.clear(), *remove(run)}))
        console.print(f"overwrite=true: removed from {storage.address}: {gone}", highlight=False)
    if (run / CONFIG).exists() and has_begun(storage):
        refuse_changes(run, config)
        trained = max(map(checkpoint.step_of, checkpoint.names(storage.address)), default=0)
        if trained > config.steps:
            raise UsageError(
                f"steps={config.steps}: {storage.address} has been trained for {trained} already; give at least that, "
                "another name=…, or overwrite=true"
            )
    save_config(run, config, index.image_size)
    storage.publish(CONFIG)


def has_begun(storage: Storage) -> bool:
    """Say whether the run has learned anything; one that was refused at its start leaves its configuration alone."""
    return bool(checkpoint.names(storage.address)) or (storage.folder / METRICS).exists()


def is_complete(storage: Storage, config: TrainConfig) -> bool:
    """Say whether the run has been trained for all its steps and evaluated as it should."""
    result = load_result(storage.folder)
    if not result or checkpoint.name_of(config.steps) not in checkpoint.names(storage.address):
        return False
    chosen = checkpoint.choose(storage.address, config.evaluation.checkpoint, config.validation.metric)
    evaluated = chosen is not None and result.get("step") == checkpoint.step_of(chosen)
    return evaluated and (not config.evaluation.split or config.evaluation.split in result["splits"])


def describe(config: TrainConfig, table: SampleTable, console: Console) -> None:
    """Print the derived numbers with their arithmetic."""
    plan = table.plan(config.seed, config.global_batch)
    views = config.data.supervision_views
    weights = {name: float(getattr(config.loss, f"{name}_weight")) for name in config.loss.terms()}
    terms = " + ".join(f"{weight:g} × {name}" for name, weight in weights.items() if weight)
    console.print(
        f"run {config.name}: {plan.samples} training objects of {table.index.root}\n"
        f"global batch {config.global_batch} objects × {views} silhouettes = {config.global_batch * views}, "
        f"over {config.workers} worker(s); {plan.steps_per_epoch} steps an epoch, "
        f"{config.steps} steps = {config.steps / plan.steps_per_epoch:.1f} epochs\n"
        f"{config.model.points} points, loss {config.loss.semantics} on a grid of {config.loss.grid}: {terms}",
        highlight=False,
        soft_wrap=True,
    )


def finish(storage: Storage, config: TrainConfig, console: Console) -> dict[str, Any] | None:
    """Evaluate the trained run as the configuration asks; return the split's results."""
    if not config.evaluation.split:
        return None
    options = EvaluateOptions(
        run=storage.address,
        checkpoint=config.evaluation.checkpoint,
        split=config.evaluation.split,
        categories=config.data.categories,
        predictions=config.evaluation.predictions,
        references=config.evaluation.references,
        report=config.evaluation.report,
    )
    block = evaluate_run(load_run(storage.address, options.checkpoint), options, console).block
    learnt = {key: value for key, value in flat_keys(to_plain(config)).items() if is_learnt(key)}
    write_hparams(storage.folder, learnt, str(options.split), block["overall"])
    storage.publish(TENSORBOARD)
    if config.evaluation.predictions:
        run = storage.folder
        table = SampleTable.select(load_index(config.data.path), options.split, options.categories)
        write_gallery(run, run / PREDICTIONS, table, block)
        storage.publish(GALLERY)
    return block


def show(run: str, config: TrainConfig, block: dict[str, Any] | None, console: Console) -> None:
    """Print the table and where everything lies."""
    if block:
        print_table(console, str(config.evaluation.split), block)
        lines = [f"results:      {run}/{RESULT}  and  {run}/{RESULT_TEXT}"]
        if config.evaluation.report:
            lines += [f"report:       {run}/{REPORT}  (open it in a browser: shapes to turn, tables, curves)"]
        if config.evaluation.predictions:
            lines += [f"point clouds: {run}/{PREDICTIONS}/<category>/<object>.<input view>.ply"]
            lines += [f"picture:      {run}/{GALLERY}  (input, prediction and, where it is known, ground truth)"]
        console.print("\n".join(lines), highlight=False, soft_wrap=True)
    tensorboard = Path(sys.executable).with_name("tensorboard")
    command = tensorboard if tensorboard.exists() else "tensorboard"
    console.print(f"curves:       {command} --logdir {run}/{TENSORBOARD}", highlight=False, soft_wrap=True)
