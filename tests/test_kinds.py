"""Every kind of vocabulary finds structure that is there, twice the same, and names what it cannot do."""

import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY

from pipeline.errors import CorpusError, ParamsError
from pipeline.vocabulary import nearest
from pipeline.vocabulary.base import VocabularyKind, sum_codes
from pipeline.vocabulary.clustering import count_distinct
from pipeline.vocabulary.features import normalise_frames
from pipeline.vocabulary.fitting import Fit, fit_vocabulary
from pipeline.vocabulary.rebuilding import decode_frames
from pipeline.vocabulary.registry import KINDS, load_vocabulary_params, validate_vocabulary_params
from pipeline.vocabulary.sampling import FrameSample
from pipeline.vocabulary.statistics import distortion

PARAMS = {
    "kind": "kmeans",
    "num_tokens": 4,
    "normalisation": "standardise",
    "features": {"hidden_states": None, "deltas": 0, "stack": 1, "pca": None, "lda": None},
    "sample_frames": 10000,
    "bpe": None,
    "seed": 0,
}
CLUSTERING = {"iterations": 10, "restarts": 3, "exact": False}
OWN: dict[str, dict[str, Any]] = {
    "kmeans": CLUSTERING,
    "bands": CLUSTERING | {"bands": 4},
    "residual": CLUSTERING | {"codebooks": 3},
    "soft_kmeans": CLUSTERING | {"nearest": 3},
    "random_projection": {"codebooks": 3, "codebook_dim": 6},
    "neural": {
        "quantiser": "residual",
        "codebooks": 2,
        "levels": None,
        "codebook_dim": 5,
        "hidden": [24],
        "steps": 40,
        "batch_size": 128,
        "learning_rate": 1e-2,
        "commitment": 0.25,
    },
}
FITTED = [kind for kind in KINDS if kind != "external"]  # which tests/test_external_tokens.py has
CLUSTERED = [kind for kind, own in OWN.items() if CLUSTERING.items() <= own.items()]


def make_params(**changes: Any) -> Any:
    """Return params of a small vocabulary; keys of `features` may be given as such."""
    own = OWN[changes.get("kind", "kmeans")]
    if changes.get("kind") == "neural":
        pytest.importorskip("vector_quantize_pytorch", reason="needs vector-quantize-pytorch, the extra `neural`")
    features = {
        name: changes.pop(name) for name in ("hidden_states", "deltas", "stack", "pca", "lda") if name in changes
    }
    values = PARAMS | own | changes | {"features": PARAMS["features"] | features}  # type: ignore[operator]
    return validate_vocabulary_params("kmeans", values)


def sample_of(frames: np.ndarray) -> FrameSample:
    return FrameSample(frames[:, None], 0, {})


def fit_frames(frames: np.ndarray, **changes: Any) -> Fit:
    return fit_vocabulary(make_params(**changes), sample_of(frames))


def noise(num_frames: int = 2000, n_mels: int = 8) -> np.ndarray:
    return np.random.default_rng(0).normal(-6, 3, (num_frames, n_mels)).astype(np.float32)


def test_well_separated_clusters_are_found() -> None:
    centres = np.array([[0, 0], [0, 10], [10, 0], [10, 10]], np.float32)
    frames = np.repeat(centres, 100, axis=0) + noise(400, 2) * 0.01
    codes = fit_frames(frames, normalisation="none", restarts=20).codebooks.codes[0]
    found = codes[np.lexsort(codes.round().T[::-1])]
    expected = np.stack([frames[i * 100 : (i + 1) * 100].mean(axis=0) for i in range(4)])
    assert np.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("kind", FITTED)
def test_a_refit_is_bit_identical_and_another_seed_is_not(kind: str) -> None:
    first, second = (fit_frames(noise(), kind=kind, num_tokens=32).codebooks for _ in range(2))
    assert first.codes.tobytes() == second.codes.tobytes()
    assert first.objective == second.objective
    other = fit_frames(noise(), kind=kind, num_tokens=32, seed=1).codebooks
    assert other.codes.tobytes() != first.codes.tobytes()


@pytest.mark.parametrize("kind", CLUSTERED)
def test_the_objective_is_recorded_and_falls(kind: str) -> None:
    objective = fit_frames(noise(), kind=kind, num_tokens=16, iterations=7).codebooks.objective
    assert len(objective) == 7
    assert np.all(np.diff(objective) <= 1e-5)


