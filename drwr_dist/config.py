"""The typed schema of every key, and the checks that need no data.

One dataclass per owner. Each field's comment is its help text: `--help` prints it, with the type, the default
and the unit. This module imports nothing of the package, so that everything may import it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import OmegaConf

SPLITS = ("train", "val", "test")

# What may differ when a run is continued: none of it changes what is learnt.
FREE_KEYS = {"name", "storage", "steps", "workers", "log_every", "overwrite"}
FREE_KEYS |= {"compile", "communication.accumulate", "communication.static_graph"}
FREE_KEYS |= {"data.on_bad_sample", "data.max_skip_fraction"}  # a run that damage ended may go on without it
FREE_GROUPS = {"loader", "checkpoint", "validation", "evaluation", "monitor", "cluster"}


@dataclass
class LossConfig:
    """The objective: a sum of terms times their weights. docs/quality.md measures the defaults."""

    semantics: str = "default"  # default | released: ours (docs/default_loss.md), or exactly the released code
    grid: int = 32  # pixels; side of the sampling grid, divides the image size
    unary_weight: float = 3.0  # weight of the unary term; the released value is 1
    unary_refinement: int = 2  # default semantics only: the unary reads a grid this many times as fine, if images allow
    repulsion_weight: float = 0.02  # weight of the repulsion at the first step; the released value is 3
    repulsion_weight_end: float | None = None  # weight at the last step, reached geometrically; null: constant
    theta: float = 5.0  # pixels² at grid 32; the Gaussian is exp(-d² / (theta · grid / 32))
    coverage_weight: float = 6.0  # default semantics only: weight of the coverage term; 0: none
    coverage_places: int = 256  # default semantics only: places per silhouette that want projections near
    coverage_neighbours: int = 4  # default semantics only: projections that each place wants near
    crowding_weight: float = 0.05  # default semantics only: weight of the crowding term in space; 0: none
    crowding_radius: float = 0.03  # sides of the unit cube; neighbours of 1000 points want to be so far apart
    bias: float = 3.5  # released semantics only: constant in the exponent of the repulsion
    ring: int = 5  # released semantics only: radii 0 … ring-1 of the structure-aware ring mean
    method: str = "auto"  # auto | plain | fourier: how the repulsion is computed; auto: whatever is quickest
    volumetric_weight: float = 0.0  # weight of the volumetric projection loss of DPC
    volumetric_sigma: float = 3.0  # voxels; blur of its grid at the first step, falling linearly
    volumetric_sigma_end: float = 0.2  # voxels; blur at the last step
    volumetric_kernel: int = 21  # voxels, odd; size of the blur's kernel
    keep_points: float = 1.0  # share of the points that count at the first step, rising linearly to 1; DPC: 0.07
    sum_weight: float = 0.0  # weight of the released repulsion by the sum of distances
    entropy_weight: float = 0.0  # weight of the released repulsion by their entropy
    chamfer_2d_weight: float = 0.0  # weight of the 2D Chamfer distance to points drawn in the silhouettes
    chamfer_2d_draws: int = 1000  # points drawn per silhouette and step

    @classmethod
    def released(cls) -> LossConfig:
        """Return the weights and constants of the released configuration."""
        return cls(semantics="released", unary_weight=1.0, repulsion_weight=3.0, repulsion_weight_end=None)

    def terms(self) -> list[str]:
        """Return the terms that its semantics have, whatever their weights."""
        return [name for name in LOSS_TERMS if self.semantics == "default" or name not in TERMS_OF_DEFAULT]


LOSS_TERMS = tuple(entry.name.removesuffix("_weight") for entry in fields(LossConfig) if entry.name.endswith("_weight"))
TERMS_OF_DEFAULT = {"coverage", "crowding"}  # which loss.semantics=released does not know


@dataclass
class ModelConfig:
    """The network from one image to points."""

    architecture: str = "released"  # released: the authors' encoder and decoder
    points: int = 2000  # points per shape
    channels: int = 16  # channels of the first convolution; doubled at each of the four halvings that follow
    hidden: int = 1024  # width of the fully connected layers
    decoder_std: float = 0.002  # of the last layer's weights at the start: a small ball; the released value is 0.025
    scale_head: bool = False  # learn a factor of the occupancies, which the volumetric loss alone reads


@dataclass
class PoseConfig:
    """Where the cameras of the judging views come from."""

    mode: str = "known"  # known | predict | random: the dataset's; the network's own, from images alone; a baseline
    proposals: str = "search"  # predict: search | network: try directions all around; or candidates as in DPC
    student_weight: float = 0.03  # predict: weight of the distance of what the network believes from the best camera
    azimuths: int = 24  # search: directions around the object that are tried
    elevations: int = 5  # search: heights that are tried, between the two ends of pose.elevation
    elevation: list[float] = field(default_factory=lambda: [-20.0, 40.0])  # search: degrees, of the lowest and highest
    softness: float = 0.7  # search: how freely cameras are drawn at first, in standard deviations of their costs
    softness_end: float = 0.1  # search: and from three fifths of the steps on
    candidates: int = 4  # network: cameras proposed per view, of which the best one in hindsight is trained


@dataclass
class DataConfig:
    """Which shards are streamed, and what is made of a sample."""

    path: str = "shards/demo"  # folder or URL that holds index.json; data=DIR is short for data.path=DIR
    categories: list[str] = field(default_factory=list)  # only these categories; empty: all
    split: str = "train"  # split that training reads
    background: float = 1.0  # grey level 0 … 1 behind the object: 1 is white
    binarize: bool = True  # silhouette = alpha ≥ 0.6, as the released record generator; else the alpha itself
    supervision_views: int = 4  # silhouettes per object and step that judge the points
    view_order: str = "random"  # random | fixed: fixed takes view 0 as input and the first views as judges
    mirror: bool = False  # mirror objects across z = 0 one time in two: images flipped, cameras to match
    despeckle: int = 0  # pixels; patches and holes of masks smaller than this are taken out; 0: masks as they are
    recolour: bool = False  # give objects other colours at random in the images that the network sees
    on_bad_sample: str = "fail"  # fail | skip: skipped samples are counted and reported
    max_skip_fraction: float = 0.01  # of the samples seen; more skipped samples than that fail the run


@dataclass
class LoaderConfig:
    """How samples are read and decoded."""

    workers: str = "auto"  # loader processes per worker, or auto: by cores; without a GPU none if the cache holds all
    prefetch: int = 4  # batches that each loader process holds ready
    cache_megabytes: int = 512  # MiB per process for decoded samples, so that later epochs decode nothing


@dataclass
class OptimizerConfig:
    """Adam and its learning rate."""

    learning_rate: float = 3e-4  # after the warm-up
    warmup_steps: int = 20  # steps over which the learning rate rises linearly from 0
    schedule: str = "cosine"  # constant | cosine: cosine falls to final_fraction at the last step
    final_fraction: float = 0.05  # of the learning rate, at the last step of the cosine schedule
    weight_decay: float = 0.0  # decoupled, as in AdamW
    gradient_clip: float = 1.0  # largest norm of the gradient over all parameters; 0: no clipping


@dataclass
class CommunicationConfig:
    """How workers exchange what they learn (docs/scaling.md)."""

    accumulate: int = 1  # passes into which a worker cuts its part of a step; gradients are exchanged after the last
    compression: str = "none"  # none | bfloat16: how gradients travel; bfloat16 are half the bytes
    average_every: int = 1  # steps; above 1 workers step alone, and weights and moments are averaged (local SGD)
    static_graph: bool = False  # DDP may take for granted that every step uses the same parameters


@dataclass
class CheckpointConfig:
    """When the state is saved, and how much of it is kept."""

    every: int = 200  # steps between checkpoints; the last step is always saved
    keep: int = 2  # of the newest checkpoints stay, and the best one by validation.metric


@dataclass
class ValidationConfig:
    """Scores on the val split while training goes on; they choose the best checkpoint and change nothing else."""

    every: int = 0  # steps between validations, the last step is one too; 0: none
    metric: str = "chamfer"  # chamfer | f_score_1 | f_score_2 | silhouette_iou: says which checkpoint is the best
    views: int = 1  # input views per object: its first ones


@dataclass
class EvaluationConfig:
    """What happens when training ends."""

    split: str | None = "test"  # split to evaluate after training; null: none
    checkpoint: str = "last"  # last | best: the weights to evaluate; best by validation.metric
    predictions: bool = True  # write a PLY per object and input view
    references: bool = True  # evaluate the untrained network and the mean shape beside the trained one
    report: bool = True  # write report.html: shapes to turn, tables and learning curves in one file


@dataclass
class MonitorConfig:
    """What TensorBoard shows beside the curves (docs/monitoring.md)."""

    pictures_every: int = 200  # steps between pictures and clouds, at the first and the last step too; 0: none


@dataclass
class ClusterConfig:
    """Where Ray runs, and what each worker takes."""

    address: str = "local"  # local starts Ray here | auto joins the running cluster | HOST:PORT; RAY_ADDRESS wins
    cpus_per_worker: float = 1.0  # CPUs that Ray reserves per worker; PyTorch uses as many threads (at least 1)
    gpus_per_worker: float = -1.0  # GPUs per worker; -1: 1 where the cluster has one for each, else 0
    max_failures: int = 3  # worker group restarts before the run fails
    start_timeout: int = 600  # seconds that the run may be without its workers, at the start or after a loss
    timeout: int = 300  # seconds that a collective operation may wait for a lost worker
    verbose: bool = False  # show the log lines of Ray and of all workers


@dataclass
class TrainConfig:
    """Everything that `python -m drwr_dist.train` reads."""

    name: str = "run"  # name of the run: a folder below storage; starting it again resumes it
    storage: str = "runs"  # folder (one that all nodes share) or URL (s3://BUCKET/PATH) that holds the runs
    seed: int = 0  # of the initial weights, the order of the samples and the views
    init: str | None = None  # first weights: another run's folder, pretrained, or tf_checkpoint:PREFIX; null: random
    steps: int = 1000  # optimizer steps; 0 evaluates the weights of init
    global_batch: int = 8  # objects per step, over all workers
    workers: Any = 1  # DDP workers: a number, or [min,max] for elastic training
    precision: str = "auto"  # auto | float32 | bfloat16 | float64: auto is bfloat16 autocast on GPUs, else float32
    compile: str = "none"  # none | inductor | cuda_graphs: torch.compile for the network; recorded too, on GPUs alone
    log_every: int = 10  # steps between lines in metrics.jsonl and TensorBoard
    overwrite: bool = False  # remove an existing run of this name and start afresh
    data: DataConfig = field(default_factory=DataConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    pose: PoseConfig = field(default_factory=PoseConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    communication: CommunicationConfig = field(default_factory=CommunicationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)


@dataclass
class AshaConfig:
    """When a trial is compared with the others of its category, for scheduler asha and halving."""

    first_rung: int = 100  # steps after which a trial is first compared
    reduction: int = 3  # one trial in this many goes on from a rung; the next rung lies this many times as far


@dataclass
class PopulationConfig:
    """How a population learns its hyperparameters on the way, for scheduler pbt."""

    interval: int = 100  # steps between exchanges
    quantile: float = 0.25  # share of the population that takes over weights and values of the equally many best
    factor: float = 1.25  # taken-over numbers are multiplied or divided by it; choices move to a neighbour


@dataclass
class SweepConfig:
    """What is varied, how it is searched, and which trials end early."""

    space: dict[str, Any] = field(default_factory=dict)  # key: {low, high, log, step} or {values: […]}
    categories: list[str] = field(default_factory=list)  # each candidate is trained on each of them; empty: all
    search: str = "random"  # grid | random | optuna: all combinations, independent draws, TPE
    candidates: int = 12  # configurations to try in each category; a grid tries all of its own
    baseline: bool = True  # try the configuration as it is too, as candidate 0, never ended early
    generation: int = 4  # optuna: candidates suggested at a time, from all results before
    objectives: list[str] = field(default_factory=lambda: ["quality"])  # optuna: [quality] or [quality, seconds]
    scheduler: str = "none"  # none | asha | halving | pbt: which trials end early or change on the way
    metric: str = "chamfer"  # chamfer | f_score_1 | f_score_2 | silhouette_iou, on the split val
    concurrent: int = 0  # trials at the same time; 0: as many as the cluster holds
    driver_cpus: float = 0.1  # CPUs that a cluster reserves for the process that drives a trial
    max_failures: int = 2  # times that a trial is started again when the process that drives it is lost
    retry_failed: bool = False  # run failed trials again
    keep: int = 3  # trials per category, and candidates in the shared ranking, whose weights stay on disk
    test_split: str | None = "test"  # split on which the winners alone are measured, once; null: none
    report: bool = True  # write report.html
    asha: AshaConfig = field(default_factory=AshaConfig)
    pbt: PopulationConfig = field(default_factory=PopulationConfig)


@dataclass
class TuneConfig(TrainConfig):
    """Everything that `python -m drwr_dist.tune` reads: the configuration that is varied, and `sweep`."""

    name: str = "sweep"  # name of the sweep: a folder below storage; starting it again resumes it
    sweep: SweepConfig = field(default_factory=SweepConfig)


def to_plain(config: TrainConfig) -> dict[str, Any]:
    """Return `config` as nested dictionaries of plain values, for YAML files and Ray."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def from_plain(content: dict[str, Any]) -> TrainConfig:
    """Rebuild a configuration from its plain form."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), content))
    assert isinstance(config, TrainConfig)
    return config


def flat_keys(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one: {"loss.theta": 5.0, …}."""
    rows: dict[str, Any] = {}
    for key, value in content.items():
        rows |= flat_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return rows


def is_learnt(key: str) -> bool:
    """Say whether a key of the configuration decides what is learnt."""
    return key not in FREE_KEYS and key.split(".")[0] not in FREE_GROUPS
