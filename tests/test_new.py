"""`sonolex new`: what it sees in a folder, what it warns of, and that it writes what the shown command would write."""

import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, make_waveform
from layouts import write_folder, write_irmas, write_sound, write_table
from rich.console import Console
from test_duplicates import make_sound
from typer.testing import CliRunner

from pipeline.models.baselines import kernel_classifier
from pipeline.params import read_params
from tools import new, survey
from tools.sonolex import app

RECIPES = str(REPOSITORY / "recipes")
INSTRUMENTS = REPOSITORY.parent / "shared" / "data" / "instruments"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path_factory.mktemp("project")
    (project / "metadata").symlink_to(REPOSITORY / "metadata")
    monkeypatch.chdir(project)


def _new(folder: Path, *arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(app, ["new", str(folder), "--recipes", RECIPES, *arguments])
    assert result.exit_code == status, result.output
    return " ".join(result.output.split())


def _command(output: str) -> list[str]:
    [command] = re.findall(r"proposed: (sonolex compose .*?) (?:nothing is written|params.yaml = )", output)
    return shlex.split(command)[1:]


def _classes(root: Path, *, of: int = 6, suffix: str = ".wav") -> Path:
    for label in ("tone", "noise"):
        for number in range(of):
            write_sound(root / label / f"{number}{suffix}", number, label)
    return root


def test_what_is_written_is_what_the_shown_command_writes(tmp_path: Path) -> None:
    output = _new(_classes(tmp_path / "birds of mine"), "--yes", "train.epochs=3")
    command = _command(output)
    assert command == ["compose", "folder", f"corpus.root={tmp_path}/birds of mine", "train.epochs=3"]
    written = Path("params.yaml").read_text()
    Path("params.yaml").unlink()
    assert CliRunner().invoke(app, [*command, "--recipes", RECIPES]).exit_code == 0
    assert Path("params.yaml").read_text() == written
    assert read_params(Path("params.yaml"))["train"]["epochs"] == 3


def test_without_anyone_to_ask_nothing_is_written_and_the_status_is_said(tmp_path: Path) -> None:
    output = _new(_classes(tmp_path), status=1)
    assert "clips 12 classes 2 of 6 clips, one for each clip: noise (6), tone (6)" in output
    assert "nothing is written: add --yes, where nobody can be asked (exit status 1)" in output
    assert not Path("params.yaml").exists()


@pytest.mark.parametrize("answer", [True, False])
def test_a_yes_writes_and_a_no_does_not(answer: bool, tmp_path: Path) -> None:
    quiet = Console(file=io.StringIO())
    written = new.run(
        _classes(tmp_path),
        [],
        new.Options(),
        recipes_path=Path(RECIPES),
        params_path=Path("params.yaml"),
        console=quiet,
        messages=quiet,
        confirm=lambda: answer,
    )
    assert written is Path("params.yaml").exists() is answer


def test_params_that_were_changed_by_hand_are_kept(tmp_path: Path) -> None:
    _new(_classes(tmp_path), "--yes")
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("depth: 2", "depth: 3"))
    assert "changed by hand" in _new(tmp_path, "--yes", status=1)
    _new(tmp_path, "--yes", "--force")
    assert "depth: 3" in Path("params.yaml.bak").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("empty", "expected files that end in .wav"),
        ("texts", "found none among 1 files, readme.md for one"),
        ("flat", "expected labels of at least two classes, found none"),
        ("one", "expected labels of at least two classes, found none"),
        ("missing", "expected a folder of audio, found No such file or directory"),
    ],
)
def test_folders_without_a_corpus_are_refused_with_what_to_do(name: str, message: str, tmp_path: Path) -> None:
    for folder in ("empty", "texts", "flat", "one"):
        (tmp_path / folder).mkdir()
    (tmp_path / "texts" / "readme.md").write_text("none")
    for number in range(3):
        write_sound(tmp_path / "flat" / f"{number}.wav", number)
        write_sound(tmp_path / "one" / "dog" / f"{number}.wav", number)
    assert message in _new(tmp_path / name, "--yes", status=1)
    assert not Path("params.yaml").exists()


def test_a_layout_that_cannot_be_listed_gives_way_to_the_next_or_is_named(tmp_path: Path) -> None:
    root = _classes(tmp_path)
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("nothing of it\n")
    output, why = _new(root, status=1), "cannot be read as esc50, though it has meta/esc50.csv: "
    assert "layout folder" in output
    assert f"warning: {why}" in output
    assert f"error: {why}" in _new(root, "--kind", "esc50", status=1)
    assert "--kind: expected one of esc50, " in _new(root, "--kind", "tapes", status=1)


