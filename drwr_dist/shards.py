"""The verb `shards`: build, look at and check datasets."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from rich.console import Console

from drwr_dist import terminal
from drwr_dist.cli import load_options, run_verb
from drwr_dist.counting import Advance, counting
from drwr_dist.data.index import DatasetIndex, load_index
from drwr_dist.data.inspection import listing, print_summary, what_is_shown, write_page, write_sheet
from drwr_dist.data.journal import input_fingerprint
from drwr_dist.data.png import MAX_SIDE
from drwr_dist.data.sample import COMPRESSIONS
from drwr_dist.data.verify import verify_dataset
from drwr_dist.data.writer import EncodedSample, ShardLimits, open_journal, write_dataset
from drwr_dist.errors import DataError, UsageError
from drwr_dist.pool import ENGINES, Crew
from drwr_dist.sources.finishing import ViewSettings
from drwr_dist.sources.loading import MeshLimits
from drwr_dist.sources.manifest import ManifestRow, allowed, read_manifest
from drwr_dist.sources.mesh_folders import list_meshes, object_id
from drwr_dist.sources.meshes import MeshJob, MeshSettings, Remark, Skipped, import_meshes
from drwr_dist.sources.open_shapes import unpack_shapes
from drwr_dist.sources.reframe import up_rotation
from drwr_dist.sources.rendering import RenderSettings
from drwr_dist.validation import check_values
from drwr_dist.version import __version__


@dataclass
class ImportOptions:
    """Build a dataset: render every object, sample its ground truth, split by group, write shards."""

    source: str = "???"  # meshes | open_shapes | dpc | tfrecords | posed; docs/data.md has the layout of each
    input: str = "???"  # meshes, dpc, tfrecords, posed: a folder | open_shapes: a folder of .deb files, or one of them
    output: str = "???"  # folder of the new dataset
    name: str = ""  # of the dataset; empty: the output folder's name
    overwrite: bool = False  # replace a dataset that is in the output folder
    manifest: str | None = None  # CSV: category, name, license, near_duplicate_group, source_package, …
    fetch: bool = True  # open_shapes: let apt-get download packages that are missing in the folder
    licences: list[str] = field(default_factory=list)  # only objects of these licences (needs a manifest); none: all
    categories: list[str] = field(default_factory=list)  # only these; none: all
    splits: str | None = None  # JSON {key: split} or CSV key,split; none: the source's lists, else 70/10/20 by group
    views: int | None = None  # per object; none: 8 rendered, or all that the source has
    image_size: int = 128  # pixels a side
    focal_length: float = 1.875  # frame widths; posed: of a camera at distance 2, others fill the frame as much
    camera: str = "position"  # dpc, tfrecords: position (released quaternion path) | extrinsic (released matrix path)
    up: str | None = None  # meshes (none: +y), posed (none: +z): the axis that points up: +x, -x, +y, -y, +z or -z
    axes: str = "opengl"  # posed: of the cameras in transforms.json: opengl (NeRF's, y up) | opencv (y down)
    distance: float = 2.0  # of the cameras from the object's centre, in bounding-box diagonals
    elevation_min: float = -20.0  # degrees
    elevation_max: float = 40.0  # degrees
    supersample: int = 3  # rays per pixel and axis
    adaptive: bool = True  # all rays of a pixel only where something changes around it, else one; false: all
    depth: bool = False  # also write <view>.depth.png: rendered, or what dpc has; docs/data.md has the scale
    compression: str = "auto"  # of the PNGs: quick | small | auto: quick for what is rendered here, else small
    ground_truth_voxel: float = 0.01  # bounding-box diagonals; one ground-truth point per voxel; 0: no ground truth
    occupancy: bool = True  # of watertight meshes, also write which of 32³ voxels are inside: occupancy.npy
    seed: int = 0  # of cameras, ground truth, splits and order
    workers: int = 0  # processes or Ray tasks at a time; 0: one per core. The bytes written don't depend on it
    engine: str = "auto"  # ray | processes | auto: Ray where RAY_ADDRESS names a cluster, else processes
    skip_bad: bool = False  # count and report objects that can't be used, instead of failing at the first
    max_faces: int = 5_000_000  # per object
    max_megabytes: int = 256  # per mesh file or record
    shard_samples: int = 1000  # objects per shard, at most
    shard_megabytes: float = 256.0  # per shard, at most (MiB)


@dataclass
class VerifyOptions:
    """Check a dataset; exit code 0: sound, 1: damaged, each finding on a line with shard, key and reason."""

    data: str = "???"  # folder or URL


@dataclass
class InspectOptions:
    """Print what a dataset holds, and draw it as a contact sheet or a page."""

    data: str = "???"  # folder or URL
    sheet: str | None = None  # PNG to write: the first views of some objects
    page: str | None = None  # HTML to write: views and turnable ground truth of some objects; needs no network
    rows: int = 16  # objects on the sheet and the page, at most, spread over the dataset
    list: bool = False  # print each object with the split that it is in


Found = Iterator[EncodedSample | Skipped | Remark]
Done = frozenset[str]  # keys that an interrupted import has in finished shards
_RENDERED_VIEWS = 8  # per mesh, where `views` is not given


def import_dataset(options: ImportOptions, console: Console) -> DatasetIndex:
    """Run `shards import`."""
    if options.source not in _SOURCES:
        raise UsageError(f"source={options.source}: unknown; there are {', '.join(_SOURCES)}")
    _check_options(options)
    skipped: list[Skipped | Remark] = []
    try:
        index = _run_import(options, console, skipped)
    except OSError as error:  # a full disk, a folder that may not be written
        raise DataError(f"import to {options.output} failed: {error}") from error
    finally:
        for each in skipped:
            line = f"note: {each.text}" if isinstance(each, Remark) else f"skipped {each.key}: {each.reason}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return index


def _run_import(options: ImportOptions, console: Console, skipped: list[Skipped | Remark]) -> DatasetIndex:
    """Convert and write; what was left out is added to `skipped`."""
    journal = open_journal(options.output, _fingerprint(options), options.overwrite)
    if journal.shards:
        console.print(f"going on with an interrupted import: {len(journal.samples)} objects are done", highlight=False)
    try:
        # Beside the output, so that all nodes of a cluster see what is unpacked there.
        with tempfile.TemporaryDirectory(dir=journal.folder) as scratch, counting(console) as advance:
            found = _SOURCES[options.source](options, Path(scratch), advance, journal.done)
            return write_dataset(
                options.output,
                _without(found, skipped),
                name=options.name or Path(options.output).absolute().name,
                image_size=options.image_size,
                focal_length=options.focal_length,
                limits=ShardLimits(options.shard_samples, int(options.shard_megabytes * 2**20)),
                journal=journal,
            )
    except BaseException:
        journal.abandon()
        raise


def _fingerprint(options: ImportOptions) -> str:
    """Return what two tries of the same import share, however many processes do the work."""
    what = replace(options, output="", name="", overwrite=False, workers=0, engine="auto", fetch=True)
    places = [options.input, options.manifest or "", options.splits or ""]
    return input_fingerprint((__version__, what), filter(None, places), options.output)


def _from_meshes(options: ImportOptions, scratch: Path, progress: Advance, done: Done) -> Found:
    """List the meshes of a folder that the manifest's licences let in; without a manifest, all of them."""
    del scratch
    settings = _mesh_settings(options)
    if options.licences and options.manifest is None:
        raise UsageError("licences=… needs manifest=FILE, which says what licence each object has")
    manifest = None if options.manifest is None else read_manifest(options.manifest)
    rotation = None if options.up in (None, "+y") else tuple(map(tuple, up_rotation(str(options.up)).tolist()))
    jobs = []
    files, without = list_meshes(options.input, options.categories)
    for key, file in files.items():
        if manifest is None:
            row = ManifestRow(group=key, source=file.source, licence=file.licence)
        elif (file.folder, file.name) in manifest:
            row = manifest[file.folder, file.name]
        else:
            raise UsageError(f"manifest={options.manifest}: {file.folder},{file.name} is not listed")
        if allowed(row, options.licences):
            jobs.append(MeshJob(key, file.path, row, settings, root=Path(options.input), rotation=rotation))
    if not jobs:
        raise UsageError(f"licences={options.licences}: no mesh of {options.input} has one of them")
    skipped = (Skipped(key, reason) for key, reason in without)
    return itertools.chain(skipped, import_meshes(jobs, settings, options.splits, progress, done))


