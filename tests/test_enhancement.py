"""Label enhancement: its rules by hand, that its scores are out of fold, and that what is tested keeps its labels."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import OF_A_MODEL, REPOSITORY, make_duplicates

from pipeline.artifacts.clips import CLIPS, ClipsMetadata, open_clips
from pipeline.artifacts.development import target_columns
from pipeline.artifacts.labels import LABELS, open_labels
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.predictions import PREDICTIONS, open_predictions
from pipeline.artifacts.splits import SPLIT, clips_of, open_split
from pipeline.artifacts.tables import Table
from pipeline.artifacts.training_labels import TrainingLabelTable
from pipeline.corpora.audioset_files import read_segments
from pipeline.corpora.label_json import write_label_json
from pipeline.corpora.manifest import Refresh, refresh_manifest
from pipeline.corpora.ontology import read_ontology
from pipeline.corpora.relabelling import refresh_training_labels, require_fold
from pipeline.corpora.splitting import SplitParams, assign_roles
from pipeline.corpora.table import Params as TableParams
from pipeline.errors import ArtifactError, CorpusError, ParamsError
from pipeline.evaluation.enhancement import LabelParams, class_thresholds, enhance, missing_parents
from pipeline.grid import ExperimentParams
from pipeline.params import validate_params
from stages import enhance as enhance_stage
from stages import split as split_stage
from tools import enhanced_labels
from tools.enhanced_labels import LabelErrors, label_errors

ANIMAL, DOG, PUPPY, RAIN, OWL = range(5)
CLASSES = ["animal", "dog", "puppy", "rain", "owl"]
# A pet is no class: it leads from animal to dog, and is nobody's parent.
PAIRS = "parent,child\nanimal,pet\npet,dog\ndog,puppy\nanimal,owl\n"


@pytest.fixture
def ontology_path(tmp_path: Path) -> Path:
    path = tmp_path / "ontology.csv"
    path.write_text(PAIRS)
    return path


# the ontology


def test_children_are_direct_and_descendants_pass_through_what_is_no_class(ontology_path: Path) -> None:
    ontology = read_ontology(ontology_path, CLASSES)
    assert np.argwhere(ontology.children).tolist() == [[ANIMAL, OWL], [DOG, PUPPY]]
    below = {(int(a), int(b)) for a, b in np.argwhere(ontology.descendants)}
    assert below == {(ANIMAL, DOG), (ANIMAL, PUPPY), (ANIMAL, OWL), (DOG, PUPPY)}
    assert ontology.unknown == ("rain",)


def class_table(corpus: str) -> tuple[list[str], list[str]]:
    """Return names and ids of the classes of a published corpus."""
    with (REPOSITORY / f"metadata/{corpus}/class_labels_indices.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row["display_name"] for row in rows], [row["mid"] for row in rows]


def pairs_of_psla(ids: list[str]) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
    """Return (parent, child) and (ancestor, descendant) as PSLA finds them: upwards, by parents that are not abstract."""
    nodes = json.loads((REPOSITORY / "metadata/audioset/ontology.json").read_text())
    parents: dict[str, list[str]] = {node["id"]: [] for node in nodes}
    for node in nodes:
        for child in node["child_ids"] if node["restrictions"] != ["abstract"] else ():
            parents[child].append(node["id"])

    def above(id_: str) -> set[str]:
        return set(parents[id_]).union(*map(above, parents[id_]))

    direct = {(parent, child) for child in ids for parent in parents[child] if parent in ids}
    return direct, {(ancestor, child) for child in ids for ancestor in above(child) if ancestor in ids}


@pytest.mark.parametrize(("corpus", "num_direct", "num_anywhere"), [("audioset", 378, 767), ("fsd50k", 156, 304)])
def test_pairs_of_the_published_ontology_are_those_of_psla(corpus: str, num_direct: int, num_anywhere: int) -> None:
    names, ids = class_table(corpus)
    ontology = read_ontology(REPOSITORY / "metadata/audioset/ontology.json", names, ids)
    assert ontology.unknown == ()
    expected = pairs_of_psla(ids)
    for relation, pairs in zip((ontology.children, ontology.descendants), expected, strict=True):
        assert {(ids[a], ids[b]) for a, b in np.argwhere(relation)} == pairs
    assert tuple(map(len, expected)) == (num_direct, num_anywhere)


def test_nothing_is_below_music_through_an_abstract_node() -> None:
    """Some 68 pairs of Music and what is below its genres, moods and roles alone, which PSLA has not."""
    names, _ = class_table("audioset")
    ontology = read_ontology(REPOSITORY / "metadata/audioset/ontology.json", names)  # by name
    assert ontology.unknown == ()
    music, guitar, bass, jazz = (names.index(name) for name in ("Music", "Guitar", "Bass guitar", "Jazz"))
    assert ontology.children[guitar, bass]
    assert ontology.descendants[music, bass]
    assert not ontology.children[music, bass]
    assert not ontology.descendants[bass, music]
    assert not ontology.descendants[music, jazz]


def test_names_of_fsd50k_lose_classes_that_ids_find() -> None:
    names, ids = class_table("fsd50k")
    path = REPOSITORY / "metadata/audioset/ontology.json"
    assert len(read_ontology(path, names).unknown) == 82
    assert read_ontology(path, names, ids).unknown == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parent,child\ndog,puppy\npuppy,dog\n", "found the circle dog > puppy > dog"),
        ("parent,child\nvehicle,car\n", "found none of them, but vehicle, car"),
        ("above,child\ndog,puppy\n", "expected a column `parent`"),
    ],
)
def test_what_is_no_ontology_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ontology.csv"
    path.write_text(text)
    with pytest.raises(CorpusError, match=message):
        read_ontology(path, CLASSES)


def test_an_ontology_in_json_that_lacks_a_child_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ontology.json"
    path.write_text('[{"id": "a", "name": "dog", "child_ids": ["b"]}]')
    with pytest.raises(CorpusError, match=r"ontology\.json: expected a list of nodes .* found KeyError: 'b'"):
        read_ontology(path, CLASSES)


# the rules

# Two clips of each of dog and puppy give them the mean thresholds 0.6 and 0.8; animal 0.5; nobody has an owl.
LABELS_IN = np.array(
    [
        # animal, dog, puppy, rain, owl
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
    ],
    dtype=bool,
)
SCORES = np.array(
    [
        [0.50, 0.99, 0.99, 0.99, 0.99],  # animal: dog is no direct child, owl has no threshold
        [0.49, 0.50, 0.81, 0.99, 0.99],  # dog: puppy is called for (type 1); animal is not above 0.5
        [0.51, 0.70, 0.80, 0.99, 0.99],  # dog: animal is called for (type 2); puppy is not above 0.8
        [0.99, 0.61, 0.75, 0.99, 0.99],  # puppy: both its ancestors
        [0.20, 0.59, 0.85, 0.10, 0.99],  # puppy: neither
    ],
    dtype=np.float32,
)


def added(types: list[Any], ontology_path: Path) -> list[tuple[int, int]]:
    result = enhance(SCORES, LABELS_IN, read_ontology(ontology_path, CLASSES), types, "mean")
    assert (result.labels | LABELS_IN == result.labels).all()  # nothing is taken away
    return [(int(clip), int(position)) for clip, position in np.argwhere(result.labels & ~LABELS_IN)]


def test_type_1_adds_direct_children_above_their_threshold(ontology_path: Path) -> None:
    assert added([1], ontology_path) == [(1, PUPPY)]


def test_type_2_adds_every_ancestor_above_its_threshold(ontology_path: Path) -> None:
    assert added([2], ontology_path) == [(2, ANIMAL), (3, ANIMAL), (3, DOG)]


def test_both_types_add_the_union_whatever_their_order(ontology_path: Path) -> None:
    expected = sorted([(1, PUPPY), (2, ANIMAL), (3, ANIMAL), (3, DOG)])
    assert added([1, 2], ontology_path) == added([2, 1], ontology_path) == expected


def test_blocks_of_rows_change_nothing(ontology_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = added([1, 2], ontology_path)
    monkeypatch.setattr("pipeline.evaluation.enhancement._ROWS", 2)
    assert added([1, 2], ontology_path) == whole


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [("mean", 0.5), ("median", 0.4), ("percentile_25", 0.2), ("percentile_10", 0.08), ("percentile_5", 0.04)],
)
def test_thresholds_are_over_clips_that_have_the_label(threshold: Any, expected: float) -> None:
    scores = np.array([[0.0], [0.2], [0.4], [0.9], [1.0], [0.77]], dtype=np.float32)
    labels = np.array([[1], [1], [1], [1], [1], [0]], dtype=bool)
    assert class_thresholds(scores, labels, threshold)[0] == pytest.approx(expected)
    assert np.isnan(class_thresholds(scores, labels & False, threshold)[0])


# the stage, and what is made of its table

INNER_FOLDS = ("official-1", "official-2")
SPLIT_PARAMS = SplitParams(num_folds=2, validation_fraction=0.0, seed=0, near_duplicates="report")
EXPERIMENT = ExperimentParams(
    frame_models=["ast", "cnn"],
    token_models=[],
    pretrained_models=[],
    supervised_vocabularies=[],
    learned_vocabularies=[],
    vocabularies=[],
    folds=list(INNER_FOLDS),
    seeds=[0, 1],
    ensembles=[],
)


def make_corpus(root: Path) -> TableParams:
    """Write 12 files: 8 for training and 4 for testing, where only files with the same number share a class."""
    root.mkdir()
    rows = ["file,labels,role"]
    names = [["animal"], ["dog"], ["puppy"], ["rain"], ["owl", "animal"]]
    for number in range(15):
        (root / f"{number:02d}.wav").write_bytes(bytes([number]))
        rows.append(f"{number:02d}.wav,{'+'.join(names[number % 5])},{'test' if number >= 10 else 'train'}")
    (root / "clips.csv").write_text("\n".join(rows) + "\n")
    values = {
        "kind": "table",
        "root": str(root),
        "max_bad_fraction": 0.0,
        "max_duration": 10.0,
        "table": str(root / "clips.csv"),
        "path_column": "file",
        "labels_column": "labels",
        "label_separator": "+",
        "label_kind": "many",
        "classes": CLASSES,
        "fold_column": "role",
        "group_column": None,
        "start_column": None,
        "duration_column": None,
        "licence": "",
    }
    return validate_params(TableParams, values, "corpus")


@pytest.fixture
def workspace(tmp_path: Path, ontology_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder in which two models with two seeds have scored the training clips, each of which sounds of all."""
    monkeypatch.chdir(tmp_path)
    refresh(tmp_path, make_corpus(tmp_path / "corpus"))
    clips = open_clips(tmp_path / "data/clips.parquet")
    nothing = make_duplicates(tmp_path / "data/duplicates.parquet")
    for name in INNER_FOLDS:
        split_stage.run(SPLIT_PARAMS, clips.path, nothing, tmp_path / f"data/splits/{name}.parquet", name)
        tested = clips_of(open_split(tmp_path / f"data/splits/{name}.parquet"), "test")
        for model in ("ast", "cnn"):
            for seed in (0, 1):
                write_predictions(tmp_path / f"predictions/{model}/{name}/{seed}.parquet", clips, tested)
    return tmp_path


