"""`sonolex doctor`: checks of this machine for problems that would stop or slow a run, one row per check.

A row is `broken` when a run would fail, `note` when it would work but could be improved, `ok` otherwise.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import psutil
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from pipeline.artifacts.layout import Layout
from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.tables import Table, TableSchema
from pipeline.check_params import Experiment, load_experiment
from pipeline.errors import ArtifactError, ParamsError
from pipeline.execution.threads import allowed_cores
from pipeline.spectrogram.sources import BadClip
from tools.corpus_check import corpus_mistakes, current_manifest, try_clips
from tools.package_check import package_mistakes

Verdict = Literal["ok", "note", "broken"]

M = TypeVar("M", bound=Metadata)

LOCK_PATH = Path("requirements.lock")
PYTHONS = ((3, 11), (3, 13))
PACKAGES = ("numpy", "zarr", "tensorstore", "pyarrow", "dvc", "soundfile", "soxr", "scikit-learn")
TORCH_EXTENSIONS = ("torchaudio", "torchvision")  # compiled against torch; timm imports the second

_FROM_LOCK = "`make -B install`"  # -B: make takes an environment for up to date whatever was installed into it since
_ANEW = "`make clean install`"  # installers take any build of the right version for the right one

# File systems with reflinks (copies that share blocks), where DVC's default, `reflink,copy`, takes no space.
_REFLINK = ("xfs", "btrfs", "apfs", "bcachefs")
_STYLES: dict[Verdict, str] = {"ok": "green", "note": "yellow", "broken": "bold red"}
_SLACK = 2 << 30  # bytes: for models, logs and plots, in addition to frames
_BYTES = {"float32": 4, "float16": 2, "int16": 2, "uint8": 1}


@dataclass(frozen=True)
class Row:
    check: str
    found: str
    advice: str = ""
    verdict: Verdict = "ok"


def run(params_path: Path, layout: Layout, console: Console) -> bool:
    """Print all checks; return whether any is broken."""
    rows = [*check_packages(LOCK_PATH), *check_machine()]
    cache = find_cache(Path.cwd())
    rows += check_cache(cache)
    experiment, row = check_params(params_path)
    rows.append(row)
    if experiment:
        rows += check_needs(experiment, params_path)
        rows.append(check_corpus(experiment, layout, params_path))
        seconds, errors = try_clips(experiment, layout) if rows[-1].verdict == "ok" else ([], [])
        rows += check_audio(experiment, seconds, errors)
        rows.append(check_space(experiment, layout, cache, seconds))
    console.print(rows_table(rows))
    return any(row.verdict == "broken" for row in rows)


def rows_table(rows: list[Row]) -> Grid:
    """Return the checks as a table for the terminal."""
    grid = Grid()
    for name in ("check", "", "found", "advice"):
        grid.add_column(name, no_wrap=name == "check")
    for row in rows:
        verdict = f"[{_STYLES[row.verdict]}]{row.verdict}[/]"
        grid.add_row(escape(row.check), verdict, escape(row.found), escape(row.advice))
    return grid


def check_packages(lock_path: Path) -> Iterator[Row]:
    """Check Python, and that packages are installed, compatible, and those of the lock file."""
    version = sys.version_info
    low, high = (".".join(map(str, bound)) for bound in PYTHONS)
    right = PYTHONS[0] <= version[:2] <= PYTHONS[1]
    found = f"{version.major}.{version.minor}.{version.micro}"
    yield Row("python", found, "" if right else f"expected {low} to {high}", "ok" if right else "broken")
    locked = read_lock(lock_path)
    torch = built_version("torch")
    yield _check_version("torch", torch, locked)
    for name in TORCH_EXTENSIONS:
        yield check_extension(name, built_version(name), torch, locked)
    faiss = "faiss-gpu" if _version("faiss-gpu") else "faiss-cpu"
    yield _check_import("faiss", faiss, locked)
    for name in PACKAGES:
        yield _check_version(name, _version(name), locked)


def built_version(package: str) -> str:
    """Return a package's version with what it was built for (`2.11.0+cu130`, `2.11.0+cpu`); empty where it is missing.

    The module says so, and is not imported for it: one that does not fit cannot be. The package's metadata may leave it out.
    """
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    text = path.read_text(encoding="utf-8") if path and path.exists() else ""
    named = re.search(r"^__version__\b[^=]*= *['\"](.+?)['\"]", text, flags=re.MULTILINE)
    return named[1] if named else _version(package)


def check_extension(package: str, found: str, torch: str, locked: dict[str, str]) -> Row:
    """Check that a package compiled against torch can be loaded beside it.

    Built for CUDA, it must be for the CUDA release that torch is built for; built for the processor, it loads beside any.
    Versions need not be equal: torchaudio, from 2.11 on, keeps to the part of torch that stays (its stable ABI).
    """
    variant, expected = (version.partition("+")[2] for version in (found, torch))
    if variant and expected and variant not in ("cpu", expected):
        target = expected if expected == "cpu" else variant
        advice = (
            f"built for {variant}, and torch for {expected}: {_ANEW}, or all for one: `uv pip install --torch-backend "
            f"{target} --reinstall torch {' '.join(TORCH_EXTENSIONS)}`"
        )
        return Row(package, found, advice, "broken")
    return _check_import(package, package, locked, found)


def read_lock(path: Path) -> dict[str, str]:
    """Return package -> version of the lock file, or nothing where there is none."""
    if not path.exists():
        return {}
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE))


def check_machine() -> Iterator[Row]:
    """Check cores, memory and GPUs."""
    cores = allowed_cores()
    memory = psutil.virtual_memory()
    yield Row("cores", f"{cores} usable of {psutil.cpu_count()}")
    scarce = memory.available < cores << 30
    advice = "below 1 GB a core: lower execution.workers" if scarce else ""
    yield Row("memory", f"{_size(memory.available)} free of {_size(memory.total)}", advice, "note" if scarce else "ok")
    yield _check_gpu()


@dataclass(frozen=True)
class Cache:
    """DVC's cache: its folder, link types, and the file systems of cache and workspace."""

    path: Path
    types: tuple[str, ...]  # as configured; empty = DVC's default, reflink then copy
    file_system: str
    same_device: bool

    def advised(self) -> tuple[str, ...]:
        """Return the link types that need no copies here. `hardlink` must come first, or DVC copies into the cache."""
        if not self.same_device:
            return ("symlink",)
        return () if self.file_system in _REFLINK else ("hardlink", "symlink")

    @property
    def copies(self) -> bool:
        """Whether every artifact is stored twice."""
        if self.types[:1] in (("hardlink",), ("symlink",)):
            return False
        return self.file_system not in _REFLINK or not self.same_device


