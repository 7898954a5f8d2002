"""The search as a torch module finds the tokens that the pipeline finds, for every kind of vocabulary and all features."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_kinds import OWN, noise
from test_rebuilding import LDA, fit

from pipeline.errors import SonolexError
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.registry import KINDS
from pipeline.vocabulary.torch_search import SEARCHES, TokenSearch


@pytest.mark.parametrize("normalisation", ["standardise", "l2", "unit", "none"])
@pytest.mark.parametrize(
    "features",
    [
        {},
        {"stack": 3},
        {"deltas": 2},
        {"stack": 2, "deltas": 1},
        {"stack": 2, "deltas": 1, "pca": 5},
        {"stack": 2, "deltas": 1, "lda": LDA},
    ],
)
@pytest.mark.parametrize("kind", OWN)
def test_tokens_are_those_of_the_pipeline(kind: str, features: dict[str, Any], normalisation: str) -> None:
    if kind == "bands":
        features = {name: value for name, value in features.items() if name != "pca"}
    vocabulary = fit(noise(400), kind=kind, num_tokens=16, normalisation=normalisation, **features)
    search = TokenSearch(vocabulary)
    for num_frames in (1, 2, 61, 200):
        clips = list(noise(2 * num_frames).reshape(2, num_frames, -1))
        found = search(torch.from_numpy(np.stack(clips)))
        np.testing.assert_array_equal(found.numpy(), np.stack(assign(vocabulary, clips)))


def test_flat_frames_have_tokens_with_l2() -> None:
    vocabulary = fit(noise(400), num_tokens=16, normalisation="l2")
    flat = np.tile(vocabulary.space.mean, (3, 1))
    found = TokenSearch(vocabulary)(torch.from_numpy(flat[None]))
    np.testing.assert_array_equal(found[0].numpy(), assign(vocabulary, [flat])[0])


def test_every_kind_can_be_searched() -> None:
    assert set(SEARCHES) == set(KINDS) - {"external"}  # whose tokens are not computed


def test_merged_tokens_and_unknown_kinds_are_refused_by_name() -> None:
    vocabulary = fit(noise(400), num_tokens=16)
    with pytest.raises(SonolexError, match=r"without merged tokens, .* found 1 merges; .* bpe: null, .*--input tokens"):
        TokenSearch(replace(vocabulary, merges=np.array([[0, 1]], np.int32)))
    strange = replace(vocabulary, metadata=vocabulary.metadata | {"kind": "lattice"})
    with pytest.raises(SonolexError, match=r"expected one of the kinds kmeans, .* found lattice"):
        TokenSearch(strange)
