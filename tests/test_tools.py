"""The programs for people: `sonolex why`, `doctor`, `check`, `results`, and the picture of a clip."""

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import OF_A_MODEL, REPOSITORY, make_clips, make_duplicates, make_spectrogram, make_waveform
from faults import forbidden
from matplotlib.image import imread
from ruamel.yaml import YAML
from typer.testing import CliRunner

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import PREDICTIONS
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.tokens import TOKENS
from pipeline.check_params import load_experiment
from pipeline.corpora.esc50 import Params
from pipeline.corpora.manifest import refresh_manifest
from pipeline.errors import CorpusError
from pipeline.execution.memo import Memo
from pipeline.models.baselines import kernel_classifier
from pipeline.params import read_params
from tools import doctor, inspect_clip
from tools.compose import compose, dump
from tools.corpus_check import try_clips
from tools.doctor import Cache
from tools.sonolex import app
from tools.why import Finding, trace

CLASSES = ["dog", "rain", "siren"]
CLIPS = ("a-dog", "b-rain", "c-siren", "d-lost")


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """Return a folder with every artifact of four clips, one of which failed, in two folds."""
    for number, clip in enumerate(CLIPS[:3]):
        waveform = make_waveform("chirp", 1.0, frequency=2000.0 * (number + 1))
        (tmp_path / "audio").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "audio" / f"{clip}.wav", waveform, 16000)
    data = tmp_path / "data"
    labels = [[0], [1], [2], [0]]
    folds = ["1", "1", "2", "2"]
    make_clips(data / "clips.parquet", tmp_path / "audio", [f"{clip}.wav" for clip in CLIPS], labels=labels, fold=folds)
    ramp = np.linspace(-10, 5, 98 * 64, dtype=np.float32).reshape(98, 64)
    make_spectrogram(data / "spectrogram", dict.fromkeys(CLIPS[:3], ramp), failed=["d-lost"])
    make_duplicates(data / "duplicates.parquet", [("a-dog", "b-rain")], lag=0.5)
    for fold in ("1", "2"):
        roles = ["test" if own == fold else "train" for own in folds]
        SPLIT.write(
            data / "splits" / f"{fold}.parquet",
            {"clip_id": CLIPS, "role": roles},
            {"fold": fold, "seed": 0, "rule": "published folds"},
        )
        metadata = {
            "fold": fold,
            "vocabulary": "0" * 32,
            "vocabulary_size": 50,
            "num_codebooks": 1,
            "frame_rate": 100.0,
        }
        tokens = [[[(7 * i) % 50 for i in range(98)]]] * 3
        TOKENS.write(data / "tokens" / "kmeans" / f"{fold}.parquet", {"clip_id": CLIPS[:3], "tokens": tokens}, metadata)
    _write_predictions(tmp_path / "predictions" / "ast" / "1" / "0.parquet", ["a-dog", "b-rain"])
    return tmp_path


def _write_predictions(path: Path, clip_ids: list[str]) -> None:
    metadata = {
        "model": "ast",
        "fold": "1",
        "seed": 0,
        "classes": [f"class {i}" for i in range(3)],
        "label_kind": "one",
    }
    logits = [[2.0, 2.0, 0.0], [0.0, 5.0, 0.0]]  # a tie for the first clip, a hit for the second
    columns = {"clip_id": clip_ids, "role": ["test"] * 2, "logits": logits, "targets": [[1.0, 0, 0], [0, 1.0, 0]]}
    PREDICTIONS.write(path, columns, metadata | {"weights": "0" * 32} | OF_A_MODEL)


def _trace(clip: str, workspace: Path) -> dict[str, Finding]:
    findings = trace(clip, Layout(workspace))
    return {str(finding.path.relative_to(workspace)): finding for finding in findings}