@pytest.mark.parametrize(
    "kind", [kind for kind in CLUSTERED if kind != "soft_kmeans"]
)  # whose codes are weighted afterwards
def test_the_objective_is_the_distance_to_the_codes(kind: str) -> None:
    fit = fit_frames(noise(), kind=kind, iterations=40, normalisation="none")
    codebooks, rest = fit.codebooks, noise()
    rest -= sum_codes(codebooks, KINDS[kind].encode(codebooks, rest))
    assert (rest**2).sum(axis=1).mean() == pytest.approx(codebooks.objective[-1], rel=0.01)


def test_no_frame_of_the_sample_is_dropped() -> None:
    # 2,000 frames a token are far past the 256 at which FAISS cuts down by itself: the means of 256 frames lie some
    # 0.2 from those of all.
    frames = noise(4000, 2)
    frames[2000:] += 100
    codes = fit_frames(frames, num_tokens=2, normalisation="none").codebooks.codes[0]
    expected = frames.reshape(2, 2000, 2).mean(axis=1, dtype=np.float64)
    assert np.allclose(codes[codes[:, 0].argsort()], expected, atol=1e-3)


@pytest.mark.parametrize("kind", FITTED)
def test_every_kind_keeps_the_contract(kind: str) -> None:
    module = KINDS[kind]
    for name in ("fit", "encode", "decode"):
        wanted = list(inspect.signature(getattr(VocabularyKind, name)).parameters)
        assert ["self", *inspect.signature(getattr(module, name)).parameters] == wanted
    params, features = make_params(kind=kind), noise(300)
    found = module.fit(params, features)
    shape = (params.num_codebooks, params.num_tokens)
    assert (found.codes.shape[:2], found.codes.dtype) == (shape, np.dtype(np.float32))
    assert found.num_features == 8
    assert {values.dtype for _, values in found.own.values()} <= {np.dtype(np.float32)}

    tokens = module.encode(found, features)
    assert (tokens.shape, tokens.dtype) == ((params.num_codebooks, 300), np.dtype(np.uint16))
    assert tokens.max() < params.num_tokens
    decoded = module.decode(found, tokens)
    assert (decoded.shape, decoded.dtype) == (features.shape, np.dtype(np.float32))
    if params.additive:
        np.testing.assert_array_equal(decoded, sum_codes(found, tokens))
    clips = [features[:7], features[7:7], features[7:120], features[120:]]
    alone = [module.encode(found, clip) for clip in clips]
    np.testing.assert_array_equal(module.encode(found, features, [7, 7, 120, 300]), np.concatenate(alone, axis=1))


def test_a_kind_that_does_not_cluster_has_no_settings_of_clustering() -> None:
    for key, value in CLUSTERING.items():
        with pytest.raises(ParamsError, match=rf"vocabularies\.kmeans\.{key}"):
            make_params(kind="random_projection", **{key: value})
    assert make_params(kind="random_projection", num_tokens=4000, sample_frames=10).num_tokens == 4000


def test_random_projections_follow_from_the_seed_alone() -> None:
    one = fit_frames(noise(), kind="random_projection").codebooks
    other = fit_frames(noise(500) * 3, kind="random_projection").codebooks
    again = fit_frames(noise(), kind="random_projection", seed=1).codebooks
    for name in ("projections", "directions"):
        np.testing.assert_array_equal(one.own[name].values, other.own[name].values)
        assert (one.own[name].values != again.own[name].values).all()
    projections, directions = one.own["projections"].values, one.own["directions"].values
    assert (projections.shape, directions.shape) == ((3, 8, 6), (3, 4, 6))
    limit = np.sqrt(6 / (8 + 6))  # Xavier's, uniform
    assert 0.95 * limit < np.abs(projections).max() <= limit
    np.testing.assert_allclose(np.linalg.norm(directions, axis=2), 1, atol=1e-6)
    assert (projections[0] != projections[1]).all()


def test_a_random_projection_token_is_the_nearest_direction() -> None:
    features = noise(400)
    found = KINDS["random_projection"].fit(make_params(kind="random_projection", num_tokens=16), features)
    tokens = KINDS["random_projection"].encode(found, features)
    for row, projection, directions in zip(
        tokens, found.own["projections"].values, found.own["directions"].values, strict=True
    ):
        cosine = (features @ projection) @ directions.T
        assert (row == cosine.argmax(axis=1)).mean() > 0.99  # but where two lie equally near
    louder = KINDS["random_projection"].encode(found, features * 5)
    assert (louder == tokens).mean() > 0.99
    zeros = np.zeros((2, 8), np.float32)
    assert (KINDS["random_projection"].encode(found, zeros)[:, 0] < 16).all()


