"""Embeddings: of every kind of layer, of texture statistics, of many files, and in the forms that others read."""

import contextlib
import io
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from experiments import run_experiment
from rich.console import Console
from test_bundles import make_bundle
from typer.testing import CliRunner

import sonolex
from pipeline.errors import SonolexError
from pipeline.evaluation.network_prediction import build_network
from pipeline.inference.bundle import open_bundle
from pipeline.inference.embedding import TextureEmbedder
from pipeline.inference.embedding_tables import open_embeddings
from pipeline.models.baselines.texture_statistics import extract_features
from pipeline.reporting.embedding_plots import principal_components
from pipeline.training.batches import Batches
from tools import embed, neighbours
from tools.sonolex import app

NETWORKS = ("ast", "ast_patches", "mlp", "cnn", "token_transformer-kmeans")
SETTINGS = (
    "experiment.frame_models=[ast, ast_patches, mlp, cnn, frame_statistics]",
    "experiment.token_models=[token_transformer]",
    "experiment.vocabularies=[kmeans]",
    "models.ast_patches={kind: network, stem: {kind: patches, stride_frames: 10, stride_bands: 10}, head: {kind: "
    "class_token, distillation_token: true}}",
)
PAGE = (Path(__file__).parent.parent / "docs" / "embeddings.md").read_text()
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the bundle of every network, and of a classical model."""
    folder = tmp_path_factory.mktemp("embedding")
    experiment = run_experiment(folder / "experiment", SETTINGS)
    for name in (*NETWORKS, "frame_statistics"):
        make_bundle(experiment, name, folder / name)
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three sounds in each of two folders, tones and noises, and a file that is no sound."""
    folder = tmp_path_factory.mktemp("sounds")
    seconds = np.arange(16000) / 16000
    for number in range(3):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, 16000)
        for name, samples in (("tones", 0.3 * np.sin(2 * np.pi * (500 + 9 * number) * seconds)), ("noises", noise)):
            (folder / name).mkdir(exist_ok=True)
            soundfile.write(folder / name / f"{number}.wav", samples, 16000)
    (folder / "noises" / "text.wav").write_text("no sound")
    return folder


def _noise(seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, round(seconds * 16000)).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_has_vectors_along_time(bundles: Path, name: str) -> None:
    _check_layers(bundles / name)


@pytest.mark.slow
def test_every_layer_of_the_other_networks_has_vectors_along_time(tmp_path: Path) -> None:
    settings = (
        "experiment.frame_models=[conformer, frames_lstm, psla]",
        "experiment.token_models=[bert, lstm, token_cnn]",
        "experiment.vocabularies=[kmeans]",
        "models.psla={encoder: {network: mobilenetv3_small_050}, pretrained: null}",
    )
    experiment = run_experiment(tmp_path / "experiment", settings)
    for name in ("conformer", "frames_lstm", "psla", "bert-kmeans", "lstm-kmeans", "token_cnn-kmeans"):
        _check_layers(make_bundle(experiment, name, tmp_path / name))


def _check_layers(bundle: Path) -> None:
    """Assert that every layer has an embedding, which is the mean of those of its time steps."""
    model = sonolex.load(bundle)
    assert {"input", "stem", "encoder", "textures"} <= set(model.layers)
    for layer, dim in model.layers.items():
        where = f"{bundle.name}, {layer}"
        clip = model.embed(_noise(), 16000, layer=layer)
        assert clip.shape == (dim,), where
        assert np.isfinite(clip).all(), where
        if layer not in ("head", "textures"):
            steps = model.embed(_noise(), 16000, layer=layer, frames=True)
            np.testing.assert_allclose(steps.values.mean(axis=0), clip, rtol=1e-4, atol=1e-4, err_msg=where)
            assert (np.diff(steps.seconds) > 0).all(), where
            assert 0 <= steps.seconds[0] <= steps.seconds[-1] < 1.0, where


def test_layers_are_those_of_the_network(bundles: Path) -> None:
    """The encoder of `Network.context`, with its rows averaged, and the classifier of the head's vector."""
    bundle = open_bundle(bundles / "ast_patches")
    (member,) = bundle.classifier.members
    network = build_network(member.model)
    frames = bundle.classifier.frames(_noise(), "noise")
    inputs = member.inputs([frames])
    batch = Batches(inputs, ["0"], member.model.metadata["input"]["normalisation"]).take([0]).to(torch.device("cpu"))
    model = sonolex.load(bundles / "ast_patches")
    with torch.no_grad():
        tokens = network.head.num_class_tokens
        x, mask = network.head.prepend_class_tokens(*network.stem(network.embed(batch.inputs), None))
        encoded = network.encoder(x, mask)[0][0, tokens:]
        head = torch.from_numpy(model.embed(_noise(), 16000, layer="head"))
        logits = network.head.classify(head)
    rows = encoded.reshape(-1, network.encoder.num_rows, encoded.shape[1]).mean(1).numpy()
    steps = model.embed(_noise(), 16000, layer="encoder", frames=True)
    np.testing.assert_allclose(steps.values, rows, atol=1e-5)
    np.testing.assert_allclose(logits.numpy(), model.predict(_noise(), 16000).logits, atol=1e-4)


