"""`sonolex predict`, and the same in Python: what files, windows, tables and metrics come out, and what is refused."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from experiments import run_experiment
from rich.console import Console
from typer.testing import CliRunner

import sonolex
from pipeline.artifacts.layout import Layout
from pipeline.errors import SonolexError
from pipeline.inference import predicting
from pipeline.inference.labels import read_labels
from pipeline.inference.prediction import Failure, Prediction
from tools import bundle
from tools.sonolex import app

CLASSES = ["tone", "noise", "clicks"]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = (
        "experiment.frame_models=[]",
        "experiment.token_models=[token_transformer]",
        "experiment.vocabularies=[kmeans]",
    )
    return run_experiment(tmp_path_factory.mktemp("predict") / "experiment", settings)


@pytest.fixture(scope="module")
def model(experiment: Path) -> Path:
    out = experiment.parent / "model"
    name, params = "token_transformer-kmeans", experiment / "params.yaml"
    bundle.run(name, out, folds=(), params_path=params, layout=Layout(experiment), console=Console(quiet=True))
    return out


@pytest.fixture(scope="module")
def audio(experiment: Path) -> list[Path]:
    return sorted((experiment / "corpus").rglob("*.wav"))


@pytest.fixture(scope="module")
def recording(audio: list[Path]) -> Path:
    """Return a recording of several clips one after the other, at a rate that is not the model's."""
    sounds = [soundfile.read(path, dtype="float32") for path in audio[:6]]
    path = audio[0].parent.parent / "long.flac"
    soundfile.write(path, np.concatenate([samples for samples, _ in sounds]), sounds[0][1])
    return path


