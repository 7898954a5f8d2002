"""Copies of clips with another speed or pitch: what they sound like, what is computed again, and who reads them."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from conftest import make_clips, make_wav_corpus, make_waveform
from networks import params_of
from ruamel.yaml import YAML
from test_spectrogram_stage import PARAMS
from test_stage_code import DOCUMENT, TEXTS
from test_training import MODEL, PLAIN, SETTINGS, Memory
from workspace import artifacts, run, stages_run

from pipeline.artifacts.clips import open_clips
from pipeline.artifacts.development import DEVELOPMENT, DevelopmentTable, open_development
from pipeline.artifacts.spectrogram import Spectrogram, open_spectrogram
from pipeline.check_params import load_experiment
from pipeline.errors import ArtifactError, ParamsError, SonolexError
from pipeline.execution.code import Sources
from pipeline.execution.executors import ExecutionParams
from pipeline.models.base import NOT_NORMALISED
from pipeline.params import read_params, validate_params
from pipeline.spectrogram.building import open_memo, plan_shards
from pipeline.spectrogram.copies import Copy, CopyFrontEnd, change_waveform
from pipeline.spectrogram.reader import FrameReader
from pipeline.spectrogram.registry import build_front_end
from pipeline.spectrogram.settings import SpectrogramParams
from pipeline.stage_code import read_settings, stage_files
from pipeline.training.augmentation.partners import Partners, Use
from pipeline.training.batches import Batches
from pipeline.training.copies import open_copies
from pipeline.training.distributed import init_distributed
from pipeline.training.inputs import FrameInputs
from pipeline.training.neural import train_model
from pipeline.training.sampling import draw_versions
from pipeline.training.settings import TrainParams
from pipeline.training.trainers import Examples, TrainingData
from pipeline.training.validation import CUMULATIVE
from stages import spectrogram as stage
from tools.plan import StagePlan, _plan_spectrogram

RATE = 16000
SLOW, HIGH = {"speed": 0.8}, {"pitch": 3}
COPIES = [SLOW, HIGH]


def copy_of(**changes: float) -> Copy:
    return Copy.model_validate(changes)


def loudest(waveform: np.ndarray) -> float:
    """Return the frequency of the largest peak of the spectrum, in Hz."""
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax() * RATE / len(waveform))


@pytest.mark.parametrize(
    ("changes", "length", "ratio"),
    [
        ({"speed": 0.8}, 1.25, 0.8),
        ({"speed": 1.5}, 1 / 1.5, 1.5),
        ({"pitch": 3}, 1.0, 2 ** (3 / 12)),
        ({"pitch": -5.5}, 1.0, 2 ** (-5.5 / 12)),
        ({"speed": 0.5, "pitch": 12.0}, 2.0, 1.0),
    ],
)
def test_a_tone_moves_by_the_factor_and_the_semitones(changes: dict[str, float], length: float, ratio: float) -> None:
    tone = make_waveform("tone", 2.0, RATE, frequency=1000.0)
    changed = change_waveform(tone, copy_of(**changes), RATE)
    assert changed.dtype == np.float32
    assert len(changed) == pytest.approx(length * len(tone), abs=1)
    assert loudest(changed) == pytest.approx(1000.0 * ratio, abs=1.0)  # the vocoder errs by a tenth of a Hz or two


def test_a_sound_shorter_than_the_window_keeps_its_length() -> None:
    click = make_waveform("tone", 0.02, RATE, frequency=1000.0)
    assert change_waveform(click, copy_of(pitch=2), RATE).shape == click.shape


def test_the_shortest_clip_that_has_a_copy_gives_a_frame() -> None:
    params = settings().front_end
    for speed in (0.3, 0.8, 1.3, 3.9):
        front_end = CopyFrontEnd(params, copy_of(speed=speed))
        waveform = make_waveform("noise", 1.0, RATE)[: front_end.min_samples]
        assert len(front_end.log_mel(waveform)) == front_end.num_frames(len(waveform)) == 1


def settings(*copies: dict[str, float], **changed: Any) -> SpectrogramParams:
    return validate_params(SpectrogramParams, PARAMS | {"copies": list(copies)} | changed, "spectrogram")


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = make_wav_corpus(tmp_path / "corpus", clips_per_class=2, seconds=0.2)
    make_clips(tmp_path / "clips.parquet", root, sorted(f"audio/{file.name}" for file in (root / "audio").iterdir()))
    return root


def build(root: Path, *copies: dict[str, float], memo: str = "memo", **changed: Any) -> dict[str, bytes]:
    """Run the stage's two parts, and return the bytes of what they write."""
    params = settings(*copies, **changed)
    limits: Any = SimpleNamespace(root=root, max_bad_fraction=0.0, max_duration=5.0)
    execution = ExecutionParams(executor="local", scheduler="", workers=1, memo=Path(memo))
    for write, name in ((stage.run, "spectrogram"), (stage.run_copies, "copies")):
        write(params, limits, execution, Path("clips.parquet"), Path("data", name))
    files = sorted(path for path in Path("data").rglob("*") if path.is_file())
    return {str(path.relative_to("data")): path.read_bytes() for path in files}