def test_padding_of_a_stem_is_no_part_of_an_embedding(bundles: Path) -> None:
    """The MLP reads clips of a fixed length; half a clip has half of the time steps, which are those of the clip."""
    model = sonolex.load(bundles / "mlp")
    whole = model.embed(_noise(0.5), 16000, layer="stem", frames=True)
    half = model.embed(_noise(0.5)[:4000], 16000, layer="stem", frames=True)
    assert 0.4 * len(whole.values) < len(half.values) < 0.55 * len(whole.values)
    np.testing.assert_allclose(half.seconds, whole.seconds[: len(half.seconds)])


def test_time_steps_lie_where_the_sound_is(bundles: Path) -> None:
    """A click in silence changes most the time step whose middle is nearest to it."""
    model = sonolex.load(bundles / "cnn")
    quiet = _noise() * 1e-3
    click = quiet.copy()
    click[8000:8100] += 0.5
    for layer in ("input", "encoder.stack.convolutions.0"):
        steps = model.embed(click, 16000, layer=layer, frames=True)
        change = np.abs(steps.values - model.embed(quiet, 16000, layer=layer, frames=True).values).sum(axis=1)
        assert abs(steps.seconds[change.argmax()] - 0.5) < 0.04, layer


def test_unknown_layers_are_named(bundles: Path) -> None:
    expected = r"layer: expected one of textures, input, .*encoder\.blocks\.\{0\.\.\d+\}, .*head, found 'blocks'"
    with pytest.raises(SonolexError, match=expected):
        sonolex.load(bundles / "token_transformer-kmeans").embed(_noise(), 16000, layer="blocks")
    with pytest.raises(SonolexError, match=r"layer head: expected a layer along time .* such as encoder"):
        sonolex.load(bundles / "ast").embed(_noise(), 16000, layer="head", frames=True)
    classical = sonolex.load(bundles / "frame_statistics")
    with pytest.raises(
        SonolexError, match=r"expected a neural network, .*frame_statistics; the layer textures needs no"
    ):
        classical.embed(_noise(), 16000)
    assert classical.layers == {"textures": 530}
    assert classical.embed(_noise(), 16000, layer="textures").shape == (530,)


def test_texture_statistics_need_no_model() -> None:
    noise, embedder = _noise(2.0), TextureEmbedder()
    vector = sonolex.texture_statistics(noise, 16000)
    assert vector.shape == (530,)
    frames = embedder._frames(noise[None], "noise")[0]
    np.testing.assert_array_equal(vector, extract_features(frames, floor=-8.0, frame_rate=100.0))
    steps = sonolex.texture_statistics(noise, 16000, frames=True)
    assert steps.values.shape == (len(steps.seconds), 530)
    np.testing.assert_allclose(np.diff(steps.seconds), 0.05)
    middle = int(np.abs(steps.seconds - 1.0).argmin())
    span = frames[round(steps.seconds[middle] * 100 - 0.5) - 50 :][:100]
    np.testing.assert_allclose(steps.values[middle], extract_features(span, floor=-8.0, frame_rate=100.0), atol=1e-5)
    with pytest.raises(SonolexError, match="silent: array"):
        sonolex.texture_statistics(np.zeros(16000, np.float32), 16000)


