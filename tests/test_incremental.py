"""Only what is new is computed, and what comes out is what a run from nothing makes, to the byte."""

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
import zarr
from conftest import make_clips, make_development, make_wav_corpus, make_waveform
from faults import failing, forbidden
from test_kinds import make_params
from test_manifest import settle
from test_spectrogram_stage import PARAMS

from benchmarks.attack.bits import flip
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.tokens import open_tokens
from pipeline.corpora.content import content_digests
from pipeline.execution import memo
from pipeline.execution.executors import ExecutionParams
from pipeline.params import validate_params
from pipeline.paths import shared_path
from pipeline.spectrogram import computing
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.settings import SpectrogramParams
from stages import spectrogram as spectrogram_stage
from stages import tokenize, vocabulary
from stages.spectrogram import run

NUM_CLIPS = 48  # in a dozen shards


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Return the report and the bytes of a first run over clips of a tenth of a second, in the workspace `folder`."""
    folder = tmp_path_factory.mktemp("first")
    root = make_wav_corpus(folder / "corpus", clips_per_class=NUM_CLIPS // 6, seconds=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        built = _build(root)
    return SimpleNamespace(folder=folder, report=built.report, bytes=built.bytes)


@pytest.fixture
def corpus(first: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the root of the clips, in a copy of the workspace of the first run: its artifact and its memo are there."""
    workspace = tmp_path / "workspace"
    subprocess.run(["cp", "-a", str(first.folder), str(workspace)], check=True)  # hard links stay hard links
    monkeypatch.chdir(workspace)
    return workspace / "corpus"


def _build(root: Path, name: str = "data", *, memo: str = "memo", bad: float = 0.0, **changed: Any) -> Any:
    """Run the stage over every clip below `root`; return its report and the bytes of the artifact."""
    sources = sorted(f"audio/{file.name}" for file in (root / "audio").iterdir())
    clips = make_clips(Path(name) / "clips.parquet", root, sources)
    return _build_clips(clips, root, name, memo=memo, bad=bad, **changed)


def _build_clips(clips: Path, root: Path, name: str, *, memo: str = "memo", bad: float = 0.0, **changed: Any) -> Any:
    params = validate_params(SpectrogramParams, PARAMS | changed, "spectrogram")
    limits: Any = SimpleNamespace(root=root, max_bad_fraction=bad, max_duration=5.0)
    path = Path(name) / "spectrogram"
    run(params, limits, ExecutionParams(executor="local", scheduler="", workers=1, memo=Path(memo)), clips, path)
    spectrogram = open_spectrogram(path)
    FrameReader(spectrogram).read(FrameReader(spectrogram).ok(spectrogram.index.list("clip_id")))
    assert not list(Path(name).rglob("*.partial"))
    assert not [file for file in path.rglob("*") if file.name in ("entry.json", "rows.parquet", "about.json")]
    report = json.loads(Path("results/stages/spectrogram.json").read_text())
    return SimpleNamespace(report=report, bytes=_bytes(path), path=path)