def decoded(copy: str = "") -> int:
    """Return the clips that the last run decoded, of a copy."""
    name = "-".join(filter(None, ("spectrogram", copy)))
    return int(json.loads(Path(f"results/stages/{name}.json").read_text())["decoded"])


def test_a_copy_is_computed_alone_and_clips_keep_their_bytes(corpus: Path) -> None:
    before = build(corpus)
    assert not list(Path("data/copies").iterdir())
    after = build(corpus, SLOW)
    assert (decoded(), decoded("speed_0.8")) == (0, 12)
    assert {name: content for name, content in after.items() if not name.startswith("copies/")} == before
    both = build(corpus, SLOW, HIGH)
    assert (decoded("speed_0.8"), decoded("pitch_3")) == (0, 12)
    frames = [name for name in after if name.startswith("copies/speed_0.8/frames.zarr/")]
    assert frames
    assert all(both[name] == after[name] for name in frames)
    assert build(corpus) == before
    assert build(corpus, SLOW, HIGH, memo="another") == both


def test_a_killed_run_goes_on_with_the_shards_that_are_left(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_shards = stage.run_shards

    def killed(*arguments: Any, **options: Any) -> Any:
        for number, done in enumerate(run_shards(*arguments, **options)):
            if number == 1:
                raise KeyboardInterrupt
            yield done

    build(corpus)
    monkeypatch.setattr(stage, "run_shards", killed)
    with pytest.raises(KeyboardInterrupt):
        build(corpus, HIGH)
    assert not Path("data/copies/pitch_3").exists()
    monkeypatch.undo()
    monkeypatch.chdir(corpus.parent)
    resumed = build(corpus, HIGH)
    assert 0 < decoded("pitch_3") < 12
    assert resumed == build(corpus, HIGH, memo="another")


def test_listed_copies_change_no_key_of_clips(tmp_path: Path) -> None:
    plain, listed = settings(), settings(*COPIES)
    memos = [open_memo(tmp_path, params, 5.0) for params in (plain, listed)]
    assert memos[0].about == memos[1].about
    assert plain.recorded() == listed.recorded()
    versions = {open_memo(tmp_path, listed, 5.0, copy).version for copy in listed.copies}
    assert len(versions | {memos[0].version}) == 3


def test_copies_hold_the_frames_of_changed_waveforms(corpus: Path) -> None:
    build(corpus, SLOW, dtype="float32")
    copy = open_spectrogram(Path("data/copies/speed_0.8"))
    assert copy.index.metadata["copy"] == {"speed": 0.8, "pitch": 0.0}
    waveform = make_waveform("tone", 0.2, RATE)
    engine = build_front_end(settings().front_end)
    ids = copy.index.list("clip_id")
    originals = FrameReader(open_spectrogram(Path("data/spectrogram")))
    assert ids == originals.ok(ids)
    for clip in ids:
        expected = engine.num_frames(round(len(waveform) / 0.8))
        assert FrameReader(copy).num_frames(clip) == expected > originals.num_frames(clip)


def development_of(spectrogram: Spectrogram, path: Path) -> DevelopmentTable:
    """Write the development set of all clips, as training clips."""
    names = ["clip_id", "key", "num_frames", "sum", "sum_of_squares"]
    columns = spectrogram.index.columns.select(names)
    columns = columns.add_column(1, "role", pa.array(["train"] * len(columns)))
    metadata = spectrogram.index.metadata
    DEVELOPMENT.write(path, columns, {"fold": "1", "front_end": metadata["front_end"], "version": metadata["version"]})
    return open_development(path, fold="1")


def test_a_clip_without_a_copy_is_read_as_it_is(corpus: Path) -> None:
    build(corpus, {"speed": 4.0}, front_end=PARAMS["front_end"] | {"win_length": 1600, "n_fft": 2048})
    clips = FrameInputs(spectrogram := open_spectrogram(Path("data/spectrogram")))
    (copy,) = open_copies([Path("data/copies/speed_4")], clips, development_of(spectrogram, Path("dev.parquet")))
    ids = spectrogram.index.list("clip_id")
    assert copy.usable(ids) == ids
    assert [copy.num_frames(clip) for clip in ids] == [clips.num_frames(clip) for clip in ids]
    for ours, theirs in zip(copy.arrays(ids), clips.arrays(ids), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_copies_of_other_clips_are_refused(corpus: Path) -> None:
    build(corpus, SLOW)
    spectrogram = open_spectrogram(Path("data/spectrogram"))
    development = development_of(spectrogram, Path("dev.parquet"))
    paths = [Path("data/copies/speed_0.8")]
    build(corpus, SLOW, front_end=PARAMS["front_end"] | {"n_mels": 20})
    with pytest.raises(ArtifactError, match=r"copies/speed_0\.8/index\.parquet.*front_end.*another"):
        open_copies(paths, FrameInputs(spectrogram), development)
    build(corpus, SLOW)
    first, *_ = sorted((corpus / "audio").iterdir())
    soundfile.write(first, make_waveform("chirp", 0.2, RATE), RATE)
    make_clips(Path("clips.parquet"), corpus, sorted(f"audio/{file.name}" for file in (corpus / "audio").iterdir()))
    build(corpus, SLOW)
    with pytest.raises(ArtifactError, match=rf"audio of clip {first.stem}: .*dev\.parquet, found other audio"):
        open_copies(paths, FrameInputs(spectrogram), development)


class Longer(Memory):
    """Copies of the clips of `Memory`, three times as long, with values of their own."""

    name, source = "speed_0.3", "version"
    read: list[str]

    def __init__(self, num_clips: int) -> None:
        super().__init__(num_clips)
        self.clips = {clip: np.repeat(-frames, 3, axis=0) for clip, frames in self.clips.items()}
        self.read = []

    def stored(self, clip_ids: Any) -> list[np.ndarray]:
        self.read += clip_ids
        return super().stored(clip_ids)


def train_on(copies: list[Longer], probability: float, tmp_path: Path) -> tuple[dict[str, np.ndarray], list[float]]:
    """Train on six clips and validate on the other three; return the weights and the validation losses."""
    inputs = Memory(9)
    ids, targets = list(inputs.clips), np.eye(3, dtype=np.float32)[np.arange(9) % 3]
    parts = Examples(ids[:6], targets[:6]), Examples(ids[6:], targets[6:])
    data: Any = TrainingData(inputs, *parts, "one", None, None, list("abc"), copies)
    changes = {"epochs": 2, "augmentation": PLAIN | {"copies": probability, "mixup_probability": 0.5}}
    settings = TrainParams.model_validate(SETTINGS | changes)
    with init_distributed() as context:
        weights, *_, trained = train_model(
            params_of(MODEL), settings, data,
            seed=0, curves_path=tmp_path / "live", context=context,
            score=lambda scores, targets: dict.fromkeys(CUMULATIVE, 0.0),
        )  # fmt: skip
    return weights, [row["validation_loss"] for row in trained.history]


@pytest.fixture
def no_checkpoints(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.usefixtures("no_checkpoints")
def test_at_probability_0_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    plain, losses = train_on([], 0.0, tmp_path)
    unread, same_losses = train_on([Longer(9)], 0.0, tmp_path)
    assert _same(plain, unread)
    assert losses == same_losses


@pytest.mark.usefixtures("no_checkpoints")
def test_training_clips_alone_are_read_as_copies(tmp_path: Path) -> None:
    plain, _ = train_on([], 0.0, tmp_path)
    copy = Longer(9)
    changed, losses = train_on([copy], 1.0, tmp_path)
    assert not _same(plain, changed)
    assert set(copy.read) == {f"clip-{number}" for number in range(6)}
    again, same_losses = train_on([Longer(9)], 1.0, tmp_path)
    assert _same(changed, again)
    assert losses == same_losses


@pytest.mark.usefixtures("no_checkpoints")
def test_without_copies_their_probability_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SonolexError, match=r"train\.augmentation\.copies: expected 0 .*found 0\.5; list copies in"):
        train_on([], 0.5, tmp_path)


def test_batches_hold_each_clip_as_it_was_drawn() -> None:
    clips, copy = Memory(6), Longer(6)
    ids = list(clips.clips)
    plain, other, uncached = (
        Batches(inputs, ids, NOT_NORMALISED, cache_bytes=size)
        for inputs, size in ((clips, 1 << 20), (copy, 1 << 20), (copy, 0))
    )
    partner = Partners(torch.tensor([1]), torch.tensor([0]), torch.tensor([Use.SUM]), torch.zeros(1))
    for versions in ([plain, other], [plain, uncached]):
        batches = plain.among(versions, [0, 1, 0, 1, 1, 0])
        assert batches.take([3], partner).inputs.shape[1] == len(copy.clips["clip-3"]) > len(clips.clips["clip-3"])
        batch = batches.take([3, 2, 3])
        assert batch.rows.tolist() == [3, 2, 3]
        expected = [copy.clips["clip-3"], clips.clips["clip-2"], copy.clips["clip-3"]]
        assert batch.mask is not None
        for frames, mask, wanted in zip(batch.inputs, batch.mask, expected, strict=True):
            np.testing.assert_array_equal(frames[mask], wanted)


def test_versions_are_drawn_alike_and_as_often_as_asked() -> None:
    drawn = np.array(draw_versions(20000, 3, 0.6, seed=1))
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), [0.4, 0.2, 0.2, 0.2], atol=0.02)
    state = torch.get_rng_state()
    assert draw_versions(50, 3, 0.0, seed=1) == [0] * 50
    assert torch.equal(torch.get_rng_state(), state)
    assert draw_versions(50, 2, 1.0, seed=1) != draw_versions(50, 2, 1.0, seed=2)


