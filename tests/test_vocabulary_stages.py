"""The stages vocabulary and tokenize on artifacts that are known by construction."""

import ast
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from conftest import REPOSITORY, make_development, make_spectrogram
from rich.console import Console
from test_kinds import OWN, PARAMS, make_params

from pipeline.artifacts.development import TARGETS, open_development
from pipeline.artifacts.files import file_digest
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import FRAMES, INDEX, open_spectrogram
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.tokens import open_tokens, token_arrays
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.check_params import load_experiment
from pipeline.errors import ArtifactError, CorpusError, ParamsError
from pipeline.execution.code import project_sources, reach
from pipeline.execution.executors import ExecutionParams
from pipeline.params import read_params
from pipeline.reporting.atlas.tokens import token_patterns
from pipeline.vocabulary import sequences
from pipeline.vocabulary.assignment import assign
from pipeline.vocabulary.rebuilding import rebuild, separable_frames
from pipeline.vocabulary.registry import KINDS
from stages import supervision, tokenize, vocabulary
from tools import stability
from tools.compose import dump

EXECUTION = ExecutionParams.model_construct(executor="local", scheduler="", workers=1, memo=Path("memo"))
ROLES = {"a": "train", "b": "train", "c": "validation", "d": "test", "e": "train", "broken": "train"}


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the memo store goes there


def make_frames(*, poisoned: bool = False) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    frames = {clip: generator.normal(-6, 3, (20 + 5 * n, 8)).astype(np.float32) for n, clip in enumerate("abcde")}
    if poisoned:
        frames["c"], frames["d"] = frames["c"] * 0 + 1000, frames["d"][:7] * -50
    return frames


def make_split(path: Path, fold: str = "1") -> Path:
    columns = {"clip_id": list(ROLES), "role": list(ROLES.values())}
    SPLIT.write(path, columns, {"fold": fold, "seed": 0, "rule": "by hand"})
    return path


LABELS = {"a": [0], "b": [1], "c": [0], "d": [1], "e": [0], "broken": [1]}
LDA = {"dimensions": None, "context": 2, "shrinkage": 0.1}


def fit_on_labels(folder: Path, labels: dict[str, list[int]]) -> dict[str, str]:
    """Return the digests of the files of a vocabulary with discriminants, fitted by the stages."""
    layout = Layout(folder)
    make_spectrogram(layout.spectrogram, make_frames(), failed=["broken"])
    make_split(layout.split("1"))
    development = open_development(
        make_development(layout.development("1"), layout.spectrogram, layout.split("1")), fold="1"
    )
    columns = {"clip_id": list(labels), "labels": list(labels.values()), "unknown": [[]] * 6, "soft": [[]] * 6}
    rows = pa.table(columns | {"weight": [1.0] * 6, "group": list(labels)})
    rows = rows.take(pc.index_in(development["clip_id"], pa.array(list(labels)))).select(list(TARGETS.columns))
    TARGETS.write(layout.targets("1"), rows, {"fold": "1", "classes": ["x", "y"], "label_kind": "one"})
    report = supervision.run(layout, "lda", "1")
    assert report.clips == 3
    path, params = layout.vocabulary("lda", "1"), make_params(num_tokens=6, sample_frames=60, lda=LDA)
    targets = layout.training_targets("lda", "1")
    vocabulary.run(params, layout.spectrogram, layout.development("1"), path, fold="1", targets_path=targets)
    return contents(path)


def test_labels_of_training_clips_alone_shape_discriminants(tmp_path: Path) -> None:
    first = fit_on_labels(tmp_path / "first", LABELS)
    assert fit_on_labels(tmp_path / "others", LABELS | {"c": [1], "d": [0], "broken": [0]}) == first
    assert fit_on_labels(tmp_path / "relabelled", LABELS | {"a": [1]}) != first


