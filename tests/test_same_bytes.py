"""The same inputs give the same bytes, whatever the clock says: models, curves, predictions, and what is measured of them.

DVC stops a rerun where an artifact is what it was; a time of day, or a duration, in any of them would carry it on.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from networks import ENCODERS, combinations, network
from test_pretraining import MASKING, TRAIN, make_section, make_sequences
from test_stages_train import Paths, make_artifacts

from pipeline.artifacts.splits import SPLIT
from pipeline.models.registry import BASELINES, validate_model_params
from pipeline.params import read_params
from pipeline.training import loop, neural
from stages import evaluate, perplexity, pretrain, train

BASE = read_params(Path(__file__).parents[1] / "recipes" / "base.yaml")["models"]
N_MELS = 32  # the least that PSLA's backbones take
LATER = 1e9  # seconds


def sections() -> dict[str, dict[str, Any]]:
    """Return a small network of every encoder, two that read tokens, and all classical models of base.yaml."""
    found = {name: section for name, section in BASE.items() if section["kind"] in BASELINES}
    for encoder in ENCODERS:
        stem, head = next((stem, head) for stem, other, head in combinations() if other == encoder)
        inputs = ("frames", "tokens") if encoder in ("transformer", "cnn") else ("frames",)
        found |= {f"{encoder}-{reads}": network(reads, stem, encoder, head) for reads in inputs}
    return found


SECTIONS = sections()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Paths]:
    """Return what models of frames and of tokens read; a clip validates."""
    folder = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        found = {
            "frames": make_artifacts(folder / "frames", n_mels=N_MELS),
            "tokens": make_sequences(folder / "tokens"),
        }
    for paths in found.values():
        roles = ["train", "validation", "train", "test", "train", "test"]
        columns = {"clip_id": [f"clip{i}" for i in range(6)], "role": roles}
        SPLIT.write(paths.split, columns, {"fold": "1", "seed": 0, "rule": "by hand"})
    return found


def change_clock(patch: pytest.MonkeyPatch) -> None:
    """Have it later, and time pass three times as fast."""
    now, ticks = time.time, time.perf_counter
    patch.setattr(time, "time", lambda: now() + LATER)
    patch.setattr(time, "perf_counter", lambda: 3 * ticks() + LATER)
    patch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)


@pytest.fixture
def done_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that has `work(folder)` done twice and compares every file below the folders, byte for byte.

    The second time the clock is years ahead and runs three times as fast, checkpoints are written after every epoch, and the
    working folder is another.
    """

    def compare(work: Callable[[Path], None]) -> None:
        trees = []
        for name in ("one", "two"):
            place = tmp_path / name
            place.mkdir()
            with monkeypatch.context() as patch:
                patch.chdir(place)
                if name == "two":
                    change_clock(patch)
                work(place / "artifacts")
            files = sorted(path for path in (place / "artifacts").rglob("*") if path.is_file())
            trees.append({str(path.relative_to(place)): path.read_bytes() for path in files})
        assert trees[0].keys() == trees[1].keys()
        assert trees[0]
        for name, content in trees[0].items():
            assert content == trees[1][name], name

    return compare


def train_and_predict(paths: Paths, section: dict[str, Any], folder: Path) -> None:
    own = paths._replace(model=folder / "models/m/1/0", curves=folder / "curves/m/1/0")
    params = validate_model_params("m", section)
    if params.reads == "frames":
        own = own._replace(vocabulary=None)
    train.run(params, own.for_training(), model="m", fold="1", seed=0)
    evaluate.run(paths.clips, paths.split, paths.source, own.model, folder / "predictions.parquet")


@pytest.mark.parametrize("name", SECTIONS)
def test_a_model_trained_again_is_the_same_file(
    name: str, sources: dict[str, Paths], done_twice: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = name == "transformer-frames"
    settings = TRAIN.model_copy(update={"gradient_flow": looked_at, "checkpoint_ensemble": [1, 2] if looked_at else []})
    monkeypatch.setattr(neural, "load_params", lambda kind, section: settings)
    paths = sources[validate_model_params("m", SECTIONS[name]).reads]._replace(pretrained=None)
    done_twice(lambda folder: train_and_predict(paths, SECTIONS[name], folder))


def test_a_pretraining_done_again_is_the_same_file(sources: dict[str, Paths], done_twice: Any) -> None:
    paths, params = sources["tokens"], validate_model_params("m", make_section())
    assert paths.vocabulary
    tokens = paths.vocabulary

    def work(folder: Path) -> None:
        written = folder / "pretrained/m/1/0", folder / "curves/m/1/0"
        own = pretrain.Paths(paths.for_training().development, paths.source, tokens, *written)
        pretrain.run(params, MASKING, TRAIN, own, model="m", fold="1", seed=0)
        table = folder / "perplexity.csv"
        perplexity.run(paths.clips, paths.split, paths.source, tokens, own.pretrained, table)

    done_twice(work)
