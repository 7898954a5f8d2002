"""Mixtures of another corpus's clips: what is in them, in which folds, and which files are written again."""

import itertools
import json
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY, make_waveform

from pipeline.artifacts.clips import open_clips
from pipeline.check_params import load_experiment
from pipeline.corpora import mixtures
from pipeline.corpora.manifest import refresh_manifest
from pipeline.corpora.mixture_audio import mix
from pipeline.corpora.mixture_drawing import Mixture, Source
from pipeline.corpora.registry import CorpusParams, list_corpus
from pipeline.corpora.splitting import SplitParams, assign_roles, count_training_clips, fold_names
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import validate_params
from tools.compose import compose, dump

LIMITS = {"max_bad_fraction": 0.01, "max_duration": 60.0}
SPLIT = SplitParams(num_folds=2, validation_fraction=0.0, seed=0, near_duplicates="report")
KINDS = ("tone", "noise", "clicks")


def write_source(root: Path, folds: str = "12", takes: int = 3) -> Path:
    """Write FOLD/CLASS/N.wav, of different lengths and contents."""
    for fold in folds:
        for number, kind in enumerate(KINDS):
            for take in range(takes):
                path = root / fold / kind / f"{take}.wav"
                path.parent.mkdir(parents=True, exist_ok=True)
                seed = 100 * int(fold) + 10 * number + take
                sound = make_waveform(kind, 0.2 + 0.05 * take, 8000, frequency=300.0 + seed, seed=seed)
                soundfile.write(path, sound + 0.01 * make_waveform("noise", 0.2 + 0.05 * take, 8000, seed=seed), 8000)
    return root


def params_of(
    root: Path, source: Path | dict[str, Any], levels: tuple[str, ...] = ("fold", "label"), **changed: Any
) -> Any:
    folder = {"kind": "folder", "root": str(source), "levels": list(levels), "ignore": [], "licence": "ours", **LIMITS}
    values = {
        "kind": "mixtures",
        "root": str(root),
        "source": source if isinstance(source, dict) else folder,
        "train_on": "mixtures",
        "validate_on": None,
        "test_on": "mixtures",
        "sounds": [2, 3],
        "per_fold": 6,
        "gain": 6.0,
        "num_folds": 2,
        "sample_rate": 8000,
        "seed": 0,
    }
    return validate_params(CorpusParams, values | LIMITS | changed, "corpus")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "source")


def test_a_mixture_has_the_labels_of_its_sounds_and_a_peak_below_1(source: Path, tmp_path: Path) -> None:
    listing = list_corpus(params_of(tmp_path / "m", source))
    rows = listing.table().to_pylist()
    assert listing.label_kind == "many"
    assert listing.classes == tuple(sorted(KINDS))
    assert len(rows) == 12
    assert {len(row["labels"]) for row in rows} == {2, 3}
    for row in rows:
        samples, rate = soundfile.read(tmp_path / "m" / row["source"])
        assert rate == 8000
        assert 0.899 < np.abs(samples).max() <= 0.9001
        assert row["group"] == f"fold {row['fold']}"
    counts = {kind: sum(kind in row["labels"] for row in rows if row["fold"] == "1") for kind in KINDS}
    assert min(counts.values()) >= 2  # classes take turns


def test_no_sound_is_in_two_folds(source: Path, tmp_path: Path) -> None:
    params = params_of(tmp_path / "m", source)
    sources = mixtures._sources(params, mixtures.SOURCES["folder"].list_clips(params.source))
    for fold in "12":
        own = [each for each in sources if each.fold == fold]
        for drawn in mixtures.draw_mixtures(own, fold, count=20, sounds=(2, 3), gain=6.0, seed=0):
            assert {each.path.parts[-3] for each in drawn.sources} == {fold}
            assert len({each.label for each in drawn.sources}) == len(drawn.sources)
            assert max(map(abs, drawn.gains)) <= 6


def test_a_mixture_is_the_sum_of_its_sounds_at_their_levels(tmp_path: Path) -> None:
    tone, noise = make_waveform("tone", 0.5, 8000), 0.1 * make_waveform("noise", 0.25, 8000)
    for name, sound in {"tone": tone, "noise": noise}.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, 8000, subtype="FLOAT")
    parts = tuple(Source(name, tmp_path / f"{name}.wav", "", 0.0, 0.0, name, "1") for name in ("tone", "noise"))
    mixed = mix(Mixture("m", "1", parts, (0.0, -6.0), (0.0, 1.0)), 8000, 60.0)
    expected = tone / np.sqrt((tone**2).mean())
    expected[2000:] += 10 ** (-6 / 20) * noise / np.sqrt((noise**2).mean())
    np.testing.assert_allclose(mixed, 0.9 * expected / np.abs(expected).max(), atol=1e-5)
    alone = mix(Mixture("s", "1", parts[:1], (0.0,), (0.0,)), 8000, 0.25)
    np.testing.assert_allclose(alone, tone[:2000], atol=1e-6)  # as it is, up to the longest duration