def test_principal_components_are_those_of_the_data() -> None:
    generator = np.random.default_rng(0)
    axis = np.array([3.0, 4.0, 0.0]) / 5
    rows = generator.normal(size=(200, 1)) * 10 * axis + generator.normal(size=(200, 3)) * 0.1
    points, shares = principal_components(rows - rows.mean(axis=0))
    assert shares[0] > 0.99
    assert abs(np.corrcoef(points[:, 0], rows @ axis)[0, 1]) > 0.999


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_files_of_embeddings_hold_what_was_embedded(bundles: Path, sounds: Path, tmp_path: Path, suffix: str) -> None:
    out, layer = tmp_path / f"out{suffix}", "encoder.blocks.0"
    options = embed.Options(layer=layer, out=out, projector=tmp_path / "p", picture=tmp_path / "p.png")
    assert embed.run(bundles / "ast", [str(sounds)], options, QUIET) == 1
    embeddings, model = open_embeddings(out), sonolex.load(bundles / "ast")
    assert embeddings.card["layer"] == layer
    assert embeddings.labels == ["noises"] * 3 + ["tones"] * 3
    for file, vector in zip(embeddings.files, embeddings.vectors, strict=True):
        np.testing.assert_allclose(vector, model.embed(file, layer=layer), atol=1e-6)
    (failure,) = embeddings.failures
    assert (failure.source, failure.reason) == (str(sounds / "noises" / "text.wav"), "unreadable")
    assert len((tmp_path / "p" / "vectors.tsv").read_text().splitlines()) == 6
    metadata = (tmp_path / "p" / "metadata.tsv").read_text().splitlines()
    assert metadata[0] == "file\tlabel\tstart\tend"
    assert metadata[-1] == f"{sounds / 'tones' / '2.wav'}\ttones\t0.000\t1.000"
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_windows_and_time_steps_are_rows(bundles: Path, sounds: Path, tmp_path: Path) -> None:
    file, model = sounds / "noises" / "0.wav", sonolex.load(bundles / "ast")
    (tmp_path / "labels.csv").write_text(f"path,label\n{file},hiss\n")
    options = embed.Options(out=tmp_path / "w.npz", window=0.5, labels=tmp_path / "labels.csv")
    assert embed.run(bundles / "ast", [str(file)], options, QUIET) == 0
    windows = open_embeddings(tmp_path / "w.npz")
    assert list(zip(windows.starts, windows.ends, strict=True)) == [(0, 0.5), (0.25, 0.75), (0.5, 1.0)]
    assert windows.labels == ["hiss"] * 3
    samples, rate = soundfile.read(file, dtype="float32")
    np.testing.assert_allclose(windows.vectors[1], model.embed(samples[4000:12000], rate), atol=1e-5)
    assert embed.run(bundles / "ast", [str(file)], embed.Options(out=tmp_path / "f.npz", frames=True), QUIET) == 0
    steps, rows = model.embed(file, frames=True), open_embeddings(tmp_path / "f.npz")
    np.testing.assert_allclose(rows.vectors, steps.values, atol=1e-6)
    np.testing.assert_allclose((rows.starts + rows.ends) / 2, steps.seconds)