def test_another_layout_can_be_chosen(tmp_path: Path) -> None:
    write_table(tmp_path)
    assert _command(_new(tmp_path, status=1))[1] == "table"
    assert _command(_new(tmp_path, "--kind", "folder", status=1))[1] == "folder"


def test_digits_by_speakers_are_read_by_their_names(tmp_path: Path) -> None:
    for digit in range(3):
        for speaker in ("jackson", "nicolas", "theo"):
            for take in range(3):
                write_sound(tmp_path / f"{digit}_{speaker}_{take}.wav", 9 * digit + take)
    output = _new(tmp_path, "--yes")
    assert "groups 3, named by the corpus" in output
    assert "classes with fewer groups than 5 folds: 0 (3), 1 (3), 2 (3): 3 folds are drawn" in output
    params = read_params(Path("params.yaml"))
    assert params["corpus"]["pattern"] == "(?P<label>[^_]+)_(?P<group>[^_]+)_[^_]+"
    assert params["split"]["num_folds"] == 3
    assert params["experiment"]["folds"] == ["1", "2", "3"]


def test_a_published_corpus_has_its_own_recipe(tmp_path: Path) -> None:
    write_irmas(tmp_path)
    output = _new(tmp_path, "--yes")
    assert "published roles: test (11), train (22)" in output
    assert _command(output) == ["compose", "irmas", f"corpus.root={tmp_path}"]


def test_a_class_of_one_clip_is_left_out_of_folders_and_stops_tables(tmp_path: Path) -> None:
    root = _classes(tmp_path)
    write_sound(root / "rare" / "0.wav", 99)
    output = _new(root, "--yes")
    assert "left out by corpus.ignore, since they have one clip or group alone: rare" in output
    assert read_params(Path("params.yaml"))["corpus"]["ignore"] == ["_background_noise_", "rare"]
    rows = [f"{path.relative_to(root)},{path.parent.name}" for path in sorted(root.glob("*/*.wav"))]
    (root / "clips.csv").write_text("\n".join(["file,label", *rows]) + "\n")
    output = _new(root, "--yes", status=1)
    assert "classes with one group alone, which cannot be in training and in test: rare" in output
    assert "nothing is written: a run would stop (exit status 1)" in output


def test_a_role_without_a_class_is_an_obstacle(tmp_path: Path) -> None:
    for number, (fold, label) in enumerate((("train", "a"), ("train", "b"), *[("test", "a")] * 4)):
        write_sound(tmp_path / fold / label / f"{number}.wav", number)
    output = _new(tmp_path, "--kind", "folder", status=1)
    assert "classes without a clip in test, which the split needs: b" in output


def test_clips_that_cannot_be_used_are_named_with_what_they_cost(tmp_path: Path) -> None:
    root = _classes(tmp_path)
    (root / "tone" / "0.wav").write_text("no sound")
    soundfile.write(root / "tone" / "1.wav", make_waveform("silence"), 16000)
    output = _new(root, status=1)
    assert "2 of 12 decoded clips cannot be used: more than corpus.max_bad_fraction=0.01" in output
    assert "add corpus.max_bad_fraction=0.26. 1 silent (" in output
    assert "; 1 unreadable (" in output
    (root / "tone" / "2.wav").rename(root / "tone" / "2.m4a").write_bytes(b"not what it says")
    assert "1 M4A without a header that can be read" in _new(root, status=1)
    assert "they are left out" in _new(root, "corpus.max_bad_fraction=0.3", status=1)


def test_mixed_bandwidth_is_warned_of_and_what_it_says_ends_it(tmp_path: Path) -> None:
    root = _classes(tmp_path)
    soundfile.write(root / "tone" / "0.wav", make_waveform("noise", sample_rate=8000), 8000)
    output = _new(root, status=1)
    assert "of 12 clips 1 of 8,000 Hz have nothing above half of that, where the front end reads to 8,000 Hz" in output
    [advice] = re.findall(r"add (spectrogram\.front_end\.f_max=[\d.]+)", output)
    assert "mixed bandwidth" not in _new(root, advice, status=1)


def test_a_class_in_one_format_only_is_warned_of(tmp_path: Path) -> None:
    for number in range(8):
        write_sound(tmp_path / "phone" / f"{number}.ogg", number)
        write_sound(tmp_path / "street" / f"{number}.wav", number)
        write_sound(tmp_path / "wood" / f"{number}.{'wav' if number % 2 else 'ogg'}", number, "tone")
    output = _new(tmp_path, status=1)
    assert "phone (8 clips, all OGG VORBIS 16 kHz mono, as 50% of all)" in output
    assert "street (8 clips, all WAV PCM_16 16 kHz mono, as 50% of all)" in output
    assert "wood (" not in output.partition("classes in one format only")[2].partition("proposed")[0]