def refresh(folder: Path, corpus: TableParams) -> Refresh:
    return refresh_manifest(corpus, folder / "data/clips.parquet", folder / "content.sqlite")


def write_predictions(path: Path, clips: Table, tested: list[str], **metadata: Any) -> None:
    rows = dict(zip(clips.list("clip_id"), clips.list("labels"), strict=True))
    targets = np.array([[float(position in rows[clip]) for position in range(5)] for clip in tested])
    # Labelled clips score below the others, so that whatever the ontology calls for is added.
    columns = {"clip_id": tested, "role": ["test"] * len(tested), "logits": (1 - 2 * targets).tolist()}
    known = {"model": path.parts[-3], "fold": path.parts[-2], "seed": int(path.stem), "classes": CLASSES}
    known |= {"label_kind": "many", "weights": f"weights of {path.parent}"} | OF_A_MODEL
    PREDICTIONS.write(path, columns | {"targets": targets.tolist()}, known | metadata)


def params(folder: Path, **changes: Any) -> LabelParams:
    values = {"use": "", "enhance": ["official"], "models": ["ast", "cnn"], "types": [1, 2], "threshold": "mean"}
    return validate_params(LabelParams, values | {"ontology": str(folder / "ontology.csv")} | changes, "labels")


def run_stage(folder: Path, experiment: ExperimentParams = EXPERIMENT) -> Table:
    enhance_stage.run(params(folder), experiment, Layout(folder), "official")
    return open_labels(folder / "data/labels/official.parquet")