def test_the_command_names_what_it_cannot_use(bundles: Path, sounds: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out, ast = ["--out", str(tmp_path / "out.npz")], str(bundles / "ast")
    for arguments, message in {
        ("--textures", str(sounds)): "expected --out",
        ("--textures", str(tmp_path / "empty"), *out): "found an empty folder",
        ("--textures", "--layer", "encoder", str(sounds), *out): "--textures: expected no --layer",
        (
            ast,
            str(sounds),
            "--classes",
            "names.txt",
            *out,
        ): "expected a list of classes with a published checkpoint alone",
        (ast, *out): "expected a model and then paths",
        (str(sounds), str(sounds), *out): "expected a bundle",
        (ast, str(sounds), "--out", "out.csv"): "ends in .parquet or .npz",
        (ast, str(sounds), "--picture", "out.svg"): "ends in .png",
        (ast, str(sounds), "--projector", str(sounds / "tones" / "0.wav")): "expected a folder",
        (ast, str(sounds), "--frames", "--window", "1", *out): "expected one of them, found both",
        (ast, str(sounds), "--hop", "1", *out): "--hop: expected --window",
        (ast, str(sounds), "--frames", "--layer", "head", *out): "expected a layer along time, found head",
        (ast, str(sounds), "--layer", "nothing", *out): "found 'nothing'",
        (str(bundles / "frame_statistics"), str(sounds), *out): "the layer textures needs no network",
    }.items():
        result = CliRunner().invoke(app, ["embed", *arguments])
        assert result.exit_code == 1, arguments
        assert message in result.stderr, arguments
    result = CliRunner().invoke(app, ["embed", "--textures", str(sounds / "tones"), *out])
    assert result.exit_code == 0, result.stderr
    assert "3 embeddings of 3 files, layer textures, 530 numbers each" in result.stderr


def _neighbours(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["neighbours", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_neighbours_are_the_nearest_by_cosine(sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    embed.run(None, [str(sounds)], embed.Options(out=out), QUIET)
    embeddings = open_embeddings(out)
    status, printed, _ = _neighbours(sounds / "tones" / "0.wav", out, "--top", "2", "--raw")
    found = re.findall(r"^\s*([\d.]+) ", printed, re.MULTILINE)
    unit = embeddings.vectors / np.linalg.norm(embeddings.vectors, axis=1, keepdims=True)
    distances = np.sort(1 - unit[[0, 1, 2, 4, 5]] @ unit[3])[:2]
    assert (status, found) == (0, [f"{distance:.3f}" for distance in distances])
    (tmp_path / "new.wav").write_bytes((sounds / "tones" / "1.wav").read_bytes())
    _, printed, _ = _neighbours(tmp_path / "new.wav", out, "--top", "3")
    assert re.search(r"^0\.000 .*1\.wav", printed.replace("\n", " ").partition("label")[2].strip())
    assert printed.count("tones") >= 3


def test_neighbours_refuse_another_model_or_layer(bundles: Path, sounds: Path, tmp_path: Path) -> None:
    out, clip, new = tmp_path / "out.npz", sounds / "tones" / "0.wav", tmp_path / "new.wav"
    new.write_bytes(clip.read_bytes())
    embed.run(bundles / "ast", [str(sounds / "tones")], embed.Options(out=out), QUIET)
    assert _neighbours(clip, out)[0] == 0
    assert _neighbours(new, out, "--model", bundles / "ast")[0] == 0
    for arguments, message in {
        (new, out): f"expected --model .* name {bundles / 'ast'}",
        (new, out, "--model", bundles / "cnn"): "expected embeddings by this model, found those by another",
        (clip, out, "--model", bundles / "ast", "--layer", "stem"): "layer stem, found layer encoder",
        (clip, tmp_path / "none.npz"): "found none; `sonolex embed` writes one",
        (clip, clip): r"ends in \.parquet or \.npz",
        (tmp_path / "gone.wav", out, "--model", bundles / "ast"): "missing: .*gone.wav",
    }.items():
        status, _, stderr = _neighbours(*arguments)
        assert status == 1, arguments
        assert re.search(message, stderr), (arguments, stderr)


COMMANDS = [line for line in PAGE.splitlines() if re.match(r"sonolex (embed|neighbours) ", line)]


@pytest.fixture(scope="module")
def page_folder(bundles: Path, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with what docs/embeddings.md names."""
    folder = tmp_path_factory.mktemp("page")
    shutil.copytree(bundles / "ast", folder / "my-model")
    shutil.copytree(sounds / "tones", folder / "recordings" / "tones")
    shutil.copytree(sounds / "noises", folder / "recordings" / "noises", ignore=shutil.ignore_patterns("text.wav"))
    soundfile.write(folder / "day.flac", _noise(12.0), 16000)
    soundfile.write(folder / "dog.wav", _noise(), 16000)
    (folder / "labels.csv").write_text("path,label\nrecordings/tones/0.wav,tone\n")
    return folder


def test_the_commands_and_the_program_of_the_page_run(page_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their order, since some read what others wrote."""
    monkeypatch.chdir(page_folder)
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        result = CliRunner().invoke(app, shlex.split(command, comments=True)[1:])
        assert result.exit_code == 0, (command, result.output)
    (program,) = re.findall(r"^```python\n(import sonolex\n.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(program, {})
    assert "530" in printed.getvalue()


def test_damaged_files_of_embeddings_are_named(sounds: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for suffix in (".npz", ".parquet"):
        (tmp_path / f"a{suffix}").write_bytes(b"nothing")
        with pytest.raises(SonolexError, match="write it again with `sonolex embed`"):
            open_embeddings(tmp_path / f"a{suffix}")
    np.savez(tmp_path / "other.npz", x=1)
    with pytest.raises(SonolexError, match="found one without its card"):
        open_embeddings(tmp_path / "other.npz")
    out = tmp_path / "out.parquet"
    embed.run(None, [str(sounds / "tones")], embed.Options(out=out), QUIET)
    table = pq.read_table(out)
    ragged = pa.array([[1.0], [1.0, 2.0], [1.0]], pa.list_(pa.float32()))
    place = table.column_names.index("embedding")
    pq.write_table(table.set_column(place, "embedding", ragged), out)
    with pytest.raises(SonolexError, match=r"expected embeddings of one width, found the widths 1, 2"):
        open_embeddings(out)
    pq.write_table(table.set_column(place, "embedding", ragged.take([0, 2, 0])), out)
    with pytest.raises(SonolexError, match=r"expected embeddings of width 530, as its card says, found width 1"):
        open_embeddings(out)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "a.wav").write_text("no sound")
    assert embed.run(None, [str(tmp_path / "none")], embed.Options(out=out), QUIET) == 1
    assert open_embeddings(out).vectors.shape == (0, 530)
    with pytest.raises(SonolexError, match="expected at least one embedding, found none"):
        neighbours.run(out, out, console=QUIET)