def _from_open_shapes(options: ImportOptions, scratch: Path, progress: Advance, done: Done) -> Found:
    """Unpack the manifest's models from their Debian packages."""
    if options.manifest is None:
        raise UsageError("source=open_shapes needs manifest=FILE, which says where in the package each object lies")
    rows: dict[str, ManifestRow] = {}
    for (category, name), row in read_manifest(options.manifest).items():
        if allowed(row, options.licences) and (not options.categories or category in options.categories):
            key = f"{object_id(category)}/{object_id(name)}"
            if key in rows:
                raise DataError(f"{options.manifest}: {category},{name} would be called {key}, as another row is")
            rows[key] = row
    if not rows:
        raise UsageError(f"manifest={options.manifest}: no object is left after licences and categories")
    shapes = unpack_shapes(options.input, rows, scratch, fetch=options.fetch, progress=progress)
    # The models lie beside the output now, and nobody reads the packages any more.
    crew = Crew(options.workers, options.engine, (("output", str(scratch)),))
    settings = replace(_mesh_settings(options), workers=crew)
    jobs = [
        MeshJob(key, shapes[key].path, row, settings, rotation=tuple(map(tuple, shapes[key].rotation.tolist())))
        for key, row in rows.items()
    ]
    return import_meshes(jobs, settings, options.splits, progress, done)