def call(*arguments: object, stdin: str | None = None, status: int = 0) -> tuple[str, str]:
    """Run `sonolex predict`, and return what it writes to standard output and to standard error."""
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], input=stdin)
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_many_files_are_predicted_as_each_alone(
    model: Path, audio: Sequence[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = sonolex.load(model)
    alone = [opened.predict(path) for path in audio]
    for frames in (predicting.FRAMES_PER_BATCH, 70):  # of one clip about 50
        monkeypatch.setattr(predicting, "FRAMES_PER_BATCH", frames)
        for threads in (1, 3):
            together = list(opened.predict_files(audio, threads=threads))
            assert [item.source for item in together] == [str(path) for path in audio]
            for one, other in zip(together, alone, strict=True):
                assert isinstance(one, Prediction)
                assert one.end == other.end
                np.testing.assert_allclose(one.logits, other.logits, atol=1e-5)


def test_batches_are_bounded_in_frames(model: Path, audio: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = sonolex.load(model)
    sizes = []
    classify = type(opened._classifier).logits

    def count(self: object, frames: Sequence[np.ndarray]) -> np.ndarray:
        sizes.append((len(frames), max(map(len, frames))))
        return classify(self, frames)

    monkeypatch.setattr(type(opened._classifier), "logits", count)
    monkeypatch.setattr(predicting, "FRAMES_PER_BATCH", 120)
    list(opened.predict_files(audio, threads=1))
    assert max(number for number, _ in sizes) > 1
    assert all(number == 1 or number * longest <= 120 for number, longest in sizes)


def test_a_window_has_the_logits_of_its_part_as_a_file(model: Path, recording: Path, tmp_path: Path) -> None:
    opened = sonolex.load(model)
    windows = opened.timeline(recording, window=0.5, hop=0.2)
    assert len(windows) == 14
    samples, rate = soundfile.read(recording, dtype="int16")
    for number, window in enumerate(windows):
        assert (window.start, window.end) == pytest.approx(
            (0.2 * number, 0.2 * number + 0.5) if number < 13 else (2.5, 3)
        )
        part = tmp_path / f"{number}.wav"
        soundfile.write(part, samples[round(window.start * rate) : round(window.end * rate)], rate)
        np.testing.assert_allclose(opened.predict(part).logits, window.logits, atol=1e-5)


def test_a_sound_is_pooled_from_its_windows(model: Path, recording: Path) -> None:
    opened = sonolex.load(model)
    scores = np.stack([window.scores for window in opened.timeline(recording, window=0.5)])
    mean, most = (opened.predict(recording, window=0.5, pool=pool) for pool in ("mean", "max"))
    np.testing.assert_allclose(mean.scores, scores.mean(axis=0))
    np.testing.assert_allclose(most.scores, scores.max(axis=0))
    np.testing.assert_allclose(np.exp(most.logits), most.scores, atol=1e-6)
    assert (mean.start, mean.end) == (0, 3)
    samples, rate = soundfile.read(recording, dtype="float32")
    np.testing.assert_allclose(opened.predict(samples, rate, window=0.5).logits, mean.logits, atol=1e-5)
    shorter = opened.predict(recording, window=100.0)
    np.testing.assert_allclose(shorter.logits, opened.predict(recording).logits, atol=1e-5)


def test_what_is_wrong_with_one_file_is_its_row(model: Path, audio: Sequence[Path], tmp_path: Path) -> None:
    shutil.copy(audio[0], tmp_path / "a.wav")
    (tmp_path / "b.wav").write_text("text")
    (tmp_path / "c.wav").touch()
    soundfile.write(tmp_path / "d.wav", np.zeros(8000), 16000)
    for options in ((), ("--window", 0.3)):
        out, err = call(model, tmp_path, tmp_path / "none.wav", "--to", "csv", *options, status=1)
        rows = rows_of(out)
        assert [row["reason"] for row in rows] == ["", "unreadable", "empty", "silent", "missing"]
        assert "expected WAV, FLAC, OGG or MP3" in rows[1]["message"]
        assert "5 files, 0.5 s of sound in" in err
        assert "4 failed: unreadable 1, empty 1, silent 1, missing 1" in err
    table, _ = call(model, tmp_path, status=1)
    assert "unreadable" in table


def test_a_long_sound_is_told_of_windows(model: Path, recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "MAX_SECONDS", 1.0)
    out, _ = call(model, recording, "--to", "csv", status=1)
    assert rows_of(out)[0]["message"].endswith("found 3.0 s; predict it in windows, such as --window 5")
    call(model, recording, "--window", 5)


def test_tables(model: Path, audio: Sequence[Path], recording: Path, tmp_path: Path) -> None:
    expected = sonolex.load(model).predict(audio[0])
    first = expected.top(1)[0]
    call(model, *audio[:2], "--out", tmp_path / "out.csv", "--top", 2)
    row = rows_of((tmp_path / "out.csv").read_text())[0]
    assert list(row)[:6] == ["file", "start", "end", "labels", "class_1", "score_1"]
    assert (row["file"], row["labels"], row["class_1"]) == (str(audio[0]), first.name, first.name)
    assert float(row["score_1"]) == pytest.approx(first.score, abs=1e-5)

    out, _ = call(model, audio[0], "--to", "jsonl", "--all")
    record = json.loads(out)
    assert list(record) == ["file", "start", "end", "labels", "scores", "decisions"]
    assert list(record["scores"]) == CLASSES
    assert record["labels"] == [first.name]
    assert record["decisions"] == {name: int(name == first.name) for name in CLASSES}

    call(model, recording, "--window", 1, "--timeline", "--out", tmp_path / "out.parquet", "--all")
    table = pq.read_table(tmp_path / "out.parquet")
    assert table["start"].to_pylist() == [0, 0.5, 1, 1.5, 2]
    assert table["labels"].to_pylist()[0][0] in CLASSES
    assert {f"{column}:{name}" for name in CLASSES for column in ("score", "decision")} < set(table.column_names)


def test_names_come_from_standard_input_and_are_taken_once(model: Path, audio: Sequence[Path]) -> None:
    out, err = call(model, "-", "--to", "jsonl", stdin=f"{audio[0]}\n{audio[1]}\n{audio[0]}\n")
    assert len(out.splitlines()) == 2
    assert f"note: {audio[0]} is named 2 times, and predicted once" in err


def test_timelines_are_label_tracks_and_pictures(
    model: Path, recording: Path, audio: Sequence[Path], tmp_path: Path
) -> None:
    call(model, recording, "--window", 0.5, "--timeline-to", tmp_path / "a.txt", "--timeline-to", tmp_path / "a.png")
    lines = [line.split("\t") for line in (tmp_path / "a.txt").read_text().splitlines()]
    assert float(lines[0][0]) == 0
    assert float(lines[-1][1]) == 3
    assert {label for *_, label in lines} <= set(CLASSES)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    call(model, recording, audio[0], "--timeline-to", tmp_path / "tracks")
    names = {f"{path.stem}{ending}" for path in (recording, audio[0]) for ending in (".txt", ".png")}
    assert {path.name for path in (tmp_path / "tracks").iterdir()} == names


def test_metrics_are_those_of_the_labels(model: Path, audio: Sequence[Path], tmp_path: Path) -> None:
    opened = sonolex.load(model)
    labels = [opened.predict(path).labels[0] for path in audio]
    wrong = next(name for name in CLASSES if name != labels[0])
    table = tmp_path / "labels.csv"
    rows = [f"{path},{label}" for path, label in zip(audio, [wrong, *labels[1:]], strict=True)]
    table.write_text("\n".join(["path,label", *rows, f"{tmp_path}/other.wav,tone", f"{tmp_path}/gone.wav,tone"]) + "\n")
    out, _ = call(model, *audio, tmp_path / "gone.wav", "--labels", table, status=1)
    accuracy = 100 * (len(audio) - 1) / len(audio)
    assert "Accuracy" in out
    assert f"{accuracy:.1f} %" in out
    assert f"metrics of {len(audio)} files with labels of" in out
    assert "1 with labels could not be used; 1 of its files were not named" in out
    for to, windows in (
        ("csv", ("--window", 0.3, "--timeline")),
        ("jsonl", ()),
    ):  # metrics are of files, and no part of a table
        out, err = call(model, *audio, "--labels", table, "--to", to, *windows)
        assert f"metrics of {len(audio)} files" in err
        assert "Accuracy" not in out


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            "path,label\na.wav,Clicks\n",
            r"expected labels that are classes .*\(tone, noise, clicks\), found 'Clicks' \(close",
        ),
        ("path,label\na.wav,tone\na.wav,noise\n", r"expected exactly one label a file.* \(1\): .*a\.wav \(2\)"),
        ("path,label\na.wav,\n", r"expected exactly one label a file.* \(1\): .*a\.wav \(0\)"),
        ("path,score\na.wav,1\n", r"expected a column labels or label or class or category, found path, score"),
        ("path,label\na.wav,tone\n", r"expected labels of the files to predict, such as .*--root says"),
    ],
)
def test_labels_that_do_not_fit_are_named(
    model: Path, audio: Sequence[Path], tmp_path: Path, rows: str, message: str
) -> None:
    (tmp_path / "labels.csv").write_text(rows)
    _, err = call(model, audio[0], "--labels", tmp_path / "labels.csv", status=1)
    assert re.search(message, err), err