def test_parts_of_a_fold_score_each_training_clip_once_and_no_test_clip(workspace: Path) -> None:
    clips = open_clips(workspace / "data/clips.parquet")
    whole = dict(zip(clips.list("clip_id"), assign_roles(clips, "official", SPLIT_PARAMS), strict=True))
    roles = [open_split(workspace / f"data/splits/{name}.parquet").list("role") for name in INNER_FOLDS]
    for clip, first, second in zip(clips.list("clip_id"), *roles, strict=True):
        expected = {"excluded"} if whole[clip] == "test" else {"train", "test"}
        assert {first, second} == expected, clip
    assert (
        open_split(workspace / "data/splits/official-1.parquet")
        .metadata["rule"]
        .endswith("inner fold 1 of 2, drawn from the training clips of fold official")
    )


def test_a_fold_that_is_neither_published_nor_a_part_is_named(workspace: Path) -> None:
    clips = open_clips(workspace / "data/clips.parquet")
    for fold in ("official-3", "official-0", "other-1"):
        with pytest.raises(CorpusError, match=rf"found {fold}; inner folds are called official-1 to official-2"):
            assign_roles(clips, fold, SPLIT_PARAMS)


def test_the_table_holds_every_training_clip_with_old_and_new_labels(workspace: Path) -> None:
    table = run_stage(workspace)
    assert table.list("clip_id") == [f"{number:02d}.wav" for number in range(10)]
    rows = list(zip(table.list("published"), table.list("labels"), strict=True))[:5]
    everything = [ANIMAL, DOG, PUPPY]
    assert rows == [
        ([ANIMAL], [ANIMAL, OWL]),
        ([DOG], everything),
        ([PUPPY], everything),
        ([RAIN], [RAIN]),
        ([ANIMAL, OWL], [ANIMAL, OWL]),
    ]
    per_class = table.metadata["per_class"]
    assert [(row["positives"], row["added_1"], row["added_2"]) for row in per_class] == [
        (4, 0, 4),
        (2, 0, 2),
        (2, 2, 0),
        (2, 0, 0),
        (2, 2, 0),
    ]
    assert per_class[0]["threshold"] == pytest.approx(1 / (1 + np.e))
    assert len(table.metadata["weights"]) == len(INNER_FOLDS) * 4


