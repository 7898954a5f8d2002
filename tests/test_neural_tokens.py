"""Neural tokens: those of the library that trains them, what they decode to, and what is refused."""

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from test_kinds import CLUSTERING, OWN, PARAMS, make_params, noise
from test_rebuilding import fit as fit_vocabulary

from pipeline.artifacts.vocabulary import Codebooks, NamedArray
from pipeline.errors import CorpusError, ParamsError, SonolexError
from pipeline.execution.threads import single_threaded
from pipeline.reporting.token_use import measure_rate
from pipeline.vocabulary import autoencoder, kmeans, neural
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.perceptron import Layer, apply_layers, layer_arrays, stored_layers
from pipeline.vocabulary.registry import validate_vocabulary_params
from pipeline.vocabulary.torch_search import TokenSearch

QUANTISERS: dict[str, dict[str, Any]] = {
    "vq": {"quantiser": "vq", "codebooks": 1, "num_tokens": 24},
    "fsq": {"quantiser": "fsq", "codebooks": 1, "num_tokens": 60, "levels": [5, 4, 3]},
    "residual": {"quantiser": "residual", "codebooks": 3, "num_tokens": 24},
}


def params_of(quantiser: str, **changes: Any) -> Any:
    return make_params(**{"kind": "neural", **QUANTISERS[quantiser], **changes})


def mixture(num_frames: int = 2000) -> np.ndarray:
    """Return frames of eight bands that vary in three directions, each within bounds, and a little in all others."""
    generator = np.random.default_rng(0)
    directions = generator.normal(0, 3, (3, 8))
    frames = np.tanh(generator.normal(0, 1, (num_frames, 3))) @ directions - 6
    return generator.normal(frames, 0.3).astype(np.float32)


def library_tokens(quantiser: str, found: Codebooks, latents: np.ndarray) -> np.ndarray:
    """Return the tokens (codebook, token) that the library finds for latent vectors with trained code vectors."""
    library = pytest.importorskip("vector_quantize_pytorch")
    codes = torch.from_numpy(found.own["latents"].values)
    size = {"dim": codes.shape[2], "codebook_size": codes.shape[1]}
    if quantiser == "fsq":
        module = library.FSQ(found.own["levels"].values.astype(int).tolist())
        torch.testing.assert_close(module.implicit_codebook, codes[0])
    elif quantiser == "vq":
        module = library.VectorQuantize(**size)
        module.codebook = codes[0]
    else:
        module = library.ResidualVQ(num_quantizers=len(codes), **size)
        for layer, book in zip(module.layers, codes, strict=True):
            layer.codebook = book
    tokens = module.eval()(torch.from_numpy(latents)[None])[1][0]
    return np.atleast_2d(tokens.numpy().T)


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_tokens_are_those_of_the_library(quantiser: str) -> None:
    features = mixture()
    found = neural.fit(params_of(quantiser), features)
    latents = apply_layers(stored_layers("encoder", found.own), features)
    tokens = neural.encode(found, features)
    assert (tokens == library_tokens(quantiser, found, latents)).mean() > 0.999  # but where two lie equally near
    assert all(len(np.unique(row)) > 4 for row in tokens)


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_tokens_decode_by_the_decoder(quantiser: str) -> None:
    features = mixture()
    found = neural.fit(params_of(quantiser), features)
    tokens = neural.encode(found, features)
    latents = found.own["latents"].values
    vectors = np.sum([book[row] for book, row in zip(latents, tokens, strict=True)], axis=0)
    for weight, bias in stored_layers("decoder", found.own)[:-1]:
        vectors = np.maximum(vectors @ weight + bias, 0)
    weight, bias = stored_layers("decoder", found.own)[-1]
    np.testing.assert_allclose(neural.decode(found, tokens), vectors @ weight + bias, atol=1e-4)
    assert params_of(quantiser).additive == (quantiser != "residual")


def test_the_code_of_a_residual_token_is_what_its_frames_have_left() -> None:
    features = mixture()
    found = neural.fit(params_of("residual"), features)
    first, second, _ = neural.encode(found, features)
    token = np.bincount(first).argmax()
    np.testing.assert_allclose(found.codes[0][token], features[first == token].mean(axis=0), atol=1e-4)
    rest, token = features - found.codes[0][first], np.bincount(second).argmax()
    np.testing.assert_allclose(found.codes[1][token], rest[second == token].mean(axis=0), atol=1e-4)


