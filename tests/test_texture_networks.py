"""Networks on texture statistics, of frames or of frames decoded from tokens."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from networks import LEVELS, METADATA, build, make_inputs, network, params_of
from test_export_graph import NONE, clips_of, vocabulary_of, weights_of, write
from test_rebuilding import fit as fit_tokens
from test_stages_train import make_artifacts, run_evaluate, run_train
from test_textures import make_frames
from test_training import PLAIN

from pipeline.artifacts.model import open_model
from pipeline.artifacts.predictions import matrix, open_predictions
from pipeline.check_params import load_experiment
from pipeline.errors import ParamsError
from pipeline.inference.torch_module import sound_classifier
from pipeline.models.baselines.texture_statistics import extract_features
from pipeline.models.inputs.decoded_tokens import DecodedTokens, DecodedTokensParams
from pipeline.training.augmentation.applying import Augmentation
from pipeline.training.augmentation.noise import NO_NOISE
from pipeline.training.augmentation.settings import AugmentationParams
from pipeline.training.batches import Batch
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.rebuilding import rebuild
from tools import export
from tools.compose import compose, dump

LENGTHS = [90, 41, 12, 3, 1]
FRAMES = network("frames", "textures", head="deep")


def _expected(frames: np.ndarray) -> np.ndarray:
    return extract_features(frames, floor=LEVELS["texture_floor"], frame_rate=LEVELS["frame_rate"])


def test_statistics_are_those_of_each_clip_and_of_its_windows_by_itself() -> None:
    stem = build(FRAMES).stem
    frames, mask = make_inputs("frames", LENGTHS)
    columns = stem._grouped(frames.masked_fill(~mask[:, :, None], 1e3))
    of_clips = stem._of_clips(columns, mask)
    of_windows, real = stem._of_windows(columns, mask, of_clips)
    assert real.sum(1).tolist() == [8, 3, 1, 1, 1]
    for clip, length in enumerate(LENGTHS):
        own = frames[clip, :length].numpy()
        np.testing.assert_allclose(of_clips[clip, 0], _expected(own), atol=1e-4)
        for window in range(int(real[clip].sum())):
            part = own[10 * window : 10 * window + 20]
            np.testing.assert_allclose(of_windows[clip, window], _expected(part), atol=1e-4)


def test_padding_in_a_training_batch_changes_no_step() -> None:
    padded, plain = (build(FRAMES).train() for _ in range(2))
    frames = torch.randn(3, 60, 24)
    expected = plain(frames, None)
    mask = torch.arange(300).expand(3, -1) < 60
    logits = padded(torch.nn.functional.pad(frames, (0, 0, 0, 240)), mask)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    for name, buffer in plain.stem.named_buffers():
        torch.testing.assert_close(padded.stem.get_buffer(name), buffer, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [0.2, None])
def test_a_batch_of_one_clip_is_normalised_by_the_running_statistics(window: float | None) -> None:
    model = build(network("frames", "textures", stem__window=window)).train()
    frames = torch.randn(1, 15, 24)
    logits = model(frames, None)
    torch.testing.assert_close(logits, model.eval()(frames, None))


def test_noise_and_dropout_are_of_training_alone() -> None:
    still = build(FRAMES)
    model = build(network("frames", "textures", head="deep", stem__noise=0.5, stem__dropout=0.5))
    frames, mask = make_inputs("frames", LENGTHS)
    torch.testing.assert_close(model.eval()(frames, mask), still.eval()(frames, mask))
    model.train()
    assert not torch.allclose(model(frames, mask), model(frames, mask))


@pytest.mark.parametrize(("encoder", "width"), [("transformer", 32), ("identity", 478)])
def test_a_clip_without_windows_is_one_position(encoder: str, width: int) -> None:
    model = build(network("frames", "textures", encoder, "deep", stem__window=None)).eval()
    frames, mask = make_inputs("frames", LENGTHS)
    positions, real = model.stem(frames, mask)
    assert positions.shape == (5, 1, width)
    assert real is None
    assert model.classify_time_steps(frames, mask)[1].tolist() == [[True]] * 5


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kind": "bands", "bands": 4},
        {"kind": "residual", "codebooks": 2},
        {"stack": 3, "deltas": 1},
        {"normalisation": "l2", "stack": 2},
    ],
    ids=str,
)
def test_tokens_are_decoded_to_the_frames_that_they_stand_for(changes: dict[str, Any]) -> None:
    vocabulary = fit_tokens(make_frames(600), num_tokens=16, **changes)
    (tokens,) = assign(vocabulary, [make_frames(60, seed=1)])
    books, stack = vocabulary.num_codebooks, vocabulary.space.stack
    levels: Any = {"vocabulary_size": 16, "num_codebooks": books, "n_mels": 8, "frames_per_token": stack}
    decode = DecodedTokens(DecodedTokensParams(kind="decoded_tokens"), levels)
    decode.load_vocabulary(vocabulary)
    padded = np.pad(tokens.astype(np.int64), ((0, 0), (0, 2)), constant_values=16)
    found = decode(torch.from_numpy(padded)[None])[0, :-2].reshape(-1, 8)
    np.testing.assert_allclose(found, rebuild(vocabulary, tokens), atol=1e-5)


@pytest.mark.parametrize("normalisation", ["standardise", "l2", "unit", "none"])
def test_padding_is_decoded_to_the_mean_frame(normalisation: str) -> None:
    """As which mix-up of logarithms takes a clip beyond its end."""
    frames = make_frames(600)
    vocabulary = fit_tokens(frames, num_tokens=16, normalisation=normalisation)
    levels: Any = {"vocabulary_size": 16, "num_codebooks": 1, "n_mels": 8, "frames_per_token": 1}
    decode = DecodedTokens(DecodedTokensParams(kind="decoded_tokens"), levels)
    decode.load_vocabulary(vocabulary)
    found = decode(torch.tensor([[[vocabulary.num_tokens]]]))
    np.testing.assert_allclose(found[0, 0], frames.mean(axis=0), atol=0.2)


def test_a_vocabulary_whose_frames_are_no_sums_is_refused_by_name() -> None:
    vocabulary = fit_tokens(make_frames(600), num_tokens=16)
    vocabulary = replace(vocabulary, metadata=vocabulary.metadata | {"additive": False})
    decode = DecodedTokens(DecodedTokensParams(kind="decoded_tokens"), METADATA["tokens"])  # type: ignore[arg-type]
    with pytest.raises(ParamsError, match=r"decoded_tokens: expected a vocabulary of plain tokens.*experiment\.vocab"):
        decode.load_vocabulary(vocabulary)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (network("frames", "textures", input__normalisation="corpus"), r"input: expected kind frames with normalisation n"),
        (network("tokens") | {"stem": FRAMES["stem"]}, r"or kind decoded_tokens, .*found kind tokens"),
        (network("frames", "textures", "cnn"), r"encoder\.kind: expected .* order along frequency, found cnn"),
        (network("frames", "textures", stem__hop=0.3), r"hop: expected at most the window of 0\.2 s, .*found 0\.3"),
        (network("frames", "textures", head="flatten"), r"head\.kind: expected a stem with a fixed number of positions"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params_of(section)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["vocabularies.kmeans.bpe={num_tokens: 600}"],
            r"experiment\.vocabularies: texture_transformer cannot read kmeans: .*, found merged tokens; remove one",
        ),
        (
            ["spectrogram.front_end.kind=mfcc"],
            r"texture_transformer cannot read its frames: stem\.kind textures: .* use front end kaldi or mel",
        ),
        (
            ["experiment.pretrained_models=[texture_transformer]"],
            r"pretrained_models: expected networks with input\.kind tokens .*, found texture_transformer",
        ),
    ],
)
def test_what_a_texture_transformer_cannot_read_is_named_before_anything_runs(
    changes: list[str], message: str, tmp_path: Path
) -> None:
    grid = ["experiment.frame_models=[]", "experiment.token_models=[texture_transformer]", "experiment.ensembles=[]"]
    grid += ["report.headline=[texture_transformer-kmeans]", "report.attention=[]"]
    document, _ = compose("demo", [*grid, *changes], REPOSITORY / "recipes")
    (tmp_path / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError) as caught:
        load_experiment(tmp_path / "params.yaml")
    assert re.search(message, str(caught.value))


def test_augmentation_hides_nothing_of_what_is_summed_up() -> None:
    hidden = {"frame_masks": {"count": 2, "width": 20}, "band_masks": {"count": 2, "width": 12}}
    params = AugmentationParams.model_validate(PLAIN | hidden)
    augmentation = Augmentation(params, 1, None, NO_NOISE)
    frames, targets = torch.randn(4, 30, 24), torch.eye(4)
    assert params.hiding == ["frame_masks", "band_masks"]
    for stem, same in (("textures", True), ("linear", False)):
        batch = Batch(frames, None, torch.arange(4))
        features = augmentation.apply(build(network("frames", stem)), batch, targets, torch.clone, union=False).features
        assert torch.equal(features, frames) == same


def test_the_floor_is_fitted_on_training_clips_and_stored(tmp_path: Path) -> None:
    """A trained network predicts from its folder alone, with the floor of its training clips."""
    section = network("frames", "textures", stem__window=0.1, stem__hop=0.05)
    cards, logits = [], []
    for poisoned in (False, True):
        paths = make_artifacts(tmp_path / str(poisoned), poisoned=poisoned)
        cards.append(run_train(paths, section))
        logits.append(matrix(open_predictions(run_evaluate(paths)), "logits"))
    assert cards[0]["input"] == cards[1]["input"]
    assert cards[0]["weights"] == cards[1]["weights"]
    assert cards[0]["input"]["frame_rate"] > 0
    assert -1 < cards[0]["input"]["texture_floor"] < 1
    assert np.isfinite(logits).all()
    assert not np.allclose(logits[0], logits[1])


def test_a_graph_that_searches_tokens_says_how_many_frames_it_needs(tmp_path: Path) -> None:
    """A window of 40 tokens is of 79 frames at least, where a token stands for two."""
    section = network("tokens", "textures", encoder__depth=1, stem__window=0.4)
    vocabulary = vocabulary_of(clips_of(0.5), kind="bands", bands=2, stack=2)
    about: Any = METADATA["tokens"] | {"vocabulary_size": 16, "bands": vocabulary.bands, "normalisation": NONE}
    path = write(tmp_path / "m", params_of(section), weights_of(section, about), vocabulary, more=about)
    module = sound_classifier(open_model(path), vocabulary)
    assert module.lengths == (79, None)
    for frames, tokens in ((79, 40), (78, 39)):
        assert module.search(torch.zeros(1, frames, 24)).shape == (1, 2, tokens)
    assert sound_classifier(open_model(path), start="tokens").lengths == (40, None)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "torch"])
@pytest.mark.parametrize(("start", "window"), [("frames", 0.4), ("frames", None), ("tokens", 0.4)])
def test_a_graph_has_the_networks_logits(tmp_path: Path, target: Any, start: Any, window: float | None) -> None:
    """Exported Fourier transforms are matrix products, for clips of any length from one window on."""
    section = network(start, "textures", encoder__depth=1, stem__window=window, stem__hop=0.2)
    vocabulary = None if start == "frames" else vocabulary_of(clips_of(0.5), kind="bands", bands=2)
    about = METADATA[start] | ({} if vocabulary is None else {"vocabulary_size": 16, "bands": vocabulary.bands})
    about |= {"normalisation": NONE}
    weights = weights_of(section, about)
    weights |= {name: weights[name] + 1 for name in weights if name == "input.table"}
    path = write(tmp_path / "m", params_of(section), weights, vocabulary, more=about)
    assert export.run(path, target, tmp_path / "m.out", start=start).difference < 1e-4