def test_the_same_predictions_give_the_same_bytes(workspace: Path) -> None:
    run_stage(workspace)
    first = (workspace / "data/labels/official.parquet").read_bytes()
    run_stage(workspace)
    assert (workspace / "data/labels/official.parquet").read_bytes() == first


def test_a_class_that_no_clip_has_is_named_and_never_added(workspace: Path, caplog: pytest.LogCaptureFixture) -> None:
    corpus = make_corpus(workspace / "ownerless")
    text = (workspace / "ownerless" / "clips.csv").read_text()
    (workspace / "ownerless" / "clips.csv").write_text(text.replace("owl+animal", "animal"))
    refresh(workspace, corpus)
    clips = open_clips(workspace / "data/clips.parquet")
    for path in (workspace / "predictions").rglob("*.parquet"):
        write_predictions(path, clips, open_predictions(path).list("clip_id"))
    caplog.set_level("INFO")
    table = run_stage(workspace)
    assert not any(OWL in labels for labels in table.list("labels"))
    assert table.metadata["per_class"][OWL]["threshold"] is None
    assert "1 classes have no clip, so no threshold and are never added: owl" in caplog.text
    assert "1 classes have no place in the ontology and are never added: rain" in caplog.text


def use(folder: Path) -> TrainingLabelTable:
    """Return the stage's table as `labels.use` makes it the training labels."""
    clips = open_clips(folder / "data/clips.parquet")
    return refresh_training_labels(
        folder / "data/labels/official.parquet", clips, folder / "data/training_labels.parquet"
    )


def test_training_clips_get_the_new_labels_and_test_clips_keep_theirs(workspace: Path) -> None:
    table, clips = run_stage(workspace), open_clips(workspace / "data/clips.parquet")
    roles = pa.chunked_array([assign_roles(clips, "official", SPLIT_PARAMS)])
    columns = target_columns(clips.columns, roles, use(workspace).columns)
    assert columns["labels"].to_pylist()[:10] == table.list("labels")
    assert columns["labels"].to_pylist()[10:] == clips.list("labels")[10:]


