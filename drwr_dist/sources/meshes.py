"""Shards from meshes that `mesh_folders` finds, +Y up, front +X.

Two passes over the files, both in worker processes: the first reads each mesh for its fingerprint (exact copies
go into one group, groups decide the splits), the second renders. Every object's cameras and surface samples come
from a seed of its own, so that neither the order nor the number of workers changes a byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from drwr_dist.data.depth import STEP_KEY, depth_step, to_levels
from drwr_dist.data.sample import ObjectSample, encode_sample
from drwr_dist.data.writer import EncodedSample
from drwr_dist.errors import DataError
from drwr_dist.pool import Crew, run_ordered
from drwr_dist.sources.geometry import Mesh, Similarity, geometry_hash, normalise, sample_surface, thin
from drwr_dist.sources.loading import MeshLimits, load_mesh
from drwr_dist.sources.manifest import ManifestRow
from drwr_dist.sources.occupancy import occupancy
from drwr_dist.sources.rendering import RenderSettings, random_cameras, render
from drwr_dist.sources.splits import assign_splits, merge_groups, read_splits, shuffled
from drwr_dist.voxels import VOXELS

SURFACE_SAMPLES = 100_000  # ground truth: so many points by area, thinned to one per voxel


@dataclass(frozen=True)
class MeshSettings:
    """How meshes become samples."""

    render: RenderSettings = field(default_factory=RenderSettings)
    limits: MeshLimits = field(default_factory=MeshLimits)
    ground_truth_voxel: float = 0.01  # object units; 0: no ground truth
    occupancy: bool = True  # which voxels are inside, of watertight meshes; not without ground truth
    seed: int = 0
    workers: int | Crew = 1
    skip_bad: bool = False
    compression: str = "quick"  # of the PNGs


@dataclass(frozen=True)
class MeshJob:
    """One object to import."""

    key: str  # <category>/<object id>
    path: Path
    row: ManifestRow
    settings: MeshSettings
    root: Path | None = None  # no link may lead out of it; None: the file is our own
    rotation: tuple[tuple[float, ...], ...] | None = None  # 3 × 3, from the file's frame to +Y up, +X front
    group: str = ""
    split: str = ""


@dataclass(frozen=True)
class Skipped:
    """An object that could not be imported, and why."""

    key: str
    reason: str


@dataclass(frozen=True)
class Remark:
    """What a source found odd, though it could go on."""

    text: str


Progress = Callable[[str, int], None]  # (what was done, how many are to be done)


def import_meshes(
    jobs: Sequence[MeshJob],
    settings: MeshSettings,
    splits_file: str | None,
    progress: Progress,
    done: frozenset[str] = frozenset(),
) -> Iterator[EncodedSample | Skipped]:
    """Read, group, split and render; yields samples of train, then val, then test, and what was skipped.

    All meshes are read, for the splits; those whose keys are in `done` are not rendered.

    Raises:
        DataError: a mesh can't be used and `skip_bad` is false.
    """
    readable: list[MeshJob] = []
    fingerprints: dict[str, str] = {}
    for job, found in zip(jobs, run_ordered(fingerprint, jobs, settings.workers), strict=True):
        progress("reading", len(jobs))
        if isinstance(found, Skipped):
            yield found
            continue
        readable.append(job)
        fingerprints[job.key] = found
    groups = merge_groups({job.key: job.row.group for job in readable}, fingerprints)
    splits = read_splits(splits_file, groups) if splits_file else assign_splits(groups, settings.seed)
    ordered = [job for job in _ordered(readable, groups, splits, settings.seed) if job.key not in done]
    for sample in run_ordered(render_job, ordered, settings.workers):
        progress("rendering", len(ordered))
        yield sample


def _ordered(jobs: Sequence[MeshJob], groups: dict[str, str], splits: dict[str, str], seed: int) -> list[MeshJob]:
    by_key = {job.key: job for job in jobs}
    ordered = []
    for split in ("train", "val", "test"):
        for key in shuffled([key for key in by_key if splits[key] == split], seed):
            ordered.append(replace(by_key[key], group=groups[key], split=split))
    return ordered


def fingerprint(job: MeshJob) -> str | Skipped:
    """Read a mesh and return the fingerprint of its shape."""
    try:
        return geometry_hash(_load(job)[0])
    except DataError as error:
        if not job.settings.skip_bad:
            raise
        return Skipped(job.key, str(error))


def _place(job: MeshJob) -> str:
    """Return where the file lies in the input folder: keys have no spaces and no letters but ASCII's."""
    name = "" if job.root is None else job.path.relative_to(job.root).as_posix()
    return name.encode("utf-8", "backslashreplace").decode()  # names of files need not be text


def _load(job: MeshJob) -> tuple[Mesh, Similarity]:
    if job.root is not None and not job.path.resolve().is_relative_to(job.root.resolve()):
        raise DataError(f"{job.path}: a link that leads out of {job.root}; copy the file there")
    mesh = load_mesh(job.path, job.settings.limits)
    try:
        return normalise(mesh, None if job.rotation is None else np.array(job.rotation))
    except DataError as error:
        raise DataError(f"{job.path}: {error}") from error


def render_job(job: MeshJob) -> EncodedSample | Skipped:
    """Render one object and encode its sample."""
    try:
        mesh, similarity = _load(job)
        sample = make_sample(job, mesh, similarity)
        try:
            members = encode_sample(sample, job.settings.compression)
        except DataError as error:  # so thin that no pixel is half covered, for instance
            raise DataError(f"{job.path}: {error}") from error
    except DataError as error:
        if not job.settings.skip_bad:
            raise
        return Skipped(job.key, str(error))
    return EncodedSample(job.key, job.split, members, job.row.source, job.row.licence)


def make_sample(job: MeshJob, mesh: Mesh, similarity: Similarity) -> ObjectSample:
    """Render a normalised mesh and sample its ground truth.

    Raises:
        DataError: names the file; the surface has no area.
    """
    settings = job.settings
    digest = hashlib.sha256(f"{settings.seed}\0{job.key}".encode()).digest()
    cameras_rng, points_rng = np.random.default_rng(list(digest)).spawn(2)
    world_to_camera = random_cameras(settings.render, cameras_rng)
    images, masks, depths = render(mesh, world_to_camera, settings.render)
    step = depth_step(settings.render.distance)
    points, inside = None, None
    if settings.ground_truth_voxel > 0:
        try:
            dense = sample_surface(mesh, SURFACE_SAMPLES, points_rng)
        except DataError as error:
            raise DataError(f"{job.path}: {error}") from error
        points = thin(dense, settings.ground_truth_voxel).astype(np.float32)
        inside = occupancy(mesh, VOXELS) if settings.occupancy else None
    category, name = job.key.split("/", 1)
    return ObjectSample(
        key=job.key,
        images=images,
        masks=masks,
        world_to_camera=world_to_camera,
        focal_length=np.full(len(images), settings.render.focal_length),
        depths=None if depths is None else to_levels(depths, step),
        points=points,
        occupancy=inside,
        meta={
            "category": category,
            "object_id": name,
            "source": job.row.source,
            "source_path": job.row.path or _place(job),
            "licence": job.row.licence,
            "author": job.row.author,
            "near_duplicate_group": job.group,
            "similarity": similarity.to_json(),
            **({} if depths is None else {STEP_KEY: step}),
        },
    )