def find_cache(workspace: Path) -> Cache | None:
    """Return DVC's cache of the workspace, or None outside a DVC repository."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(workspace) as repo:
            path = Path(repo.cache.local.path)
            types = repo.config["cache"].get("type") or ()
    except DvcException:
        return None
    existing = _existing(path)
    same = existing.stat().st_dev == workspace.stat().st_dev
    return Cache(path, tuple(types), file_system(workspace), same)


def check_cache(cache: Cache | None) -> Iterator[Row]:
    """Check how DVC's cache is linked to the workspace."""
    if cache is None:
        yield Row("dvc", "no DVC repository here", "run it in the repository's root", "broken")
        return
    where = "the same" if cache.same_device else "another"
    yield Row("file system", f"{cache.file_system}; DVC's cache is on {where} device")
    found = f"cache.type {','.join(cache.types) or 'by default reflink,copy'}"
    if cache.copies:
        advised = ",".join(cache.advised())
        advice = f"artifacts are kept twice; to link them: dvc config --local cache.type {advised}"
        yield Row("dvc links", found, advice, "note")
    else:
        yield Row("dvc links", found)


def file_system(path: Path) -> str:
    """Return the type of the file system that a path lies on (`ext4`, `nfs4`, ...), or `unknown`."""
    path = path.resolve()
    mounts = [
        (len(part.mountpoint), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if path.is_relative_to(part.mountpoint)
    ]
    return max(mounts)[1].lower() if mounts else "unknown"


def check_params(path: Path) -> tuple[Experiment | None, Row]:
    """Check params.yaml; see `pipeline/check_params.py`."""
    try:
        experiment = load_experiment(path)
    except ParamsError as error:
        return None, Row("params", str(error), "correct the file, or write one with `sonolex compose RECIPE`", "broken")
    grid = experiment.sections["experiment"]
    size = f"{len(grid.models)} models x {len(grid.folds)} folds x {len(grid.seeds)} seeds"
    return experiment, Row("params", f"{path}: corpus {experiment.sections['corpus'].kind}, {size}")


def check_needs(experiment: Experiment, params_path: Path) -> Iterator[Row]:
    """Check that the optional packages are installed which the experiment needs; see `tools/package_check.py`."""
    if mistakes := package_mistakes(experiment, params_path):
        yield Row("optional packages", "\n".join(mistakes), "a run would stop here", "broken")


def check_corpus(experiment: Experiment, layout: Layout, params_path: Path) -> Row:
    """Check that the corpus is here and has the experiment's folds; see `tools/corpus_check.py`."""
    mistakes = corpus_mistakes(experiment, layout, params_path)
    root = experiment.sections["corpus"].root
    if mistakes:
        return Row("corpus", "\n".join(mistakes), "a run would stop here", "broken")
    if root.is_dir():
        return Row("corpus", str(root))
    makes_audio = experiment.sections["corpus"].makes_audio
    return Row("corpus", f"{root}: not yet made" if makes_audio else f"no audio at {root}; its manifest is here")


def check_audio(experiment: Experiment, seconds: list[float], errors: list[BadClip]) -> Iterator[Row]:
    """Check that clips can be decoded: those that were tried, by their durations, or their errors."""
    tried = len(seconds) + len(errors)
    if not tried:
        return
    found = f"{len(seconds)} of {tried} clips that were tried can be used"
    causes = {error.reason: error for error in errors}.values()
    found += "".join(f"\n{error}" for error in causes)
    allowed = len(errors) <= experiment.sections["corpus"].max_bad_fraction * tried
    advice = "" if allowed else "a run may stop: repair the files, or raise corpus.max_bad_fraction"
    yield Row("audio", found, advice, "note" if errors else "ok")


def check_space(experiment: Experiment, layout: Layout, cache: Cache | None, tried: Sequence[float] = ()) -> Row:
    """Compare the free space, here and in the cache, with the size of the corpus's frames; `tried` as `corpus_seconds`."""
    seconds, source = corpus_seconds(experiment, layout, tried)
    if seconds is None:
        return Row("disk space", f"{_size(_free(Path.cwd()))} free", source)
    frames = experiment.sections["spectrogram"]
    needed = seconds * frames.metadata["frame_rate"] * frames.metadata["n_mels"] * _BYTES[frames.dtype]
    needed += _SLACK
    found = f"{_size(needed)} needed for {seconds / 3600:,.1f} h of sound ({source})"
    places = {Path.cwd(): needed * 2 if cache and cache.copies and cache.same_device else needed}
    if cache and not cache.same_device:
        places[_existing(cache.path)] = needed
    short = []
    for place, bytes_needed in places.items():
        found += f"; {_size(_free(place))} free at {place}"
        if _free(place) < bytes_needed:
            short.append(f"{_size(bytes_needed - _free(place))} more at {place}")
    return Row("disk space", found, f"make room: {', '.join(short)}" if short else "", "broken" if short else "ok")


def corpus_seconds(experiment: Experiment, layout: Layout, tried: Sequence[float] = ()) -> tuple[float | None, str]:
    """Return the duration of the corpus in seconds, from the best available source, and the source (or what is missing).

    What the last run left counts only if it is of this corpus. `tried` are durations of some clips in seconds.
    """
    clips = current_manifest(experiment, layout)
    if clips is None:
        return None, "the size of the corpus is known after `dvc repro corpus`"
    index = _open(INDEX, layout.spectrogram_index)
    if index is not None and index["clip_id"].equals(clips["clip_id"]):
        return (pc.sum(index["num_frames"]).as_py() or 0) / index.metadata["front_end"]["frame_rate"], "index of frames"
    if tried:
        return len(clips) * sum(tried) / len(tried), f"{len(clips)} clips, by {len(tried)} of them"
    durations = [duration or experiment.sections["corpus"].max_duration for duration in clips.list("duration")]
    return sum(durations), "manifest, at most"


def _open(schema: TableSchema[M], path: Path) -> Table[M] | None:
    try:
        return schema.open(path)
    except ArtifactError:
        return None


def _check_gpu() -> Row:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Row("gpu", f"unknown: {error}", _ANEW, "broken")
    if not torch.cuda.is_available():
        return Row("gpu", "none that torch can use", "training runs on the CPU")
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    import faiss

    count = faiss.get_num_gpus()
    advice = "" if count else "faiss sees none: vocabularies are fitted on the CPU"
    return Row(
        "gpu", f"{', '.join(names)} (CUDA {torch.version.cuda}); faiss: {count}", advice, "ok" if count else "note"
    )


def _check_import(module: str, package: str, locked: dict[str, str], found: str = "") -> Row:
    found = found or _version(package)
    try:
        importlib.import_module(module)
    # OSError: a shared library is missing or incompatible; RuntimeError: an extension reports another build of torch.
    except (ImportError, OSError, RuntimeError) as error:
        advice = f"{_ANEW if found else _FROM_LOCK}; importing it says: {error}"
        return Row(package, found or "missing", advice, "broken")
    return _check_version(package, found, locked)


def _check_version(package: str, found: str, locked: dict[str, str]) -> Row:
    if not found:
        return Row(package, "missing", _FROM_LOCK, "broken")
    expected = locked.get(package, found).partition("+")[0]
    if found.partition("+")[0] != expected:
        return Row(package, found, f"the lock has {expected}: {_FROM_LOCK}", "note")
    return Row(package, found)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _existing(path: Path) -> Path:
    """Return the path, or the closest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _free(path: Path) -> int:
    return shutil.disk_usage(path).free


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
