"""Vocabularies of hidden states: what a fold's own network makes of its clips, clustered, and read by models in turn."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, make_spectrogram
from experiments import run_experiment
from networks import network, params_of
from test_export_graph import weights_of, write
from test_kaldi import AST
from test_kinds import make_params
from test_rebuilding import fit as fit_frames
from test_torch_front_end import FLOAT16, stored_as

from pipeline.artifacts.layout import Layout, RunId
from pipeline.artifacts.model import open_model, write_model
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import TOKENIZER, Vocabulary, open_vocabulary
from pipeline.check_params import load_experiment
from pipeline.errors import ArtifactError, ParamsError, SonolexError
from pipeline.evaluation.hidden_states import HiddenStates
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.tokenizing import open_state_reader, tokenize_clips
from pipeline.models.inputs.decoded_tokens import frame_table
from pipeline.spectrogram.reader import FrameReader
from pipeline.training.batches import normalise
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.fitting import write_vocabulary
from pipeline.vocabulary.learning import describe_network, learn
from pipeline.vocabulary.merging import fit_merges
from pipeline.vocabulary.rebuilding import rebuild, separable_frames, token_spectra
from pipeline.vocabulary.settings import HiddenStateParams
from pipeline.vocabulary.torch_search import TokenSearch
from stages import network as stage
from tools.compose import compose, dump
from tools.network_check import layer_mistakes

N_MELS, STRIDE = 24, 8
METADATA = stored_as(AST | {"n_mels": N_MELS}, FLOAT16)
CLIPS = {
    f"{number}": np.random.default_rng(number).normal(-6, 3, (40 + 9 * number, N_MELS)).astype(np.float32)
    for number in range(6)
}


def model_folder(path: Path, **parts: Any) -> Path:
    """Write the folder of a network on frames with random weights; by default its states stand for eight frames each."""
    section = network(**({"stem": "convolution", "encoder": "transformer", "head": "mean"} | parts))
    about = {
        "n_mels": N_MELS,
        "log_floor": -16.0,
        "normalisation": {"kind": "none", "std_scale": 1.0, "mean": 0.0, "std": 1.0},
    }
    return write(path, params_of(section), weights_of(section, about), metadata=METADATA)


def learned(folder: Path, layer: str = "encoder", source: Path | None = None, **changes: Any) -> Vocabulary:
    """Return a vocabulary of hidden states, fitted on CLIPS, as the stage writes it."""
    hidden = {"model": "m", "layer": layer}
    params = make_params(**({"num_tokens": 6, "sample_frames": 400, "hidden_states": hidden} | changes))
    spectrogram = folder / "spectrogram"
    if not spectrogram.exists():
        make_spectrogram(spectrogram, CLIPS, front_end={**METADATA, "dtype": "float32"})
    reader = FrameReader(open_spectrogram(spectrogram))
    states = open_state_reader(params.hidden_states, reader, source or model_folder(folder / "network"))
    assert states is not None
    sample, fit = learn(params, states, list(CLIPS), {})
    merges = fit_merges(params, fit, states, list(CLIPS))
    about = {"name": "units", "fold": "1", "spectrogram": open_spectrogram(spectrogram)}
    path, described = folder / "units" / "1.zarr", describe_network(fit, states, list(sample.counts))
    write_vocabulary(path, fit, sample, merges, params, network=described, **about)  # type: ignore[arg-type]
    return open_vocabulary(path)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return learned(tmp_path_factory.mktemp("units"))


def test_states_are_what_the_network_computes(tmp_path: Path) -> None:
    """Those of the last layer, weighted by the classifier and averaged over time, are the clip's logits."""
    folder = model_folder(tmp_path / "model")
    model, states = open_model(folder), HiddenStates.open(folder, "encoder").states(CLIPS["3"][:64])
    built = build_network(model)
    frames = normalise(
        torch.from_numpy(CLIPS["3"][None, :64]),
        None,
        {**METADATA, "dtype": "float32"},
        model.metadata["input"]["normalisation"],
    )
    with torch.no_grad():
        expected, _ = built.encoder(*built.stem(built.embed(frames), None))
    assert states.shape == (8, 32)
    np.testing.assert_allclose(states, expected[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 8, 9, 64, 85])
