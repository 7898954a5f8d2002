"""Networks that begin with the weights of a model that was trained here: what is loaded, kept by name, and refused."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments import run_experiment
from networks import HEADS, METADATA, Section, build, changed, make_inputs, network, params_of
from typer.testing import CliRunner
from workspace import change_params

from pipeline.artifacts.model import open_model, write_model
from pipeline.errors import SonolexError
from pipeline.models.base import NOT_NORMALISED
from pipeline.models.head_classes import join_classes, split_classes
from pipeline.models.network import Network, fit_normalisation, open_pretrained_weights
from pipeline.spectrogram.kaldi import KaldiFrontEnd, KaldiParams
from pipeline.training.freezing import FreezeParams, Freezing
from stages import train
from tools.sonolex import app

CLASSES = ["bell", "dog", "rain"]
FRONT_END: dict[str, Any] = {
    "kind": "kaldi", "sample_rate": 16000, "win_length": 400, "hop_length": 160, "n_fft": 512, "n_mels": 24,
    "f_min": 20.0, "f_max": 8000.0, "pre_emphasis": 0.97,
}  # fmt: skip
STORED: dict[str, Any] = {"dtype": "float32", "scale": 1.0, "offset": 0.0}


def front_end(**changes: Any) -> Any:
    params = KaldiParams.model_validate(FRONT_END | changes)
    return {**KaldiFrontEnd(params).metadata, **STORED}


def store(path: Path, section: Section, *, source: str = "", **metadata: Any) -> Any:
    """Write a model for CLASSES with random weights, as `stages.train` writes it, and return its network."""
    params = params_of(section)
    reads = params.reads
    about = {**METADATA[reads], "normalisation": NOT_NORMALISED, **metadata}
    torch.manual_seed(7)
    model: Any = Network(params, about, len(CLASSES), "softmax")  # type: ignore[arg-type]
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    card: Any = {
        "model": "m", "fold": "1", "seed": 0, "reads": reads, "params": params.model_dump(mode="json"),
        "classes": CLASSES, "label_kind": "one", "link": "softmax", "input": about, "clips_seen": 1, "source": source,
        "front_end": front_end(), "num_parameters": 1,
    }  # fmt: skip
    write_model(path, {name: tensor.numpy() for name, tensor in model.state_dict().items()}, card)
    return model.eval()


def starting(section: Section, source: Path, classes: Any = None, **changes: Any) -> Any:
    """Return the params of a network that begins with these weights; changes are by dotted key."""
    pretrained = {"kind": "sonolex", "source": str(source), "digest": None, "classes": classes}
    return params_of(
        changed(section, {"pretrained": pretrained, **{k.replace("__", "."): v for k, v in changes.items()}})
    )


def begin(params: Any, classes: list[str], *, vocabulary: str = "", frames: Any = None) -> Any:
    """Build a network with its initial weights, as `pipeline.training.neural` builds it."""
    checkpoint = open_pretrained_weights(params, frames or front_end(), vocabulary)
    assert checkpoint is not None
    normalisation = fit_normalisation(params, lambda: [(-6.0, 4.0)], checkpoint)
    torch.manual_seed(1)
    metadata = {**METADATA[params.reads], "normalisation": normalisation, "pretrained": checkpoint.metadata}
    model = Network(params, metadata, len(classes), "softmax")  # type: ignore[arg-type]
    checkpoint.choose_classes(classes)
    model.load_weights(params, checkpoint)
    return model.eval()


def section_with(head: str) -> Section:
    """Return a section of frames with a head, on an encoder that it reads."""
    encoder = {"last": "lstm"}.get(head, "transformer")
    if head == "flatten":
        return network("frames", "fixed_length", "identity", head)
    return network("frames", "linear", encoder, head)


@pytest.mark.parametrize("head", HEADS)
def test_a_head_names_the_weights_that_belong_to_a_class(head: str) -> None:
    """Networks for other numbers of classes differ in these weights alone, and a head can be put together again."""
    networks = [build(section_with(head), num_classes=number) for number in (3, 4)]
    (shared, own), (other_shared, other_own) = (
        split_classes(one, one.state_dict(), number) for one, number in zip(networks, (3, 4), strict=True)
    )
    assert len(own) == 3
    assert own[0]
    assert {name: v.shape for name, v in shared.items()} == {name: v.shape for name, v in other_shared.items()}
    assert {name: v.shape for name, v in own[0].items()} == {name: v.shape for name, v in other_own[3].items()}
    whole = {name: v for name, v in networks[0].state_dict().items() if networks[0].is_of_head(name)}
    joined = join_classes(networks[0], split_classes(networks[0], whole, 3))
    assert whole.keys() == joined.keys()
    assert all(torch.equal(whole[name], joined[name]) for name in whole)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_the_same_classes_have_the_same_logits_in_any_order(tmp_path: Path, head: str) -> None:
    section = section_with(head)
    stored = store(tmp_path / "m", section)
    frames, mask = make_inputs("frames", [40, 64])
    expected = stored(frames, mask)
    model = begin(starting(section, tmp_path / "m", input__normalisation="none"), ["rain", "bell", "dog"])
    assert torch.equal(model(frames, mask), expected[:, [2, 0, 1]])


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_a_class_is_added_and_the_others_keep_their_logits(
    tmp_path: Path, head: str, caplog: pytest.LogCaptureFixture
) -> None:
    section = section_with(head)
    stored = store(tmp_path / "m", section)
    frames, mask = make_inputs("frames", [40, 64])
    params = starting(section, tmp_path / "m", "by_name", input__normalisation="none")
    with caplog.at_level(logging.INFO):
        model = begin(params, ["bell", "cat", "dog", "rain"])
    torch.testing.assert_close(model(frames, mask)[:, [0, 2, 3]], stored(frames, mask), rtol=1e-5, atol=1e-5)
    assert "new classes: cat" in caplog.text


@torch.no_grad()
def test_heads_of_old_classes_stay_frozen_while_a_new_one_is_trained(tmp_path: Path) -> None:
    section = section_with("per_class")
    store(tmp_path / "m", section)
    model = begin(starting(section, tmp_path / "m", "by_name", input__normalisation="none"), [*CLASSES, "cat"])
    stages = FreezeParams.model_validate({"stages": [{"train": ["head.classes.3"]}], "batch_norm": "frozen"})
    Freezing(model, stages).begin_epoch(0)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(name.startswith("head.classes.3.") for name in trained)


def test_a_mapping_names_the_class_of_the_weights(tmp_path: Path) -> None:
    section = section_with("mean")
    stored = store(tmp_path / "m", section)
    model = begin(starting(section, tmp_path / "m", {"hound": "dog"}, input__normalisation="none"), ["cat", "hound"])
    assert torch.equal(model.head.classify.weight[1], stored.head.classify.weight[1])
    for mapping, message in (
        ({"hound": "dg"}, r"found none for hound: dg \(nearest: dog\)"),
        ({"wolf": "dog"}, r"expected classes of the corpus \(cat, hound, ...\), found 'wolf'"),
        ("by_name", r"expected classes among the 3 of the weights, found none for cat .*; hound"),
    ):
        with pytest.raises(SonolexError, match=message):
            begin(starting(section, tmp_path / "m", mapping, input__normalisation="none"), ["cat", "hound"])


def test_other_classes_have_a_new_head(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    section = section_with("class_distillation")
    stored = store(tmp_path / "m", section)
    model = begin(starting(section, tmp_path / "m", input__normalisation="none"), ["cat", "cow", "rain"])
    assert "its head has other classes than this network's, which keeps its random weights" in caplog.text
    assert torch.equal(model.head.norm.weight, torch.ones_like(model.head.norm.weight))
    assert torch.equal(model.head.tokens, stored.head.tokens)  # they enter the encoder
    assert torch.equal(model.encoder.norm.weight, stored.encoder.norm.weight)


def test_another_head_is_new_unless_its_classes_are_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store(tmp_path / "m", section_with("mean"))
    section = section_with("class")
    begin(starting(section, tmp_path / "m", input__normalisation="none"), CLASSES)
    assert "its head has other weights than this network's" in caplog.text
    with pytest.raises(SonolexError, match=r"set the model's head to \{'kind': 'pooled', 'pooling': 'mean'\}"):
        begin(starting(section, tmp_path / "m", "by_name", input__normalisation="none"), CLASSES)


def test_attention_heads_that_need_not_sum_to_one_do_so_in_a_new_head(tmp_path: Path) -> None:
    section = section_with("attention")
    store(tmp_path / "m", section, pretrained={"digest": "0", "free_head_weights": True})
    kept = begin(starting(section, tmp_path / "m", input__normalisation="none"), CLASSES)
    new = begin(starting(section, tmp_path / "m", input__normalisation="none"), ["cat"])
    assert kept.head.free_weights
    torch.testing.assert_close(new.head.head_weights.exp(), torch.full((2,), 0.5))


def test_the_pooling_of_windows_belongs_to_the_classes(tmp_path: Path) -> None:
    window = {"length": 0.2, "hop": 0.1, "fill": "shift", "pooling": "attention"}
    section = section_with("mean") | {"window": window}
    stored = store(tmp_path / "m", section, frame_rate=100.0)
    params = starting(section, tmp_path / "m", "by_name", input__normalisation="none")
    checkpoint: Any = open_pretrained_weights(params, front_end(), "")
    model: Any = Network(params, {**METADATA["frames"], "frame_rate": 100.0}, 2, "softmax")  # type: ignore[typeddict-item]
    checkpoint.choose_classes(["cat", "rain"])
    model.load_weights(params, checkpoint)
    assert torch.equal(model.windows.attend.weight[1], stored.windows.attend.weight[2])


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"encoder__width": 48},
            r"found \d+ that differ .*; set the model's encoder\.width to 32, as the weights have it",
        ),
        ({"encoder__depth": 3}, r"encoder\.blocks\.2\.\S+ missing.*set the model's encoder\.depth to 2"),
        (
            {"input__normalisation": "clip"},
            r"those of the weights, constants.*found clip; set .*normalisation to pretrained",
        ),
        ({"input__normalisation": "none"}, r"found none; set .*input\.normalisation to pretrained"),
        (
            {"input__std_scale": 1.0},
            r"expected input\.std_scale 2, as the weights were trained with, found 1; set it so",
        ),
    ],
)
def test_another_network_or_normalisation_is_named_with_what_to_set(
    tmp_path: Path, changes: Section, message: str
) -> None:
    section = section_with("mean")
    normalisation = {"kind": "constants", "std_scale": 2.0, "mean": -5.0, "std": 3.0}
    store(tmp_path / "m", section, normalisation=normalisation)
    right = {"input__normalisation": "pretrained", "input__std_scale": 2.0}
    model = begin(starting(section, tmp_path / "m", **right), CLASSES)
    assert model.input.zero == pytest.approx(5 / 6)
    with pytest.raises(SonolexError, match=message):
        begin(starting(section, tmp_path / "m", **(right | changes)), CLASSES)


def test_settings_that_no_shape_shows_and_other_statistics_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    section = section_with("mean")
    store(tmp_path / "m", section, normalisation={"kind": "corpus", "std_scale": 1.0, "mean": -5.0, "std": 3.0})
    begin(starting(section, tmp_path / "m", encoder__heads=2), CLASSES)
    assert "its network has encoder.heads 4, this one 2; set it so unless you mean it" in caplog.text
    assert "deviation -6, 4, those of the weights were by -5, 3; set input.normalisation to pretrained" in caplog.text
    caplog.clear()
    begin(starting(section, tmp_path / "m", input__normalisation="pretrained", encoder__drop_path=0.1), CLASSES)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_statistics_of_every_channel_are_taken_over(tmp_path: Path) -> None:
    section, channels = section_with("mean"), [(-5.0, 3.0), (1.0, 2.0)]
    normalisation = {"kind": "corpus", "std_scale": 1.0, "mean": -5.0, "std": 3.0, "channels": channels}
    store(tmp_path / "m", section, normalisation=normalisation)
    params = starting(section, tmp_path / "m", input__normalisation="pretrained")
    found = fit_normalisation(params, lambda: [], open_pretrained_weights(params, front_end(), ""))
    assert found == {**normalisation, "kind": "pretrained"}


def test_another_front_end_is_named_with_what_to_set(tmp_path: Path) -> None:
    section = section_with("mean")
    store(tmp_path / "m", section)
    params = starting(section, tmp_path / "m", input__normalisation="none")
    with pytest.raises(
        SonolexError,
        match=r"found spectrogram\.front_end\.hop_length 320, spectrogram\.mix left; set spectrogram\.front_end\.hop_length "
        r"to 160, spectrogram\.mix to mean",
    ):
        begin(params, CLASSES, frames=front_end(hop_length=320) | {"mix": "left"})
    begin(params, CLASSES, frames=front_end() | {"dtype": "float16"})


def test_tokens_of_another_vocabulary_are_refused(tmp_path: Path) -> None:
    section = network("tokens", "linear", "transformer", "mean")
    store(tmp_path / "m", section, source="abc")
    assert begin(starting(section, tmp_path / "m"), CLASSES, vocabulary="abc")
    with pytest.raises(SonolexError, match=r"of this run's vocabulary, of digest xyz, found one of digest abc"):
        begin(starting(section, tmp_path / "m"), CLASSES, vocabulary="xyz")
    with pytest.raises(SonolexError, match=r"weights of a network that reads frames, found one of tokens"):
        begin(starting(section_with("mean"), tmp_path / "m"), CLASSES)


def test_the_input_of_the_weights_is_what_is_advised(tmp_path: Path) -> None:
    section = network("tokens", "textures")
    store(tmp_path / "m", section, source="abc")
    assert begin(starting(section, tmp_path / "m"), CLASSES, vocabulary="abc")
    with pytest.raises(SonolexError, match=r"found one of tokens; .*, or the model's input\.kind to decoded_tokens"):
        begin(starting(network("frames", "textures"), tmp_path / "m"), CLASSES)


def test_what_is_no_model_or_was_altered_is_named(tmp_path: Path) -> None:
    section = section_with("mean")
    store(tmp_path / "bundle" / "members" / "0", section)
    params = starting(section, tmp_path / "bundle", input__normalisation="none")
    begin(params, CLASSES)
    shutil.copytree(tmp_path / "bundle/members/0", tmp_path / "bundle/members/1")
    with pytest.raises(SonolexError, match=r"expected one model, found a bundle of 2; set .* such as \S+members/0"):
        begin(params, CLASSES)
    with pytest.raises(SonolexError, match=r"nowhere: expected the folder of a trained model, .*found nothing; set"):
        begin(starting(section, tmp_path / "nowhere"), CLASSES)
    one = tmp_path / "bundle/members/1"
    (one / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(SonolexError, match=r"weights\.safetensors: expected digest .*; the folder is incomplete"):
        begin(starting(section, one), CLASSES)


def test_a_digest_of_other_weights_stops(tmp_path: Path) -> None:
    section = section_with("mean")
    store(tmp_path / "m", section)
    digest = open_model(tmp_path / "m").metadata["weights"]
    for expected in (digest, "0" * 32):
        params = starting(section, tmp_path / "m", pretrained__digest=expected, input__normalisation="none")
        if expected == digest:
            begin(params, CLASSES)
        else:
            with pytest.raises(SonolexError, match=rf"pretrained\.digest: \S+: expected 0+, found {digest}"):
                begin(params, CLASSES)


# in an experiment

MODELS = ("experiment.frame_models=[ast, frame_statistics]", "experiment.token_models=[]", "experiment.vocabularies=[]")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_experiment(tmp_path_factory.mktemp("own") / "first", MODELS)


def pretrained(source: Path, **others: Any) -> str:
    pairs = {"kind": "sonolex", "source": source, "digest": "null", "classes": "null"} | others
    return f"models.ast.pretrained={{{', '.join(f'{key}: {value}' for key, value in pairs.items())}}}"


def test_a_run_begins_with_the_weights_of_another(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rate that moves no weight they are the same, head included."""
    shutil.copytree(first, tmp_path / "second")
    monkeypatch.chdir(tmp_path / "second")
    source = first / "models/ast/1/0"
    pretrained = {"kind": "sonolex", "source": str(source), "digest": None, "classes": None}
    changes = {"models.ast.pretrained": pretrained, "models.ast.input.normalisation": "pretrained"}
    change_params(tmp_path / "second", changes | {"train.learning_rate": 1e-30})
    train.main("ast", "1", 0)
    stored, found = open_model(source), open_model(tmp_path / "second/models/ast/1/0")
    assert found.metadata["input"]["pretrained"] == {"digest": stored.metadata["weights"]}
    assert found.metadata["input"]["normalisation"]["mean"] == stored.metadata["input"]["normalisation"]["mean"]
    weights = [name for name in stored.weights if "running" not in name and "tracked" not in name]  # but batch norms'
    assert "head.classify.weight" in weights
    for name in weights:
        np.testing.assert_allclose(found.weights[name], stored.weights[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("models/ast/1/1", (), "models.ast: pretrained: SOURCE: expected the folder of a trained model"),
        ("models/frame_statistics/1/0", (), "models.ast: pretrained: SOURCE: expected the weights of a network"),
        ("models/ast/1/0", ("models.ast.encoder.width=64",), "set the model's encoder.width to 128"),
        ("models/ast/1/0", ("spectrogram.front_end.f_max=7000.0",), "set spectrogram.front_end.f_max to"),
        ("models/ast/1/0", (), "no mistakes"),
    ],
)
def test_check_finds_weights_that_do_not_fit(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, changes: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(first)
    params, recipes = tmp_path / "params.yaml", str(Path(__file__).parent.parent / "recipes")
    corpus = [
        f"corpus.root={first}/corpus",
        "corpus.table=meta/esc50.csv",
        'experiment.folds=["1"]',
        "experiment.ensembles=[]",
    ]
    own = [
        *MODELS,
        "report.attention=[]",
        "report.headline=[ast]",
        "spectrogram.front_end.n_mels=24",
        pretrained(first / source),
        *changes,
    ]
    written = CliRunner().invoke(
        app, ["compose", "esc50", *corpus, *own, "--params", str(params), "--recipes", recipes]
    )
    assert written.exit_code == 0, written.output
    checked = CliRunner().invoke(app, ["check", "--params", str(params)])
    found = (checked.output + str(checked.exception)).replace("\n", " ")
    assert message.replace("SOURCE", str(first / source)) in found