def _bytes(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def _from_nothing(root: Path, **changed: Any) -> dict[str, bytes]:
    result: dict[str, bytes] = _build(root, "scratch", memo="another memo", **changed).bytes
    shutil.rmtree("another memo")
    return result


def test_nothing_changed_nothing_decoded(first: SimpleNamespace, corpus: Path) -> None:
    assert (first.report["decoded"], first.report["reused"]) == (NUM_CLIPS, 0)
    shutil.rmtree("data/spectrogram")  # as DVC does before a stage runs
    again = _build(corpus)
    assert (again.report["decoded"], again.report["reused"]) == (0, NUM_CLIPS)
    assert again.bytes == first.bytes


@pytest.mark.parametrize("where", ["0-first", "1-1000-B", "3-last"])
def test_an_added_clip_is_all_that_is_decoded(corpus: Path, where: str) -> None:
    soundfile.write(corpus / "audio" / f"{where}.wav", make_waveform("chirp", 0.1), 16000)
    after = _build(corpus)
    assert (after.report["decoded"], after.report["reused"]) == (1, NUM_CLIPS)
    assert after.bytes == _from_nothing(corpus)


def test_a_removed_clip_decodes_nothing(corpus: Path) -> None:
    sorted((corpus / "audio").iterdir())[20].unlink()
    after = _build(corpus)
    assert (after.report["decoded"], after.report["reused"]) == (0, NUM_CLIPS - 1)
    assert after.bytes == _from_nothing(corpus)


def test_a_recorded_again_clip_is_all_that_is_decoded(first: SimpleNamespace, corpus: Path) -> None:
    clip = sorted((corpus / "audio").iterdir())[20]
    soundfile.write(clip, make_waveform("chirp", 0.2), 16000)
    after = _build(corpus)
    assert (after.report["decoded"], after.report["reused"]) == (1, NUM_CLIPS - 1)
    assert after.bytes == _from_nothing(corpus)
    assert after.bytes != first.bytes


def test_a_new_label_decodes_nothing_and_changes_nothing(first: SimpleNamespace, corpus: Path) -> None:
    sources = sorted(f"audio/{file.name}" for file in (corpus / "audio").iterdir())
    labels = [[1 if index == 7 else 0] for index in range(NUM_CLIPS)]
    after = _build_clips(make_clips(Path("data/clips.parquet"), corpus, sources, labels=labels), corpus, "data")
    assert (after.report["decoded"], after.report["reused"]) == (0, NUM_CLIPS)
    assert after.bytes == first.bytes


def test_a_renamed_clip_is_known_by_its_content(corpus: Path) -> None:
    clip = sorted((corpus / "audio").iterdir())[20]
    clip.rename(clip.with_name("0-another-name.wav"))
    after = _build(corpus)
    assert after.report["decoded"] == 0
    assert after.bytes == _from_nothing(corpus)


def test_a_setting_changed_and_changed_back_costs_nothing(first: SimpleNamespace, corpus: Path) -> None:
    other = {"front_end": PARAMS["front_end"] | {"hop_length": 80}}
    assert _build(corpus, **other).report["decoded"] == NUM_CLIPS
    back = _build(corpus)
    assert (back.report["decoded"], back.bytes) == (0, first.bytes)
    assert _build(corpus, **other).report["decoded"] == 0


def test_other_shard_sizes_decode_nothing(corpus: Path) -> None:
    sizes = {"clips_per_shard": {"minimum": 8, "average": 16, "maximum": 32}}
    after = _build(corpus, **sizes)
    assert (after.report["decoded"], after.report["reused"]) == (0, NUM_CLIPS)
    assert after.bytes == _from_nothing(corpus, **sizes)


def test_a_clip_that_failed_is_remembered_but_a_vanished_one_is_tried_again(corpus: Path) -> None:
    files = sorted((corpus / "audio").iterdir())
    files[3].write_bytes(b"no audio")
    sources = [f"audio/{file.name}" for file in files]
    clips = make_clips(Path("data/clips.parquet"), corpus, sources)
    files[30].rename(corpus / "elsewhere.wav")  # after the manifest was written
    again = functools.partial(_build_clips, clips, corpus, "data", memo="empty memo", bad=0.1)
    first = again()
    assert first.report["failed"] == {"missing": 1, "unreadable": 1}
    assert first.report["decoded"] == NUM_CLIPS - 2
    same = again()
    assert (same.report["decoded"], same.bytes) == (0, first.bytes)
    (corpus / "elsewhere.wav").rename(files[30])
    back = again()
    assert back.report["decoded"] == 1
    assert back.report["failed"] == {"unreadable": 1}
    assert back.bytes == _from_nothing(corpus, bad=0.1)
    assert again().report["decoded"] == 0


def test_a_damaged_shard_heals(first: SimpleNamespace, corpus: Path, caplog: pytest.LogCaptureFixture) -> None:
    shard = sorted(Path("data/spectrogram/frames.zarr").glob("*/c/0/0"))[2]
    assert shard.stat().st_nlink == 2  # in the memo and in the artifact
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    os.utime(shard)
    healed = _build(corpus)
    assert healed.bytes == first.bytes
    assert 0 < healed.report["decoded"] <= 6
    assert "found it changed; computing it again" in caplog.text


def _flip(path: Path) -> None:
    flip(path, np.random.default_rng(1))


def test_chunks_damaged_unseen_heal(
    first: SimpleNamespace, corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Size and time stay, as on a failing disk; most chunks are above what every look-up reads."""
    monkeypatch.setattr(memo, "_SMALL", 0)
    for shard in sorted(Path("memo").glob("spectrogram/*/*/frames/c/0/0"))[:6]:
        _flip(shard)
    healed = _build(corpus)
    assert healed.bytes == first.bytes
    assert 6 <= healed.report["decoded"] <= 36
    assert caplog.text.count("expected frames/c/0/0 as it was written, found it changed; computing it again") == 6


@pytest.mark.parametrize("when", ["found", "donating"])
def test_entries_that_vanish_during_a_run_are_computed_again(
    first: SimpleNamespace, corpus: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    sizes = {"clips_per_shard": {"minimum": 8, "average": 16, "maximum": 32}} if when == "donating" else {}
    expected = _from_nothing(corpus, **sizes)
    find = spectrogram_stage.find_known

    def find_and_lose(memo: Any, *others: Any, **options: Any) -> Any:
        reuse = find(memo, *others, **options)
        monkeypatch.setattr(spectrogram_stage, "find_known", find)
        for name in sorted(memo.names())[:2]:  # as a clean-up beside the run does
            memo.forget(name)
        return reuse

    monkeypatch.setattr(spectrogram_stage, "find_known", find_and_lose)
    after = _build(corpus, **sizes)
    assert after.bytes == expected
    assert 0 < after.report["decoded"] <= 12


def test_frames_of_an_entry_that_goes_while_it_is_read_are_not_silence(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A chunk that is missing reads as the fill value, where the array was opened before."""
    sizes = {"clips_per_shard": {"minimum": 8, "average": 16, "maximum": 32}}
    expected = _from_nothing(corpus, **sizes)
    opened = zarr.open_array

    def open_and_lose(path: Path, **options: Any) -> Any:
        array = opened(path, **options)
        shutil.rmtree(path.parent)
        return array

    monkeypatch.setattr(zarr, "open_array", open_and_lose)
    after = _build(corpus, **sizes)
    assert after.bytes == expected
    assert after.report["decoded"] == NUM_CLIPS
    assert "expected frames of known clips, found it gone; decoding them" in caplog.text


@pytest.mark.parametrize("fault", ["no permission", "failing disk"])
def test_a_file_that_cannot_be_read_for_a_moment_is_tried_again(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    clip = sorted((corpus / "audio").iterdir())[3]
    clips = make_clips(
        Path("data/clips.parquet"), corpus, sorted(f"audio/{file.name}" for file in clip.parent.iterdir())
    )
    again = functools.partial(_build_clips, clips, corpus, "data", memo="empty memo", bad=0.1)
    with forbidden(clip) if fault == "no permission" else failing(clip, monkeypatch):
        failed = again()
    assert failed.report["failed"] == {"read_error": 1}
    found = "Permission denied" if fault == "no permission" else "Input/output error"
    (row,) = [row for row in open_spectrogram(failed.path).index.columns.to_pylist() if row["status"] == "failed"]
    assert row["message"].startswith(f"audio/{clip.name}: expected a file that can be read, found: {found}; see to")
    assert "1 clips could not be read; once they can, `dvc repro --force" in caplog.text
    healed = again()
    assert (healed.report["decoded"], healed.report["failed"]) == (1, {})
    assert healed.bytes == _from_nothing(corpus)


@pytest.mark.parametrize("kept", ["time", "nothing"])
def test_a_file_that_was_replaced_after_it_was_listed_is_not_stored_under_its_key(corpus: Path, kept: str) -> None:
    """Else its frames would be those of the listed content, for every workspace that shares the memo."""
    clip, other = sorted((corpus / "audio").iterdir())[3:5]
    clips = make_clips(
        Path("data/clips.parquet"), corpus, sorted(f"audio/{file.name}" for file in clip.parent.iterdir())
    )
    settle(corpus)
    assert content_digests([clip]).num_hashed == 1
    assert content_digests([clip]).num_hashed == 0
    content = clip.read_bytes()
    clip.write_bytes(other.read_bytes())
    assert len(content) == clip.stat().st_size
    settle(corpus) if kept == "time" else os.utime(clip)
    again = functools.partial(_build_clips, clips, corpus, "data", memo="empty memo", bad=0.1)
    moved = again()
    assert moved.report["failed"] == {"moved": 1}
    assert content_digests([clip]).num_hashed == 1  # the next `corpus` does not believe its time
    clip.write_bytes(content)
    back = again()
    assert (back.report["decoded"], back.bytes) == (1, _from_nothing(corpus))


def test_a_mended_computation_is_done_again_and_no_other(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computing, "code_version", lambda *_: "mended")
    assert _build(corpus).report["decoded"] == NUM_CLIPS
    monkeypatch.undo()
    monkeypatch.chdir(corpus.parent)
    assert _build(corpus).report["decoded"] == 0


def _tokenise(spectrogram: Path, vocabulary: Path, name: str, *, memo: str = "memo") -> Any:
    path = Path(name) / "1.parquet"
    execution = ExecutionParams(executor="local", scheduler="", workers=1, memo=Path(memo))
    report = tokenize.run(execution, spectrogram, vocabulary, path, fold="1")
    open_tokens(path)
    return SimpleNamespace(report=report, bytes=path.read_bytes())


@pytest.fixture
def fitted(corpus: Path) -> tuple[Path, Path]:
    """Return the corpus and a vocabulary fitted on it; its spectrogram lies at data/spectrogram."""
    spectrogram = Path("data/spectrogram")
    ids = open_spectrogram(spectrogram).index.list("clip_id")
    split = {"clip_id": ids, "role": ["train"] * len(ids)}
    SPLIT.write(Path("data/split.parquet"), split, {"fold": "1", "seed": 0, "rule": "by hand"})
    params = make_params(num_tokens=6, sample_frames=500)
    development = make_development(Path("data/development.parquet"), spectrogram, Path("data/split.parquet"))
    vocabulary.run(params, spectrogram, development, Path("data/1.zarr"), fold="1")
    return corpus, Path("data/1.zarr")


def test_known_sequences_are_not_computed_again(fitted: tuple[Path, Path]) -> None:
    corpus, tokens = fitted
    first = _tokenise(Path("data/spectrogram"), tokens, "tokens")
    assert (first.report.decoded, first.report.reused) == (NUM_CLIPS, 0)
    again = _tokenise(Path("data/spectrogram"), tokens, "tokens")
    assert (again.report.decoded, again.report.reused, again.bytes) == (0, NUM_CLIPS, first.bytes)

    files = sorted((corpus / "audio").iterdir())
    soundfile.write(corpus / "audio" / "1-1000-B.wav", make_waveform("chirp", 0.1), 16000)
    shutil.copy(files[3], corpus / "audio" / "1-1000-C.wav")
    files[17].unlink()
    soundfile.write(files[25], make_waveform("chirp", 0.2), 16000)
    changed = _build(corpus).path
    after = _tokenise(changed, tokens, "tokens")
    assert (after.report.decoded, after.report.reused) == (3, NUM_CLIPS - 2)
    assert after.bytes == _tokenise(changed, tokens, "scratch tokens", memo="another memo").bytes


@pytest.mark.parametrize("when", ["found", "donating"])
def test_sequences_that_vanish_during_a_run_are_computed_again(
    fitted: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    corpus, tokens = fitted
    _tokenise(Path("data/spectrogram"), tokens, "tokens")
    sizes = {"clips_per_shard": {"minimum": 8, "average": 16, "maximum": 32}} if when == "donating" else {}
    source = _build(corpus, "other", **sizes).path
    expected = _tokenise(source, tokens, "scratch tokens", memo="another memo").bytes
    find = tokenize.find_known

    def find_and_lose(memo: Any, plans: Any, **options: Any) -> Any:
        found = find(memo, plans, **options)
        monkeypatch.setattr(tokenize, "find_known", find)
        for name in sorted(memo.names())[:2]:
            memo.forget(name)
        return found

    monkeypatch.setattr(tokenize, "find_known", find_and_lose)
    after = _tokenise(source, tokens, "tokens")
    assert after.bytes == expected
    assert 0 < after.report.decoded <= 12


def test_another_vocabulary_makes_all_sequences_anew_and_the_old_ones_stay_known(fitted: tuple[Path, Path]) -> None:
    _, tokens = fitted
    spectrogram = Path("data/spectrogram")
    first = _tokenise(spectrogram, tokens, "tokens")
    params = make_params(num_tokens=5, sample_frames=500)
    vocabulary.run(params, spectrogram, Path("data/development.parquet"), Path("data/other.zarr"), fold="1")
    assert _tokenise(spectrogram, Path("data/other.zarr"), "tokens").report.decoded == NUM_CLIPS
    back = _tokenise(spectrogram, tokens, "tokens")
    assert (back.report.decoded, back.bytes) == (0, first.bytes)


def test_experiments_in_workspaces_of_their_own_share_the_projects_memo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = tmp_path / ".dvc" / "tmp" / "exps" / "tmpabc"
    workspace.mkdir(parents=True)
    monkeypatch.chdir(workspace)
    assert shared_path(Path(".sonolex/memo")) == tmp_path / ".sonolex" / "memo"
    monkeypatch.chdir(tmp_path)
    assert shared_path(Path(".sonolex/memo")) == tmp_path / ".sonolex" / "memo"
    assert shared_path(Path("/elsewhere")) == Path("/elsewhere")