def test_labels_of_other_clips_are_refused(tmp_path: Path) -> None:
    fit_on_labels(tmp_path, LABELS)
    layout, params = Layout(tmp_path), make_params(num_tokens=6, sample_frames=60, lda=LDA)
    with pytest.raises(ArtifactError, match=r"clip_id: expected the training clips of .*1.parquet, found other clips"):
        vocabulary.run(
            params,
            layout.spectrogram,
            layout.development("1"),
            tmp_path / "1.zarr",
            fold="1",
            targets_path=layout.targets("1"),
        )


def test_a_vocabulary_with_discriminants_is_read_back_and_tokenises(tmp_path: Path) -> None:
    fit_on_labels(tmp_path, LABELS)
    path, spectrogram = Layout(tmp_path).vocabulary("lda", "1"), Layout(tmp_path).spectrogram
    tokenize.run(EXECUTION, spectrogram, path, tmp_path / "tokens/1.parquet", fold="1")
    fitted, tokens = open_vocabulary(path), token_arrays(open_tokens(tmp_path / "tokens/1.parquet"))
    assert fitted.metadata["features"] == {"deltas": 0, "stack": 1, "groups": 1, "context": 2}
    assert fitted.space.components.shape == fitted.space.inverse.shape == (1, 40)
    assert rebuild(fitted, tokens["d"]).shape == make_frames()["d"].shape
    assert separable_frames(fitted) is not None


def fit(folder: Path, *, poisoned: bool = False, **changes: Any) -> tuple[Path, Path]:
    spectrogram = make_spectrogram(folder / "spectrogram", make_frames(poisoned=poisoned), failed=["broken"])
    kind = {} if "kind" in changes else {"kind": "bands", "bands": 2}
    params = make_params(**{"num_tokens": 6, "sample_frames": 60} | kind | changes)
    development = make_development(folder / "development.parquet", spectrogram, make_split(folder / "1.parquet"))
    vocabulary.run(params, spectrogram, development, folder / "1.zarr", fold="1")
    return spectrogram, folder / "1.zarr"


def contents(store: Path) -> dict[str, str]:
    return {str(file.relative_to(store)): file_digest(file) for file in sorted(store.rglob("*")) if file.is_file()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample_frames": 10000},
        {"exact": True},
        {"stack": 2, "deltas": 1, "normalisation": "l2"},
        {"bpe": {"num_tokens": 16}, "sample_frames": 10000},
    ],
)
def test_only_training_clips_are_read(tmp_path: Path, changes: dict[str, Any]) -> None:
    _, clean = fit(tmp_path / "clean" / "tokens", **changes)
    _, poisoned = fit(tmp_path / "poisoned" / "tokens", poisoned=True, **changes)
    assert contents(clean) == contents(poisoned)


def test_the_artifact_tells_how_it_was_fitted(tmp_path: Path) -> None:
    spectrogram, path = fit(tmp_path)
    fitted = open_vocabulary(path)
    assert fitted.metadata["front_end"] == open_spectrogram(spectrogram).metadata
    assert fitted.metadata["sample"]["frames"] == 60
    assert fitted.metadata["sample"]["available"] == 20 + 25 + 40
    assert fitted.counts.sum(axis=1).tolist() == [60, 60]
    assert len(fitted.metadata["fit"]["objective"]) == 10
    assert {"usage", "perplexity", "dead_codes", "zipf_slope"} <= set(fitted.metadata["fit"])


