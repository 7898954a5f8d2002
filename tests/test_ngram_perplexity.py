"""N-gram perplexity by class: of test clips under models of training clips, and known where sound is certain."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_clips, make_spectrogram

from pipeline.artifacts.ngram_perplexity import (
    ALL_CLASSES,
    NgramPerplexity,
    read_ngram_perplexity,
    write_ngram_perplexity,
)
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.tokens import TOKENS
from pipeline.errors import ArtifactError, CorpusError
from pipeline.evaluation import ngram_perplexity
from pipeline.evaluation.ngram_perplexity import measure_ngram_perplexity, over_folds
from stages import ngram_perplexity as stage

CLASSES = ("steady", "alternating", "noise", "silent")
TRAINING = [f"train{number}" for number in range(30)]
TEST = [f"test{number}" for number in range(9)]


def make_tokens(num_codebooks: int = 2) -> dict[str, np.ndarray]:
    """Return clips of three kinds in turn: one token for ever, two in turn, any of sixteen."""
    generator = np.random.default_rng(0)
    tokens = {}
    for number, clip in enumerate([*TRAINING, *TEST]):
        shape = (num_codebooks, 100)
        kinds = (np.full(shape, 3), np.tile([5, 6], (num_codebooks, 50)), generator.integers(0, 16, shape))
        tokens[clip] = kinds[number % 3].astype(np.uint16)
    return tokens


def measure(tokens: dict[str, np.ndarray], **changes: Any) -> dict[tuple[str, int], NgramPerplexity]:
    settings: dict[str, Any] = {
        "vocabulary_size": 16,
        "training_clips": TRAINING,
        "test_clips": TEST,
        "labels": {clip: [number % 3] for number, clip in enumerate(TEST)},
        "classes": CLASSES,
        "seconds": dict.fromkeys(tokens, 2.0),
    }
    return {(row.class_name, row.order): row for row in measure_ngram_perplexity(tokens, **settings | changes)}


def test_what_is_certain_is_predicted_and_noise_is_not() -> None:
    rows = measure(make_tokens())
    assert rows["steady", 2].perplexity < 1.2
    # Half of the noise's pairs were never seen; a hundred tokens of it are too few to know that they are as likely.
    assert 12 < rows["noise", 1].perplexity < 40
    assert rows["noise", 3].perplexity > 12
    assert rows["alternating", 1].perplexity > 4
    assert rows["alternating", 2].perplexity < 1.2
    assert ("silent", 1) not in rows


def test_rows_add_up() -> None:
    rows = measure(make_tokens())
    for order in (1, 2, 3):
        own = [rows[name, order] for name in CLASSES[:3]]
        everyone = rows[ALL_CLASSES, order]
        assert everyone.num_clips == sum(row.num_clips for row in own) == 9
        assert everyone.num_tokens == sum(row.num_tokens for row in own) == 9 * 2 * 100
        assert np.isclose(everyone.bits, sum(row.bits for row in own))
        assert np.isclose(everyone.bits_per_second, np.log2(everyone.perplexity) * 100 * 2 / 2)


def test_only_training_clips_are_learnt_from() -> None:
    """Other test clips change nothing about one; other training clips do."""
    tokens = make_tokens()
    poisoned = {clip: row if clip in (*TRAINING, "test2") else row * 0 + 9 for clip, row in tokens.items()}
    assert measure(tokens, test_clips=["test2"]) == measure(poisoned, test_clips=["test2"])
    poisoned["train2"] = poisoned["train2"] * 0 + 9
    assert measure(tokens, test_clips=["test2"]) != measure(poisoned, test_clips=["test2"])


def test_no_more_tokens_are_counted_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    count = ngram_perplexity.count_ngrams
    monkeypatch.setattr(
        ngram_perplexity, "count_ngrams", lambda s, *a, **k: counted.append(sum(map(len, s))) or count(s, *a, **k)
    )
    monkeypatch.setattr(ngram_perplexity, "_MOST_TOKENS", 1500)
    measure(make_tokens())
    assert set(counted) == {1400}  # seven clips of 2 x 100 tokens


def test_a_clip_of_two_classes_counts_in_both() -> None:
    labels = {clip: [0, 3] if number < 4 else [0] for number, clip in enumerate(TEST)}
    rows = measure(make_tokens(), labels=labels)
    assert rows["steady", 1].bits == rows[ALL_CLASSES, 1].bits
    assert rows["silent", 1].num_clips == 4


def test_folds_are_joined() -> None:
    rows = list(measure(make_tokens()).values())
    joined = over_folds([rows, rows])
    assert list(joined)[-1] == "noise"
    assert joined["steady"][0].num_clips == 6
    assert np.isclose(joined["noise"][2].perplexity, rows[-1].perplexity)


def make_artifacts(folder: Path, *, roles: tuple[str, str] = ("train", "test")) -> dict[str, np.ndarray]:
    """Write the artifacts that the stage reads; clips last 100 frames of 10 ms."""
    tokens = make_tokens(1)
    clips = list(tokens)
    labels = [[number % 3] for number in range(len(clips))]
    make_clips(folder / "clips.parquet", folder, [f"{clip}.wav" for clip in clips], labels=labels)
    make_spectrogram(folder / "spectrogram", {clip: np.zeros((100, 4), np.float32) for clip in clips}, failed=["gone"])
    own = [*[roles[0]] * len(TRAINING), *[roles[1]] * len(TEST)]
    metadata = {"fold": "1", "seed": 0, "rule": ""}
    SPLIT.write(folder / "split.parquet", {"clip_id": [*clips, "gone"], "role": [*own, "test"]}, metadata)
    metadata = {"fold": "1", "vocabulary": "0" * 32, "vocabulary_size": 16, "num_codebooks": 1, "frame_rate": 100.0}
    TOKENS.write(
        folder / "tokens.parquet", {"clip_id": clips, "tokens": [own.tolist() for own in tokens.values()]}, metadata
    )
    return tokens


def run_stage(folder: Path) -> Path:
    names = ("clips.parquet", "spectrogram", "split.parquet", "tokens.parquet", "out/1.csv")
    stage.run(*(folder / name for name in names), name="kmeans")
    return folder / "out/1.csv"


def test_the_stage_takes_clips_from_the_split_and_labels_from_the_manifest(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    tokens = make_artifacts(tmp_path)
    table = run_stage(tmp_path)
    found = {(row.class_name, row.order): row for row in read_ngram_perplexity(table)}
    seconds = dict.fromkeys(tokens, 1.0)
    expected = measure(tokens, seconds=seconds, classes=["class 0", "class 1", "class 2"])
    assert found == expected  # to the last bit; the clip without frames counts nowhere
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows][:2] == [ALL_CLASSES, "class 0"]
    assert float(rows[0]["perplexity"]) == round(expected[ALL_CLASSES, 1].perplexity, 6)
    first = table.read_bytes()
    assert run_stage(tmp_path).read_bytes() == first
    assert Path("results/stages/ngram_perplexity-kmeans-1.json").exists()


def test_a_fold_without_test_clips_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    make_artifacts(tmp_path, roles=("train", "train"))
    with pytest.raises(CorpusError, match="expected tokens of test clips of fold 1, found none"):
        run_stage(tmp_path)


def test_a_table_that_is_missing_or_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "1.csv"
    with pytest.raises(
        ArtifactError, match=r"1\.csv: file: expected a row for each class.*single-item ngram_perplexity"
    ):
        read_ngram_perplexity(path)
    path.write_text("class,order\n")
    with pytest.raises(ArtifactError, match="columns: expected class, order, num_clips"):
        read_ngram_perplexity(path)
    write_ngram_perplexity(path, [NgramPerplexity("a", 1, 1, 10, 1.0, 20.0)])
    assert read_ngram_perplexity(path)[0].perplexity == 4.0
    path.write_text(path.read_text().replace("20.0", "many"))
    with pytest.raises(ArtifactError, match="rows: expected numbers, found"):
        read_ngram_perplexity(path)
