"""Token models that train on tokens of augmented frames: the same as stored where nothing is changed, else others."""

import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from conftest import REPOSITORY
from networks import network, params_of
from test_development import ROLES, collect
from test_kinds import OWN, noise
from test_rebuilding import fit
from test_spectral_augmentation import FRONT_END, METADATA
from test_stage_code import DOCUMENT, TEXTS
from test_training import PLAIN, SETTINGS

from pipeline.artifacts.development import open_development
from pipeline.artifacts.layout import Layout, ModelId
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.check_params import load_experiment
from pipeline.errors import ArtifactError, ParamsError, SonolexError
from pipeline.execution.code import Sources
from pipeline.stage_code import read_settings, retokenizes, stage_files
from pipeline.training.augmentation.applying import Augmentation
from pipeline.training.augmentation.mixing import Mixed
from pipeline.training.augmentation.noise import NO_NOISE
from pipeline.training.augmentation.partners import Partners, Use
from pipeline.training.augmentation.power import PowerScale
from pipeline.training.augmentation.retokenizing import Retokenizer
from pipeline.training.augmentation.settings import AugmentationParams
from pipeline.training.distributed import init_distributed
from pipeline.training.inputs import input_artifacts
from pipeline.training.loop import _Run
from pipeline.training.neural import train_model, training_task
from pipeline.training.opening import open_frames
from pipeline.training.settings import TrainParams
from pipeline.training.trainers import Examples, TrainingData
from pipeline.vocabulary.assignment import assign
from tools.compose import compose, dump

FEATURES: list[dict[str, int]] = [{}, {"stack": 3}, {"stack": 2, "deltas": 2}, {"stack": 2, "deltas": 1, "pca": 5}]
SMALL: dict[str, Any] = {"encoder__width": 16, "encoder__heads": 2, "encoder__depth": 1, "encoder__drop_path": 0.0}
MODEL = network("tokens", stem="linear", **SMALL)
TEXTURES = network("tokens", stem="textures", **SMALL)


def with_features(kind: str, features: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in features.items() if name != "pca" or kind != "bands"}