def test_random_projection_tokens_decode_to_the_means_of_their_frames() -> None:
    features = noise(300)
    params = make_params(kind="random_projection", num_tokens=200, codebooks=2)
    found = KINDS["random_projection"].fit(params, features)
    rest = features.astype(np.float64)
    for row, codes in zip(KINDS["random_projection"].encode(found, features), found.codes, strict=True):
        for token in range(200):
            given = rest[row == token] if (row == token).any() else rest  # an unused token: the mean over all
            np.testing.assert_allclose(codes[token], given.mean(axis=0), atol=1e-5)
        assert len(np.unique(row)) < 200
        rest -= codes[row]
    assert found.objective == pytest.approx([(rest**2).sum(axis=1).mean()], rel=1e-5)


def test_more_random_projections_lose_less() -> None:
    frames, lost = noise(2000), []
    for codebooks in (1, 2, 4):
        lost.extend(
            fit_frames(frames, kind="random_projection", num_tokens=16, codebooks=codebooks).codebooks.objective
        )
    assert 8 > lost[0] > lost[1] > lost[2]


def test_groups_of_bands_have_codebooks_of_their_own() -> None:
    codebooks = fit_frames(noise(), kind="bands").codebooks
    assert codebooks.codes.shape == (4, 4, 2)
    assert codebooks.bands == [[0, 2], [2, 4], [4, 6], [6, 8]]


def test_residual_codebooks_find_the_parts_of_a_sum() -> None:
    coarse, fine = np.array([[0, 0], [40, 0], [0, 40], [40, 40]]), np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]])
    frames = (coarse[:, None] + fine[None]).reshape(16, 2).repeat(20, axis=0).astype(np.float32)
    codebooks = fit_frames(frames, kind="residual", codebooks=2, normalisation="none", restarts=20).codebooks
    assert codebooks.bands == [[0, 2], [0, 2]]
    assert codebooks.objective[-1] == pytest.approx(0, abs=1e-6)


def test_soft_tokens_are_the_nearest_ones_in_order() -> None:
    frames = noise(500)
    found = fit_frames(frames, kind="soft_kmeans", num_tokens=16, nearest=4)
    codes, weights = found.codebooks.codes, found.codebooks.own["weights"].values
    z = normalise_frames(frames, found.space.mean, found.space.scale, "standardise")

    tokens = KINDS["soft_kmeans"].encode(found.codebooks, z)

    centroids = codes[0] / weights[0]
    distances = np.linalg.norm(z[:, None] - centroids, axis=2)
    assert (tokens == np.argsort(distances, axis=1, kind="stable")[:, :4].T).all()
    assert (distances.min(axis=1) ** 2).mean() == pytest.approx(found.codebooks.objective[-1], rel=0.05)
    for weight, codebook in zip(weights, codes, strict=True):
        np.testing.assert_allclose(codebook, weight * centroids, rtol=1e-5)


def test_soft_tokens_say_more_than_the_nearest_alone() -> None:
    frames = noise(500)
    lost = []
    for changes in ({"kind": "kmeans"}, {"kind": "soft_kmeans", "nearest": 2}, {"kind": "soft_kmeans", "nearest": 4}):
        fit = fit_frames(frames, num_tokens=16, **changes)
        z = normalise_frames(frames, fit.space.mean, fit.space.scale, "standardise")
        tokens = KINDS[fit.kind].encode(fit.codebooks, z)
        lost.append(distortion(z, decode_frames(fit.space, fit.kind, fit.codebooks, tokens)))
    assert lost[0] > 1.02 * lost[1] > 1.02 * lost[2]


def test_soft_tokens_on_the_device_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise(500)
    books = fit_frames(frames, kind="soft_kmeans", num_tokens=16, nearest=4).codebooks
    ours = KINDS["soft_kmeans"].encode(books, frames)
    monkeypatch.setattr(nearest, "choose_device", lambda num_scores: "cpu")
    assert (KINDS["soft_kmeans"].encode(books, frames) == ours).all()


@pytest.mark.parametrize(
    ("changes", "message"), [({"nearest": 5}, "at most num_tokens"), ({"exact": True}, "exact false")]
)
def test_soft_tokens_there_are_none_of_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        make_params(kind="soft_kmeans", **changes)


