"""A vocabulary with byte-pair encoding, from the stage that learns it to the model that reads its tokens."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import network, params_of
from test_kinds import OWN
from test_vocabulary_stages import EXECUTION, fit, make_frames

from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import VOCABULARY, open_vocabulary
from pipeline.errors import ArtifactError, CorpusError, ParamsError, SonolexError
from pipeline.models.network import Network
from pipeline.training.inputs import open_inputs
from pipeline.vocabulary import merging
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.rebuilding import rebuild, token_spectra
from stages import tokenize


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the memo store goes there


SIZES = {
    "kmeans": 9,
    "bands": 30,
    "residual": 24,
    "soft_kmeans": 24,
    "random_projection": 24,
    "neural": 18,
}  # more than six tokens a codebook


def fit_merged(folder: Path, kind: str = "bands", size: int = 0, **changes: Any) -> tuple[Path, Path]:
    """Fit a vocabulary of six tokens a codebook, merged up to `size` tokens; training clips have 85 frames in all."""
    size = size or SIZES[kind]
    return fit(folder, **{"kind": kind, **OWN[kind], "sample_frames": 10000, "bpe": {"num_tokens": size}, **changes})


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("features", [{}, {"stack": 2, "deltas": 1}, {"normalisation": "l2"}])
def test_merged_tokens_say_what_the_base_tokens_say(tmp_path: Path, kind: str, features: dict[str, Any]) -> None:
    _, path = fit_merged(tmp_path, kind, **features)
    vocabulary = open_vocabulary(path)
    assert (vocabulary.num_tokens, vocabulary.num_codebooks, vocabulary.padding_token) == (SIZES[kind], 1, SIZES[kind])
    clips = list(make_frames().values())
    plain = replace(vocabulary, merges=np.empty((0, 2), np.int32))
    for merged, base in zip(assign(vocabulary, clips), assign(plain, clips), strict=True):
        assert merged.dtype == np.uint16
        assert merged.shape[0] == 1
        assert merged.size < base.size
        assert merged.max() < SIZES[kind]
        assert np.array_equal(rebuild(vocabulary, merged), rebuild(plain, base))


def test_a_clip_s_tokens_do_not_depend_on_the_clips_beside_it(tmp_path: Path) -> None:
    vocabulary = open_vocabulary(fit_merged(tmp_path)[1])
    clips = list(make_frames().values())
    for together, clip in zip(assign(vocabulary, clips), clips, strict=True):
        assert np.array_equal(together, assign(vocabulary, [clip])[0])


@pytest.mark.parametrize("kind", OWN)
def test_tokens_have_vectors_and_spectra(tmp_path: Path, kind: str) -> None:
    vocabulary = open_vocabulary(fit_merged(tmp_path, kind)[1])
    (vectors,) = vocabulary.token_vectors()
    (band,) = vocabulary.bands
    assert band == [0, 8]
    assert vectors.shape == (SIZES[kind], 8)
    for number, (start, stop) in enumerate(vocabulary.metadata["bands"]):
        assert np.array_equal(vectors[6 * number : 6 * (number + 1), start:stop], vocabulary.codebooks[number])
    spectra = token_spectra(vocabulary, 0)
    assert spectra.shape == (SIZES[kind], 8)
    if kind == "kmeans":  # a token of two frames that both stand whole: its spectrum is the mean of theirs
        token = next(number for number, parts in enumerate(vocabulary.parts) if len(parts) == 2)
        whole = rebuild(vocabulary, np.array([[token]], np.uint16))
        np.testing.assert_allclose(spectra[token], whole.mean(axis=0), rtol=1e-5)


def test_the_metadata_say_how_much_was_merged(tmp_path: Path) -> None:
    vocabulary = open_vocabulary(fit_merged(tmp_path, "kmeans", size=12)[1])
    training = [make_frames()[clip] for clip in "abe"]
    merged = sum(clip.size for clip in assign(vocabulary, training))
    bpe = vocabulary.metadata["bpe"]
    assert (bpe["clips"], bpe["base_tokens"], bpe["tokens"]) == (3, 85, merged)
    assert bpe["compression"] == round(85 / merged, 6)
    assert sum(length * count for length, count in bpe["lengths"]) == 85
    assert sum(count for _, count in bpe["lengths"]) == merged
    assert vocabulary.frame_rate == pytest.approx(100 * merged / 85, rel=1e-5)


def test_merges_are_learnt_on_a_bounded_draw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = open_vocabulary(fit_merged(tmp_path / "few", "kmeans", size=8, sample_frames=50)[1])
    assert few.metadata["bpe"]["clips"] < 3
    assert few.metadata["bpe"]["base_tokens"] <= 50
    monkeypatch.setattr(merging, "_MOST_BASE_TOKENS", 130)
    fewer = open_vocabulary(fit_merged(tmp_path / "fewer", "bands", size=26)[1])
    assert 0 < fewer.metadata["bpe"]["base_tokens"] <= 130


def test_sequences_are_written_and_a_model_reads_them(tmp_path: Path) -> None:
    spectrogram, path = fit_merged(tmp_path)
    tokenize.run(EXECUTION, spectrogram, path, tmp_path / "1.parquet", fold="1")
    vocabulary, table = open_vocabulary(path), open_tokens(tmp_path / "1.parquet")
    assert (table.metadata["vocabulary_size"], table.metadata["num_codebooks"]) == (30, 1)
    assert table.metadata["frame_rate"] == vocabulary.frame_rate
    for clip, tokens in token_arrays(table).items():
        assert np.array_equal(tokens, assign(vocabulary, [make_frames()[clip]])[0])

    inputs = open_inputs("tokens", tmp_path / "1.parquet", vocabulary)
    model = Network(params_of(network("tokens", "convolution")), inputs.metadata, 3)
    model.input.load_codebooks(vocabulary.token_vectors())
    tokens = torch.from_numpy(inputs.arrays(["a"])[0].astype(np.int64))[None]
    assert torch.isfinite(model(tokens, torch.ones(1, tokens.shape[2], dtype=torch.bool))).all()


def rewrite(path: Path, merges: np.ndarray | None = None, **metadata: Any) -> None:
    arrays, old = VOCABULARY.open(path)
    VOCABULARY.write(path, arrays | ({} if merges is None else {"merges": merges}), old | metadata)


def test_merges_of_another_vocabulary_are_named(tmp_path: Path) -> None:
    _, path = fit_merged(tmp_path, "kmeans", size=10)
    merges, before = open_vocabulary(path).merges, open_vocabulary(path).digest()
    metadata = open_vocabulary(path).metadata
    rewrite(path, merges + np.int32(20))
    with pytest.raises(ArtifactError, match=r"merges: .* found merge 0 joins \d+ and \d+, where only tokens below 6"):
        open_vocabulary(path)
    rewrite(path, merges[:-1])
    with pytest.raises(ArtifactError, match=r"merges: expected 10 tokens, as metadata bpe.num_tokens, found 9"):
        open_vocabulary(path)
    rewrite(path, merges[:0])
    with pytest.raises(ArtifactError, match=r"merges: expected with metadata of bpe, or neither, found 0"):
        open_vocabulary(path)
    rewrite(path, merges, bpe=metadata["bpe"] | {"num_tokens": 11})
    with pytest.raises(ArtifactError, match=r"padding_token: expected 11 for num_tokens 11, found 10"):
        open_vocabulary(path)
    rewrite(path, merges[:, ::-1].copy(), bpe=metadata["bpe"])
    assert open_vocabulary(path).digest() != before


def test_tokens_that_a_vocabulary_does_not_have_are_named(tmp_path: Path) -> None:
    vocabulary = open_vocabulary(fit_merged(tmp_path)[1])
    with pytest.raises(SonolexError, match=r"expected tokens from 0 to 29, found 3 to 30"):
        rebuild(vocabulary, np.array([[3, 30]], np.uint16))
    with pytest.raises(SonolexError, match=r"expected whole frames of 4 codebooks with 6 each"):
        rebuild(vocabulary, np.array([[6, 0]], np.uint16))


def test_sizes_that_cannot_be_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"vocabularies\.\*\.bpe.num_tokens: expected more tokens than the 24 .* found 24"
    ):
        fit_merged(tmp_path / "a", "bands", size=24)
    with pytest.raises(
        CorpusError, match=r"vocabularies\.\*\.bpe.num_tokens: expected pairs of tokens .* for 5000, found"
    ):
        fit_merged(tmp_path / "b", "bands", size=5000)
    with pytest.raises(ParamsError, match="bpe"):
        fit_merged(tmp_path / "c", "bands", size=70000)
