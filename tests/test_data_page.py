"""The data page: its numbers by hand, and what it shows of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from browser import CHROMIUM, browse
from conftest import make_clips, make_spectrogram

from pipeline.artifacts.clips import CLIPS, ClipsMetadata, LabelKind, open_clips
from pipeline.artifacts.missing import MISSING
from pipeline.artifacts.spectrogram import INDEX, open_spectrogram
from pipeline.artifacts.splits import SPLIT
from pipeline.corpora.relabelling import refresh_training_labels
from pipeline.reporting.data_page import write_data_page
from pipeline.reporting.data_summary import summarise_data
from pipeline.reporting.page import PageContent

NAMES = ["owl", "<rain>", "sea"]
FRAMES = {"a": 100, "b": 200, "c": 300, "d": 100}  # clip e has failed
LABELS = [[0], [0, 1], [0, 1], [2], [1]]


def make_content(folder: Path, label_kind: LabelKind = "many") -> PageContent:
    """Write what the page is made of: five clips of three groups in one fold."""
    labels = LABELS if label_kind == "many" else [own[:1] for own in LABELS]
    path = make_clips(
        folder / "clips.parquet",
        folder,
        [f"{clip}.wav" for clip in "abcde"],
        labels=labels,
        group=["x", "x", "x", "y", "z"],
        unknown=[[2], [2], [], [], []] if label_kind == "many" else [[]] * 5,
    )
    metadata: ClipsMetadata = {**CLIPS.read_metadata(path), "classes": NAMES, "label_kind": label_kind}
    CLIPS.write(path, CLIPS.open(path).columns, metadata)
    frames = {clip: np.ones((count, 4), np.float32) for clip, count in FRAMES.items()}
    spectrogram = make_spectrogram(folder / "spectrogram", frames, failed=["e"])
    index = INDEX.open(spectrogram / "index.parquet")
    columns = {name: index.list(name) for name in index.columns.column_names}
    columns |= {"sample_rate": [44100, 44100, 8000, 8000, 0], "num_channels": [2, 1, 1, 1, 0]}
    columns["bandwidth"] = [7900.0, 7500.0, 3900.0, 3800.0, 0.0]
    INDEX.write(index.path, columns, index.metadata)
    rows = {"clip_id": list("abcde"), "role": ["train", "train", "test", "excluded", "train"]}
    SPLIT.write(folder / "split.parquet", rows, {"fold": "1", "seed": 0, "rule": "by hand"})
    lost = {"clip_id": ["q"], "source": ["q.wav"], "set": ["train"], "reason": ["missing"]}
    MISSING.write(folder / "missing.parquet", lost, {"corpus": "x", "listed": {"test": 1, "train": 5}})
    (folder / "mine.csv").write_text("clip,labels\na,sea\n")
    clips = open_clips(path)
    content = SimpleNamespace(
        clips=clips,
        spectrogram=open_spectrogram(spectrogram),
        splits={"1": SPLIT.open(folder / "split.parquet")},
        missing=MISSING.open(folder / "missing.parquet"),
        training_labels=refresh_training_labels(folder / "mine.csv", clips, folder / "training_labels.parquet"),
    )
    return cast(PageContent, content)


def test_everything_is_counted(tmp_path: Path) -> None:
    content = make_content(tmp_path)
    data = summarise_data(content.clips, content.spectrogram, content.splits, content.missing, content.training_labels)
    assert (data.num_clips, data.num_usable, data.num_groups, data.largest_group) == (5, 4, 3, 3)
    assert data.hours == pytest.approx(7 / 3600)
    assert data.rates == [(8000, 2), (44100, 2)]
    assert data.channels == [(1, 3), (2, 1)]
    assert data.labels_per_clip == [(1, 3), (2, 2)]
    assert data.durations.counts.sum() == 4
    assert data.durations.edges[-1] == pytest.approx(3)
    assert data.bandwidths.edges[-1] == pytest.approx(8000)
    classes = data.classes
    assert classes.clips.tolist() == [3, 3, 1]
    assert classes.usable.tolist() == [3, 2, 1]
    assert classes.groups.tolist() == [1, 2, 1]
    assert classes.unknown.tolist() == [0, 0, 2]
    assert classes.bandwidth.tolist() == [7500, 5700, 3800]
    assert classes.seconds.tolist() == [2, 2.5, 1]
    assert data.together.tolist() == [[3, 2, 0], [2, 3, 0], [0, 0, 1]]
    assert [(bad.reason, bad.count, bad.examples[0][0]) for bad in data.bad] == [("missing", 1, "e")]
    assert data.roles == {"1": {"train": 3, "validation": 0, "test": 1, "excluded": 1}}
    assert data.missing == {"train": (5, 1)}
    assert (data.replaced, data.replaced_by) == (1, "mine.csv")


def test_a_class_without_usable_clips_has_no_median(tmp_path: Path) -> None:
    content = make_content(tmp_path, "one")
    data = summarise_data(content.clips, content.spectrogram, content.splits, content.missing, content.training_labels)
    assert np.isnan(data.classes.bandwidth[1])
    assert data.together.shape == (0, 0)


@pytest.mark.parametrize("label_kind", ["one", "many"])
def test_the_page_shows_it_at_any_width(tmp_path: Path, label_kind: Any) -> None:
    write_data_page(tmp_path / "data.html", make_content(tmp_path, label_kind))
    text = (tmp_path / "data.html").read_text()
    assert "&lt;rain&gt;" in text
    assert "<rain>" not in text
    assert ('id="together"' in text) == (label_kind == "many")
    for part in (
        "44\N{NARROW NO-BREAK SPACE}100",
        "mine.csv",
        "Excluded in fold 1: the audio of a clip",
        "expected a file",
    ):
        assert part in text
    if CHROMIUM is None:
        pytest.skip("needs Chromium: no chromium, chromium-browser or google-chrome on this machine")
    with browse(tmp_path / "data.html", tmp_path / "profile") as page:
        for width in (1280, 390):
            page.resize(width, 900)
            assert page.run("document.documentElement.scrollWidth <= innerWidth")
        assert not page.errors
