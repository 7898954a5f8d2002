"""Published checkpoints: three layouts are used like bundles, with the logits of the libraries that own them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import transformers
from psla_authors import make_psla
from rich.console import Console
from safetensors.torch import save_file
from test_checkpoint_formats import FRAMES, NUM_CLASSES, Oracle, make_deit, make_huggingface, make_original
from typer.testing import CliRunner

import sonolex
from pipeline.errors import SonolexError
from pipeline.inference.checkpoints import open_checkpoint
from tools.bundle import run_checkpoints
from tools.sonolex import app

NAMES = [f"sound {number}" for number in range(NUM_CLASSES)]
SMALL = {"embed_dim": 64, "num_heads": 1, "depth": 1}  # published heads are 64 wide


def make_named(path: Path, **changes: Any) -> Any:
    return make_huggingface(path, id2label=dict(enumerate(NAMES)), **changes)


def write_names(path: Path, names: list[str] = NAMES) -> Path:
    path.write_text("\n".join(names) + "\n")
    return path


def noise(num_frames: int) -> np.ndarray:
    samples = np.random.default_rng(0).standard_normal(400 + 160 * (num_frames - 1))
    return (samples * 0.1).astype(np.float32)


@pytest.mark.parametrize("num_frames", [40, 64, 90], ids=["shorter", "as long", "longer"])
def test_a_hugging_face_folder_gives_the_logits_of_its_library(tmp_path: Path, num_frames: int) -> None:
    theirs, waveform = make_named(tmp_path / "hf"), noise(num_frames)
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        expected = theirs(**extractor(waveform, sampling_rate=16000, return_tensors="pt")).logits[0].numpy()
    model = sonolex.load(tmp_path / "hf")
    assert model.classes == NAMES
    assert np.abs(model.predict(waveform, 16000).logits - expected).max() < 1e-4
    frames = extractor._extract_fbank_features(waveform, max_length=num_frames)
    assert np.abs(open_checkpoint(tmp_path / "hf").logits([frames])[0] - expected).max() < 1e-4


def test_sizes_and_labels_are_those_of_the_folder(tmp_path: Path) -> None:
    sizes = {"time_stride": 8, "frequency_stride": 16}
    theirs = make_named(tmp_path / "hf", **sizes, problem_type="multi_label_classification")
    model, waveform = sonolex.load(tmp_path / "hf" / "model.safetensors"), noise(FRAMES)
    extractor = transformers.ASTFeatureExtractor.from_pretrained(tmp_path / "hf")
    with torch.no_grad():
        expected = theirs(**extractor(waveform, sampling_rate=16000, return_tensors="pt")).logits[0].numpy()
    found = model.predict(waveform, 16000)
    assert np.abs(found.logits - expected).max() < 1e-4
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-expected)), atol=1e-5)


@pytest.mark.parametrize(("stride", "rows", "columns"), [(10, 12, 101), (16, 8, 64)])
def test_the_authors_file_for_audioset_needs_nothing_else(tmp_path: Path, stride: int, rows: int, columns: int) -> None:
    oracle = Oracle(make_deit(**SMALL), rows * columns, 527, stride).eval()
    torch.save(torch.nn.DataParallel(oracle).state_dict(), tmp_path / "audioset.pth")
    classifier = open_checkpoint(tmp_path / "audioset.pth")
    assert (classifier.classes[0], classifier.classes[526], len(classifier.classes)) == (
        "Speech",
        "Field recording",
        527,
    )
    assert classifier.label_kind == "many"
    frames = np.random.default_rng(0).normal(-4, 4, (1024, 128)).astype(np.float32)
    with torch.no_grad():
        expected = oracle(torch.from_numpy((frames + 4.2677393) / (2 * 4.5689974))[None]).numpy()
    np.testing.assert_allclose(classifier.logits([frames]), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("num_classes", "frames", "first"), [(527, 1056, "Speech"), (200, 3000, "Accelerating_and_revving_and_vroom")]
)
def test_the_file_of_pslas_authors_needs_nothing_else(
    tmp_path: Path, num_classes: int, frames: int, first: str
) -> None:
    """Of AudioSet and of FSD50K: the number of classes tells which, and with it frames and names."""
    oracle = make_psla(2, num_classes)
    torch.save(torch.nn.DataParallel(oracle).state_dict(), tmp_path / "psla.pth")
    classifier = open_checkpoint(tmp_path / "psla.pth")
    assert (classifier.classes[0], len(classifier.classes), classifier.label_kind) == (first, num_classes, "many")
    clip = np.random.default_rng(0).normal(-4, 4, (500, 128)).astype(np.float32)
    padded = np.pad(clip, ((0, frames - len(clip)), (0, 0)))
    with torch.no_grad():
        expected = oracle(torch.from_numpy((padded + 4.6476) / 4.5699)[None]).numpy()
    np.testing.assert_allclose(classifier.scores(classifier.logits([clip])), expected, atol=1e-3)


def test_an_ensemble_of_checkpoints_is_the_mean_of_their_probabilities(tmp_path: Path) -> None:
    """Strides of 10 and 16 and a PSLA, as AST's ensemble-M and PSLA's mix settings: in Python, and as a bundle."""
    paths = []
    for stride, columns in ((10, 12 * 101), (16, 8 * 64)):
        oracle = Oracle(make_deit(**SMALL), columns, 527, stride).eval()
        paths.append(tmp_path / f"audioset_{stride}_{stride}.pth")
        torch.save(torch.nn.DataParallel(oracle).state_dict(), paths[-1])
    paths.append(tmp_path / "psla.pth")
    torch.save(make_psla(0, 527).state_dict(), paths[-1])
    waveform = noise(64)
    alone = [sonolex.load(path).predict(waveform, 16000).scores for path in paths]
    together = sonolex.load(paths).predict(waveform, 16000).scores
    np.testing.assert_allclose(together, np.mean(alone, axis=0), atol=1e-6)
    arguments = ["bundle", "--out", str(tmp_path / "mean")]
    for path in paths:
        arguments += ["--checkpoint", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "mean: mean, 3 models, 527 classes, label kind many" in result.output.replace("\n", "")
    np.testing.assert_array_equal(sonolex.load(tmp_path / "mean").predict(waveform, 16000).scores, together)
    with pytest.raises(SonolexError, match=r"several published checkpoints, found .*mean; an ensemble of models"):
        sonolex.load([paths[0], tmp_path / "mean"])


def test_checkpoints_of_other_classes_do_not_predict_together(tmp_path: Path) -> None:
    for name, count in (("a.pth", 527), ("b.pth", 200)):
        torch.save(make_psla(0, count).state_dict(), tmp_path / name)
    with pytest.raises(
        SonolexError, match=r"b\.pth: classes: expected that of .*a\.pth, .* take others, or one at a time"
    ):
        sonolex.load([tmp_path / "a.pth", tmp_path / "b.pth"])


def test_the_authors_file_for_speech_commands_takes_a_list_of_classes(tmp_path: Path) -> None:
    oracle = make_original(tmp_path / "speech.pth", frames=128, **SMALL)
    classifier = open_checkpoint(tmp_path / "speech.pth", write_names(tmp_path / "names.txt"))
    assert (classifier.classes, classifier.label_kind) == (NAMES, "one")
    frames = np.random.default_rng(0).normal(-4, 4, (128, 128)).astype(np.float32)
    with torch.no_grad():
        expected = oracle(torch.from_numpy((frames + 6.845978) / (2 * 5.5654526))[None]).numpy()
    np.testing.assert_allclose(classifier.logits([frames]), expected, atol=1e-4)
    in_python = sonolex.load(tmp_path / "speech.pth", classes=tmp_path / "names.txt")
    prediction = in_python.predict(noise(90), 16000)
    assert prediction.top(1)[0].name in NAMES
    soundfile.write(tmp_path / "clip.wav", noise(90), 16000, subtype="FLOAT")
    arguments = ["predict", str(tmp_path / "speech.pth"), str(tmp_path / "clip.wav"), "--to", "jsonl"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    result = CliRunner().invoke(app, [*arguments, "--classes", str(tmp_path / "names.txt")])
    assert json.loads(result.stdout)["labels"] == prediction.labels


def test_a_checkpoint_becomes_a_bundle_that_needs_it_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_named(tmp_path / "a/hf")
    expected = sonolex.load(tmp_path / "a/hf").predict(noise(64), 16000).logits
    monkeypatch.chdir(tmp_path)
    outs = [tmp_path / "one", tmp_path / "two"]
    for out, where in zip(outs, (str(tmp_path / "a/hf"), "a/hf"), strict=True):
        arguments = ["bundle", "--checkpoint", where, "--out", str(out), "--licence", "BSD-3-Clause"]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
    shutil.rmtree(tmp_path / "a/hf")
    np.testing.assert_array_equal(sonolex.load(outs[0]).predict(noise(64), 16000).logits, expected)
    for file in sorted(path for path in outs[0].rglob("*") if path.is_file()):
        content = file.read_bytes()
        assert content == (outs[1] / file.relative_to(outs[0])).read_bytes()
        assert str(tmp_path).encode() not in content
    readme = (outs[0] / "README.md").read_text()
    assert "license: bsd-3-clause" in readme
    assert "their authors say" in readme


def _foreign(path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, path / "x.pth")


def _without_classifier(path: Path) -> None:
    make_named(path)
    from safetensors.torch import load_file

    tensors = {name: value for name, value in load_file(path / "model.safetensors").items() if "dense" not in name[:16]}
    save_file(tensors, path / "model.safetensors")


def _config(path: Path, **changes: object) -> None:
    make_named(path)
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(values | changes))


WRONG = {
    "unnamed classes": (lambda path: make_huggingface(path), "", "names of its 7 classes, found none .*--classes FILE"),
    "unnamed classes of a file": (
        lambda path: make_original(path / "x.pth", frames=128, **SMALL), "x.pth", "7 classes, found none .*classes=FILE",
    ),
    "photographs": (
        lambda path: torch.save(make_deit().state_dict(), path / "x.pth"), "x.pth", "photographs.*pretrained.source",
    ),
    "another program's": (_foreign, "x.pth", r"with v\.cls_token or .*, found fc\.weight, \.\.\."),
    "of other lengths": (
        lambda path: make_original(path / "x.pth", frames=64, **SMALL), "x.pth", "found 60, .*Hugging Face folder",
    ),
    "no preprocessor": (
        lambda path: (make_named(path), (path / "preprocessor_config.json").unlink()), "", "found no preprocessor",
    ),
    "no weights": (
        lambda path: (make_named(path), (path / "model.safetensors").unlink()), "", "no model.safetensors or",
    ),
    "weights alone": (
        lambda path: (make_named(path), (path / "config.json").unlink()), "model.safetensors", "expected config.json and",
    ),
    "not weights": (lambda path: (path / "x.pth").write_text("x"), "x.pth", "written by torch|would run code"),
    "no classifier": (_without_classifier, "", "a model for other tasks"),
    "more names than classes": (
        lambda path: _config(path, id2label={str(n): f"c{n}" for n in range(9)}), "", "the 7 classes .*found 9; pass",
    ),
    "other sizes than the weights": (lambda path: _config(path, hidden_size=64), "", "weights of one network, found others"),
    "sizes that are no numbers": (lambda path: _config(path, patch_size="a"), "", "found .*patch_size 'a'.*fetch it again"),
    "gaps in the labels": (lambda path: _config(path, id2label={"0": "a", "9": "b"}), "", "numbers 0 to 1, found others"),
    "truncated": (
        lambda path: (make_named(path), (path / "model.safetensors").write_bytes(b"x" * 99)), "", "^/.*expected safetensors",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_named(tmp_path: Path, case: str) -> None:
    make, name, message = WRONG[case]
    (tmp_path / "x").mkdir()
    make(tmp_path / "x")
    with pytest.raises(SonolexError, match=message):
        sonolex.load(tmp_path / "x" / name)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:3], "expected the 7 classes of the classifier .*found 3; pass the list"),
        (["a"] * 7, "each once, found a twice"),
        ([], "names of classes, each once, found none"),
    ],
)
def test_a_list_that_does_not_fit_is_named(tmp_path: Path, names: list[str], message: str) -> None:
    make_original(tmp_path / "x.pth", frames=128, **SMALL)
    with pytest.raises(SonolexError, match=message):
        sonolex.load(tmp_path / "x.pth", classes=write_names(tmp_path / "names.txt", names))


def test_files_that_are_no_list_and_bundles_with_a_list_are_named(tmp_path: Path) -> None:
    make_named(tmp_path / "hf")
    with pytest.raises(SonolexError, match=r"none\.txt: expected a text file"):
        sonolex.load(tmp_path / "hf", classes=tmp_path / "none.txt")
    run_checkpoints([tmp_path / "hf"], tmp_path / "out", classes=None, licence="", console=Console(quiet=True))
    with pytest.raises(SonolexError, match="which has its own; leave it out"):
        sonolex.load(tmp_path / "out", classes=write_names(tmp_path / "names.txt"))
    with pytest.raises(SonolexError, match=r"expected a folder with config\.json, .*found a folder without it"):
        run_checkpoints([tmp_path / "out"], tmp_path / "again", classes=None, licence="", console=Console(quiet=True))
    (tmp_path / "nothing").write_text("x")
    with pytest.raises(SonolexError, match=r"or a file of weights .*found another file"):
        open_checkpoint(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a model or an ensemble, or --checkpoint PATH, found neither"),
        (["ast", "--checkpoint", "x"], "found both"),
        (["ast", "--classes", "x"], "--classes: expected it with --checkpoint alone"),
        (["--checkpoint", "x", "--retrain"], "--checkpoint: expected neither"),
        (["ast", "--retrain", "--folds", "2"], "--folds: expected none with --retrain"),
    ],
)
def test_options_that_exclude_each_other_are_named(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = CliRunner().invoke(app, ["bundle", "--out", "out", *arguments])
    assert result.exit_code == 1
    assert message in result.stderr + capsys.readouterr().err