def test_standardising_leaves_constant_bands_alone() -> None:
    frames = noise()
    frames[:, 3] = -15.942
    space = fit_frames(frames).space
    assert space.scale[3] == 1
    assert np.allclose(np.delete(space.scale, 3), np.delete(frames.std(axis=0), 3), rtol=1e-5)
    assert np.allclose(space.mean, frames.mean(axis=0, dtype=np.float64), rtol=1e-5)


def test_distinct_rows_are_counted() -> None:
    assert count_distinct(np.array([[0, 1], [-0.0, 1], [1, 0], [0, 1]], np.float32)) == 2


@pytest.mark.parametrize(("kind", "where"), [("kmeans", "whole"), ("bands", "group 0"), ("residual", "what 0")])
def test_more_tokens_than_distinct_frames_is_an_error(kind: str, where: str) -> None:
    expected = rf"vocabularies.*num_tokens: expected .* found 4 for 3 distinct among 300 .*\({where}.*; lower"
    with pytest.raises(CorpusError, match=expected):
        fit_frames(np.repeat(noise(3), 100, axis=0), kind=kind)


def test_constant_frames_are_an_error() -> None:
    with pytest.raises(CorpusError, match=r"found 50 equal ones \(digital silence\?\); look at"):
        fit_frames(np.full((50, 8), -15.9, np.float32))


def test_frames_with_nan_are_an_error() -> None:
    frames = noise()
    frames[7, 2] = np.nan
    with pytest.raises(CorpusError, match=r"found 1 of 2000 with NaN .* rerun the stage spectrogram"):
        fit_frames(frames)


def test_bands_that_do_not_divide_are_an_error() -> None:
    with pytest.raises(
        ParamsError, match=r"kind bands: expected .* divides .* n_mels 8, found 3; choose one of 1, 2, 4, 8"
    ):
        fit_frames(noise(), kind="bands", bands=3)


def test_bands_keep_apart_what_pca_would_mix() -> None:
    with pytest.raises(ParamsError, match=r"expected features.pca null with kind bands, .* found 4; use kind kmeans"):
        make_params(kind="bands", pca=4)


def test_a_sample_smaller_than_the_vocabulary_is_an_error() -> None:
    with pytest.raises(ParamsError, match=r"expected sample_frames at least num_tokens \(4\), found 3"):
        make_params(sample_frames=3)
    with pytest.raises(ParamsError, match=r"at least num_tokens \(4\) x features.stack \(3\), found 11"):
        make_params(sample_frames=11, stack=3)


def test_sizes_reach_what_uint16_holds() -> None:
    assert make_params(num_tokens=65533, sample_frames=65533).num_tokens == 65533
    for size in (1, 65534):  # the class token of the second would not fit into uint16
        with pytest.raises(ParamsError, match=r"vocabularies.kmeans.num_tokens"):
            make_params(num_tokens=size, sample_frames=100000)


def test_a_kind_is_imported_when_an_entry_asks_for_it() -> None:
    program = (
        "import sys; from pipeline.vocabulary.registry import KINDS, validate_vocabulary_params as validate\n"
        "def kinds(): return [kind for kind in KINDS if f'pipeline.vocabulary.{kind}' in sys.modules]\n"
        f"print(kinds()); validate('kmeans', {(PARAMS | CLUSTERING)!r}); print(kinds())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split("\n") == ["[]", "['kmeans']", ""]


def test_an_unknown_kind_is_refused_with_the_kinds_there_are() -> None:
    with pytest.raises(
        ParamsError, match=r"vocabularies\.kmeans\.kind: expected one of kmeans, bands, residual, .*, found 'kmean'"
    ):
        validate_vocabulary_params("kmeans", PARAMS | CLUSTERING | {"kind": "kmean"})
    for section in ("kmeans", None):
        with pytest.raises(ParamsError, match=r"vocabularies\.kmeans\.kind: expected one of .* found none"):
            validate_vocabulary_params("kmeans", section)
    with pytest.raises(ParamsError, match=r"vocabularies\.kmeans\.kind: expected one of .* found \['kmeans'\]"):
        validate_vocabulary_params("kmeans", PARAMS | CLUSTERING | {"kind": ["kmeans"]})


def test_an_entry_is_loaded_by_its_name() -> None:
    assert load_vocabulary_params("kmeans", REPOSITORY / "params.yaml").kind == "kmeans"
    with pytest.raises(ParamsError, match=r"vocabularies\.kmean: expected a section of this name, found only: kmeans"):
        load_vocabulary_params("kmean", REPOSITORY / "params.yaml")