def test_enhanced_labels_serve_no_other_fold(workspace: Path) -> None:
    run_stage(workspace)
    require_fold(use(workspace), "official")
    with pytest.raises(
        CorpusError, match=r"found those of official\.parquet, .* set experiment\.folds to \[official\]"
    ):
        require_fold(use(workspace), "official-1")


def test_labels_of_clips_that_were_published_otherwise_since_are_refused(workspace: Path) -> None:
    run_stage(workspace)
    corpus = make_corpus(workspace / "again")
    table = workspace / "again" / "clips.csv"
    table.write_text(table.read_text().replace("03.wav,rain", "03.wav,rain+dog"))
    refresh(workspace, corpus)
    with pytest.raises(CorpusError, match=r"whose published labels have changed since \(1\): 03\.wav"):
        use(workspace)


def trained_on(folder: Path) -> None:
    path = folder / "predictions/cnn/official-1/1.parquet"
    clips, tested = open_clips(folder / "data/clips.parquet"), open_predictions(path).list("clip_id")
    other = next(clip for clip in clips.list("clip_id")[:10] if clip not in tested)
    for path in (folder / "predictions").glob("*/official-1/*.parquet"):
        write_predictions(path, clips, [*tested, other])


def other_clips(folder: Path) -> None:
    path = folder / "predictions/cnn/official-1/1.parquet"
    write_predictions(path, open_clips(folder / "data/clips.parquet"), open_predictions(path).list("clip_id")[1:])


def clips_tested_twice(folder: Path) -> None:
    split = open_split(folder / "data/splits/official-1.parquet")
    columns = {"clip_id": split.list("clip_id"), "role": ["test"] * 10 + ["excluded"] * 5}
    SPLIT.write(split.path, columns, split.metadata)


