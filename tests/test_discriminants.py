"""Discriminants are those of scikit-learn, count a token for each class of its clip, and give back the features best."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from test_features import labelled, windowed
from test_kinds import make_params, noise

from pipeline.check_params import load_experiment
from pipeline.errors import CorpusError, ParamsError
from pipeline.vocabulary.discriminants import LabelledTokens, fit_lda
from pipeline.vocabulary.fitting import fit_space, fit_vocabulary
from pipeline.vocabulary.settings import LdaParams
from tools.compose import compose, dump


def lda(dimensions: int | None = None, shrinkage: float = 0.0) -> LdaParams:
    return LdaParams(dimensions=dimensions, context=0, shrinkage=shrinkage)


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """Return 900 correlated features (token, feature) around 1000, and the class of each, 0 to 3, of unequal sizes."""
    generator = np.random.default_rng(0)
    classes = np.sort(generator.choice(4, 900, p=[0.1, 0.2, 0.3, 0.4]))
    features = generator.normal(size=(900, 6)) @ generator.normal(size=(6, 6)) + generator.normal(size=(4, 6))[classes]
    return (features + 1000).astype(np.float32), classes


def by_class(classes: np.ndarray) -> LabelledTokens:
    """Return labels as though each class were one clip."""
    return LabelledTokens(classes, np.eye(classes.max() + 1, dtype=np.float32))


def test_discriminants_are_those_of_scikit_learn() -> None:
    features, classes = drawn()
    found = fit_lda(lda(), features, by_class(classes))
    reference = LinearDiscriminantAnalysis(solver="eigen").fit(features.astype(np.float64), classes)
    np.testing.assert_allclose(np.abs(found.components), np.abs(reference.scalings_.T[:3]), rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(found.centre, features.mean(axis=0, dtype=np.float64), rtol=1e-6)


def test_the_variance_within_classes_is_one_in_all_discriminants() -> None:
    features, classes = drawn()
    found = fit_lda(lda(), features, by_class(classes))
    projected = (features - found.centre) @ found.components.T
    means = np.stack([projected[classes == number].mean(axis=0) for number in range(4)])
    np.testing.assert_allclose(np.cov((projected - means[classes]).T, bias=True), np.eye(3), atol=2e-3)
    between = np.diag(np.cov(projected.T, bias=True)) - 1
    assert (np.diff(between) < 0).all()


def test_classes_are_told_by_what_varies_little() -> None:
    features, classes = drawn()
    features[:, 2] = classes + 0.01 * features[:, 3]
    found = fit_lda(lda(1), features, by_class(classes))
    values = ((features - found.centre) @ found.components.T)[:, 0]
    assert all(np.ptp(values[classes == number]) < 0.5 * np.ptp(values) / 3 for number in range(4))


def test_a_token_counts_for_each_class_of_its_clip() -> None:
    """Several labels are as many rows of one label, soft labels are shares of rows, unknown ones are none."""
    features, clips = drawn()
    targets = np.array([[1, 0, 0], [1, 1, 0], [0, 0.5, np.nan], [0, 0, 1]], np.float32)
    rows = np.concatenate([features[clips == clip] for clip in (0, 1, 0, 1, 1, 1, 2, 3, 3)])
    labels = np.repeat([0, 0, 0, 0, 1, 1, 1, 2, 2], [np.sum(clips == clip) for clip in (0, 1, 0, 1, 1, 1, 2, 3, 3)])
    found = fit_lda(lda(), features, LabelledTokens(clips, targets))
    expected = fit_lda(lda(), rows, by_class(labels))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


def test_the_inverse_estimates_features_with_the_least_error() -> None:
    features, classes = drawn()
    found = fit_lda(lda(2, shrinkage=0.3), features, by_class(classes))
    projected = ((features - found.centre) @ found.components.T).astype(np.float64)
    best = np.linalg.lstsq(projected, features - found.centre, rcond=None)[0]
    np.testing.assert_allclose(found.inverse, best, rtol=1e-2, atol=1e-3)


def test_each_group_of_bands_has_discriminants_of_its_own() -> None:
    params = make_params(kind="bands", bands=4, lda={"dimensions": 2, "context": 1, "shrinkage": 0.0})
    space, features = fit_space(params, labelled(windowed(noise(600), stack=1, deltas=0, context=1)))
    assert features.shape == (600, 8)
    assert space.components.shape == (8, 24)
    for group in range(4):
        own = space.components[2 * group : 2 * group + 2]
        assert (own[:, 6 * group : 6 * group + 6] != 0).all()
        assert np.count_nonzero(own) == 12


@pytest.mark.parametrize("silent", [[0], [4, 5, 6], [0, 6, 7]], ids=str)
def test_codebooks_divide_the_discriminants_by_groups_where_bands_never_change(silent: list[int]) -> None:
    """A group whose bands are at the floor in part has fewer discriminants, and so have all."""
    frames = noise(600)
    frames[:, silent] = -15.9
    params = make_params(kind="bands", bands=2, num_tokens=8, lda={"dimensions": None, "context": 0, "shrinkage": 0.1})
    fit = fit_vocabulary(params, labelled(windowed(frames, stack=1, deltas=0)))
    fewest = min(4 - sum(band // 4 == group for band in silent) for group in range(2))
    assert fit.codebooks.bands == [[0, fewest], [fewest, 2 * fewest]]
    for group, own in enumerate(np.split(fit.space.components, 2)):
        assert not own[:, [band for band in range(8) if band // 4 != group]].any()


def test_bands_without_sound_are_named() -> None:
    frames = noise(600)
    frames[:, 4:] = -15.9
    params = make_params(kind="bands", bands=2, lda={"dimensions": None, "context": 0, "shrinkage": 0.1})
    with pytest.raises(
        CorpusError, match=r"features\.lda: expected features that vary within classes, found 4 .*`bands`"
    ):
        fit_vocabulary(params, labelled(windowed(frames, stack=1, deltas=0)))


@pytest.mark.parametrize(
    ("params", "classes", "error", "message"),
    [
        (lda(4), 4, ParamsError, r"features.lda.dimensions: expected at most 3, .* found 4; null takes all"),
        (
            lda(),
            1,
            CorpusError,
            r"features.lda: expected training clips of two classes at least .* found 1; set lda to null",
        ),
    ],
)
def test_what_classes_do_not_give_is_named(params: LdaParams, classes: int, error: Any, message: str) -> None:
    features, found = drawn()
    labelled_tokens = LabelledTokens(np.minimum(found, classes - 1), np.eye(4, dtype=np.float32))
    with pytest.raises(error, match=message):
        fit_lda(params, features, labelled_tokens)


def test_features_that_do_not_vary_need_shrinkage() -> None:
    frames = noise()
    frames[:, 0] = -15.9
    params = {"dimensions": 2, "context": 0}
    sample = labelled(windowed(frames, stack=1, deltas=0))
    with pytest.raises(ParamsError, match=r"lda.shrinkage: expected above 0, .* found 0; 0.01 is enough"):
        fit_vocabulary(make_params(lda=params | {"shrinkage": 0.0}), sample)
    fit_vocabulary(make_params(lda=params | {"shrinkage": 0.01}), sample)


def test_one_projection_at_a_time() -> None:
    with pytest.raises(ParamsError, match=r"expected pca null with lda, .* found 4; set one of them to null"):
        make_params(pca=4, lda={"dimensions": 2, "context": 0, "shrinkage": 0.0})


DISCRIMINANTS = "vocabularies.kmeans.features.lda={dimensions: null, context: 2, shrinkage: 0.01}"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ([DISCRIMINANTS], r"with features.lda, \[kmeans\], found \[\]"),
        (["experiment.supervised_vocabularies=[kmeans]"], r"with features.lda, \[\], found \[kmeans\]"),
        ([DISCRIMINANTS, "experiment.supervised_vocabularies=[kmeans]"], None),
    ],
)
def test_vocabularies_that_read_labels_are_those_listed(changes: list[str], found: str | None, tmp_path: Path) -> None:
    document, mistakes = compose("demo", changes, REPOSITORY / "recipes")
    assert not mistakes
    (tmp_path / "params.yaml").write_text(dump(document))
    if found is None:
        load_experiment(tmp_path / "params.yaml")
    else:
        with pytest.raises(ParamsError, match=f"experiment.supervised_vocabularies: expected the entries .* {found}"):
            load_experiment(tmp_path / "params.yaml")
