"""Class rows that are taken over by name: the logits are those rows of the published model's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import changed, params_of
from test_checkpoint_formats import (
    AST_FRONT_END,
    N_MELS,
    SMALL,
    hub_weights,
    make_huggingface,
    make_original,
    noise,
    original_weights,
)

from pipeline.errors import SonolexError
from pipeline.models.checkpoint_formats.class_rows import audioset_names, find_rows
from pipeline.models.network import Network, open_pretrained_weights

NAMES = ["Speech", "Cello", "Acoustic guitar", "Electric guitar", "Organ", "Flute", "Dog"]


def begin(pretrained: dict[str, Any], classes: list[str]) -> Any:
    """Return a network for these classes with pretrained weights, as `pipeline.training.neural` builds it."""
    params = params_of(changed(SMALL, {"pretrained": pretrained}))
    checkpoint = open_pretrained_weights(params, AST_FRONT_END)
    assert checkpoint is not None
    model = Network(params, {"n_mels": N_MELS, "pretrained": checkpoint.metadata}, len(classes)).eval()
    checkpoint.choose_classes(classes)
    model.load_weights(params, checkpoint)
    return model


@torch.no_grad()
def test_instruments_by_name_have_the_logits_of_their_rows(tmp_path: Path) -> None:
    """The norm before the classifier is taken over too: without it logits would be others."""
    theirs = make_huggingface(tmp_path / "hf", id2label=dict(enumerate(NAMES)))
    model = begin(hub_weights(tmp_path / "hf", classes="by_name"), ["acoustic_guitar", "Cello", "organ"])
    expected = theirs(noise()).logits[:, [2, 1, 4]]
    assert (model(noise(), None) - expected).abs().max() < 1e-5
    norm = theirs.classifier.layernorm
    assert (norm.weight - 1).abs().max() > 0.01
    assert torch.equal(model.head.norm.weight, norm.weight)


@torch.no_grad()
def test_codes_are_mapped_to_audiosets_names(tmp_path: Path) -> None:
    names = audioset_names(527, "x")
    codes = {"cel": "Cello", "gac": "Acoustic guitar", "voi": "Singing", "Flute": "Flute"}
    oracle = make_original(tmp_path / "audioset.pth", num_classes=527)
    mapping = {code: name for code, name in codes.items() if code != name}
    model = begin(original_weights(tmp_path / "audioset.pth", classes=mapping), list(codes))
    expected = oracle(noise())[:, [names.index(name) for name in codes.values()]]
    assert (model(noise(), None) - expected).abs().max() < 1e-5


def test_the_rows_that_the_fifth_system_starts_from_are_found_by_name() -> None:
    names = ["Cello", "Clarinet", "Flute", "Acoustic guitar", "Electric guitar", "Organ", "Piano", "Saxophone"]
    names += ["Trumpet", "Violin, fiddle", "Singing"]
    rows = find_rows("by_name", names, audioset_names(527, "x"))
    assert rows == [193, 198, 196, 143, 141, 155, 153, 197, 187, 191, 27]


@pytest.mark.parametrize(
    ("rows", "classes", "message"),
    [
        (
            "by_name",
            ["Celo", "Flute"],
            r"of the weights, found none for Celo \(nearest: Cello\); name theirs in a mapping",
        ),
        ("by_name", ["guitar"], r"found none for guitar \(nearest: .*guitar.*guitar\)"),
        ("by_name", ["qqqq"], r"found none for qqqq \(nothing is near\)"),
        ({"cel": "Violoncello"}, ["cel", "Flute"], r"found none for cel: Violoncello \(nearest: Cello\)"),
        ({"voi": "Speech"}, ["Flute"], r"expected classes of the corpus \(Flute, ...\), found 'voi'; correct the keys"),
    ],
)
def test_a_class_that_the_checkpoint_has_not_is_named_with_the_nearest(
    rows: Any, classes: list[str], message: str
) -> None:
    with pytest.raises(SonolexError, match=message):
        find_rows(rows, classes, NAMES)


def test_weights_without_names_are_named(tmp_path: Path) -> None:
    make_original(tmp_path / "esc50.pth")
    with pytest.raises(SonolexError, match=r"expected the 527 classes of AudioSet, .* found 7 classes without names"):
        begin(original_weights(tmp_path / "esc50.pth", classes="by_name"), ["Dog"])