def _from_views(options: ImportOptions, scratch: Path, progress: Advance, done: Done) -> Found:
    """Import objects that come with their own views."""
    from drwr_dist.sources.dpc import import_dpc
    from drwr_dist.sources.posed import import_posed
    from drwr_dist.sources.tfrecords import import_tfrecords

    del scratch
    source = {"dpc": import_dpc, "tfrecords": import_tfrecords, "posed": import_posed}[options.source]
    settings = ViewSettings(
        image_size=options.image_size,
        views=options.views,
        focal_length=options.focal_length,
        camera=options.camera,
        up=options.up or "+z",
        axes=options.axes,
        categories=tuple(options.categories),
        splits=options.splits,
        max_bytes=options.max_megabytes * 2**20,
        depth=options.depth,
        compression="small" if options.compression == "auto" else options.compression,
        seed=options.seed,
        workers=_crew(options),
        skip_bad=options.skip_bad,
    )
    return source(options.input, settings, progress, done)


_SOURCES: dict[str, Callable[[ImportOptions, Path, Advance, Done], Found]] = {
    "meshes": _from_meshes,
    "open_shapes": _from_open_shapes,
    "dpc": _from_views,
    "tfrecords": _from_views,
    "posed": _from_views,
}
_RENDERED = ("meshes", "open_shapes")
_ONLY_FOR = {  # keys that mean something to some sources alone
    **dict.fromkeys(("manifest", "licences", "distance", "elevation_min", "elevation_max"), _RENDERED),
    **dict.fromkeys(("supersample", "adaptive", "ground_truth_voxel", "occupancy", "max_faces"), _RENDERED),
    "max_megabytes": (*_RENDERED, "tfrecords"),
    "camera": ("dpc", "tfrecords"),
    "depth": (*_RENDERED, "dpc"),
    "fetch": ("open_shapes",),
    "up": ("meshes", "posed"),
    "axes": ("posed",),
}
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "engine": ENGINES,
    "compression": ("auto", *COMPRESSIONS),
    "camera": ("position", "extrinsic"),
    "axes": ("opengl", "opencv"),
    "up": (None, "+x", "-x", "+y", "-y", "+z", "-z"),
}


def _check_options(options: ImportOptions) -> None:
    """Raise UsageError for the first value that can't work, or that the source would not look at."""
    defaults = {entry.name: entry.default for entry in fields(ImportOptions)}
    for name, sources in _ONLY_FOR.items():
        value = getattr(options, name)
        if options.source not in sources and value != defaults[name] and value != []:
            raise UsageError(f"{name}={value}: means nothing to source={options.source}, only to {', '.join(sources)}")
    for name, choices in _CHOICES.items():
        if getattr(options, name) not in choices:
            raise UsageError(f"{name}={getattr(options, name)}: choose one of {', '.join(filter(None, choices))}")
    positive = (
        "image_size",
        "focal_length",
        "supersample",
        "max_faces",
        "max_megabytes",
        "shard_samples",
    )
    for name in (*positive, "shard_megabytes"):
        if not 0 < getattr(options, name) < math.inf:
            raise UsageError(f"{name}={getattr(options, name)}: must be positive")
    if options.views is not None and options.views < 1:
        raise UsageError(f"views={options.views}: must be positive")
    if options.image_size > MAX_SIDE:
        raise UsageError(f"image_size={options.image_size}: at most {MAX_SIDE} pixels")
    if not -90 < options.elevation_min <= options.elevation_max < 90:
        raise UsageError("elevation_min and elevation_max must be in (-90, 90) degrees, in this order")
    if not 0.5 < options.distance < math.inf:
        raise UsageError(f"distance={options.distance}: must be above 0.5, or the camera stands in the object")
    if not 0 <= options.ground_truth_voxel < math.inf or options.workers < 0 or options.seed < 0:
        raise UsageError("ground_truth_voxel, workers and seed must not be negative")