@pytest.mark.parametrize(("quantiser", "most"), [("vq", 2), ("fsq", 1.5), ("residual", 0.3)])
def test_training_comes_near_to_clustering(quantiser: str, most: float) -> None:
    features = mixture()
    found = neural.fit(params_of(quantiser, steps=200, hidden=[32], batch_size=512), features)
    tokens = neural.encode(found, features)
    error = ((features - neural.decode(found, tokens)) ** 2).sum(axis=1).mean()
    clustered = kmeans.fit(make_params(num_tokens=QUANTISERS[quantiser]["num_tokens"]), features)
    assert error < most * clustered.objective[-1]  # of one codebook
    assert error < 0.5 * found.objective[0]
    assert error == pytest.approx(found.objective[-1], rel=0.2)


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_the_scale_of_the_features_is_none_of_the_tokens(quantiser: str) -> None:
    features, params = mixture(), params_of(quantiser)
    one, other = neural.fit(params, features), neural.fit(params, features * 128 + 512)
    assert (neural.encode(one, features) == neural.encode(other, features * 128 + 512)).mean() > 0.8
    np.testing.assert_allclose(other.objective, np.array(one.objective) * 128**2, rtol=0.1)


@pytest.mark.parametrize("quantiser", QUANTISERS)
def test_a_refit_is_the_same_to_the_bit_and_draws_from_no_other_stream(quantiser: str) -> None:
    params, found = params_of(quantiser), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(neural.fit(params, noise()))
        assert torch.equal(torch.get_rng_state(), before)
    one, other = found
    assert one.own.keys() == other.own.keys()
    assert all(one.own[name].values.tobytes() == other.own[name].values.tobytes() for name in one.own)
    assert one.codes.tobytes() == other.codes.tobytes()


def test_training_takes_one_thread_of_mkl_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """MKL kept the number that torch was last given, as before by hidden states: on busy cores ten times slower."""
    pytest.importorskip("vector_quantize_pytorch")
    seen, train, count = [], autoencoder._train, torch.get_num_threads()

    def watched(*arguments: Any) -> np.ndarray:
        seen.append(torch.__config__.parallel_info())
        return train(*arguments)

    monkeypatch.setattr(autoencoder, "_train", watched)
    torch.set_num_threads(3)
    try:
        with single_threaded():  # as `fit_vocabulary` enters it
            neural.fit(params_of("vq", steps=2), mixture(200))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(count)
    numbers = re.findall(r"(?:get_num_threads|get_max_threads)\(\) : (\d+)", seen[0])
    assert set(numbers) == {"1"}


def test_a_code_that_is_used_too_little_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = noise(2000)
    frames[:1900] = frames[:1900] * 0.01 + 50  # the codes begin in the one cluster, by their number
    unused = []
    for share in (0.0, 0.1):
        monkeypatch.setattr(autoencoder, "_DEAD", share)
        found = neural.fit(params_of("vq", steps=200), frames)
        unused.append(24 - len(np.unique(neural.encode(found, frames))))
    assert unused[1] < unused[0]


@pytest.mark.parametrize("quantiser", ["vq", "fsq"])  # residual: test_torch_search.py
def test_an_exported_search_finds_the_same_tokens(quantiser: str) -> None:
    vocabulary = fit_vocabulary(mixture(400), **{"kind": "neural", **QUANTISERS[quantiser], "hidden": [12, 7]})
    clips = list(mixture(400).reshape(4, 100, -1))
    found = TokenSearch(vocabulary)(torch.from_numpy(np.stack(clips)))
    np.testing.assert_array_equal(found.numpy(), np.stack(assign(vocabulary, clips)))