def test_files_are_written_once_and_again_for_other_settings_or_sources(source: Path, tmp_path: Path) -> None:
    root = tmp_path / "m"

    def written(**changed: Any) -> dict[str, int]:
        list_corpus(params_of(root, source, **changed))
        return {path.name: path.stat().st_mtime_ns for path in root.glob("*.flac")}

    own = root / "mine.flac"
    root.mkdir()
    own.write_bytes(b"mine")
    first = written()
    assert written() == first
    assert written(seed=1).keys() & first.keys() == {"mine.flac"}
    assert written().keys() == first.keys()
    soundfile.write(source / "1" / "tone" / "0.wav", make_waveform("tone", 0.3, 8000, frequency=77.0), 8000)
    assert 0 < len(written().keys() - first.keys()) < 6  # of the mixtures in fold 1
    assert own.read_bytes() == b"mine"


@pytest.mark.parametrize(("train_on", "test_on"), [("singles", "mixtures"), ("both", "mixtures"), ("mixtures", "both")])
def test_singles_and_mixtures_are_used_as_asked(train_on: str, test_on: str, source: Path, tmp_path: Path) -> None:
    params = params_of(tmp_path / "m", source, train_on=train_on, test_on=test_on)
    refresh_manifest(params, tmp_path / "clips.parquet", tmp_path / "content")
    clips = open_clips(tmp_path / "clips.parquet")
    assert fold_names(clips, SPLIT) == ["1", "2"]
    roles = assign_roles(clips, "1", SPLIT)
    kinds = ["mixtures" if clip.startswith("mixture-") else "singles" for clip in clips.list("clip_id")]
    for role, wanted, fold in (("train", train_on, "2"), ("test", test_on, "1")):
        used = {
            (kind, name[0]) for kind, name, own in zip(kinds, clips.list("fold"), roles, strict=True) if own == role
        }
        assert used == {(kind, fold) for kind in ("singles", "mixtures") if wanted in (kind, "both")}
    assert count_training_clips(clips["fold"], SPLIT, tmp_path) == roles.count("train")


@pytest.mark.parametrize(
    ("train_on", "validate_on", "test_on"),
    list(
        itertools.product(
            ("singles", "mixtures", "both"), (None, "singles", "mixtures", "both"), ("singles", "mixtures")
        )
    ),
)
def test_validation_clips_are_of_the_kind_that_is_asked_for(
    train_on: str, validate_on: str | None, test_on: str, tmp_path: Path
) -> None:
    source = write_source(tmp_path / "source", "123")
    uses = {"train_on": train_on, "validate_on": validate_on, "test_on": test_on}
    refresh_manifest(params_of(tmp_path / "m", source, **uses), tmp_path / "clips.parquet", tmp_path / "content")
    clips = open_clips(tmp_path / "clips.parquet")
    validating = SPLIT.model_copy(update={"validation_fraction": 0.4})
    assert fold_names(clips, validating) == ["1", "2", "3"]
    kinds = ["mixtures" if clip.startswith("mixture-") else "singles" for clip in clips.list("clip_id")]
    names = [name[0] for name in clips.list("fold")]
    for split, wanted in (
        (validating, {"train": train_on, "validation": validate_on or train_on, "test": test_on}),
        (SPLIT, {"train": train_on, "test": test_on}),
    ):
        roles = assign_roles(clips, "1", split)
        folds = {}
        for role, choice in wanted.items():
            used = {(kind, name) for kind, name, own in zip(kinds, names, roles, strict=True) if own == role}
            assert {kind for kind, _ in used} == {kind for kind in ("singles", "mixtures") if choice in (kind, "both")}
            folds[role] = {name for _, name in used}
        assert set(roles) <= {*wanted, "excluded"}
        assert sorted(itertools.chain(*folds.values())) == ["1", "2", "3"]  # no fold, and so no sound, has two roles
        assert folds["test"] == {"1"}
    assert count_training_clips(clips["fold"], SPLIT, tmp_path) == roles.count("train")