@pytest.mark.parametrize("stem", ["convolution", "patches", "fixed_length"])
def test_a_clip_has_a_state_for_every_stride_of_its_frames(stem: str, length: int, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", stem=stem, **({"encoder": "identity"} if stem == "fixed_length" else {}))
    source = HiddenStates.open(folder, "stem")
    each = source.metadata["frames_per_state"]
    assert each == {"convolution": 8, "patches": 5, "fixed_length": 1}[stem]
    found = source.states(CLIPS["5"][:length])
    assert found.shape == (-(-length // each), source.metadata["width"])
    assert np.isfinite(found).all()


def test_states_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    source, count = HiddenStates.open(model_folder(tmp_path / "model"), "encoder"), torch.get_num_threads()
    frames = np.random.default_rng(0).normal(-6, 3, (3000, N_MELS)).astype(np.float32)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(source.states(frames))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(count)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_long_clips_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = HiddenStates.open(model_folder(tmp_path / "model"), "encoder")
    monkeypatch.setattr("pipeline.evaluation.hidden_states.FRAMES_PER_BATCH", 21)  # two strides
    parts = [source.states(CLIPS["4"][first : first + 16]) for first in range(0, 76, 16)]
    np.testing.assert_array_equal(source.states(CLIPS["4"]), np.concatenate(parts))


def test_a_layer_is_one_of_the_network_along_time(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    with pytest.raises(
        SonolexError, match=r"layer: expected one of .*encoder.blocks.\{0..1\}.*, found 'encoder.blocks.7'"
    ):
        HiddenStates.open(folder, "encoder.blocks.7")
    with pytest.raises(
        SonolexError, match=r"layer head: expected a layer along time, found one vector a clip; take another"
    ):
        HiddenStates.open(folder, "head")


def test_a_vocabulary_holds_the_network_that_computes_its_tokens(units: Vocabulary, tmp_path: Path) -> None:
    clips = list(CLIPS.values())
    tokens = tokenize_clips(units, clips)
    assert [row.shape for row in tokens] == [(1, -(-len(clip) // STRIDE)) for clip in clips]
    assert units.frame_rate == 100.0 / STRIDE
    copy = shutil.copytree(units.path, tmp_path / "moved.zarr")
    moved = open_vocabulary(copy)
    assert moved.digest() == units.digest()
    for one, other in zip(tokens, tokenize_clips(moved, clips), strict=True):
        np.testing.assert_array_equal(one, other)
    alone = tokenize_clips(units, [clips[3]])[0]
    np.testing.assert_array_equal(alone, tokens[3])


def test_a_network_is_handed_over_without_the_paths_of_this_machine(tmp_path: Path) -> None:
    """It is part of every bundle with the vocabulary; a bundle's models have the names in place of absolute paths."""
    source, layout = tmp_path / "weights of mine" / "ast.pth", Layout(tmp_path)
    weights = {"kind": "sonolex", "source": str(source), "digest": None, "classes": None}
    model = open_model(model_folder(tmp_path / "any", stem="convolution"))
    run = RunId.of("m", "1", 0)
    about: Any = {key: value for key, value in model.metadata.items() if key != "weights"}
    about["params"] |= {"pretrained": weights}
    about["settings"] = {"models.m": {"pretrained": weights}, "train.augmentation.background.folder": str(tmp_path)}
    write_model(layout.model(run), model.weights, about)
    stage.run(layout, HiddenStateParams(model="m", layer=None), "units", run)
    folder = layout.network("units", "1")
    assert str(tmp_path) not in (folder / "model.json").read_text()
    assert open_model(folder).metadata["params"]["pretrained"]["source"] == "ast.pth"
    assert HiddenStates.open(folder, "encoder").states(CLIPS["1"]).shape == (7, 32)


def test_tokens_are_of_states_and_not_of_frames(units: Vocabulary) -> None:
    assert units.network is not None
    source = HiddenStates.open(units.network, "encoder")
    expected = assign(units, [source.states(CLIPS["2"])])[0]
    np.testing.assert_array_equal(tokenize_clips(units, [CLIPS["2"]])[0], expected)
    counts = sum(np.bincount(tokenize_clips(units, [clip])[0][0], minlength=6) for clip in CLIPS.values())
    np.testing.assert_array_equal(units.counts[0], counts)  # all states were in the sample


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "bands", "bands": 4},
        {"kind": "residual", "codebooks": 2},
        {"kind": "soft_kmeans", "nearest": 2},
        {"stack": 2, "deltas": 1, "pca": 5},
        {"bpe": {"num_tokens": 9}},
        {"exact": True},
    ],
    ids=str,
)
def test_every_kind_and_feature_quantises_states(changes: dict[str, Any], tmp_path: Path) -> None:
    vocabulary = learned(tmp_path, **changes)
    tokens = tokenize_clips(vocabulary, [CLIPS["5"]])[0]
    stack = vocabulary.space.stack
    if not vocabulary.merged:
        assert tokens.shape == (vocabulary.num_codebooks, -(-85 // (STRIDE * stack)))
        assert vocabulary.frame_rate == 100.0 / STRIDE / stack
    for codebook in range(vocabulary.num_codebooks):
        assert token_spectra(vocabulary, codebook).shape == (vocabulary.num_tokens, N_MELS)


def test_groups_divide_the_width_of_the_layer(tmp_path: Path) -> None:
    with pytest.raises(
        ParamsError, match="divides the width of the network's layer 32, found 5; choose one of 1, 2, 4"
    ):
        learned(tmp_path, kind="bands", bands=5)


def test_a_token_is_shown_by_the_mean_frame_of_its_occurrences(units: Vocabulary) -> None:
    sums, counts = np.zeros((6, N_MELS)), np.zeros(6)
    for clip in CLIPS.values():
        for place, token in enumerate(tokenize_clips(units, [clip])[0][0]):
            sums[token] += clip[min(place * STRIDE + STRIDE // 2, len(clip) - 1)]
            counts[token] += 1
    np.testing.assert_allclose(token_spectra(units, 0), sums / counts[:, None], rtol=1e-5)


def test_what_needs_frames_of_tokens_is_refused(units: Vocabulary) -> None:
    with pytest.raises(SonolexError, match=r"expected a vocabulary of frames, .* none can be rebuilt; take another"):
        rebuild(units, np.zeros((1, 3), np.uint16))
    assert separable_frames(units) is None
    with pytest.raises(ParamsError, match="expected a vocabulary of plain tokens"):
        frame_table(units, "models.x.input")
    with pytest.raises(SonolexError, match=r"hidden states of the network m; .*, or export from tokens"):
        TokenSearch(units)


def test_a_network_of_tokens_brings_its_vocabulary(units: Vocabulary, tmp_path: Path) -> None:
    """The loop: a network that reads the learned tokens, whose hidden states are clustered in turn."""
    section = network("tokens", "linear", "transformer", "mean")
    none = {"kind": "none", "std_scale": 1.0, "mean": 0.0, "std": 1.0}
    about = {"vocabulary_size": 6, "num_codebooks": 1, "bands": units.bands, "normalisation": none}
    folder = write(tmp_path / "network", params_of(section), weights_of(section, about), units, metadata=METADATA)
    with pytest.raises(ArtifactError, match=r"vocabulary.zarr"):
        HiddenStates.open(folder, "encoder")
    shutil.copytree(units.path, folder / TOKENIZER)
    again = learned(tmp_path, source=folder)
    assert again.metadata["hidden_states"]["frames_per_state"] == STRIDE
    assert {"tokens", "kmeans", "convolution", "hidden_states"} <= again.kinds
    (tokens,) = tokenize_clips(again, [CLIPS["1"]])
    assert tokens.shape == (1, -(-49 // STRIDE))
    (folder / TOKENIZER / "zarr.json").unlink()
    np.testing.assert_array_equal(tokenize_clips(open_vocabulary(again.path), [CLIPS["1"]])[0], tokens)


def test_the_vocabulary_of_a_network_is_the_one_of_its_training(units: Vocabulary, tmp_path: Path) -> None:
    section = network("tokens", "linear", "transformer", "mean")
    about = {"vocabulary_size": 6, "num_codebooks": 1, "bands": [[0, N_MELS]]}
    about["normalisation"] = {"kind": "none", "std_scale": 1.0, "mean": 0.0, "std": 1.0}  # type: ignore[assignment]
    other = replace(fit_frames(CLIPS["5"], num_tokens=6), metadata=units.metadata)
    folder = write(tmp_path / "network", params_of(section), weights_of(section, about), other, metadata=METADATA)
    shutil.copytree(units.path, folder / TOKENIZER)
    with pytest.raises(SonolexError, match=r"expected the vocabulary of digest .*, found .*; run `dvc repro`"):
        HiddenStates.open(folder, "encoder")


def test_another_network_in_a_vocabulary_is_found(units: Vocabulary, tmp_path: Path) -> None:
    damaged = shutil.copytree(units.path, tmp_path / "units" / "1.zarr")
    card = damaged / "network" / "model.json"
    card.write_text(card.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ArtifactError, match=r"network: expected metadata of digest .*, found .*"):
        open_vocabulary(damaged)
    shutil.rmtree(damaged / "network")
    with pytest.raises(ArtifactError, match=r"network: expected metadata of digest .*, found model.json: none"):
        open_vocabulary(damaged)


HIDDEN = "vocabularies.units={num_tokens: 8, features: {hidden_states: {model: %s, layer: null}}}"
LISTED = "experiment.vocabularies=[kmeans, units]"


def pair(model: str) -> str:
    return f"experiment.learned_vocabularies=[{{vocabulary: units, model: {model}}}]"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([HIDDEN % "ast", LISTED, pair("ast")], None),
        ([HIDDEN % "token_transformer-kmeans", LISTED, pair("token_transformer-kmeans")], None),
        ([HIDDEN % "ast", LISTED], r"learned_vocabularies: expected .*\[\{vocabulary: units, model: ast\}\], found \[\]"),
        ([pair("ast")], r"learned_vocabularies: expected .* \[\], found \[\{vocabulary: units, model: ast\}\]"),
        (
            [HIDDEN % "asd", LISTED, pair("asd")],
            r"units.*model: expected a model of the experiment \(.*\), found asd; did you mean ast",
        ),
        (
            [HIDDEN % "frame_statistics", LISTED, pair("frame_statistics")],
            "expected a network, .* found frame_statistics of kind",
        ),
        (
            [HIDDEN % "token_transformer-units", LISTED, pair("token_transformer-units")],
            "found token_transformer-units on units; list units first, or take another model",
        ),
        (
            [HIDDEN % "token_transformer-kmeans", LISTED, pair("token_transformer-kmeans"),
             "vocabularies.kmeans.bpe={num_tokens: 400}"],
            r"found token_transformer-kmeans on merged tokens \(bpe\)",
        ),
        (
            [HIDDEN % "ast", LISTED, pair("ast"), "train.augmentation.retokenize=true"],
            "retokenize: expected false with vocabulary units of hidden states",
        ),
        (
            [HIDDEN % "ast", LISTED, pair("ast"), "models.token_textures={kind: texture_statistics, input: {kind: tokens}}",
             "experiment.token_models=[token_textures]", "experiment.ensembles=[]"],
            "token_textures cannot read units: expected plain tokens .*, found tokens of a network's hidden states",
        ),
    ],
)  # fmt: skip
def test_the_network_of_a_vocabulary_is_checked(changes: list[str], found: str | None, tmp_path: Path) -> None:
    base = ["experiment.frame_models=[ast, frame_statistics]"]
    document, mistakes = compose("demo", [*base, *changes], REPOSITORY / "recipes")
    assert not mistakes
    (tmp_path / "params.yaml").write_text(dump(document))
    if found is None:
        load_experiment(tmp_path / "params.yaml")
    else:
        with pytest.raises(ParamsError, match=found):
            load_experiment(tmp_path / "params.yaml")


@pytest.mark.parametrize("model", ["ast", "cnn", "conformer", "frames_lstm", "token_transformer-kmeans"])
def test_a_layer_that_the_network_has_not_is_named_before_anything_runs(model: str, tmp_path: Path) -> None:
    hidden = "vocabularies.units={num_tokens: 8, features: {hidden_states: {model: %s, layer: %s}}}"
    base = [
        "experiment.frame_models=[ast, cnn, conformer, frames_lstm]",
        LISTED,
        pair(model),
        "experiment.ensembles=[]",
    ]
    path, found = tmp_path / "params.yaml", {}
    for layer in ("encoder", "encoder.blocks.70"):
        document, mistakes = compose("demo", [*base, hidden % (model, layer)], REPOSITORY / "recipes")
        assert not mistakes
        path.write_text(dump(document))
        found[layer] = layer_mistakes(load_experiment(path), path)
    assert found["encoder"] == []
    (mistake,) = found["encoder.blocks.70"]
    assert "vocabularies.units.features.hidden_states.layer: expected one of " in mistake
    assert "found 'encoder.blocks.70'" in mistake


@pytest.mark.slow
def test_the_loop_runs_through_the_stages(tmp_path: Path) -> None:
    settings = (
        "experiment.frame_models=[ast]",
        "experiment.token_models=[token_transformer]",
        "experiment.vocabularies=[units, again]",
        "experiment.learned_vocabularies=[{vocabulary: units, model: ast}, {vocabulary: again, model: "
        "token_transformer-units}]",
        HIDDEN % "ast",
        "vocabularies.again={num_tokens: 3, features: {hidden_states: {model: token_transformer-units, layer: "
        "encoder.blocks.0}}}",
    )
    layout = Layout(run_experiment(tmp_path / "experiment", settings))
    first, second = (open_vocabulary(layout.vocabulary(name, "1")) for name in ("units", "again"))
    assert first.metadata["hidden_states"]["model"] == "ast"
    assert second.metadata["hidden_states"]["layer"] == "encoder.blocks.0"
    reader = FrameReader(open_spectrogram(layout.spectrogram))
    for vocabulary in (first, second):
        sequences = token_arrays(open_tokens(layout.tokens(vocabulary.path.parent.name, "1")))
        for clip, tokens in sequences.items():
            np.testing.assert_array_equal(tokenize_clips(vocabulary, reader.read([clip]))[0], tokens)
    predicted = layout.found_predictions()
    assert {path.parts[-3] for path in predicted} == {"ast", "token_transformer-units", "token_transformer-again"}