def test_why_follows_a_clip_through_every_artifact(workspace: Path) -> None:
    findings = _trace("b-rain", workspace)
    assert not [path for path, finding in findings.items() if finding.wrong]
    assert findings["data/clips.parquet"].text.startswith("class 1; b-rain.wav, 0 s to its end; group b-rain, fold 1")
    assert "shard shard0000, frames 98 to 195: 98 frames, 0.98 s" in findings["data/spectrogram/index.parquet"].text
    found = findings["data/duplicates.parquet"].text
    assert found == "near-duplicate of a-dog (correlation 0.900, 0.5 s earlier here)"
    assert findings["data/splits/1.parquet"].text == "role test"
    assert findings["data/splits/2.parquet"].text == "role train"
    assert findings["data/tokens/kmeans/1.parquet"].text.startswith("98 tokens, 50 distinct of 50: 0 7 14")
    assert findings["predictions/ast/1/0.parquet"].text == "test: class 1 ranks 1 (99%) of 3"


def test_why_counts_a_tie_as_the_worse_rank(workspace: Path) -> None:
    assert "class 0 ranks 2 (47%) of 3" in _trace("a-dog", workspace)["predictions/ast/1/0.parquet"].text


def test_why_says_where_a_bad_clip_was_lost(workspace: Path) -> None:
    findings = _trace("d-lost", workspace)
    assert findings["data/spectrogram/index.parquet"].text == "failed, missing: expected a file, found none"
    assert findings["data/clips.parquet"].text.endswith("digest none: the file was missing")
    assert findings["data/tokens/kmeans/1.parquet"].text == "the clip is not in it (3 others are)"
    assert all(findings[f"data/{name}"].wrong for name in ("spectrogram/index.parquet", "tokens/kmeans/1.parquet"))
    # It is a test clip of fold 2 alone: its absence from fold 1's predictions is as it should be.
    assert "predictions/ast/1/0.parquet" not in findings


def test_why_tells_missing_and_broken_artifacts(workspace: Path) -> None:
    (workspace / "data" / "spectrogram" / "index.parquet").unlink()
    (workspace / "data" / "splits" / "1.parquet").write_bytes(b"PAR1")
    for folder in ("data/tokens", "predictions"):
        for path in (workspace / folder).rglob("*.parquet"):
            path.unlink()
    findings = _trace("a-dog", workspace)
    assert findings["data/spectrogram/index.parquet"].text == "missing"
    assert "expected a whole Parquet file" in findings["data/splits/1.parquet"].text
    assert findings["data/tokens"].text == "missing"
    assert findings["predictions"].text == "no predictions yet"
    assert not findings["data/clips.parquet"].wrong
    (workspace / "data" / "clips.parquet").write_bytes(b"PAR1")
    assert "expected a whole Parquet file" in _trace("a-dog", workspace)["data/clips.parquet"].text


def test_why_knows_nothing_and_says_so_in_an_empty_workspace(tmp_path: Path) -> None:
    assert all(finding.wrong for finding in trace("a-dog", Layout(tmp_path)))


@pytest.mark.parametrize(
    ("clip", "expected"),
    [("rain", "close to it: b-rain"), ("c-sirne", "close to it: c-siren"), ("?", "none of 4 ids is close to it")],
)
def test_why_names_clips_close_to_an_unknown_one(clip: str, expected: str, workspace: Path) -> None:
    with pytest.raises(CorpusError, match=expected):
        trace(clip, Layout(workspace))


def test_mistakes_are_messages_without_a_traceback(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace)
    result = CliRunner().invoke(app, ["why", "rain"])
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert "Traceback" not in result.output
    assert CliRunner().invoke(app, ["why", "b-rain"]).exit_code == 0


def test_a_missing_permission_is_a_message_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text(
        "execution: {executor: local, workers: 0, scheduler: '', memo: .sonolex/memo}\n"
    )
    memo = Memo(tmp_path / ".sonolex" / "memo", "work", params={}, code="one")
    with memo.writing("a", clips=1, computed=1) as folder:
        (folder / "rows").write_text("rows")
    with forbidden(memo.path / "a" / "entry.json"):
        result = CliRunner().invoke(app, ["gc", "--verify"])
    assert result.exit_code == 1
    message = f"error: {memo.path / 'a' / 'entry.json'}: expected permission to read and write it, found none"
    assert result.output.startswith(message)
    assert memo.names() == {"a"}


def test_check_names_all_mistakes_at_once(tmp_path: Path) -> None:
    text = (REPOSITORY / "params.yaml").read_text()
    assert CliRunner().invoke(app, ["check", "--params", str(REPOSITORY / "params.yaml")]).exit_code == 0
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("epochs:", "epoch:").replace("iterations: 20", "iterations: many"))
    result = CliRunner().invoke(app, ["check", "--params", str(path)])
    assert result.exit_code == 1
    for expected in ("train.epoch: unknown key; did you mean `epochs`?", "vocabularies.kmeans.iterations"):
        assert expected in result.output