def test_what_validates_alone_is_neither_trained_on_nor_scored_by_inner_folds(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "123")
    params = params_of(tmp_path / "m", source, train_on="singles", validate_on="mixtures")
    refresh_manifest(params, tmp_path / "clips.parquet", tmp_path / "content")
    clips = open_clips(tmp_path / "clips.parquet")
    tested: list[str] = []
    for inner in ("1-1", "1-2"):
        roles = assign_roles(clips, inner, SPLIT)
        chosen = zip(clips.list("clip_id"), clips.list("fold"), roles, strict=True)
        used = {clip: (fold[0], role) for clip, fold, role in chosen if role != "excluded"}
        assert not any(clip.startswith("mixture-") or fold == "1" for clip, (fold, _) in used.items())
        tested += [clip for clip, (_, role) in used.items() if role == "test"]
    assert len(tested) == len(set(tested)) == len(used)


def test_folds_are_drawn_by_group_where_none_are_published_and_equal_files_stay_together(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", "1", takes=6) / "1"
    copy = source / "noise" / "copy.wav"
    copy.write_bytes((source / "tone" / "0.wav").read_bytes())
    params = params_of(tmp_path / "m", source, ("label",), train_on="both")
    rows = {row["clip_id"]: row for row in list_corpus(params).table().to_pylist()}
    folds = {name: rows[f"{name}"]["fold"] for name in ("noise/copy.wav", "tone/0.wav")}
    assert folds["noise/copy.wav"] == folds["tone/0.wav"]
    singles = [row for row in rows.values() if not row["clip_id"].startswith("mixture-")]
    assert {row["fold"] for row in singles} == {"1--train", "2--train"}


def test_faults_of_the_source_are_named(source: Path, tmp_path: Path) -> None:
    params = params_of(tmp_path / "m", source)
    first, second = source / "1" / "tone" / "0.wav", source / "2" / "tone" / "0.wav"
    kept = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(CorpusError, match="source clips whose file is in another fold too"):
        list_corpus(params)
    second.write_bytes(b"RIFF")
    with pytest.raises(CorpusError, match=r"0\.wav: expected a sound to mix"):
        list_corpus(params_of(tmp_path / "m", source, train_on="both"))
    second.write_bytes(kept)
    for kind in ("noise", "clicks"):
        (source / "2" / kind).rename(tmp_path / kind)
    with pytest.raises(CorpusError, match=r"folds with sounds of fewer than two classes \(1\): 2"):
        list_corpus(params)
    with pytest.raises(ParamsError, match="sounds: expected at least 2, and the least first"):
        params_of(tmp_path / "m", source, sounds=[3, 2])


def test_sources_with_several_labels_are_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("file,label\n1/tone/0.wav,tone|noise\n1/noise/0.wav,noise\n")
    table = {
        "kind": "table", "root": str(source), "table": str(tmp_path / "clips.csv"), "path_column": "file",
        "labels_column": "label", "label_separator": "|", "label_kind": "many", "classes": None, "fold_column": None,
        "group_column": None, "start_column": None, "duration_column": None, "licence": "ours", **LIMITS,
    }  # fmt: skip
    with pytest.raises(CorpusError, match=r"source clips without exactly one label.*1/tone/0\.wav"):
        list_corpus(params_of(tmp_path / "m", table))


def test_identity_and_settings_hold_no_place_of_this_machine(source: Path, tmp_path: Path) -> None:
    params = params_of(tmp_path / "m", source)
    assert str(tmp_path) not in params.identity() + json.dumps(params.settings())
    assert params.identity() != params_of(tmp_path / "m", source, gain=3.0).identity()
    assert "validate_on" not in params.identity()  # of before there was this setting
    assert params.identity() != params_of(tmp_path / "m", source, validate_on="singles").identity()
    assert json.loads(params.identity())["source"]["levels"] == ["fold", "label"]


def test_what_validates_is_named_where_nothing_does(tmp_path: Path) -> None:
    settings = ["corpus.source.root=sounds", "corpus.train_on=singles", "corpus.validate_on=mixtures"]
    for fraction, found in ((0.2, False), (0.0, True)):
        document, mistakes = compose(
            "instrument_mixtures",
            [*settings, f"split.validation_fraction={fraction}", "fit=false"],
            REPOSITORY / "recipes",
        )
        assert not mistakes
        (tmp_path / "params.yaml").write_text(dump(document))
        with pytest.raises(ParamsError) if found else nullcontext() as caught:
            load_experiment(tmp_path / "params.yaml")
        assert not found or re.search(
            r"corpus\.validate_on: expected null while split\.validation_fraction is 0, found mix", str(caught.value)
        )
