"""What may go wrong outside the program: full disks, lost files, flipped bytes, two runs at once.

Each is a message of one line, or heals, and nothing that was finished is lost. Killed workers: test_execution.py.
"""

import errno
import multiprocessing
import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, make_clips, make_spectrogram, make_wav_corpus
from safetensors import SafetensorError
from workspace import FOLDS, change_params, run, stage, stages_run, stale

from benchmarks.attack.bits import flip
from pipeline.artifacts.files import replacing, storage_fault
from pipeline.artifacts.model import open_model
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.tokens import open_tokens
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.errors import ArtifactError
from pipeline.spectrogram.reader import FrameReader
from stages import development

DEVELOPMENT, TARGETS = (f"data/development/{name}/1.parquet" for name in ("clips", "targets"))

# What each stage is run with below a folder, and where its output goes.
ARGUMENTS = {
    "spectrogram": ("data/clips.parquet", "{}/spectrogram"),
    "vocabulary": ("data/spectrogram", DEVELOPMENT, "{}/kmeans/1.zarr"),
    "tokenize": ("data/spectrogram", "data/vocabulary/kmeans/1.zarr", "{}/kmeans/1.parquet"),
    "train": (DEVELOPMENT, TARGETS, "data/spectrogram", "{}/frame_statistics/1/0", "curves"),
}


def _open_trained(path: Path) -> object:
    return open_model(path / "frame_statistics/1/0")


OPENERS: dict[str, Callable[[Path], object]] = {
    "spectrogram": lambda path: FrameReader(open_spectrogram(path / "spectrogram")),
    "vocabulary": lambda path: open_vocabulary(path / "kmeans" / "1.zarr"),
    "tokenize": lambda path: open_tokens(path / "kmeans" / "1.parquet"),
    "train": _open_trained,
}