@pytest.mark.parametrize("kind", OWN)
@pytest.mark.parametrize("features", [{}, {"stack": 3, "deltas": 2}])
def test_every_usable_clip_becomes_a_sequence(tmp_path: Path, kind: str, features: dict[str, int]) -> None:
    spectrogram, path = fit(tmp_path, **{"kind": kind, **OWN[kind], **features})
    report = tokenize.run(EXECUTION, spectrogram, path, tmp_path / "1.parquet", fold="1")
    fitted, table = open_vocabulary(path), open_tokens(tmp_path / "1.parquet")
    tokens, frames = token_arrays(table), make_frames()
    assert list(tokens) == list("abcde")
    assert report.clips == 5
    assert table.metadata["vocabulary"] == fitted.digest()
    stack = features.get("stack", 1)
    assert table.metadata["frame_rate"] == pytest.approx(100 / stack)
    for clip, sequence in tokens.items():
        assert np.array_equal(sequence, assign(fitted, [frames[clip]])[0])
        assert sequence.shape == (fitted.num_codebooks, -(-len(frames[clip]) // stack))
        assert sequence.max() < fitted.padding_token


def test_batches_do_not_change_the_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spectrogram, path = fit(tmp_path)
    tokenize.run(EXECUTION, spectrogram, path, tmp_path / "whole.parquet", fold="1")
    monkeypatch.setattr(sequences, "_FRAMES_PER_BATCH", 45)
    shutil.rmtree("memo")
    tokenize.run(EXECUTION, spectrogram, path, tmp_path / "pieces.parquet", fold="1")
    assert file_digest(tmp_path / "whole.parquet") == file_digest(tmp_path / "pieces.parquet")


def test_frames_of_another_front_end_are_refused(tmp_path: Path) -> None:
    spectrogram, path = fit(tmp_path)
    group, metadata = FRAMES.open_group(spectrogram / "frames.zarr")
    other = metadata | {"hop_length": 80, "frame_rate": 200.0}
    changed = tmp_path / "other"
    made = FRAMES.create(changed / "frames.zarr", other)
    for name in group.array_keys():
        FRAMES.arrays["*"].write(made, name, np.asarray(group[name]))
    index = INDEX.open(spectrogram / "index.parquet")
    INDEX.write(changed / "index.parquet", index.columns, index.metadata | {"front_end": other})
    with pytest.raises(ArtifactError, match=r"front_end.hop_length .* expected 80, found 160"):
        tokenize.run(EXECUTION, changed, path, tmp_path / "1.parquet", fold="1")


def test_another_fold_is_refused(tmp_path: Path) -> None:
    spectrogram, path = fit(tmp_path)
    with pytest.raises(ArtifactError, match="metadata fold: expected 2, found 1"):
        tokenize.run(EXECUTION, spectrogram, path, tmp_path / "2.parquet", fold="2")
    development = make_development(tmp_path / "2.parquet", spectrogram, make_split(tmp_path / "split.parquet", "2"))
    with pytest.raises(ArtifactError, match="metadata fold: expected 1, found 2"):
        vocabulary.run(make_params(), spectrogram, development, path, fold="1")


def test_the_version_of_sequences_covers_their_features() -> None:
    roots = [("pipeline.vocabulary.assignment", "assign")]
    definitions = reach(project_sources(), roots, {"random_projection"}).definitions
    assert {
        ("pipeline.artifacts.vocabulary", "FeatureSpace"),
        ("pipeline.vocabulary.features", "window_places"),
        ("pipeline.vocabulary.features", "slopes"),
        ("pipeline.vocabulary.nearest", "nearest_codes"),
        ("pipeline.vocabulary.random_projection", "encode"),
    } <= set(definitions)
    assert ("pipeline.vocabulary.random_projection", "fit") not in definitions
    assert not {name for name in definitions if "fitting" in name[0] or "kmeans" in name[0]}


def test_the_kind_that_the_docs_add_goes_through_all_that_reads_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/extending.md, word for word: one file and one line of the registry."""
    section = (REPOSITORY / "docs/extending.md").read_text().partition("## A kind of vocabulary")[2]
    source, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]
    ((kind, target),) = ast.literal_eval(f"{{{line}}}").items()
    module = ModuleType(target)
    monkeypatch.setitem(sys.modules, target, module)
    exec(compile(source, target, "exec"), module.__dict__)
    monkeypatch.setitem(KINDS.targets, kind, target)
    monkeypatch.setitem(OWN, kind, {"range": 2.0})

    spectrogram, path = fit(tmp_path, kind=kind, stack=2)
    tokenize.run(EXECUTION, spectrogram, path, tmp_path / "1.parquet", fold="1")
    fitted, sequences_of_clips = open_vocabulary(path), token_arrays(open_tokens(tmp_path / "1.parquet"))
    frames = make_frames()["a"]
    z = (frames - fitted.space.mean) / fitted.space.scale
    means = z.reshape(-1, 2 * 8).mean(axis=1)
    levels = np.linspace(-2, 2, 6, dtype=np.float32)
    assert np.array_equal(sequences_of_clips["a"][0], np.abs(means[:, None] - levels).argmin(axis=1))
    rebuilt = (rebuild(fitted, sequences_of_clips["a"]) - fitted.space.mean) / fitted.space.scale
    np.testing.assert_allclose(
        rebuilt, np.repeat(levels[sequences_of_clips["a"][0]], 2)[:, None].repeat(8, 1), atol=1e-5
    )

    assert separable_frames(fitted) is not None
    assert len(token_patterns(fitted, fitted.counts)) == 1
    _, merged = fit(tmp_path / "merged", kind=kind, bpe={"num_tokens": 8}, sample_frames=10000)
    assert open_vocabulary(merged).num_tokens == 8
    split = make_split(tmp_path / "1.parquet")
    rows = stability.measure(make_params(kind=kind, num_tokens=6), spectrogram, split, [0, 1], Console())
    assert rows[0].agreement > 0.9  # it draws nothing
    document = read_params(REPOSITORY / "params.yaml")
    params = PARAMS | {"kind": kind, "range": 2.0}
    document["vocabularies"] = {"kmeans": params}
    (tmp_path / "params.yaml").write_text(dump(document))
    assert load_experiment(tmp_path / "params.yaml").vocabularies["kmeans"].kind == kind


def test_the_artifact_tells_what_all_frames_changed(tmp_path: Path) -> None:
    _, path = fit(tmp_path, exact=True, sample_frames=30)
    fitted = open_vocabulary(path).metadata["fit"]["exact"]
    assert fitted["tokens"] == 20 + 25 + 40
    assert fitted["distortion_after"] <= fitted["distortion_before"]


@pytest.mark.parametrize("kind", OWN)
def test_seeds_are_compared_on_test_clips(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    params = make_params(**{"kind": kind, **OWN[kind], "num_tokens": 6, "sample_frames": 60, "stack": 2})
    split = make_split(tmp_path / "1.parquet")
    rows = {}
    for name in (False, True):
        spectrogram = make_spectrogram(tmp_path / f"{name}", make_frames(poisoned=name), failed=["broken"])
        rows[name] = stability.measure(params, spectrogram, split, [4, 1, 4], Console())
    first, second, again = rows[False]
    assert (first.seed, second.seed) == (4, 1)
    assert (first.lost, first.perplexity) == (again.lost, again.perplexity)  # of one seed, so 1 with each other:
    assert first.agreement == pytest.approx((1 + second.agreement) / 2, abs=1e-9)
    assert second.agreement < 1
    assert first.lost != second.lost
    assert rows[True][0].lost != first.lost  # the test clip was poisoned
    capsys.readouterr()
    stability.run(rows[False], "tokens", Console(width=100))
    assert f"{first.lost:.2%}" in capsys.readouterr().out


def test_a_comparison_of_seeds_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    spectrogram = make_spectrogram(tmp_path / "spectrogram", make_frames(), failed=["broken"])
    with pytest.raises(ParamsError, match="--seed: expected at least two different ones, found 3, 3"):
        stability.measure(make_params(), spectrogram, make_split(tmp_path / "1.parquet"), [3, 3], Console())
    SPLIT.write(
        tmp_path / "2.parquet", {"clip_id": ["a"], "role": ["train"]}, {"fold": "2", "seed": 0, "rule": "by hand"}
    )
    with pytest.raises(
        CorpusError, match=r"2\.parquet: expected test clips with frames, found 0 without; choose another --fold"
    ):
        stability.measure(make_params(), spectrogram, tmp_path / "2.parquet", [0, 1], Console())