@pytest.mark.parametrize("quantiser", ["vq", "residual"])
def test_no_two_codes_coincide(quantiser: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vector_quantize_pytorch")
    trained = autoencoder._Quantiser.latents

    def with_a_repeated_code(self: Any) -> np.ndarray:
        latents = trained(self)
        latents[:, 5] = latents[:, 3] * np.float32(1 + 1e-6)
        return latents

    monkeypatch.setattr(autoencoder._Quantiser, "latents", with_a_repeated_code)
    for book in neural.fit(params_of(quantiser), mixture()).own["latents"].values:
        assert np.square(book[5] - book[3]).sum() > 1e-3 * np.square(book).sum(axis=1).mean()


def test_codes_that_coincide_move_to_what_is_coded_worst() -> None:
    vectors = np.array([[0, 0], [0, 0], [1, 0], [5, 0], [9, 0]], np.float32)
    book = np.array([[[0, 0], [1, 0], [0, 0], [1, 0]]], np.float32)
    np.testing.assert_array_equal(autoencoder.separated(book, vectors), [[[0, 0], [1, 0], [9, 0], [5, 0]]])
    few = autoencoder.separated(book, vectors[:3])
    np.testing.assert_array_equal(few[0, :2], [[0, 0], [1, 0]])


def test_tokens_of_levels_count_with_their_product() -> None:
    vocabulary = fit_vocabulary(mixture(400), **{"kind": "neural", **QUANTISERS["fsq"]})
    vocabulary.metadata.update(bpe={}, front_end={"frame_rate": 100.0})  # type: ignore[typeddict-item]
    rate = measure_rate(replace(vocabulary), vocabulary.counts, seconds=vocabulary.counts.sum() / 100)
    assert (rate.num_codebooks, rate.num_tokens) == (1, 60)
    assert rate.bits_per_second == pytest.approx(100 * np.log2(60))


def test_no_latent_vector_is_beyond_the_levels() -> None:
    for size in (3, 8, 999, 1000):
        levels = NamedArray(("dimension",), np.array([size], np.float32))
        identity = layer_arrays("encoder", [Layer(np.eye(1, dtype=np.float32), np.zeros(1, np.float32))])
        codebooks = Codebooks(np.zeros((1, size, 1), np.float32), [[0, 1]], own={**identity, "levels": levels})
        tokens = neural.encode(codebooks, np.array([[-1e3], [0.0], [1e3]], np.float32))
        assert tokens.tolist() == [[0, size // 2, size - 1]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"quantiser": "fsq", "levels": None},
            r"expected levels a list such as \[8, 6, 5\] with quantiser fsq, found None",
        ),
        ({"quantiser": "vq", "levels": [5, 5]}, r"expected levels null with quantiser vq, found \[5, 5\]"),
        ({"quantiser": "fsq", "levels": [8, 6]}, r"expected num_tokens 48, the product of levels \[8, 6\], found 24"),
        ({"quantiser": "fsq", "levels": [12, 2]}, r"levels\.1: .*greater than or equal to 3"),
        ({"quantiser": "fsq", "levels": [1001], "num_tokens": 1001}, r"levels\.0: .*less than or equal to 1000"),
        ({"quantiser": "vq", "codebooks": 2}, "expected codebooks 1 with quantiser vq, found 2"),
        ({"quantiser": "residual", "codebooks": 1}, "expected codebooks at least 2 with quantiser residual, found 1"),
        ({"quantiser": "vq", "batch_size": 23}, r"expected batch_size at least num_tokens \(24\), .* found 23"),
        ({"quantiser": "lfq"}, r"quantiser: .*'vq', 'fsq' or 'residual'"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, Any], message: str) -> None:
    section = PARAMS | OWN["neural"] | {"kind": "neural", "num_tokens": 24, "codebooks": 1} | changes
    with pytest.raises(ParamsError, match=message):
        validate_vocabulary_params("mine", section)


def test_more_tokens_than_distinct_frames_are_refused() -> None:
    with pytest.raises(CorpusError, match=r"found 24 for 3 distinct among 300"):
        neural.fit(params_of("vq"), np.repeat(noise(3), 100, axis=0))


def test_without_the_library_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_of("vq")
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(
        SonolexError, match=r"package vector-quantize-pytorch, .*\(pip install vector-quantize-pytorch\)"
    ):
        neural.fit(params, noise())


def test_neither_torch_nor_the_library_is_imported_to_tokenise() -> None:
    program = (
        "import sys, numpy as np\n"
        "from pipeline.artifacts.vocabulary import Codebooks, NamedArray\n"
        "from pipeline.vocabulary.registry import KINDS\n"
        "own = {'encoder_weight_0': np.ones((8, 2)), 'encoder_bias_0': np.zeros(2), 'latents': np.eye(2)[None]}\n"
        "own = {name: NamedArray(('x',) * values.ndim, values.astype(np.float32)) for name, values in own.items()}\n"
        "codebooks = Codebooks(np.zeros((1, 2, 8), np.float32), [[0, 8]], own=own)\n"
        "print(KINDS['neural'].encode(codebooks, np.zeros((3, 8), np.float32)).shape)\n"
        "print([name for name in ('torch', 'vector_quantize_pytorch', 'faiss') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.split("\n") == ["(1, 3)", "[]", ""]


def test_settings_of_clustering_are_refused() -> None:
    for key, value in CLUSTERING.items():
        with pytest.raises(ParamsError, match=rf"vocabularies\.kmeans\.{key}"):
            params_of("vq", **{key: value})
