"""Adapters for evaluations, each by the validator of the standard where it is installed, and always by our own checks."""

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from experiments import run_experiment
from test_bundles import make_bundle

import sonolex
from pipeline.errors import SonolexError
from sonolex.adapters import arch, hear, mteb, xares

SETTINGS = ("experiment.frame_models=[ast]", "experiment.token_models=[]", "experiment.vocabularies=[]")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    return make_bundle(run_experiment(folder / "experiment", SETTINGS), "ast", folder / "ast")


@pytest.fixture(params=["bundle", "layer", "textures"])
def name(request: pytest.FixtureRequest, bundle: Path) -> str:
    """Return the name of a model, of a layer, or of no model."""
    return {"bundle": str(bundle), "layer": f"{bundle}#encoder.blocks.0", "textures": ""}[request.param]


def _sounds(count: int = 2, seconds: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (count, round(16000 * seconds))).astype(np.float32))


def _expected(name: str, sound: torch.Tensor) -> np.ndarray:
    if not name:
        return sonolex.texture_statistics(sound.numpy(), 16000)
    folder, _, layer = name.partition("#")
    return sonolex.load(folder).embed(sound.numpy(), 16000, layer=layer or "encoder")


def test_hear(name: str) -> None:
    model, sounds = hear.load_model(name), _sounds()
    scenes = hear.get_scene_embeddings(sounds, model)
    assert scenes.dtype == torch.float32
    assert scenes.shape == (2, model.scene_embedding_size)
    np.testing.assert_allclose(scenes[1], _expected(name, sounds[1]), atol=1e-4)
    values, milliseconds = hear.get_timestamp_embeddings(sounds, model)
    assert values.shape == (*milliseconds.shape, model.timestamp_embedding_size)
    assert float(torch.diff(milliseconds).std()) < 1e-3
    assert 0 <= float(milliseconds.min()) <= float(milliseconds.max()) < 1000


def test_hear_takes_a_layer_as_an_option(bundle: Path) -> None:
    """Its program opens existing paths alone, and gives options by their names."""
    assert hear.load_model(str(bundle), layer="stem").embedder.layer == "stem"
    assert hear.load_model(None).embedder.layer == "textures"


def test_hear_resamples_to_a_rate_that_it_knows(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hear, "_RATES", (22050,))
    model = hear.load_model(str(bundle))
    assert model.sample_rate == 22050
    assert hear.get_scene_embeddings(torch.rand(1, 22050), model).shape == (1, model.scene_embedding_size)


def test_hear_by_its_validator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The validator imports TensorFlow only to tell its modules from torch's: an empty module stands in for it."""
    if "tensorflow" not in sys.modules:
        stand_in = types.ModuleType("tensorflow")
        stand_in.Module = type("Module", (), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "tensorflow", stand_in)
    validate = pytest.importorskip("hearvalidator.validate", reason="hearvalidator is not installed")
    validate.ValidateModel("sonolex.adapters.hear", name, "cpu")()


def test_xares(name: str) -> None:
    encoder, sounds = xares.SonolexEncoder(name), _sounds(seconds=2.0)
    values = encoder(sounds)
    assert values.shape[::2] == (2, encoder.output_dim)
    assert abs(values.shape[1] - 2000 / encoder.hop_size_in_ms) <= 2
    np.testing.assert_allclose(values[1], encoder(sounds[1])[0], atol=1e-4)
    assert torch.isfinite(encoder(torch.zeros(1, 16000))).all()  # silence is a sound
    assert torch.isfinite(encoder(torch.rand(1, 10))).all()  # so is a click


def test_xares_by_its_validator(name: str) -> None:
    checker = pytest.importorskip("xares.audio_encoder_checker", reason="xares is not installed")
    assert checker.check_audio_encoder(xares.SonolexEncoder(name))


def test_xares_finds_the_one_encoder_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """X-ARES takes the one name of a file that ends in Encoder, and calls it without arguments; as the adapter says."""
    lines = (xares.__doc__ or "").splitlines()
    code = "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    ") or not line)
    (tmp_path / "my_encoder.py").write_text(code.replace("my-model#encoder", ""))
    monkeypatch.syspath_prepend(tmp_path)
    module = __import__("my_encoder")
    assert [found for found in dir(module) if found.endswith("Encoder")] == ["MyEncoder"]
    assert module.MyEncoder().output_dim == 530


def test_xares_refuses_layers_without_time(bundle: Path) -> None:
    with pytest.raises(SonolexError, match=r"expected a layer along time, found head"):
        xares.SonolexEncoder(f"{bundle}#head")


def test_arch(name: str) -> None:
    model, sound = arch.SonolexModel(name), _sounds(1)[0]
    vector = model.get_embeddings(sound.numpy())
    assert vector.shape == (model.get_classification_embedding_size(),)
    np.testing.assert_allclose(vector, _expected(name, sound), atol=1e-5)
    assert model.get_token_embeddings(sound).shape[1] == model.get_token_embedding_size()
    assert model.get_sampling_rate() == 16000


def test_mteb(name: str) -> None:
    model, sounds = mteb.SonolexModel(name), _sounds(3)
    items = [{"array": sound.numpy(), "sampling_rate": 16000} for sound in sounds]
    items[2] = {"array": np.stack([sounds[2].numpy()] * 2)[:, :8000], "sampling_rate": 16000}  # stereo, shorter
    vectors = model.encode([{"audio": items[:2]}, {"audio": items[2:]}], task_metadata=None, batch_size=2)
    assert vectors.shape == (3, model.embedder.dim)
    np.testing.assert_allclose(vectors[1], _expected(name, sounds[1]), atol=1e-5)
    np.testing.assert_allclose(model.similarity(vectors, vectors).diagonal(), 1, atol=1e-5)
    np.testing.assert_allclose(model.similarity_pairwise(vectors, vectors), 1, atol=1e-5)
    with pytest.raises(SonolexError, match="expected a task with audio, found one with text"):
        model.encode([{"text": []}])


def test_mteb_by_its_protocol(name: str) -> None:
    """MTEB checks a model by its protocols, and gives it clips by its own loader."""
    protocols = pytest.importorskip("mteb.models.models_protocols", reason="mteb is not installed")
    from datasets import Dataset
    from mteb._create_dataloaders import create_dataloader

    model = mteb.SonolexModel(name)
    assert isinstance(model, protocols.EncoderProtocol)
    assert model.mteb_model_meta.modalities == ["audio"]
    metadata = types.SimpleNamespace(modalities=["audio"], get_modalities=lambda _: ["audio"])
    rows = [{"audio": {"array": sound.tolist(), "sampling_rate": 16000}} for sound in _sounds(3)]
    loader = create_dataloader(Dataset.from_list(rows), task_metadata=metadata, input_column="audio", batch_size=2)
    vectors = model.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default", batch_size=2)
    np.testing.assert_allclose(vectors[2], _expected(name, _sounds(3)[2]), atol=1e-4)