def _write_params(folder: Path, **sections: Any) -> Path:
    """Write the committed params with some keys of some sections changed, and return their path."""
    document = read_params(REPOSITORY / "params.yaml")
    for name, changes in sections.items():
        document[name] = document[name] | changes
    path = folder / "params.yaml"
    YAML(typ="safe").dump(document, path)
    return path


@pytest.fixture
def esc50(tmp_path: Path) -> dict[str, Any]:
    """Return the section of a corpus in ESC-50's layout that has the folds 1 and 2, without its audio."""
    (tmp_path / "meta").mkdir()
    rows = "".join(f"{fold}-a.wav,{fold},0,dog,a{fold}\n" for fold in (1, 2))
    (tmp_path / "meta" / "esc50.csv").write_text("filename,fold,target,category,src_file\n" + rows)
    common = {"root": str(tmp_path), "max_bad_fraction": 0.0, "max_duration": 60.0}
    return common | {"kind": "esc50", "table": "meta/esc50.csv"}


def _check(path: Path) -> str:
    """Return what `sonolex check` has to say against params; nothing where it ends well."""
    result = CliRunner().invoke(app, ["check", "--params", str(path)])
    assert result.exit_code == (1 if result.output.startswith("error: ") else 0)
    return result.output if result.exit_code else ""


def _replace_corpus(path: Path, corpus: dict[str, Any]) -> Path:
    document = read_params(path)
    YAML(typ="safe").dump(document | {"corpus": corpus}, path)
    return path


@pytest.mark.parametrize(
    ("recipe", "pretrained", "expected"),
    [
        ("psla_audioset", "kind: psla, source: gone.pth, mean: 0.0, std: 1.0", "a file of weights, found none"),
        (
            "ast_base384",
            "kind: original, source: gone.pth, frames: 512, mean: 0.0, std: 1.0",
            "a file of weights, found",
        ),
        ("ast_base384", "kind: huggingface, source: a/b/gone", "a folder with model.safetensors or pytorch_model.bin"),
        ("ast_base384", "kind: imagenet, source: gone.pth", "a file, or one of timm's deit_base_distilled_patch16_224"),
        ("psla_audioset", "kind: timm, source: gone.pth", "a file, or a name of timm's weights such as"),
    ],
)
def test_check_names_published_weights_that_are_not_there(
    tmp_path: Path, esc50: dict[str, Any], recipe: str, pretrained: str, expected: str
) -> None:
    model = recipe.partition("_")[0]
    norm = [f"models.{model}.encoder.norm_epsilon={'0.001' if 'kind: psla' in pretrained else 'null'}"]
    settings = [f"corpus.root={tmp_path}", f"models.{model}.pretrained={{{pretrained}, digest: null}}"]
    if recipe == "ast_base384":
        settings += [f"models.{model}.stem.positions.frames=512"]
        norm = []
    document, _ = compose(f"esc50+{recipe}", [*settings, *norm], REPOSITORY / "recipes")
    (tmp_path / "params.yaml").write_text(dump(document))
    found = _check(_replace_corpus(tmp_path / "params.yaml", esc50))
    assert f"models.{model}: pretrained" in found
    assert expected in found
    assert "; " in found


