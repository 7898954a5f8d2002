"""Doubtful labels: planted mistakes are found, and the page writes a table that labels.use reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from browser import CHROMIUM, Page, browse
from conftest import OF_A_MODEL, make_clips, make_spectrogram, make_waveform
from rich.console import Console
from ruamel.yaml import YAML

from pipeline.artifacts.clips import CLIPS, ClipsMetadata, LabelKind, open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import PREDICTIONS
from pipeline.corpora.relabelling import refresh_training_labels
from pipeline.errors import CorpusError, ParamsError, SonolexError
from pipeline.evaluation.label_quality import Labelled, collect_labelled, rank_labels, score_folds
from pipeline.grid import ExperimentParams
from tools import doubtful

NUM_CLIPS, CLASSES = 100, [f"class_{number}" for number in range(9)] + ["a|b, <c>"]
PLANTED = (3, 27, 44, 61, 98)

EXPERIMENT: dict[str, Any] = {
    "frame_models": ["cnn"],
    "token_models": [],
    "pretrained_models": [],
    "supervised_vocabularies": [],
    "learned_vocabularies": [],
    "vocabularies": [],
    "folds": ["1", "2"],
    "seeds": [0],
    "ensembles": [],
}


def classified(seed: int, label_kind: LabelKind = "one") -> Labelled:
    """Return clips with five wrong labels, and the scores of a model that is right for about nine of ten."""
    generator = np.random.default_rng(seed)
    truth = np.arange(NUM_CLIPS) % len(CLASSES)
    labels = np.eye(len(CLASSES), dtype=bool)[truth]
    logits = generator.normal(size=labels.shape)
    if label_kind == "one":
        scores = np.exp(logits + 3 * labels)
        scores /= scores.sum(axis=1, keepdims=True)
    else:
        labels |= labels[generator.permutation(NUM_CLIPS)]  # two of each
        scores = 1 / (1 + np.exp(-(logits + 5 * labels - 2.5)))
    for row in PLANTED:
        labels[row] = np.roll(labels[row], int(generator.integers(1, len(CLASSES))))
    ids = tuple(f"clip{number:03d}" for number in range(NUM_CLIPS))
    return Labelled(ids, scores, labels, np.zeros_like(labels), label_kind)


@pytest.mark.parametrize("label_kind", ["one", "many"])
@pytest.mark.parametrize("seed", range(3))
def test_five_planted_labels_of_a_hundred_are_among_the_ten_worst(seed: int, label_kind: LabelKind) -> None:
    pytest.importorskip("cleanlab")
    quality = rank_labels(classified(seed, label_kind))
    assert set(PLANTED) <= set(quality.order[:10].tolist())
    assert (np.diff(quality.values[quality.order]) >= 0).all()
    assert quality.doubtful[list(PLANTED)].sum() >= 3
    assert quality.doubtful.sum() <= 20


def test_unknown_labels_are_no_doubt() -> None:
    pytest.importorskip("cleanlab")
    clips = classified(0, "many")
    hidden = clips.labels[5].copy()
    clips.labels[5] = False
    worst = rank_labels(clips).values[5]
    clips.unknown[5] = hidden
    assert rank_labels(clips).values[5] > worst + 0.3


def test_without_cleanlab_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cleanlab", None)
    with pytest.raises(SonolexError, match="expected the package cleanlab, found no cleanlab; install"):
        rank_labels(classified(0))


def write_experiment(folder: Path, *, label_kind: LabelKind = "one", folds: tuple[str, str] = ("1", "2")) -> Layout:
    """Write 100 clips in two folds, five with a wrong label, and the predictions of a model; clip 0 alone has audio."""
    layout, clips = Layout(folder), classified(0, label_kind)
    (folder / "audio").mkdir(parents=True)
    soundfile.write(folder / "audio/clip000.wav", make_waveform("chirp", 0.5), 16000)
    labels = [np.flatnonzero(row).tolist() for row in clips.labels]
    fold = [folds[number % 2] for number in range(NUM_CLIPS)]
    sources = [f"{clip}.wav" for clip in clips.clip_ids]
    make_clips(layout.clips, folder / "audio", sources, labels=labels, fold=fold)
    table = CLIPS.open(layout.clips)
    metadata: ClipsMetadata = {**table.metadata, "classes": CLASSES, "label_kind": label_kind}
    CLIPS.write(layout.clips, table.columns, metadata)
    generator = np.random.default_rng(1)
    make_spectrogram(
        layout.spectrogram, {clip: generator.normal(size=(50, 8)).astype(np.float32) for clip in clips.clip_ids}
    )
    for tested in ("1", "2"):
        rows = np.arange(int(tested) - 1, NUM_CLIPS, 2)
        about = {
            "model": "cnn",
            "fold": tested,
            "seed": 0,
            "classes": CLASSES,
            "label_kind": label_kind,
            "weights": "x",
        }
        logits = np.log(clips.scores[rows])
        if label_kind == "many":
            logits -= np.log1p(-clips.scores[rows])
        columns = {
            "clip_id": [clips.clip_ids[row] for row in rows],
            "role": ["test"] * len(rows),
            "logits": logits.tolist(),
            "targets": clips.labels[rows].astype(float).tolist(),
        }
        PREDICTIONS.write(folder / f"predictions/cnn/{tested}/0.parquet", columns, about | OF_A_MODEL)
    refresh_training_labels(None, open_clips(layout.clips), layout.training_labels)
    return layout


def test_labels_are_those_that_are_trained_on(tmp_path: Path) -> None:
    layout = write_experiment(tmp_path)
    (tmp_path / "mine.csv").write_text("clip,labels\nclip003,class_3\n")
    clips = open_clips(layout.clips)
    used = refresh_training_labels(tmp_path / "mine.csv", clips, layout.training_labels)
    scores = score_folds(ExperimentParams(**EXPERIMENT), ["cnn"], layout)
    labelled = collect_labelled(scores, clips, used)
    assert len(labelled.clip_ids) == NUM_CLIPS
    row = labelled.clip_ids.index("clip003")
    assert np.flatnonzero(labelled.labels[row]).tolist() == [3]
    np.testing.assert_allclose(labelled.scores[row], classified(0).scores[3], rtol=1e-5)


def test_clips_of_a_published_test_set_are_not_judged(tmp_path: Path) -> None:
    layout = write_experiment(tmp_path, folds=("train", "test"))
    clips = open_clips(layout.clips)
    used = refresh_training_labels(None, clips, layout.training_labels)
    whole = score_folds(ExperimentParams(**EXPERIMENT), ["cnn"], layout)
    assert len(collect_labelled(whole, clips, used).clip_ids) == NUM_CLIPS // 2
    tested = score_folds(ExperimentParams(**EXPERIMENT | {"folds": ["2"]}), ["cnn"], layout)
    with pytest.raises(
        CorpusError, match=r"found those of published test clips alone; train inner folds: .*\[2-1, 2-2"
    ):
        collect_labelled(tested, clips, used)
    with pytest.raises(ParamsError, match=r"expected models of the experiment \(cnn\), found ast"):
        score_folds(ExperimentParams(**EXPERIMENT), ["ast"], layout)


def write_page(folder: Path, text: str = "", *, label_kind: LabelKind = "one") -> Layout:
    """Run the command in a workspace, with a table of overrides of this text, if any."""
    layout = write_experiment(folder, label_kind=label_kind)
    if text:
        (folder / "mine.csv").write_text(text)
        refresh_training_labels(folder / "mine.csv", open_clips(layout.clips), layout.training_labels)
    corpus = {"root": str(folder / "audio"), "max_bad_fraction": 0.0, "max_duration": 60.0}
    YAML().dump({"experiment": EXPERIMENT, "corpus": corpus}, folder / "params.yaml")
    console = Console(width=160, record=True)
    doubtful.run(
        ["cnn"], count=12, page=folder / "page.html", layout=layout, params_path=folder / "params.yaml", console=console
    )
    printed = console.export_text()
    assert "clip003" in printed
    assert "writes the table for labels.use" in printed
    return layout


def read_back(page: Page, layout: Layout, folder: Path) -> dict[str, list[str]]:
    """Return clip -> labels of the page's table, as labels.use reads it."""
    (folder / "labels.csv").write_text(page.run("table()"))
    used = refresh_training_labels(folder / "labels.csv", open_clips(layout.clips), layout.training_labels)
    return {row["clip_id"]: [CLASSES[i] for i in row["labels"]] for row in used.columns.to_pylist()}