def clip_of_the_test_set(folder: Path) -> None:
    split = open_split(folder / "data/splits/official-1.parquet")
    SPLIT.write(
        split.path, {"clip_id": split.list("clip_id"), "role": [*split.list("role")[:14], "test"]}, split.metadata
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (trained_on, r"ast/official-1/0\.parquet: clip .*: expected one that the inner fold tests"),
        (other_clips, r"cnn/official-1/1\.parquet: clip_id: expected the \d clips of .*ast/official-1/0"),
        (clips_tested_twice, r"training clips that several inner folds test \(\d\)"),
        (clip_of_the_test_set, r"clips that one inner fold excludes and another uses \(1\): 14\.wav"),
    ],
)
def test_scores_that_are_not_out_of_fold_are_refused(
    workspace: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(workspace)
    with pytest.raises((ArtifactError, CorpusError), match=message):
        run_stage(workspace)


def test_a_part_that_is_missing_is_named(workspace: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"official-1 of fold official: training clips that no inner fold tests .* \(\d\)"
    ):
        run_stage(workspace, EXPERIMENT.model_copy(update={"folds": ["official-1"]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["vgg"]}, r"labels\.models: expected models of the experiment \(ast, cnn\), found vgg"),
        (
            {"enhance": ["1"]},
            r"expected in experiment\.folds all inner folds of fold 1, 1-1, 1-2 .* found none of 1-1, 1-2",
        ),
    ],
)
def test_params_that_do_not_fit_the_experiment_are_named(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params(tmp_path, **changes).check_against(EXPERIMENT, 2)
    params(tmp_path).check_against(EXPERIMENT, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use": "x.parquet"}, "use and enhance: expected one of them"),
        ({"types": [3]}, r"labels\.types\.0"),
        ({"types": []}, r"labels\.types"),
        ({"threshold": "p25"}, r"labels\.threshold"),
    ],
)
def test_wrong_params_are_named(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params(tmp_path, **changes)


def test_a_label_outside_the_class_list_is_refused(workspace: Path) -> None:
    table = run_stage(workspace)
    columns = {name: table.list(name) for name in table.columns.column_names}
    LABELS.write(table.path, columns | {"labels": [[9]] * len(table)}, table.metadata)
    with pytest.raises(ArtifactError, match="labels: expected below 5, found 9"):
        open_labels(table.path)


# JSON of AST's and PSLA's programs, and label errors


def test_enhanced_labels_are_written_as_json_and_read_again(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, clips = run_stage(workspace), open_clips(workspace / "data/clips.parquet")
    path = workspace / "enhanced.json"
    write_label_json(path, clips, workspace / "corpus", table.list("clip_id"), table.list("labels"))
    first = json.loads(path.read_text())["data"][1]
    assert first == {"wav": str(workspace / "corpus/01.wav"), "labels": "animal,dog,puppy"}
    read = refresh_training_labels(path, clips, workspace / "data/training_labels.parquet")
    assert read.list("clip_id") == table.list("clip_id")
    assert read.list("labels") == table.list("labels")


def test_labels_in_json_are_ids_where_the_corpus_has_ids(workspace: Path) -> None:
    clips = open_clips(workspace / "data/clips.parquet")
    metadata: ClipsMetadata = {**clips.metadata, "class_ids": [f"/m/{name}" for name in CLASSES]}
    CLIPS.write(clips.path, clips.columns, metadata)
    clips = open_clips(clips.path)
    path = workspace / "theirs.json"
    entries = [{"wav": "/theirs/00.flac", "labels": "/m/owl, /m/dog"}, {"wav": "/theirs/gone.flac", "labels": "/m/owl"}]
    path.write_text(json.dumps({"data": entries}))
    read = refresh_training_labels(path, clips, workspace / "data/training_labels.parquet")
    assert (read.list("clip_id"), read.list("labels")) == (["00.wav"], [[DOG, OWL]])
    wrong = {
        r"labels that are none of /m/animal, .* 'owl' \(of 1 clips\)": [{"wav": "00.wav", "labels": "owl"}],
        r"clips listed twice \(1\): 00": [{"wav": "00.wav", "labels": "/m/owl"}] * 2,
        r"by the names of their files, found none of them": [{"wav": "x.wav", "labels": "/m/owl"}],
        r"never trained on.*row 1: 12\.wav \(test\)": [{"wav": "12.wav", "labels": "/m/owl"}],
    }
    for message, entries in wrong.items():
        path.write_text(json.dumps({"data": entries}))
        with pytest.raises(CorpusError, match=message):
            refresh_training_labels(path, clips, workspace / "data/training_labels.parquet")


def test_label_errors_are_counted_by_hand(ontology_path: Path) -> None:
    ontology = read_ontology(ontology_path, CLASSES)
    missing = missing_parents(LABELS_IN, ontology)
    assert {(CLASSES[a], CLASSES[b]): int(missing[a, b]) for a, b in np.argwhere(missing)} == {("dog", "puppy"): 2}
    after = LABELS_IN.copy()
    after[3, DOG] = True
    assert label_errors(CLASSES, LABELS_IN, after, ontology) == [LabelErrors("dog", (2, 3), (2, 2), (2, 1))]


def test_errors_of_speech_in_the_balanced_set_are_those_that_psla_counts() -> None:
    """Kinds of speech that are not labelled as speech, in the published table of segments."""
    path = REPOSITORY.parent / "shared" / "metadata" / "audioset" / "balanced_train_segments.csv"
    if not path.is_file():
        pytest.skip("needs AudioSet's table of segments")
    names, ids = class_table("audioset")
    segments = [set(labels) for labels in read_segments(path)["labels"].to_pylist()]
    labels = np.array([[id_ in own for id_ in ids] for own in segments])
    missing = missing_parents(labels, read_ontology(REPOSITORY / "metadata/audioset/ontology.json", names, ids))
    for kind in ("/m/05zppz", "/m/02zsn", "/m/0ytgt"):
        expected = sum(kind in own and "/m/09x0r" not in own for own in segments)
        assert missing[ids.index("/m/09x0r"), ids.index(kind)] == expected


def test_the_tool_prints_errors_and_writes_json(
    workspace: Path, ontology_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_stage(workspace)
    sections = {"labels": params(workspace), "corpus": make_corpus(workspace / "again")}
    monkeypatch.setattr(enhanced_labels, "load_experiment", lambda: SimpleNamespace(sections=sections))
    enhanced_labels.main("official", Path("out.json"))
    assert re.search(r"dog\s.*2 > 4.*2 > 4.*2 > 0", capsys.readouterr().out)
    assert len(json.loads(Path("out.json").read_text())["data"]) == 10