def with_copies(probability: float, *copies: dict[str, float]) -> dict[str, Any]:
    document = deepcopy(DOCUMENT)
    document["spectrogram"]["copies"] = list(copies)
    document["train"]["augmentation"]["copies"] = probability
    return document


def test_changed_copies_retrain_what_trains_with_them() -> None:
    files = [
        stage_files(with_copies(*case), Sources(Path(), TEXTS)) for case in ((0.5, SLOW), (0.5, HIGH), (0.0, HIGH))
    ]
    assert {name for name in files[0] if files[0][name] != files[1][name]} == {"train/ast"}
    assert "spectrogram.copies" not in read_settings(with_copies(0.0, HIGH), "train", "ast")
    assert "spectrogram.copies" not in read_settings(with_copies(0.5, HIGH), "train", "token_transformer")


def test_the_code_of_copies_reaches_what_trains_with_them() -> None:
    path = "pipeline/spectrogram/copies.py"
    edited = TEXTS | {path: TEXTS[path].replace("_WINDOW = 0.093", "_WINDOW = 0.08")}
    assert edited[path] != TEXTS[path]
    for probability, expected in ((0.5, {"spectrogram", "train/ast"}), (0.0, {"spectrogram"})):
        document = with_copies(probability, HIGH)
        before, after = (stage_files(document, Sources(Path(), texts)) for texts in (TEXTS, edited))
        assert {name for name in before if before[name] != after[name]} == expected