def run_stage(
    folder: Path, name: str, output: Path, *, max_file: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a stage's program in `folder`; `max_file` bounds the bytes of any file it writes."""
    paths = [part.format(output) for part in ARGUMENTS[name]]
    command = [sys.executable, str(REPOSITORY / "tests" / "probe_paths.py"), name, *paths]
    return subprocess.run(
        command if max_file is None else ["prlimit", f"--fsize={max_file}", *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which each stage can run, without DVC: two dozen clips, of which one fold trains on half."""
    folder = tmp_path_factory.mktemp("reliability")
    shutil.copy(REPOSITORY / "params.yaml", folder)
    root = make_wav_corpus(folder / "audio", clips_per_class=4)
    changes = {"corpus.root": str(root), "corpus.max_bad_fraction": 0.1, "vocabularies.kmeans.num_tokens": 16}
    sizes = {"minimum": 2, "average": 4, "maximum": 6}
    change_params(folder, changes | {"spectrogram.clips_per_shard": sizes, "execution.workers": 2})
    sources = sorted(str(path.relative_to(root)) for path in root.rglob("*.wav"))
    labels = [[int(Path(source).stem.split("-")[-1])] for source in sources]
    make_clips(folder / "data/clips.parquet", root, sources, labels=labels)
    ids = [Path(source).stem for source in sources]
    roles = ["test" if clip.startswith("1-") else "train" for clip in ids]
    metadata = {"fold": "1", "seed": 0, "rule": "by hand"}
    SPLIT.write(folder / "data/splits/1.parquet", {"clip_id": ids, "role": roles}, metadata)
    for name, place in (("spectrogram", "data"), ("vocabulary", "data/vocabulary"), ("tokenize", "data/tokens")):
        done = run_stage(folder, name, Path(place))
        assert done.returncode == 0, done.stderr
        if name == "spectrogram":
            index = folder / "data/spectrogram/index.parquet"
            tables = folder / DEVELOPMENT, folder / TARGETS
            development.run(folder / "data/clips.parquet", folder / "data/splits/1.parquet", index, *tables)
    return folder


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 2 MiB of its own, or skip where that is not allowed."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", path], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs to mount a small disk: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


# Storage faults


@pytest.mark.slow
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_full_disk_is_a_message_and_with_room_the_rerun_completes(name: str, folder: Path, disk: Path) -> None:
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free))
    done = run_stage(folder, name, disk)
    assert done.returncode == 1, done.stderr
    assert re.search(rf"^error: {disk}/\S+: expected room on the disk, found it full; .*make room", done.stderr, re.M)
    assert "Traceback" not in done.stderr
    assert [path for path in disk.rglob("*") if path.is_file()] == [ballast]
    ballast.unlink()
    again = run_stage(folder, name, disk)
    assert again.returncode == 0, again.stderr
    OPENERS[name](disk)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit (Linux)")
@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_file_that_may_not_grow_is_a_message_and_leaves_the_old_result(
    name: str, folder: Path, tmp_path: Path
) -> None:
    assert run_stage(folder, name, tmp_path).returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = run_stage(folder, name, tmp_path, max_file=600)
    assert done.returncode == 1, done.stderr
    assert f"error: {tmp_path}/" in done.stderr
    assert "expected room for the file, found that it would exceed the largest allowed size" in done.stderr
    assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EDQUOT, "quota"), errno.EDQUOT),
        (OSError(errno.EIO, "disk"), errno.EIO),
        (OSError(errno.ENOENT, "nothing"), None),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"), errno.ENOSPC),
        (ValueError("size: expected 28, found 3"), None),
    ],
)
def test_storage_faults_are_known_whoever_raises_them(error: Exception, expected: int | None, tmp_path: Path) -> None:
    assert storage_fault(error) == expected
    with pytest.raises(type(error) if expected is None else OSError) as caught, replacing(tmp_path / "artifact"):
        raise error
    if expected is None:
        assert caught.value is error
    else:
        assert (caught.value.errno, caught.value.filename) == (expected, str(tmp_path / "artifact"))


def test_a_fault_of_a_file_that_is_read_keeps_its_name(tmp_path: Path) -> None:
    """The artifact that is being written has nothing to do with it."""
    with pytest.raises(PermissionError) as caught, replacing(tmp_path / "artifact"):
        raise PermissionError(errno.EACCES, "denied", "memo/rows.parquet")
    assert caught.value.filename == "memo/rows.parquet"
    with pytest.raises(OSError, match="artifact") as caught, replacing(tmp_path / "artifact") as partial:
        raise OSError(errno.ENOSPC, "full", "memo/frames", None, str(partial / "frames"))
    assert caught.value.filename == str(tmp_path / "artifact")


def test_a_full_disk_under_sqlite_is_known_too(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "memo.sqlite") as store:
        store.execute("PRAGMA max_page_count = 2")
        store.execute("CREATE TABLE content (bytes BLOB)")
        with pytest.raises(sqlite3.OperationalError) as caught:
            store.execute("INSERT INTO content VALUES (zeroblob(100000))")
    assert storage_fault(caught.value) == errno.ENOSPC


# A vanished file


@pytest.mark.slow
def test_an_audio_file_that_vanished_is_in_the_index_and_the_run_goes_on(folder: Path, tmp_path: Path) -> None:
    lost = sorted((folder / "audio/audio").iterdir())[3]
    content = lost.read_bytes()
    lost.unlink()
    shutil.rmtree(folder / ".sonolex" / "memo")  # else its frames are known, and nothing misses the file
    try:
        done = run_stage(folder, "spectrogram", tmp_path)
    finally:
        lost.write_bytes(content)
    assert done.returncode == 0, done.stderr
    assert "failed: missing 1;" in done.stderr
    whole, index = open_spectrogram(folder / "data/spectrogram").index, open_spectrogram(tmp_path / "spectrogram").index
    assert index.list("clip_id") == whole.list("clip_id")
    failed = [row for row in index.columns.to_pylist() if row["status"] == "failed"]
    assert [(row["clip_id"], row["reason"]) for row in failed] == [(lost.stem, "missing")]


# Flipped bytes


def _fuzzed(path: Path, *, every: int) -> Iterator[tuple[Path, int]]:
    """Flip, one after another, every so many bytes of every file below `path`, and put each back."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        content = file.read_bytes()
        for position in range(0, len(content), every):
            damaged = bytearray(content)
            damaged[position] ^= 0x01 if position % 2 else 0xFF
            file.write_bytes(damaged)
            yield file, position
        file.write_bytes(content)


def _values_of_spectrogram(path: Path) -> str:
    spectrogram = open_spectrogram(path)
    frames = FrameReader(spectrogram).read(["a", "b", "c", "d", "e"])
    return repr((spectrogram.metadata, spectrogram.index.columns.to_pydict(), [values.tobytes() for values in frames]))


def _values_of_vocabulary(path: Path) -> str:
    vocabulary = open_vocabulary(path)
    space = vocabulary.space
    arrays = (
        vocabulary.codebooks,
        vocabulary.levels,
        vocabulary.counts,
        vocabulary.merges,
        space.mean,
        space.scale,
        space.delta_scale,
    )
    return repr((vocabulary.metadata, [values.tobytes() for values in (*arrays, space.centre, space.components)]))


def _values_of_tokens(path: Path) -> str:
    tokens = open_tokens(path)
    return repr((tokens.metadata, tokens.columns.to_pydict()))


def _values_of_model(path: Path) -> str:
    model = open_model(path)
    return repr((model.metadata, {name: values.tobytes() for name, values in model.weights.items()}))


def _refused_or_same(values: Callable[[Path], str], path: Path, *, every: int) -> None:
    whole, num_refused = values(path), 0
    for file, position in _fuzzed(path, every=every):
        try:
            assert values(path) == whole, f"byte {position} of {file} changed what is read"
        except ArtifactError:
            num_refused += 1
    assert num_refused
    assert values(path) == whole


def test_no_flipped_byte_of_a_spectrogram_is_a_silent_number(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    frames = {clip: generator.normal(size=(30, 6)).astype(np.float32) for clip in "abcde"}
    path = make_spectrogram(tmp_path / "spectrogram", frames)
    _refused_or_same(_values_of_spectrogram, path, every=61)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "place"),
    [
        (_values_of_vocabulary, "data/vocabulary/kmeans/1.zarr"),
        (_values_of_tokens, "data/tokens/kmeans/1.parquet"),
        (_values_of_model, "frame_statistics/1/0"),
    ],
)
def test_no_flipped_byte_is_a_silent_number(
    values: Callable[[Path], str], place: str, folder: Path, tmp_path: Path
) -> None:
    if place not in ("data/vocabulary/kmeans/1.zarr", "data/tokens/kmeans/1.parquet"):
        assert run_stage(folder, "train", tmp_path).returncode == 0
    source = next(base / place for base in (folder, tmp_path) if (base / place).exists())
    copy = tmp_path / "copy" / source.name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, copy.parent.mkdir() or copy)
    size = sum(file.stat().st_size for file in [copy, *copy.rglob("*")] if file.is_file())
    _refused_or_same(values, copy, every=max(1, size // 400) | 1)


# The stages that meet a damaged artifact.
FOLD = FOLDS[0]
TOKENS, BAG = f"data/tokens/kmeans/{FOLD}.parquet", f"models/bag_of_tokens-kmeans/{FOLD}/0"
READERS = {
    "vocabulary": ("kmeans", "--fold", FOLD),
    "tokenize": ("kmeans", "--fold", FOLD),
    "train": ("ast", "--fold", FOLD, "--seed", "0"),
    "evaluate": ("bag_of_tokens", "--vocabulary", "kmeans", "--fold", FOLD, "--seed", "0"),
    "report": (),
}


@pytest.fixture(scope="module")
def _copy(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished, tmp_path_factory.mktemp("copied") / "workspace", symlinks=True))


@pytest.fixture
def copied(_copy: Path) -> Iterator[Path]:
    """Return a copy of the finished workspace, cache included; it is put back afterwards."""
    yield _copy
    run(_copy, "git", "checkout", "-q", ".")
    run(_copy, "dvc", "checkout", "-q", "--force")


def _flip(path: Path) -> None:
    """Flip a byte; in a file of its own, since DVC's cache may be linked here."""
    content = bytearray(path.read_bytes())
    place = len(content) // 3
    if path.suffix == ".parquet":  # headers of pages and the footer say some things twice: among values, then
        columns = pq.read_metadata(path).row_group(0).to_dict()["columns"]
        longest = max(columns, key=lambda column: column["total_compressed_size"])
        place = longest["data_page_offset"] + 2 * longest["total_compressed_size"] // 3
    content[place] ^= 0xFF
    path.unlink()
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damaged", "reader"),
    [
        ("data/spectrogram/frames.zarr/*/c/0/0", "tokenize"),
        ("data/spectrogram/frames.zarr/*/c/0/0", "train"),
        ("data/spectrogram/index.parquet", "vocabulary"),
        (f"data/vocabulary/kmeans/{FOLD}.zarr/codebooks/c/0/0/0", "tokenize"),
        (TOKENS, "evaluate"),
        (f"{BAG}/weights.safetensors", "evaluate"),
        (f"predictions/bag_of_tokens-kmeans/{FOLD}/0.parquet", "report"),
        ("data/clips.parquet", "evaluate"),
        (f"data/development/clips/{FOLD}.parquet", "vocabulary"),
        (f"data/development/targets/{FOLD}.parquet", "train"),
    ],
)
def test_damage_is_named_and_the_message_heals_it_token_for_token(damaged: str, reader: str, copied: Path) -> None:
    shutil.rmtree(
        copied / ".sonolex" / "memo", ignore_errors=True
    )  # else tokenize knows its token sequences, and does not read the frames
    path = min(copied.glob(damaged))
    arguments = READERS[reader]
    whole = path.read_bytes()
    _flip(path)
    done = stage(copied, reader, *arguments, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: \S+: [^:]+: expected .*, found .*; rerun it with", message)
    named = copied / message.split(": ")[1]
    assert path == named or named in path.parents
    again, _, back = re.findall(r"`(dvc [^`]+)`", message)

    run(copied, *shlex.split(back))
    assert path.read_bytes() == whole

    _flip(path)
    run(copied, *shlex.split(again))
    stage(copied, reader, *arguments)
    if not path.is_relative_to(copied / "models"):  # a model's card tells how long its training took
        assert path.read_bytes() == whole


@pytest.mark.slow
def test_a_bit_lost_in_a_linked_cache_is_healed_by_the_recipe_of_the_guide(copied: Path, tmp_path: Path) -> None:
    """Workspace and cache are one file, so neither can heal the other; DVC sees it once a stage has met the damage."""
    workspace = Path(shutil.copytree(copied, tmp_path / "workspace", symlinks=True))
    run(workspace, "dvc", "config", "--local", "cache.type", "hardlink")
    run(workspace, "dvc", "checkout", "-q", "--relink")
    shard = min(workspace.glob("data/spectrogram/frames.zarr/*/c/0/0"))
    status, content = shard.stat(), bytearray(shard.read_bytes())
    assert status.st_nlink > 1
    content[len(content) // 2] ^= 1
    shard.chmod(0o644)
    with shard.open("r+b") as file:
        file.write(content)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    shard.chmod(status.st_mode)
    arguments = READERS["vocabulary"]
    assert stale(workspace) == set()
    assert stage(workspace, "vocabulary", *arguments, check=False).returncode == 1
    assert "spectrogram" in stale(workspace)
    guide = (REPOSITORY / "docs/sharing.md").read_text()
    (recipe,) = re.findall(r"```bash\n(.*?)```", guide, re.DOTALL)
    stages = stages_run(run(workspace, "bash", "-c", recipe).stdout)
    assert set(stages) - {"code"} == {"corpus", "spectrogram"}  # made again, as it was: what follows stays
    stage(workspace, "vocabulary", *arguments)
    assert stale(workspace) == set()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["dvc repro", "dvc repro --force --single-item spectrogram"])
def test_a_chunk_damaged_in_the_memo_heals_by_the_advice(copied: Path, tmp_path: Path, way: str) -> None:
    """Once a stage has met the damage: its message tells the second way; the first is what one does anyway."""
    workspace = Path(shutil.copytree(copied, tmp_path / "workspace", symlinks=True))
    run(workspace, "dvc", "repro", "-q", "--force", "--single-item", "spectrogram")  # links artifact and memo
    shard = min(workspace.glob("data/spectrogram/frames.zarr/*/c/0/0"))
    whole = shard.read_bytes()
    (kept,) = workspace.glob(f".sonolex/memo/spectrogram/*/{shard.parts[-4]}/frames/c/0/0")
    for path in {file.stat().st_ino: file for file in (shard, kept)}.values():  # one file, or two
        flip(path, np.random.default_rng(0))
    done = stage(workspace, "vocabulary", *READERS["vocabulary"], check=False)
    assert "frames as written" in done.stderr
    run(workspace, *shlex.split(way))
    assert shard.read_bytes() == whole
    stage(workspace, "vocabulary", *READERS["vocabulary"])
    assert stale(workspace) == set()


# Two at once


def _write_folder(path: Path, value: int) -> None:
    for _ in range(100):
        with replacing(path) as partial:
            partial.mkdir()
            for name in "abc":
                (partial / name).write_text(f"{value}\n" * 1000)


def test_writers_of_one_folder_never_meet(tmp_path: Path) -> None:
    """A folder cannot be replaced by a rename: removing it first let another writer's take its place, and failed."""
    path = tmp_path / "artifact"
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    writers = [context.Process(target=_write_folder, args=(path, value)) for value in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0, 0]
    assert len({(path / name).read_text() for name in "abc"}) == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("old", "new"), [("folder", "file"), ("file", "folder"), ("folder", "folder")])
def test_anything_takes_the_place_of_anything(old: str, new: str, tmp_path: Path) -> None:
    path = tmp_path / "artifact"
    for kind in (old, new):
        with replacing(path) as partial:
            if kind == "folder":
                (partial / "deep").mkdir(parents=True)
                (partial / "deep" / kind).touch()
            else:
                partial.touch()
    assert path.is_dir() == (new == "folder")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_two_spectrogram_stages_at_once_leave_one_whole_artifact(folder: Path, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    program = str(REPOSITORY / "tests" / "probe_paths.py")
    command = [sys.executable, program, "spectrogram", "data/clips.parquet", str(tmp_path / "spectrogram")]
    both = [subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 0, stderr
        assert "Traceback" not in stderr
    spectrogram = open_spectrogram(tmp_path / "spectrogram")
    reader = FrameReader(spectrogram)
    assert len(reader.read(reader.ok(spectrogram.index.list("clip_id")))) == 24
    assert list(tmp_path.iterdir()) == [tmp_path / "spectrogram"]


@pytest.mark.slow
def test_a_second_dvc_repro_says_who_holds_the_workspace(copied: Path) -> None:
    """DVC locks what a running stage reads and writes: the second run stops with the other's number, nothing is lost."""
    change_params(copied, {"spectrogram.front_end.n_mels": 20})
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(copied),
    }
    command = ["dvc", "repro", f"vocabulary@kmeans-{FOLD}"]
    first = subprocess.Popen(command, cwd=copied, env=environment, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    while "Running stage 'spectrogram'" not in (line := first.stdout.readline()):
        assert line, "the first run ended before the stage spectrogram"
    time.sleep(0.2)
    second = run(copied, *command, check=False)
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0
    assert second.returncode != 0
    assert re.search(r"is busy, it is being blocked by|Unable to acquire lock", second.stderr), second.stderr
    assert f"vocabulary@kmeans-{FOLD}" in stages_run(output)
    assert stages_run(run(copied, *command).stdout) == ["code", "corpus"]
