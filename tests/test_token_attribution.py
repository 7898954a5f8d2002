"""Attributions of logits to tokens: complete, each to its own codebook, and true to what was inserted."""

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from experiments import run_experiment
from networks import METADATA, build, network, params_of

from pipeline.artifacts.attribution import ATTRIBUTION, mean_attributions, open_attribution
from pipeline.artifacts.layout import Layout, ModelId
from pipeline.artifacts.model import open_model, write_model
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.check_params import load_experiment
from pipeline.errors import ArtifactError, ParamsError, SonolexError
from pipeline.evaluation.token_attribution import Attributor, attribute
from stages import atlas, attribution
from tools.compose import compose, dump

ROOT = Path(__file__).parent.parent
SIZE, CLASSES = METADATA["tokens"]["vocabulary_size"], 3
SMALL = {"encoder__width": 16, "encoder__heads": 2, "encoder__mlp_ratio": 1.0}


def tokens_of(seed: int, length: int = 24) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, SIZE, (1, 2, length)))


@pytest.mark.parametrize("embedding", ["centroids", "random"])
@pytest.mark.parametrize("relative", [False, True])
def test_attributions_add_up_to_the_difference_of_logits(embedding: str, relative: bool) -> None:
    model = build(network("tokens", input__embedding=embedding, **SMALL), num_classes=CLASSES).eval()
    values, difference = attribute(model, tokens_of(0), steps=64, relative=relative)
    assert values.shape == (CLASSES, 2, 24)
    with torch.no_grad():
        features = model.embed(tokens_of(0))
        own = (model.classify(features, None) - model.classify(torch.zeros_like(features), None))[0]
    expected = own - own.mean() if relative else own
    np.testing.assert_allclose(difference, expected, atol=1e-5)
    np.testing.assert_allclose(values.sum((1, 2)), expected, atol=1e-3)
    assert difference.abs().max() > 0.05  # or there would be nothing to add up


@pytest.mark.parametrize("bands", [[[0, 12], [12, 24]], [[0, 24], [0, 24]], [[0, 16], [8, 24]], [[4, 12], [16, 24]]])
def test_a_token_gets_what_its_own_embedding_contributes(bands: list[list[int]]) -> None:
    model = build(network("tokens", **SMALL), METADATA["tokens"] | {"bands": bands}, CLASSES)
    tokens = tokens_of(1)
    gradient = torch.randn(1, 24, model.input.num_features)
    found = model.input.attribute(tokens, gradient)
    for book in range(2):
        without = tokens.clone()
        without[:, book] = SIZE  # padding, whose embedding is zeros
        change = ((model.embed(tokens) - model.embed(without)) * gradient).sum(2)
        np.testing.assert_allclose(found[:, book].detach(), change.detach(), atol=1e-4)


class _Sequences:
    """Token sequences by clip, as the inputs of a model."""

    def __init__(self, sequences: dict[str, np.ndarray]) -> None:
        self.sequences, self.metadata = sequences, METADATA["tokens"]
        self.time_axis, self.frame_rate, self.source = 1, 100.0, ""
        self.front_end: dict[str, Any] = {}

    def arrays(self, clip_ids: list[str]) -> list[np.ndarray]:
        return [self.sequences[clip] for clip in clip_ids]

    stored = arrays

    def num_frames(self, clip_id: str) -> int:
        return int(self.sequences[clip_id].shape[1])