def test_labels_of_several_classes(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text('path,labels\na.wav,tone|noise\nb.wav,"[""clicks"", ""tone""]"\nc.wav,\na.wav,clicks\n')
    labels = read_labels(table, None, CLASSES, "many")
    scores = np.array([0.9, 0.2, 0.6])
    predictions = [
        Prediction(str(tmp_path / name), 0, 1, CLASSES, "many", np.full(3, 0.5), np.log(scores), scores)
        for name in ("c.wav", "b.wav", "a.wav", "d.wav")
    ]
    assert predictions[0].labels == ["tone", "clicks"]
    clips = labels.scored(predictions)
    assert clips is not None
    np.testing.assert_array_equal(clips.targets, [[0, 0, 0], [1, 0, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--window", "1", "--hop", "0"), "error: hop: expected seconds"),
        (("--window", "0.0001"), "error: window: expected seconds"),
        (("--window", "1", "--pool", "sum"), "error: pool: expected one of mean, max"),
        (("--hop", "1"), "error: --hop, --pool: expected --window SECONDS beside them"),
        (("--to", "xml"), "error: --to: expected one of csv, jsonl, parquet, found 'xml'"),
        (("--to", "parquet"), "error: --to parquet: expected --out FILE"),
        (("--out", "out.txt"), "error: --out: expected a name that ends in .csv, .jsonl, .parquet, or --to"),
        (("--timeline-to", "a.svg"), "error: --timeline-to: expected a name that ends in .txt or .png, or a folder"),
    ],
)
def test_options_that_cannot_be_are_named(
    model: Path, audio: Sequence[Path], options: Sequence[str], message: str
) -> None:
    assert message in call(model, audio[0], *options, status=1)[1]


def test_one_track_is_of_one_file(model: Path, audio: Sequence[Path]) -> None:
    _, err = call(model, *audio[:2], "--timeline-to", "a.txt", status=1)
    assert "--timeline-to a.txt: expected one file to predict, found 2; name a folder" in err


def test_a_bundle_of_a_newer_version_is_refused(model: Path, audio: Sequence[Path], tmp_path: Path) -> None:
    newer = Path(shutil.copytree(model, tmp_path / "newer"))
    card = json.loads((newer / "bundle.json").read_text())
    (newer / "bundle.json").write_text(json.dumps(card | {"format": 99}))
    assert "found 99: a newer Sonolex wrote it; update Sonolex" in call(newer, audio[0], status=1)[1]


def test_python_names_failures(model: Path, audio: Sequence[Path], tmp_path: Path) -> None:
    opened = sonolex.load(model)
    good, bad = opened.predict_files([audio[0], tmp_path / "none.wav"], window=0.2)
    assert isinstance(good, Prediction)
    assert isinstance(bad, Failure)
    assert bad.reason == "missing"
    with pytest.raises(SonolexError, match=r"missing: .*none\.wav: expected a file"):
        opened.timeline(tmp_path / "none.wav")
    with pytest.raises(SonolexError, match="hop: expected seconds"):
        opened.predict(audio[0], window=1.0, hop=-1.0)


@pytest.mark.slow
def test_the_first_answer_waits_for_no_package_that_it_does_not_need(model: Path, audio: Sequence[Path]) -> None:
    program = (
        "import sys\n"
        "from tools.sonolex import app\n"
        f"app(['predict', {str(model)!r}, {str(audio[0])!r}], standalone_mode=False)\n"
        "print(sorted(set(sys.argv[1:]) & set(sys.modules)))"
    )
    heavy = ["timm", "torch._dynamo", "torch._inductor", "torchaudio", "matplotlib", "pandas", "pyarrow.dataset", "dvc"]
    heavy += ["sklearn", "librosa", "transformers", "tensorstore", "distributed"]
    done = subprocess.run([sys.executable, "-c", program, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