def test_the_page_writes_a_table_that_labels_use_reads(tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: no chromium, chromium-browser or google-chrome on this machine")
    layout = write_page(tmp_path, "clip,labels\nclip050,class_7\n")
    with browse(tmp_path / "page.html", tmp_path / "profile") as page:
        assert page.run("cards.length") == 12
        assert read_back(page, layout, tmp_path) == {"clip050": ["class_7"]}
        card = "document.querySelector('[data-clip=clip003]')"
        page.run(f"{card}.querySelector('input[value=class_3]').click()")
        page.run(
            "(select => { select.value = 'a|b, <c>'; select.dispatchEvent(new Event('change', {bubbles: true})); })"
            "(document.querySelector('[data-clip=clip027] select'))"
        )
        assert page.run("document.getElementById('count').textContent") == "Labels of 2 clips changed"
        expected = {"clip003": ["class_3"], "clip027": ["a|b, <c>"], "clip050": ["class_7"]}
        assert read_back(page, layout, tmp_path) == expected
        page.reload()
        assert page.run("document.querySelectorAll('.clip.changed').length") == 2
        page.run("document.getElementById('reset').click()")
        assert page.run("document.querySelectorAll('.clip.changed').length") == 0
        for width in (1280, 390):
            page.resize(width, 900)
            assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert not page.errors


def test_the_page_of_several_labels_has_boxes(tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    if CHROMIUM is None:
        pytest.skip("needs Chromium: no chromium, chromium-browser or google-chrome on this machine")
    layout = write_page(tmp_path, label_kind="many")
    with browse(tmp_path / "page.html", tmp_path / "profile") as page:
        card = "document.querySelector('[data-clip=clip003]')"
        page.run(f"{card}.querySelectorAll('input:checked').forEach(input => input.click())")
        assert read_back(page, layout, tmp_path) == {"clip003": []}
        page.run(f"offer({card}, 'a|b, <c>').click()")
        page.run(f"offer({card}, 'class_0').click()")
        assert sorted(json.loads(page.run(f"cell(chosen({card}))"))) == ["a|b, <c>", "class_0"]
        assert read_back(page, layout, tmp_path) == {"clip003": ["class_0", "a|b, <c>"]}
        assert not page.errors
