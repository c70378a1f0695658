"""One DDP worker: the network, its optimizer, its part of the stream, and the steps of the loop as verbs."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.v2.api.report_config import CheckpointUploadMode

from drwr_dist import checkpoint
from drwr_dist.config import TrainConfig
from drwr_dist.data.batch import Batch
from drwr_dist.data.index import load_index
from drwr_dist.data.remote import join
from drwr_dist.data.stream import SampleTable, batches
from drwr_dist.engine import communication, compiling, layout, schedule
from drwr_dist.engine.agreement import Tally, agree, fail_together, on_all_ranks, on_first_rank, share
from drwr_dist.engine.board import Courier
from drwr_dist.engine.initial_weights import initial_weights
from drwr_dist.engine.passes import Passes
from drwr_dist.engine.pictures import Pictures
from drwr_dist.engine.predictor import AS_IT_IS, frames, predictor
from drwr_dist.engine.skips import add_skips, limit_skips
from drwr_dist.engine.stragglers import Stragglers
from drwr_dist.engine.timing import StepTimer, memory
from drwr_dist.engine.uploads import Uploads
from drwr_dist.engine.validation import SPLIT, validate
from drwr_dist.errors import DrwrError, TrainingError
from drwr_dist.losses.training import active_terms
from drwr_dist.model import build_network
from drwr_dist.monitor import METRICS, TENSORBOARD, VALIDATION, Monitor
from drwr_dist.run import CONFIG, TrainedRun
from drwr_dist.storage import Storage
from drwr_dist.validation import workers_range


class Worker:
    """State of one rank. Every method that communicates is called by all ranks at the same step."""

    def __init__(self, config: TrainConfig, board: Any):
        context = ray.train.get_context()
        self.config = config
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.dtype = torch.float64 if config.precision == "float64" else torch.float32
        self.storage = Storage.at(join(config.storage, config.name))
        self.run = self.storage.folder

        index = on_all_ranks(lambda: load_index(config.data.path))
        self.table = SampleTable.select(index, config.data.split, config.data.categories)
        self.plan = self.table.plan(config.seed, config.global_batch)
        if config.validation.every:
            self.held_out = SampleTable.select(index, SPLIT, config.data.categories)

        torch.manual_seed(config.seed)
        self.model = build_network(config, index.image_size)
        layout.arrange(self.model, self.device, self.dtype)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=0.0, weight_decay=config.optimizer.weight_decay, fused=True
        )
        fail_together(compiling.trouble(config.compile, self.device))
        self.courier = Courier(board) if self.rank == 0 else None
        self.best: float | None = None  # validation score
        self.scores: dict[str, float] = {}  # of the validation after the last step, where there was one
        self._damaged: tuple[str, ...] = ()  # checkpoints that were passed over
        self.skips: Counter[str] = Counter()  # shard -> samples that were skipped so far, over all ranks
        self.start = self._restore()
        self.monitor = on_first_rank(self._monitor)
        self.uploads = self._uploads() if self.rank == 0 else None
        self._trouble: str | None = None  # what went wrong on this rank alone; told to all at the next agreement
        self.stragglers = Stragglers(self._names())
        self._tell_who_trains()
        self._terms = active_terms(config.loss) + (["student"] if config.pose.mode == "predict" else [])
        self._clock = (time.perf_counter(), 0.0)
        self.timer = StepTimer(self.device)
        self.passes = Passes(config, self.model, self.plan, self.device, self.world_size, self.timer)
        if self.world_size > 1:
            self.timer.watch(self.model)
        self.pictures = Pictures(index, config)

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.monitor:
                with self._writing():
                    self.monitor.__exit__(kind, error, trace)
            if self.uploads:
                self.uploads.close()
        finally:
            if self.courier:
                self.courier.close()
        if self._trouble and not error:
            raise TrainingError(self._trouble)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Note that a file can't be written, on rank 0: all ranks end at the next agreement, or when they save."""
        try:
            yield
        except OSError as error:
            self._trouble = self._trouble or (
                f"{self.run}: the history can't be written: {error}; make room and run the same command again"
            )

    def _names(self) -> list[str]:
        names = [f"rank {self.rank} on {socket.gethostname()}, process {os.getpid()}"]
        if self.world_size > 1:
            names *= self.world_size
            dist.all_gather_object(names, names[0])
        return names

    def _tell_who_trains(self) -> None:
        """Say how many workers there are and where, if that may be otherwise: on several hosts, in elastic training."""
        host = socket.gethostname()
        hosts = [host] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(hosts, host)
        fewest, most = workers_range(self.config.workers)
        if self.courier and (len(set(hosts)) > 1 or fewest < most):
            bound = f" of at most {most}" if fewest < most else ""
            self.courier.notice(f"{self.world_size}{bound} worker(s), on {', '.join(dict.fromkeys(hosts))}")

    def _monitor(self) -> Monitor:
        if self.storage.url:  # what an earlier attempt left on this node is not what is at the URL
            for name in (checkpoint.FOLDER, TENSORBOARD):
                shutil.rmtree(self.run / name, ignore_errors=True)
        self.storage.fetch(METRICS, VALIDATION)
        return Monitor(self.run, self.start)

    def _uploads(self) -> Uploads:
        assert self.courier
        config, tell = self.config, self.courier.notice
        metric = config.validation.metric
        return Uploads(self.storage, config.checkpoint.keep, metric, config.cluster.timeout, tell)

    def _restore(self) -> int:
        """Load the newest sound checkpoint, if there is one; return the steps that are done.

        Rank 0 reads it and all others get its bytes: they can't come to different conclusions about what is newest.
        """
        found = on_first_rank(self._read_newest)
        step, best = json.loads(share(json.dumps(found[1:] if found else (0, None)).encode(), self.device))
        self.best = best
        content = share(found[0].content if found else None, self.device)
        if not content:
            return 0
        state = checkpoint.state_of(content)
        self.model.load_state_dict(state["model"])
        layout.load_optimizer(self.optimizer, state["optimizer"])
        torch.set_rng_state(state["random"])
        self.skips = Counter(state.get("skips", {}))
        return int(step)

    def _read_newest(self) -> tuple[checkpoint.Loaded, int, float | None] | None:
        """Return the newest sound checkpoint, its step and the best validation score so far (rank 0)."""
        assert self.courier
        if not self.storage.url and not (self.run / CONFIG).exists():  # a node that joined later, say
            raise TrainingError(f"{self.run}: the node {socket.gethostname()} does not see this folder of the run")
        loaded = checkpoint.load_newest(self.storage.address)
        if loaded is None:
            if self.config.init is not None:  # the other ranks get these weights from DDP
                self.model.load_state_dict(initial_weights(self.config.init, self.config, self.model.image_size))
            return None
        for damage in loaded.damaged:
            self.courier.notice(f"passed over a damaged checkpoint: {damage}")
        self.courier.notice(f"resuming after step {loaded.step} from {loaded.path}")
        self._damaged = loaded.damaged_names
        metric = self.config.validation.metric
        best = checkpoint.best_of(self.storage.address, metric, loaded.damaged_names)
        score = checkpoint.score_of(self.storage.address, best, metric) if best else None
        return loaded, loaded.step, score

    def batches(self) -> Iterator[tuple[int, Batch]]:
        """Yield (step, this rank's part of its global batch) from where the run stands to its last step."""
        stream = batches(
            self.table,
            self.plan,
            self.config.data,
            self.config.loader,
            rank=self.rank,
            world_size=self.world_size,
            start=self.start,
            stop=self.config.steps,
            view_images=self.config.pose.mode == "predict",
            gpu=self.device.type == "cuda",
        )
        self._begin = time.perf_counter()
        self.timer.begin()
        for step, batch in enumerate(stream, self.start):
            self.timer.sample((step + 1) % self.config.log_every == 0 or step + 1 == self.config.steps)
            moved = batch.to(self.device, self.dtype)
            self.timer.lap("data")
            yield step, moved
            self._begin = time.perf_counter()
            self.timer.begin()

    def forward_backward(self, step: int, batch: Batch) -> Tally:
        """Compute this rank's losses and, through DDP, the gradient of the global batch's mean loss."""
        self.optimizer.zero_grad(set_to_none=True)
        tally = self._tally_of(batch)
        self.passes.run(step, batch, tally)
        return tally

    def _tally_of(self, batch: Batch) -> Tally:
        bad = float(len(batch.failures))
        trouble = float(self._trouble is not None)
        skip = self.config.data.on_bad_sample == "skip"
        stop = self.courier is not None and self.courier.stop_requested
        return Tally(skipped=bad if skip else 0.0, failed=trouble + (0.0 if skip else bad), stop=float(stop))

    def agree(self, step: int, batch: Batch, tally: Tally) -> Tally:
        """Sum the tally over all ranks; raise TrainingError on all of them where the step must not be made."""
        total, busy = agree(tally, self.passes.finished - self._begin, self.device)
        self.timer.lap("agreement")
        self.stragglers.add(busy)
        if total.failed:
            fail_together(self._trouble or (batch.failures[0].reason if batch.failures else None))
        if total.not_finite:
            suspects = ", ".join(self.passes.suspects)
            fail_together(
                f"step {step}: the loss or its gradient is not finite on rank {self.rank} (samples {suspects}); lower "
                "optimizer.learning_rate or look at these samples with `shards verify`"
                if suspects
                else None
            )
        if total.skipped:
            add_skips(self.skips, batch, step, self.courier.notice if self.courier else lambda line: None)
            limit_skips(self.skips, self.config, self.plan.samples, step)
        return total

    @property
    def skipped(self) -> int:
        """How many samples were skipped so far."""
        return self.skips.total()

    def update(self, step: int) -> float:
        """Clip the gradient, set the learning rate, step the optimizer; return the gradient's norm."""
        clip = self.config.optimizer.gradient_clip or float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        if not torch.isfinite(norm):  # the same on all ranks: the gradient is already averaged
            raise TrainingError(f"step {step}: the gradient is not finite; lower optimizer.learning_rate")
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.learning_rate(self.config.optimizer, step, self.config.steps)
        self.optimizer.step()
        self.timer.lap("optimizer")
        return float(norm)

    def average(self, steps_done: int) -> bool:
        """Average the ranks' weights, where that is due; return whether all ranks hold the same ones."""
        settings = self.config.communication
        if not communication.same_weights(steps_done, self.config.steps, settings):
            return False
        if settings.average_every > 1 and self.world_size > 1:
            communication.average(self.model, self.optimizer)
            self.timer.lap("agreement")
        return True

    def log(self, step: int, total: Tally, gradient_norm: float) -> None:
        """Show the progress; every `log_every` steps, and at the last one, write a row of the history."""
        done, samples = step + 1, max(1.0, total.samples)
        if not (self.monitor and self.courier):
            return
        if due := done % self.config.log_every == 0 or done == self.config.steps:
            wait, notice = self.stragglers.close_interval()
            if notice:
                self.courier.notice(notice)
        since, count = self._clock
        elapsed, count = time.perf_counter() - since, count + total.samples
        row = {
            "epoch": self.plan.epoch_of(step),
            "loss": total.loss / samples,
            **{name: getattr(total, name) / samples for name in self._terms},
            "repulsion_weight": schedule.repulsion_weight(self.config.loss, step, self.config.steps),
            "learning_rate": schedule.learning_rate(self.config.optimizer, step, self.config.steps),
            "gradient_norm": gradient_norm,
            "samples_per_second": count / max(elapsed, 1e-9),
            "skipped": self.skipped,
        }
        self.courier.progress(step=done, **row)
        self._clock = (since, count)
        if due:
            row |= {"straggler_seconds": wait, "workers": self.world_size}
            with self._writing():
                self.monitor.log(done, row | self.timer.close_interval() | memory(self.device))
                self.monitor.skips(done, self.skips)
            self._clock = (time.perf_counter(), 0.0)

    def illustrate(self, steps_done: int) -> None:
        """Show pictures and clouds of a few objects, where that is due (rank 0)."""
        if self.monitor and self.pictures.is_due(steps_done):
            predict = predictor(self.model, self.device, self.dtype, AS_IT_IS)
            with self._writing():
                self.pictures.draw(steps_done, predict, self.monitor)

    def validate(self, steps_done: int) -> bool:
        """Score the validation split, where that is due; return whether the weights are the best so far."""
        config = self.config.validation
        self.scores = {}
        if not config.every or (steps_done % config.every and steps_done != self.config.steps):
            return False
        run = TrainedRun(self.run, self.config, self.table.index.image_size, self.start, self.model)
        aligned = on_all_ranks(lambda: frames(run, self.table, self.device))
        predict = predictor(self.model, self.device, self.dtype, aligned)
        skip = self.config.data.on_bad_sample == "skip"
        self.scores = validate(
            predict, self.held_out, config.views, self.config.data.background, skip, self.rank, self.world_size
        )
        if config.metric not in self.scores:
            raise TrainingError(
                f"validation.metric={config.metric}: no object of the val split of {self.table.index.root} has ground "
                "truth; set validation.metric=silhouette_iou"
            )
        score = self.scores[config.metric]
        is_best = checkpoint.is_better(score, self.best, config.metric)
        self.best = score if is_best else self.best
        if self.monitor and self.courier:
            with self._writing():
                self.monitor.validation(steps_done, self.scores)
            note = "the best so far" if is_best else f"best: {self.best:.4f}"
            self.courier.notice(f"step {steps_done}: validation {config.metric} {score:.4f} ({note})")
        return is_best

    def save(self, steps_done: int) -> None:
        """Write a checkpoint (rank 0) and report it to Ray (all ranks)."""
        path = None
        if self.rank == 0 and not self._trouble:
            try:
                path = self._write(steps_done)
            except (DrwrError, OSError) as error:
                self._trouble = str(error)
        fail_together(self._trouble)
        # Ray refuses what lies outside the driver's folder, and the working copy of a URL may lie elsewhere on each
        # node (HOME, XDG_CACHE_HOME). Nothing reads Ray's checkpoints, so it is told of none then.
        told = path if self.storage.url is None else None
        ray.train.report(
            {"step": steps_done, **{f"validation_{name}": value for name, value in self.scores.items()}},
            checkpoint=ray.train.Checkpoint(str(told)) if told else None,
            checkpoint_dir_name=f"{checkpoint.FOLDER}/{checkpoint.name_of(steps_done)}",
            checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        )

    def _write(self, steps_done: int) -> Path:
        assert self.monitor and self.uploads
        meta = {"seed": self.config.seed} | ({"validation": self.scores} if self.scores else {})
        self.monitor.flush()  # a checkpoint that counts has its history on disk
        path = checkpoint.write(self.run, steps_done, self._state(), meta)
        self._damaged = tuple(name for name in self._damaged if name != path.name)  # it has just been written again
        checkpoint.prune(self.run, self.config.checkpoint.keep, self.config.validation.metric, self._damaged)
        self.uploads.add(path.name, self._damaged)
        return path

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "skips": dict(self.skips),
        }

    def describe(self, config_yaml: str) -> None:
        """Write the resolved configuration to TensorBoard (rank 0, once)."""
        if self.monitor and self.start == 0:
            with self._writing():
                self.monitor.text("config", config_yaml)