def corpus(seed: int, num_clips: int = 30) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Return clips of tokens 0 to 15, where class 1 has token 17 of the second codebook, and class 2 token 18."""
    generator = np.random.default_rng(seed)
    sequences, labels = {}, {}
    for number in range(num_clips):
        clip, label = f"{seed}-{number}", number % CLASSES
        sequences[clip], labels[clip] = generator.integers(0, 16, (2, 24)).astype(np.uint16), [label]
        if label:
            sequences[clip][1, generator.choice(24, 6, replace=False)] = 16 + label
    return sequences, labels


def train_model(folder: Path) -> Path:
    """Write a small network trained to tell the classes of `corpus`."""
    section = network("tokens", input__embedding_rate=1.0, **SMALL)
    model = build(section, num_classes=CLASSES)
    sequences, labels = corpus(0)
    inputs = torch.from_numpy(np.stack(list(sequences.values())).astype(np.int64))
    targets = torch.tensor([*(label for (label,) in labels.values()), 0])
    inputs = torch.cat([inputs, torch.full_like(inputs[:1], SIZE)])  # the baseline is of the class without such a token
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs, None), targets).backward()
        optimiser.step()
    metadata: dict[str, Any] = {"model": "t", "params": params_of(section).model_dump(mode="json")}
    metadata |= {"classes": ["a", "b", "c"], "label_kind": "one", "reads": "tokens", "source": "", "front_end": {}}
    metadata |= {
        "input": METADATA["tokens"] | {"normalisation": {"kind": "none", "std_scale": 1.0, "mean": 0.0, "std": 1.0}}
    }
    metadata |= {"fold": "1", "seed": 0, "num_parameters": 1, "clips_seen": 1}
    write_model(folder, {name: values.numpy() for name, values in model.state_dict().items()}, metadata)
    return folder


def test_a_token_that_only_one_class_has_comes_out_as_that_classs(tmp_path: Path) -> None:
    model = open_model(train_model(tmp_path / "m/1/0"))
    sequences, labels = corpus(1, 12)
    found = Attributor(model, _Sequences(sequences), steps=64).read_all(labels)  # type: ignore[arg-type]
    assert found.occurrences.sum() == 12 * 2 * 24
    for label in (1, 2):
        token = 16 + label
        assert found.occurrences[1, token] == 4 * 6
        assert np.unravel_index(found.means[:, :, label].argmax(), (2, SIZE)) == (1, token)
        assert found.means[1, token].argmax() == label
        assert found.own[1, token] == pytest.approx(found.means[1, token, label], rel=1e-5)  # it occurs nowhere else
    assert not found.means[0, 17].any()
    assert found.gap < 0.02 * found.difference


def test_a_network_of_frames_is_refused(tmp_path: Path) -> None:
    from test_attention import make_model

    model = open_model(make_model(tmp_path / "m/1/0", "linear"))
    with pytest.raises(SonolexError, match=r"expected a network with input\.kind tokens"):
        Attributor(model, _Sequences({}), steps=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ast", "expected an entry of experiment.token_models"),
        ("bag_of_tokens", "expected a network with input.kind tokens"),
    ],
)
def test_a_model_that_cannot_be_attributed_is_named(tmp_path: Path, name: str, message: str) -> None:
    document, mistakes = compose("demo", [f"atlas.attribution=[{name}]"], ROOT / "recipes")
    assert not mistakes
    (tmp_path / "params.yaml").write_text(dump(document))
    with pytest.raises(ParamsError, match=message):
        load_experiment(tmp_path / "params.yaml")


@pytest.mark.slow
def test_the_atlas_shows_the_attributions_that_its_stage_wrote(tmp_path: Path) -> None:
    settings = ["experiment.frame_models=[]", "experiment.token_models=[token_transformer]", "report.headline=[]"]
    settings[2] = "report.headline=[token_transformer-kmeans]"
    settings += ["atlas.attribution=[token_transformer]", "atlas.attribution_clips=3", "atlas.attribution_steps=4"]
    folder = run_experiment(tmp_path / "run", settings)
    layout, model = Layout(folder), ModelId("token_transformer", "kmeans")
    with contextlib.chdir(folder):
        with pytest.raises(ArtifactError, match=r"token_transformer.parquet: file: .*attribution"):
            atlas.main("kmeans", "1")
        attribution.main("token_transformer", "kmeans", "1", 0)
        atlas.main("kmeans", "1")
    vocabulary = open_vocabulary(layout.vocabulary("kmeans", "1"))
    path = layout.attribution(model, "1")
    classes = ATTRIBUTION.open(path).metadata["classes"]
    table = open_attribution(path, vocabulary=vocabulary.digest(), classes=classes)
    assert table.metadata["num_clips"] == 3
    occurrences, means, own = mean_attributions(table, (1, 8))
    page = layout.atlas("kmeans").read_text()
    data = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    token = int(occurrences[0].argmax())
    assert data["raises"][token][0] == occurrences[0, token]
    assert data["raises"][token][1] == pytest.approx(own[0, token], rel=1e-2)
    assert data["raises"][token][2][0][0] == means[0, token].argmax()
    assert "raises a class most first" in page
    with pytest.raises(ArtifactError, match="metadata vocabulary"):
        open_attribution(path, vocabulary="other", classes=classes)