@pytest.mark.parametrize("published", [True, False])
def test_check_names_models_without_room_for_the_clips(
    tmp_path: Path, esc50: dict[str, Any], published: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "meta" / "esc50.csv"
    if not published:
        document, _ = compose("table", [f"corpus.root={tmp_path}", f"corpus.table={table}"], REPOSITORY / "recipes")
        esc50 = json.loads(json.dumps(document["corpus"])) | {"path_column": "filename", "labels_column": "category"}
        table.write_text("filename,category\n" + "".join(f"{clip}.wav,dog\n" for clip in range(4)))
    path = _replace_corpus(_write_params(tmp_path, experiment={"folds": ["1", "2"]}, split={"num_folds": 4}), esc50)
    assert _check(path) == ""
    num_clips = 1 if published else 3  # that a fold is trained on
    room = 15 * num_clips - 1
    monkeypatch.setattr(kernel_classifier, "MOST_ROWS", room)
    found = _check(path)
    assert f"experiment: frame_textures: models.*.kind texture_statistics: expected at most {room} rows" in found
    assert f"found {15 * num_clips} of {num_clips} training clips, 15 of each" in found
    assert "frame_statistics" not in found


@pytest.mark.parametrize("fold", ["9", "1-9"])
def test_check_and_doctor_name_a_fold_that_the_corpus_has_not(
    fold: str, esc50: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for corpus in (esc50, None):  # a listing is read, and the demo is asked without being made
        path = _write_params(tmp_path, experiment={"folds": ["1", fold]})
        if corpus:
            path = _replace_corpus(path, corpus)
        expected = rf"expected one of the folds 1, 2(, 3, 4, 5)? in experiment\.folds, found {fold};"
        assert re.search(expected, _check(path))
        row = doctor.check_corpus(load_experiment(path), Layout(tmp_path), path)
        assert row.verdict == "broken"
        assert re.search(expected, row.found)
    assert not (tmp_path / "audio").exists()


def test_check_and_doctor_name_a_missing_root(
    esc50: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _replace_corpus(_write_params(tmp_path), esc50 | {"root": str(tmp_path / "nowhere")})
    expected = f"corpus.root: expected the folder of the corpus ({Params.layout}), found none at {tmp_path}/nowhere"
    assert expected in _check(path)
    assert expected in doctor.check_corpus(load_experiment(path), Layout(tmp_path), path).found
    assert _check(_replace_corpus(path, esc50)) == ""
    assert doctor.check_corpus(load_experiment(path), Layout(tmp_path), path).verdict == "ok"


def test_a_pulled_manifest_stands_for_audio_that_is_not_here(
    esc50: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _replace_corpus(_write_params(tmp_path), esc50)
    params = load_experiment(path).sections["corpus"]
    (tmp_path / "audio").mkdir()
    for fold in (1, 2):
        soundfile.write(tmp_path / "audio" / f"{fold}-a.wav", make_waveform("noise", 0.1), 16000)
    refresh_manifest(params, Layout(tmp_path).clips, tmp_path / "content.sqlite")
    path = _replace_corpus(path, esc50 | {"root": str(tmp_path / "nowhere")})
    assert _check(path) == ""
    assert "its manifest is here" in doctor.check_corpus(load_experiment(path), Layout(tmp_path), path).found


def test_the_plan_names_no_temporary_path(
    esc50: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = _replace_corpus(_write_params(tmp_path), esc50 | {"root": str(tmp_path / "nowhere")})
    result = CliRunner().invoke(app, ["plan", "--params", str(path)])
    assert result.exit_code == 1
    assert "expected its manifest at data/clips.parquet, found none" in result.output
    assert "/tmp/tmp" not in result.output


def test_results_without_a_run_say_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["results", "--summary", str(tmp_path / "summary.csv")])
    assert result.exit_code == 1
    assert "found none; `dvc repro` runs the experiment" in result.output


def test_a_picture_shows_waveform_frames_and_tokens(workspace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "clip.png"
    left_out = inspect_clip.run("b-rain", "kmeans", "1", Layout(workspace), workspace / "audio", picture)
    assert left_out == []
    pixels = imread(picture)
    assert pixels.shape[0] > 400
    assert pixels.std() > 0.05  # something is drawn


def test_the_vocabulary_drawn_by_default_is_one_of_the_base() -> None:
    default = inspect.signature(inspect_clip.main).parameters["vocabulary"].default
    assert default in read_params(REPOSITORY / "recipes/base.yaml")["vocabularies"]


def test_a_picture_does_without_audio_and_tokens(workspace: Path, tmp_path: Path) -> None:
    picture = tmp_path / "clip.png"
    left_out = inspect_clip.run("b-rain", "kmeans", "9", Layout(workspace), tmp_path / "elsewhere", picture)
    assert [remark.split(":")[0] for remark in left_out] == ["waveform", "tokens"]
    assert picture.exists()


@pytest.mark.parametrize(("clip", "expected"), [("nobody", "no clip 'nobody'"), ("d-lost", "has no frames")])
def test_a_picture_of_nothing_is_refused(clip: str, expected: str, workspace: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=expected):
        inspect_clip.run(clip, "kmeans", "1", Layout(workspace), workspace / "audio", tmp_path / "clip.png")


def test_the_time_axis_is_that_of_the_frames() -> None:
    metadata = {"frame_rate": 100.0, "sample_rate": 16000, "f_min": 20.0, "f_max": 8000.0, "n_mels": 8, "units": "dB"}
    metadata |= {"params": {"kind": "kaldi"}}
    tokens = np.tile(np.arange(50, dtype=np.uint16), (2, 2))
    token_metadata = {"fold": "1", "vocabulary_size": 50, "frame_rate": 50.0}  # two frames a token
    figure = inspect_clip.draw("clip", np.zeros(32000), np.zeros((200, 8)), tokens, metadata, token_metadata)
    waveform, frames, drawn = (axes for axes in figure.axes if "log-mel" not in axes.get_ylabel())
    assert frames.get_xlim() == (0.0, 2.0)
    assert waveform.lines[0].get_xdata()[-1] == pytest.approx(2.0, abs=1e-3)
    assert len(drawn.lines) == 2  # one a codebook
    assert drawn.lines[0].get_xdata()[[0, -1]] == pytest.approx([0.01, 1.99])


@pytest.mark.parametrize(
    ("torch", "torchaudio", "advice"),
    [
        ("2.15.0+cu132", "2.11.0+cu130", "--torch-backend cu130"),
        ("2.13.0+cpu", "2.11.0+cu130", "--torch-backend cpu"),
        ("2.11.0+rocm7.1", "2.11.0+cu130", "built for cu130, and torch for rocm7.1: `make clean install`"),
        ("2.14.1+cu130", "2.11.0+cu130", ""),
        ("2.11.0+cu130", "2.11.0+cpu", ""),
        ("2.14.1", "2.11.0", ""),  # as conda names them: whether they fit, importing says
    ],
)
def test_doctor_compares_what_torch_and_torchaudio_are_built_for(torch: str, torchaudio: str, advice: str) -> None:
    row = doctor.check_extension("torchaudio", torchaudio, torch, {"torchaudio": "2.11.0"})
    assert row.verdict == ("broken" if advice else "ok")
    assert advice in row.advice


def test_doctor_tells_what_an_extension_says_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As torchaudio and torchvision do, beside a torch of another CUDA release."""
    (tmp_path / "misfit").mkdir()
    (tmp_path / "misfit/__init__.py").write_text("raise RuntimeError('compiled with different CUDA versions')")
    (tmp_path / "misfit/version.py").write_text(
        "from typing import Any\n__version__: Any = '2.11.0+cu130'\ncuda = '13.0'"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = doctor.built_version("misfit")
    assert found == "2.11.0+cu130"  # without importing it
    row = doctor.check_extension("misfit", found, "2.14.1", {})
    assert row.verdict == "broken"
    assert row.advice == "`make clean install`; importing it says: compiled with different CUDA versions"


def test_doctor_names_what_is_missing_and_what_the_lock_has_otherwise() -> None:
    missing = doctor.check_extension("no_such_package", doctor.built_version("no_such_package"), "2.11.0+cpu", {})
    assert (missing.verdict, missing.found) == ("broken", "missing")
    assert missing.advice.startswith("`make -B install`")
    other = doctor.check_extension("torchaudio", "2.11.0+cu130", "2.11.0+cu130", {"torchaudio": "2.12.0"})
    assert (other.verdict, other.advice) == ("note", "the lock has 2.12.0: `make -B install`")


def test_torch_and_what_is_compiled_against_it_fit_here() -> None:
    """The lock cannot say what packages are built for: fails where `make lock` has chosen such as do not fit."""
    torch = doctor.built_version("torch")
    rows = [doctor.check_extension(name, doctor.built_version(name), torch, {}) for name in doctor.TORCH_EXTENSIONS]
    assert [(row.check, row.verdict) for row in rows] == [(name, "ok") for name in doctor.TORCH_EXTENSIONS], rows


@pytest.mark.parametrize(
    ("types", "file_system", "same_device", "copies", "advised"),
    [
        ((), "ext4", True, True, "hardlink,symlink"),
        (("hardlink", "symlink"), "ext4", True, False, ""),
        (("reflink", "hardlink"), "ext4", True, True, "hardlink,symlink"),  # commits by copy: hardlink is not first
        ((), "nfs4", True, True, "hardlink,symlink"),
        ((), "xfs", True, False, ""),
        ((), "xfs", False, True, "symlink"),
        (("symlink",), "ext4", False, False, ""),
    ],
)
def test_doctor_names_the_links_that_copy_nothing(
    types: tuple[str, ...], file_system: str, same_device: bool, copies: bool, advised: str
) -> None:
    row = list(doctor.check_cache(Cache(Path("cache"), types, file_system, same_device)))[-1]
    assert row.verdict == ("note" if copies else "ok")
    assert row.advice.endswith(f"cache.type {advised}" if advised else "")


def test_doctor_reckons_the_space_that_frames_take(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = load_experiment(REPOSITORY / "params.yaml")
    assert doctor.corpus_seconds(experiment, Layout(workspace))[0] is None  # what lies here is of another corpus
    monkeypatch.setattr(doctor, "current_manifest", lambda experiment, layout: open_clips(layout.clips))
    seconds, source = doctor.corpus_seconds(experiment, Layout(workspace))
    assert (seconds, source) == (pytest.approx(3 * 0.98), "index of frames")
    (workspace / "data" / "spectrogram" / "index.parquet").unlink()
    longest = experiment.sections["corpus"].max_duration
    assert doctor.corpus_seconds(experiment, Layout(workspace)) == (4 * longest, "manifest, at most")
    assert doctor.corpus_seconds(experiment, Layout(workspace), [1.0, 2.0]) == (6.0, "4 clips, by 2 of them")
    assert doctor.check_space(experiment, Layout(workspace), None).verdict == "ok"
    monkeypatch.setattr(doctor, "_free", lambda path: 1 << 30)
    row = doctor.check_space(experiment, Layout(workspace), None)
    assert row.verdict == "broken"
    assert "make room: 1." in row.advice


def test_doctor_tries_clips_of_the_corpus_as_it_is(
    esc50: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a manifest nor an index of another corpus says what is in this one's files."""
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(_replace_corpus(_write_params(tmp_path), esc50))
    (tmp_path / "audio").mkdir()
    assert not any(try_clips(experiment, Layout(tmp_path))[0])
    soundfile.write(tmp_path / "audio" / "1-a.wav", make_waveform("noise", 0.25), 16000)
    (tmp_path / "audio" / "2-a.wav").write_bytes(b"\0\0\0\x18ftypM4A " + bytes(400))
    seconds, errors = try_clips(experiment, Layout(tmp_path))
    assert seconds == [0.25]
    assert [error.reason for error in errors] == ["unreadable"]
    (row,) = doctor.check_audio(experiment, seconds, errors)
    assert row.found.startswith(
        f"1 of 2 clips that were tried can be used\nunreadable: {tmp_path}/audio/2-a.wav: expected"
    )
    assert row.verdict == "note"
    assert "repair the files" in row.advice


def test_doctor_ends_with_1_when_something_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("{}")
    result = CliRunner().invoke(app, ["doctor", "--params", str(path)])
    assert result.exit_code == 1
    assert "broken" in result.output


def test_every_package_that_doctor_asks_for_is_in_the_lock() -> None:
    locked = doctor.read_lock(REPOSITORY / "requirements.lock")
    assert {*doctor.PACKAGES, *doctor.TORCH_EXTENSIONS, "torch", "faiss-cpu", "setuptools", "pytest", "uv"} <= set(
        locked
    )


def test_the_lock_names_no_place_to_fetch_from() -> None:
    text = (REPOSITORY / "requirements.lock").read_text()
    assert not [token for token in ("://", "--index", "--find-links", "file:", " @ ", "+cpu") if token in text]


def test_the_console_program_starts_without_the_heavy_packages() -> None:
    code = "import json, sys, tools.sonolex; print(json.dumps(sorted(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    loaded = json.loads(subprocess.check_output([sys.executable, "-c", code], env=environment, text=True))
    assert not {"torch", "sklearn", "matplotlib", "scipy", "zarr", "dvc"} & set(loaded)