def _mesh_settings(options: ImportOptions) -> MeshSettings:
    render = RenderSettings(
        image_size=options.image_size,
        views=_RENDERED_VIEWS if options.views is None else options.views,
        focal_length=options.focal_length,
        distance=options.distance,
        elevation_min=options.elevation_min,
        elevation_max=options.elevation_max,
        supersample=options.supersample,
        adaptive=options.adaptive,
        depth=options.depth,
    )
    return MeshSettings(
        render=render,
        limits=MeshLimits(options.max_megabytes * 2**20, options.max_faces),
        ground_truth_voxel=options.ground_truth_voxel,
        occupancy=options.occupancy,
        seed=options.seed,
        workers=_crew(options),
        skip_bad=options.skip_bad,
        compression="quick" if options.compression == "auto" else options.compression,
    )


def _crew(options: ImportOptions) -> Crew:
    return Crew(options.workers, options.engine, (("input", options.input),))


def _without(found: Found, skipped: list[Skipped | Remark]) -> Iterator[EncodedSample]:
    for item in found:
        if isinstance(item, (Skipped, Remark)):
            skipped.append(item)
        else:
            yield item


def _import(arguments: Sequence[str]) -> int:
    options = load_options(ImportOptions, arguments, verb="shards import", with_file=False)
    index = import_dataset(options, terminal.console(stderr=True))
    print_summary(index, terminal.console())
    return 0


def _inspect(arguments: Sequence[str]) -> int:
    options = load_options(InspectOptions, arguments, verb="shards inspect", with_file=False)
    index = load_index(options.data)
    print_summary(index, terminal.console())
    if options.list:
        print(listing(index))
    if options.sheet:
        write_sheet(index, options.sheet, options.rows)
    if options.page:
        write_page(index, options.page, options.rows)
    for path in filter(None, (options.sheet, options.page)):
        print(f"{path}: {what_is_shown(index, options.rows)}")
    return 0


def _verify(arguments: Sequence[str]) -> int:
    options = load_options(VerifyOptions, arguments, verb="shards verify", with_file=False)
    console = terminal.console(stderr=True)
    with counting(console) as advance:
        findings = verify_dataset(options.data, lambda _, total: advance("checking", total))
    for finding in findings:
        print(finding)
    objects = sum(shard.nsamples for shard in load_index(options.data).shards)
    if findings:
        console.print(f"damaged: {len(findings)} findings in {options.data}", markup=False)
        return 1
    print(f"sound: {objects} objects in {options.data}")
    return 0


def _stream(arguments: Sequence[str]) -> int:
    from drwr_dist.data.stream import StreamOptions, print_stream  # brings torch, which the other actions don't need

    options = load_options(StreamOptions, arguments, verb="shards stream", with_file=False)
    check_values(options, ("data", "loader", "seed", "global_batch"))
    print_stream(options)
    return 0


_ACTIONS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "import": (_import, "build a dataset from meshes, renders, TFRecords or photographs"),
    "verify": (_verify, "check every file, sample and camera of a dataset"),
    "inspect": (_inspect, "print what a dataset holds"),
    "stream": (_stream, "read the training stream of one rank, print the keys of each step"),
}


def main(arguments: Sequence[str]) -> int:
    """Run `shards ACTION key=value …`."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print("usage: python -m drwr_dist.shards ACTION key=value …   (each action has --help)\n")
        for name, (_, summary) in _ACTIONS.items():
            print(f"  {name.ljust(8)}  {summary}")
        return 0 if arguments else 2
    if arguments[0] not in _ACTIONS:
        raise UsageError(f"shards: unknown action {arguments[0]!r}; there are {', '.join(_ACTIONS)}")
    return _ACTIONS[arguments[0]][0](arguments[1:])


if __name__ == "__main__":
    run_verb(main)