@pytest.mark.parametrize(
    ("probability", "copies", "message"),
    [
        (0.0, [{"speed": 0}], r"spectrogram\.copies\.0\.speed: .*greater than or equal to 0\.25, found 0"),
        (0.0, [{"speed": 9.0}], r"spectrogram\.copies\.0\.speed: .*less than or equal to 4, found 9\.0"),
        (0.0, [SLOW, {"pitch": -30}], r"spectrogram\.copies\.1\.pitch: .*greater than or equal to -24, found -30"),
        (0.0, [{"speed": 1.0}], r"spectrogram\.copies\.0: .*found neither: the copy would be the clip"),
        (0.0, [{}], r"spectrogram\.copies\.0: .*found neither"),
        (0.0, [SLOW, {"speed": 0.8, "pitch": 0}], r"copies: expected each copy once, found speed_0\.8 several times"),
        (0.0, [{"tempo": 2}], r"spectrogram\.copies\.0\.tempo"),
        (0.3, [], r"train\.augmentation\.copies: expected 0 while spectrogram\.copies is empty, found 0\.3"),
    ],
)
def test_the_check_names_impossible_copies(
    probability: float, copies: list[dict[str, float]], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "params.yaml"
    YAML(typ="safe").dump(with_copies(probability, *copies), path)
    with pytest.raises(ParamsError, match=message):
        load_experiment(path)


def test_valid_copies_pass_the_check(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    YAML(typ="safe").dump(with_copies(0.5, SLOW, HIGH, {"speed": 1.1, "pitch": -1.5}), path)
    params = load_experiment(path).sections["spectrogram"]
    assert [copy.name for copy in params.copies] == ["speed_0.8", "pitch_3", "speed_1.1_pitch_-1.5"]


def test_a_plan_counts_the_shards_of_copies(corpus: Path) -> None:
    build(corpus, SLOW)
    execution = SimpleNamespace(memo=Path("memo"), workers=1)
    sections = {"spectrogram": settings(*COPIES), "corpus": SimpleNamespace(max_duration=5.0), "execution": execution}
    experiment: Any = SimpleNamespace(sections=sections)
    clips, plan = open_clips(Path("clips.parquet")), StagePlan("spectrogram", stale=1)
    _plan_spectrogram(plan, experiment, clips)
    shards = len(plan_shards(clips, settings().clips_per_shard))
    assert (plan.shards, plan.reused, plan.clips) == (3 * shards, 2 * shards, len(clips))
    assert plan.reasons == {"param": shards}
    assert plan.seconds


@pytest.mark.slow
def test_dvc_runs_again_what_copies_change_and_nothing_else(finished: Path, tmp_path: Path) -> None:
    workspace = shutil.copytree(finished, tmp_path / "workspace", symlinks=True)
    before, document = artifacts(workspace), read_params(workspace / "params.yaml")

    def repro(listed: list[dict[str, float]], probability: float) -> tuple[set[str], set[str]]:
        """Return the stages that run with these settings, and the artifacts of before that differ now."""
        document["spectrogram"]["copies"] = listed
        document["train"]["augmentation"]["copies"] = probability
        YAML().dump(document, workspace / "params.yaml")
        ran = set(stages_run(run(workspace, "dvc", "repro", project=True).stdout))
        now = artifacts(workspace)
        return ran, {path for path in before if now.get(path) != before[path]}

    always = {"code", "corpus"}
    assert repro([SLOW], 0.0) == (always | {"spectrogram"}, set())
    assert (workspace / "data" / "copies" / "speed_0.8" / "index.parquet").is_file()
    ran, differing = repro([SLOW], 0.9)
    trained = {name for name in ran if name.startswith("train")}
    assert trained == {"train_frames@ast-1-0"}
    assert "models/ast/1/0/weights.safetensors" in differing
    assert not {
        path for path in differing if path.startswith(("data/", "models/frame_statistics", "predictions/frame"))
    }
    ran, _ = repro([SLOW, HIGH], 0.9)
    assert {name for name in ran if name.startswith(("spectrogram", "train", "duplicates", "vocabulary"))} == {
        "spectrogram", "train_frames@ast-1-0"
    }  # fmt: skip
    assert repro([], 0.0)[1] == set()