def test_copies_are_found_by_content_and_those_with_other_labels_named(tmp_path: Path) -> None:
    root = _classes(tmp_path)
    (root / "noise" / "copy.wav").write_bytes((root / "noise" / "0.wav").read_bytes())
    output = _new(root, status=1)
    assert "1 files are copies of others, byte for byte, such as noise/0.wav = noise/copy.wav" in output
    assert "with other labels" not in output
    (root / "tone" / "copy.wav").write_bytes((root / "noise" / "0.wav").read_bytes())
    output = _new(root, status=1)
    assert "1 files have copies with other labels: noise/0.wav (noise) = tone/copy.wav (tone); correct" in output


def test_the_same_recording_in_files_that_differ_is_warned_of(tmp_path: Path) -> None:
    root = _classes(tmp_path)
    call = make_sound(7)
    soundfile.write(root / "tone" / "call.wav", call, 16000)
    soundfile.write(root / "noise" / "softer.flac", call[80:] // 2, 16000)
    (root / "noise" / "copy.wav").write_bytes((root / "noise" / "0.wav").read_bytes())  # which is named as a copy
    output = _new(root, status=1)
    assert (
        "1 pairs among 15 decoded clips seem to hold the same recording: noise/softer.flac = tone/call.wav (0."
        in output
    )


def test_long_clips_are_let_in_and_short_ones_warned_of(tmp_path: Path) -> None:
    root = _classes(tmp_path / "long")
    soundfile.write(root / "tone" / "0.wav", np.tile(make_waveform("noise"), 130), 16000)  # 65 s
    assert "corpus.max_duration=66.0" in _command(_new(root, status=1))
    for number in range(12):
        label = ("tone", "noise")[number % 2]
        path = write_sound(tmp_path / "short" / label / f"{number}.wav", number)
        soundfile.write(path, make_waveform("noise", 0.06, seed=number), 16000)
    output = _new(tmp_path / "short", status=1)
    assert "the median clip of 0.06 s has 6 frames, and so 6.0 positions; expected at least 8" in output


def test_large_folders_are_sampled_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "HEADERS", 6)
    monkeypatch.setattr(survey, "DECODED", 4)
    monkeypatch.setattr(survey, "COMPARED", 2)
    write_folder(tmp_path)
    output = _new(tmp_path, status=1)
    assert "formats 6 WAV PCM_16, of a sample of 6 clips" in output
    assert "none, of 4 decoded clips" in output
    assert "byte for byte, of the first 2 of 12 files that have the size of another" in output


def _write_m4a(path: Path, seed: int) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(make_waveform("noise", seed=seed)[None], format="fltp", layout="mono")
        frame.rate = 16000
        file.mux([*stream.encode(frame), *stream.encode(None)])


def test_settings_fit_the_formats_of_phones(tmp_path: Path) -> None:
    for number in range(12):
        _write_m4a(tmp_path / "ab"[number % 2] / f"{number}.m4a", number)
    output = _new(tmp_path, "--yes")
    assert "formats 12 M4A by FFmpeg rates 12 at 16,000 Hz" in output
    assert "fitted to 9 training clips a fold, of 0." in output


def test_a_model_without_room_for_the_clips_is_an_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_classifier, "MOST_ROWS", 20)
    output = _new(_classes(tmp_path), status=1)
    assert "experiment: frame_textures: " in output
    assert "nothing is written: a run would stop" in output


def test_a_published_fold_without_a_class_is_an_obstacle(tmp_path: Path) -> None:
    for number in range(12):
        write_sound(
            tmp_path / f"fold{number % 3 + 1}" / ("a" if number % 3 or number else "b") / f"{number}.wav", number
        )
    assert "classes without a clip in the fold fold2, which the split needs: b" in _new(tmp_path, status=1)


@pytest.mark.skipif(not INSTRUMENTS.is_dir(), reason="the instruments are not here")
@pytest.mark.slow
def test_three_hundred_instruments_in_ten_folders() -> None:
    output = _new(INSTRUMENTS, "--yes")
    assert "300 OGG VORBIS" in output
    (warning,) = re.findall(r"warning: .*", output)
    assert "1 pairs among 300 decoded clips" in warning
    assert "Snare_drum/229be2be.ogg = Snare_drum/5ce40b1b.ogg (0.87)" in warning
    assert read_params(Path("params.yaml"))["experiment"]["folds"] == ["1", "2", "3", "4", "5"]