def padded(clips: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips as a batch, with a value behind them that no frame has, and their mask."""
    lengths = torch.tensor([len(clip) for clip in clips])
    frames = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(clip) for clip in clips], True, 1e6)
    return frames, torch.arange(frames.shape[1]) < lengths[:, None]


def assigned(vocabulary: Vocabulary, clips: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return the tokens of clips that were assigned as a padded batch, each without padding."""
    tokens, mask = Retokenizer(vocabulary, [0.0]).assign(*padded(clips))
    assert mask is not None
    assert (tokens.transpose(1, 2)[~mask] == vocabulary.num_tokens).all()
    return [clip[:, : int(real.sum())].numpy() for clip, real in zip(tokens, mask, strict=True)]


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("kind", OWN)
def test_padded_clips_have_the_tokens_of_each_alone(kind: str, features: dict[str, int]) -> None:
    vocabulary = fit(noise(400), kind=kind, num_tokens=16, **with_features(kind, features))
    clips = np.split(noise(400), np.cumsum([1, 2, 61, 40, 90]))
    for found, expected in zip(assigned(vocabulary, clips), assign(vocabulary, clips), strict=True):
        np.testing.assert_array_equal(found, expected)
    whole, mask = Retokenizer(vocabulary, [0.0]).assign(torch.from_numpy(clips[2])[None], None)
    assert mask is None
    np.testing.assert_array_equal(whole[0].numpy(), assign(vocabulary, clips)[2])


@pytest.fixture(scope="module")
def recorded(esc10_root: Path) -> list[np.ndarray]:
    """Return log-mel frames of ten recordings, in float16 as they are stored, cut to different lengths."""
    clips = []
    for number, file in enumerate(sorted((esc10_root / "audio").glob("*.ogg"))[::40]):
        samples, _ = soundfile.read(file, dtype="float32", frames=100_000)
        frames = FRONT_END.log_mel(samples[::3])[: 120 + 7 * number]
        clips.append(frames.astype(np.float16).astype(np.float32))
    return clips


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("kind", OWN)
def test_recordings_have_their_stored_tokens(kind: str, features: dict[str, int], recorded: list[np.ndarray]) -> None:
    vocabulary = fit(np.concatenate(recorded), kind=kind, num_tokens=64, **with_features(kind, features))
    pairs = zip(assigned(vocabulary, recorded), assign(vocabulary, recorded), strict=True)
    wrong = sum(int((found != stored).sum()) for found, stored in pairs)
    assert wrong <= 1  # a frame that lies equally far from two codes, to rounding


def test_a_long_batch_is_assigned_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, clips = fit(noise(400), num_tokens=16), np.split(noise(400), 5)
    whole = assigned(vocabulary, clips)
    monkeypatch.setattr("pipeline.training.augmentation.retokenizing._SCORES_AT_ONCE", {"cpu": 1})
    for found, expected in zip(assigned(vocabulary, clips), whole, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_mix_up_takes_a_clip_beyond_its_end_as_the_mean_frame() -> None:
    vocabulary = fit(noise(400), num_tokens=16)
    options = PLAIN | {"mixup_probability": 1.0, "mixup_alpha": 1000.0, "mixup_partners": "all"}
    frames, mask = padded([np.full((4, 8), 4.0, np.float32), np.full((10, 8), 2.0, np.float32)])
    partner = Partners(torch.tensor([1]), torch.tensor([0]), torch.tensor([Use.MIXUP]), torch.zeros(1))
    augmentation = Augmentation(
        AugmentationParams.model_validate(options), 1, None, NO_NOISE, Retokenizer(vocabulary, [-3.0])
    )
    mixed = augmentation.combine(Mixed(frames, mask, torch.eye(2)), partner)
    assert mixed.features.shape == (1, 10, 8)
    torch.testing.assert_close(mixed.features[:, :4], torch.full((1, 4, 8), 3.0), atol=0.3, rtol=0)
    torch.testing.assert_close(mixed.features[:, 4:], torch.full((1, 6, 8), -0.5), atol=0.3, rtol=0)


def test_frames_that_are_not_normalised_are_mixed_with_the_mean_frame_too() -> None:
    """Padding of 0 would be a loud frame: of texture statistics, whose frames are in the front end's units."""
    options = PLAIN | {"mixup_probability": 1.0, "mixup_alpha": 1000.0, "mixup_partners": "all"}
    mask = torch.arange(12) < torch.tensor([[4], [10]])
    frames = torch.where(mask[:, :, None], torch.tensor([-4.0, -2.0])[:, None, None].expand(2, 12, 8), 0.0)
    partner = Partners(torch.tensor([1]), torch.tensor([0]), torch.tensor([Use.MIXUP]), torch.zeros(1))
    scale = PowerScale(EIGHT_BANDS, 1.0, typical=-7.0)
    augmentation = Augmentation(AugmentationParams.model_validate(options), 1, scale, NO_NOISE)
    mixed = augmentation.combine(Mixed(frames, mask, torch.eye(2)), partner)
    torch.testing.assert_close(mixed.features[:, :4], torch.full((1, 4, 8), -3.0), atol=0.3, rtol=0)
    torch.testing.assert_close(mixed.features[:, 4:], torch.full((1, 6, 8), -4.5), atol=0.3, rtol=0)


@pytest.mark.parametrize(("normalisation", "typical"), [("none", -5.0), ("corpus", 0.0)])
def test_the_mean_frame_is_that_of_the_training_clips(normalisation: Any, typical: float) -> None:
    frames: Any = Frames({f"clip-{number}": np.zeros((9, 8), np.float32) for number in range(3)})
    examples = Examples(list(frames.clips), np.eye(3, dtype=np.float32))
    data: Any = TrainingData(
        frames, examples, Examples([], np.empty((0, 3), np.float32)), "one", None, None, list("abc")
    )
    settings = TrainParams.model_validate(SETTINGS | {"augmentation": PLAIN})
    constants: Any = {"kind": normalisation, "std_scale": 1.0, "mean": -5.0, "std": 2.0}
    task, _ = training_task(settings, data, constants, int)
    assert task.scale is not None
    assert task.scale.typical == typical


def test_channels_have_means_of_their_own() -> None:
    frames, mask = torch.ones(1, 2, 8), torch.tensor([[True, False]])
    filled = Retokenizer(fit(noise(400), num_tokens=16), [-3.0, 5.0]).fill(frames, mask)
    assert filled[0].tolist() == [[1.0] * 8, [-3.0] * 4 + [5.0] * 4]


EIGHT_BANDS: dict[str, Any] = {**METADATA, "n_mels": 8, "params": METADATA["params"] | {"n_mels": 8}}


class Frames:
    """Log-mel frames of clips in memory, of different lengths."""

    source, time_axis, frame_rate, front_end = "", 0, 100.0, EIGHT_BANDS
    metadata: dict[str, Any] = {"n_mels": 8}  # noqa: RUF012

    def __init__(self, clips: dict[str, np.ndarray]) -> None:
        self.clips = clips

    def stored(self, clip_ids: Sequence[str]) -> list[np.ndarray]:
        return [self.clips[clip] for clip in clip_ids]

    arrays = stored

    def num_frames(self, clip_id: str) -> int:
        return int(self.clips[clip_id].shape[self.time_axis])

    def statistics(self, clip_ids: Sequence[str]) -> list[tuple[float, float]]:
        return [(-5.0, 1.0)]


class Tokens(Frames):
    """Token sequences of the same clips."""

    time_axis = 1

    def __init__(self, clips: dict[str, np.ndarray], vocabulary: Vocabulary) -> None:
        super().__init__(dict(zip(clips, assign(vocabulary, list(clips.values())), strict=True)))
        self.frame_rate = 100.0 / vocabulary.space.stack
        self.metadata = {
            "vocabulary_size": vocabulary.num_tokens, "num_codebooks": vocabulary.num_codebooks, "bands": vocabulary.bands,
        }  # fmt: skip


def train_on(
    folder: Path,
    *,
    retokenize: bool,
    stack: int = 1,
    bands: int = 1,
    model: dict[str, Any] = MODEL,
    **options: Any,
) -> dict[str, np.ndarray]:
    """Train on 12 clips with these settings of augmentation, validate on three, and return the weights and losses."""
    clips = {f"clip-{number}": clip for number, clip in enumerate(np.split(noise(600) - 5, np.arange(30, 560, 38)))}
    kind: dict[str, Any] = {"kind": "bands", "bands": bands}
    vocabulary = fit(noise(400) - 5, num_tokens=16, stack=stack, **kind)
    inputs, frames = Tokens(clips, vocabulary), Frames(clips)
    ids, targets = list(clips), np.eye(3, dtype=np.float32)[np.arange(15) % 3]
    parts = Examples(ids[:12], targets[:12]), Examples(ids[12:], targets[12:])
    data: Any = TrainingData(
        inputs,
        *parts,
        "one",
        vocabulary,
        None,
        list("abc"),
        frames=frames if retokenize else None,  # type: ignore[arg-type]
    )
    augmentation = PLAIN | options | {"retokenize": retokenize}
    settings = TrainParams.model_validate(SETTINGS | {"epochs": 2, "augmentation": augmentation})
    with init_distributed() as context:
        weights, *_, trained = train_model(
            params_of(model), settings, data,
            seed=0, curves_path=folder / "live", context=context,
            score=lambda scores, targets: dict.fromkeys(("accuracy", "mAP", "auc"), 0.0),
        )  # fmt: skip
    losses = [[row["loss"], row["validation_loss"]] for row in trained.history]
    return weights | {"losses": np.array(losses)}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # checkpoints go there
    return tmp_path


@pytest.mark.parametrize("vocabulary", [{}, {"bands": 4}, {"stack": 3}], ids=["kmeans", "bands", "stack"])
def test_unchanged_frames_train_as_stored_tokens_to_the_bit(folder: Path, vocabulary: dict[str, int]) -> None:
    options: dict[str, Any] = {"token_noise": 0.3, "frame_masks": {"count": 1, "width": 4}, "noise": 0.1} | vocabulary
    options["erasing"] = PLAIN["erasing"] | {"probability": 0.5}
    stored, anew = (train_on(folder, retokenize=retokenize, **options) for retokenize in (False, True))
    assert same(stored, anew)


def test_time_shift_and_reversal_of_frames_are_those_of_their_tokens(folder: Path) -> None:
    options = {"time_shift": 1.0, "reversal": 0.5, "time_stretch": 0.2}
    stored, anew = (train_on(folder, retokenize=retokenize, **options) for retokenize in (False, True))
    assert same(stored, anew)


EVERY = {
    **{name: PLAIN[name] | {"probability": 1.0} for name in (
        "speed", "pitch", "band_shift", "gain", "tilt", "equaliser", "coloured_noise", "sum_clips", "freq_mixstyle",
    )},
    "speed": {"probability": 1.0, "range": [0.7, 0.8]},
}  # fmt: skip
MIXTURES: dict[str, dict[str, Any]] = {
    "concatenations": {"concatenate_clips": PLAIN["concatenate_clips"] | {"probability": 1.0, "whole": True}},
    "logs": {"mixup_probability": 1.0},
    "powers of all clips": {"mixup_probability": 1.0, "mixup_domain": "power", "mixup_partners": "all"},
}


CASES = {name: {name: part} for name, part in EVERY.items()} | MIXTURES


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_augmentation_of_frames_changes_what_is_trained(
    options: dict[str, Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = train_on(folder, retokenize=True)
    with caplog.at_level(logging.WARNING):
        anew = train_on(folder, retokenize=True, **options)
    assert not caplog.records
    assert not same(plain, anew)
    assert same(anew, train_on(folder, retokenize=True, **options))


@pytest.mark.parametrize("model", [MODEL, TEXTURES], ids=["linear", "textures"])
def test_a_killed_run_goes_on_to_the_same_weights(
    model: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = EVERY | {"mixup_probability": 1.0, "mixup_partners": "all", "token_noise": 0.3}
    undisturbed = train_on(folder, retokenize=True, model=model, **options)
    do_epoch = _Run.do_epoch

    def killed(run: Any) -> dict[str, float]:
        if run.epoch == 1:
            raise KeyboardInterrupt
        return do_epoch(run)

    monkeypatch.setattr("pipeline.training.loop.CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(_Run, "do_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        train_on(folder, retokenize=True, model=model, **options)
    monkeypatch.setattr(_Run, "do_epoch", do_epoch)
    assert len(list((folder / ".sonolex/checkpoints").iterdir())) == 1
    assert same(undisturbed, train_on(folder, retokenize=True, model=model, **options))


def test_without_it_settings_of_frames_have_no_effect_and_are_warned_of(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        options: dict[str, Any] = {"gain": EVERY["gain"], "freq_mixstyle": EVERY["freq_mixstyle"], "copies": 0.5}
        assert same(train_on(folder, retokenize=False), train_on(folder, retokenize=False, **options))
    for name in ("copies", "freq_mixstyle"):
        expected = "a model that reads frames, or tokens while retokenize is true, found tokens: no effect"
        assert f"train.augmentation.{name}: expected {expected}" in caplog.text
    assert "train.augmentation.gain: expected a model that reads frames" in caplog.text
    assert "or tokens of log-mel frames while retokenize is true, found another: no effect" in caplog.text


def test_styles_of_decoded_tokens_stay_as_no_run_depends_on_them(folder: Path) -> None:
    decoded = MODEL | {"input": {"kind": "decoded_tokens"}}
    styles = EVERY["freq_mixstyle"]
    plain, styled = (
        train_on(folder, retokenize=False, model=decoded, **more) for more in ({}, {"freq_mixstyle": styles})
    )
    assert same(plain, styled)
    assert "train.augmentation.freq_mixstyle.alpha" not in read_settings(
        document_with(retokenize=False), "train", "token_transformer"
    )


def test_texture_statistics_take_no_styles_and_no_token_noise_and_say_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = train_on(folder, retokenize=True, model=TEXTURES)
    assert not caplog.records
    styles = EVERY["freq_mixstyle"]
    with caplog.at_level(logging.WARNING):
        assert same(plain, train_on(folder, retokenize=True, model=TEXTURES, freq_mixstyle=styles, token_noise=0.3))
    for name in ("freq_mixstyle", "token_noise"):
        assert f"train.augmentation.{name}: expected a model that supports it, found one that does not" in caplog.text


def document_with(*, retokenize: bool) -> dict[str, Any]:
    document: dict[str, Any] = deepcopy(DOCUMENT)
    document["train"]["augmentation"]["retokenize"] = retokenize
    return document


def test_settings_of_frames_are_read_by_what_trains_on_augmented_frames() -> None:
    settings = {
        (name, on): read_settings(document_with(retokenize=on), "train", name)
        for name in ("ast", "token_transformer", "bag_of_tokens")
        for on in (False, True)
    }
    assert "train.augmentation.gain.range" in settings["token_transformer", True]
    assert "train.augmentation.gain.range" not in settings["token_transformer", False]
    assert [name for (name, on), read in settings.items() if retokenizes(read)] == ["token_transformer"]
    assert settings["ast", True] == settings["ast", False]


def test_code_of_the_search_retrains_what_assigns_anew_alone() -> None:
    path = "pipeline/vocabulary/torch_search.py"
    edited = {path: TEXTS[path].replace("-0.5 *", "-0.25 * 2 *")}
    assert edited[path] != TEXTS[path]
    for on, expected in ((False, set()), (True, {"train/token_transformer"})):
        before, after = (
            stage_files(document_with(retokenize=on), Sources(Path(), texts)) for texts in (TEXTS, TEXTS | edited)
        )
        assert {name for name in before if before[name] != after[name]} == expected


def check(folder: Path, *changes: str) -> None:
    """Check the demo's params with these changes. Raises ParamsError."""
    document, mistakes = compose("demo", changes, REPOSITORY / "recipes")
    assert not mistakes
    (folder / "params.yaml").write_text(dump(document))
    load_experiment(folder / "params.yaml")


def test_merged_tokens_are_refused_by_name(tmp_path: Path) -> None:
    on, bpe = "train.augmentation.retokenize=true", "vocabularies.kmeans.bpe={num_tokens: 300}"
    with pytest.raises(ParamsError, match=r"retokenize: expected false with vocabulary kmeans of merged .*bpe to null"):
        check(tmp_path, on, bpe)
    check(tmp_path, on)
    check(tmp_path, bpe)
    without_network = ["experiment.token_models=[bag_of_tokens]", "experiment.ensembles=[]", "report.headline=[ast]"]
    check(tmp_path, on, bpe, *without_network)
    merged = fit(noise(400), num_tokens=16)
    with pytest.raises(SonolexError, match=r"bpe: null, or set train\.augmentation\.retokenize to false"):
        Retokenizer(Vocabulary(**vars(merged) | {"merges": np.array([[0, 1]], np.int32)}), [0.0])


def test_settings_that_go_beyond_the_bands_are_refused(tmp_path: Path) -> None:
    changes = ["experiment.frame_models=[]", "experiment.ensembles=[]", "report.attention=[]"]
    changes.append("report.headline=[token_transformer-kmeans]")
    changes.append("train.augmentation.band_shift={probability: 0.5, range: [-80, 80]}")
    check(tmp_path, *changes)
    with pytest.raises(ParamsError, match=r"band_shift\.range: expected a number within the 64 bands"):
        check(tmp_path, *changes, "train.augmentation.retokenize=true")


def test_frames_are_those_of_the_development_set_and_of_the_vocabulary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the stage report goes there
    made, other = collect(tmp_path, ROLES), collect(tmp_path / "other", ROLES, frames={"b": 1.0})
    development, path = open_development(made.development, fold="1"), made.index.parent
    vocabulary = fit(noise(400), num_tokens=16)
    front_end: Any = dict(open_spectrogram(path).metadata)
    of_front_end = [
        replace(vocabulary, metadata=vocabulary.metadata | {"front_end": front_end | change})
        for change in ({}, {"n_mels": 99})
    ]
    assert open_frames(path, development, of_front_end[0]).usable(["b"]) == ["b"]
    with pytest.raises(ArtifactError, match=r"front_end\.n_mels .*, found 99"):
        open_frames(path, development, of_front_end[1])
    with pytest.raises(ArtifactError, match=r"frames of clip b: .*found others"):
        open_frames(other.index.parent, development, of_front_end[0])


def test_a_run_that_assigns_anew_checks_the_settings_of_frames_too() -> None:
    layout, model = Layout(), ModelId("token_transformer", "kmeans")
    source, spectrogram = layout.development_tokens("kmeans", "1"), layout.spectrogram
    stored = [schema.name for schema, _ in input_artifacts(layout, model, "1", source)]
    anew = input_artifacts(layout, model, "1", source, [layout.copies / "speed_0.9"], spectrogram)
    assert [schema.name for schema, _ in anew[: len(stored)]] == stored
    assert [path for _, path in anew[len(stored) :]] == [
        layout.spectrogram_index, layout.copies / "speed_0.9" / "index.parquet",
    ]  # fmt: skip
