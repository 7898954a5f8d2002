"""The development set of a fold: nothing of test clips is in it, to the byte, and all that a fold learns from is."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_clips, make_spectrogram

from pipeline.artifacts.clips import CLIPS
from pipeline.artifacts.development import TARGETS, open_development, open_targets, require_frames
from pipeline.artifacts.spectrogram import INDEX
from pipeline.artifacts.splits import SPLIT
from pipeline.artifacts.tokens import TOKENS, open_tokens, token_arrays
from pipeline.errors import ArtifactError, CorpusError
from pipeline.training.inputs import FrameInputs, TokenInputs, open_spectrogram
from pipeline.vocabulary import sequences
from stages import development

ROLES = {"b": "train", "d": "validation", "f": "test", "h": "train", "j": "excluded", "lost": "train"}
SETTINGS = {"split": {"seed": 0}}


def collect(
    folder: Path, roles: dict[str, str], *, frames: dict[str, float] | None = None, labels: dict[str, int] | None = None
) -> SimpleNamespace:
    """Run the stage on clips with these roles, of constant frames and class 0 unless told; return the paths and bytes."""
    values = {
        clip: np.full((3, 2), (frames or {}).get(clip, ord(clip[0])), np.float32) for clip in roles if clip != "lost"
    }
    spectrogram = make_spectrogram(folder / "spectrogram", values, failed=["lost"])
    targets = [[(labels or {}).get(clip, 0)] for clip in roles]
    clips = make_clips(folder / "clips.parquet", folder, [f"{clip}.wav" for clip in roles], labels=targets)
    columns = {"clip_id": list(roles), "role": list(roles.values())}
    SPLIT.write(folder / "split.parquet", columns, {"fold": "1", "seed": 0, "rule": "by hand", "settings": SETTINGS})
    index, paths = spectrogram / "index.parquet", (folder / "development.parquet", folder / "targets.parquet")
    development.run(clips, folder / "split.parquet", index, *paths)
    return SimpleNamespace(
        index=index, clips=clips, development=paths[0], targets=paths[1], bytes=[path.read_bytes() for path in paths]
    )


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the stage report goes there


def with_clip(clip: str, role: str) -> dict[str, str]:
    return dict(sorted((ROLES | {clip: role}).items()))


def test_it_holds_the_training_and_validation_clips_that_have_frames(tmp_path: Path) -> None:
    made = collect(tmp_path, ROLES, labels={"h": 1, "f": 1})
    opened = open_development(made.development, fold="1")
    assert opened.list("clip_id") == ["b", "d", "h"]
    assert opened.list("role") == ["train", "validation", "train"]
    assert opened.list("key") == ["key of b", "key of d", "key of h"]
    assert opened.list("sum") == [6 * ord(clip) for clip in "bdh"]
    assert opened.metadata["front_end"] == INDEX.open(made.index).metadata["front_end"]
    assert opened.metadata["settings"] == SETTINGS
    targets = open_targets(made.targets, opened)
    assert targets.list("labels") == [[0], [0], [1]]
    assert targets.metadata["classes"] == ["class 0", "class 1"]


def test_a_class_whose_training_clips_all_failed_is_named_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        CorpusError, match=r"fold 1: classes whose training clips all failed .* \(1\): class 1 \(1 missing\)"
    ):
        collect(tmp_path, ROLES, labels={"lost": 1, "f": 1})


@pytest.mark.parametrize("clip", ["a", "e", "z"])
@pytest.mark.parametrize("role", ["test", "excluded"])
def test_other_clips_change_no_byte(tmp_path: Path, clip: str, role: str) -> None:
    before = collect(tmp_path / "before", ROLES)
    after = collect(tmp_path / "after", with_clip(clip, role), frames={"f": 99.0})
    assert after.bytes == before.bytes


@pytest.mark.parametrize(
    ("change", "development_changes", "targets_change"),
    [
        (lambda folder: collect(folder, with_clip("e", "train")), True, True),
        (lambda folder: collect(folder, ROLES | {"d": "train"}), True, False),
        (lambda folder: collect(folder, ROLES, frames={"d": 1.0}), True, False),
        (lambda folder: collect(folder, ROLES, labels={"b": 1}), False, True),
        (lambda folder: collect(folder, ROLES, labels={"f": 1}), False, True),  # one class more
    ],
    ids=["clip", "role", "frames", "label", "classes"],
)
def test_what_is_learned_from_shows(
    tmp_path: Path, change: Callable[[Path], Any], development_changes: bool, targets_change: bool
) -> None:
    before, after = collect(tmp_path / "before", ROLES), change(tmp_path / "after")
    changed = [one != other for one, other in zip(before.bytes, after.bytes, strict=True)]
    assert changed == [development_changes, targets_change]


def test_frames_other_than_those_it_was_written_for_are_refused(tmp_path: Path) -> None:
    own = open_development(collect(tmp_path / "own", ROLES).development, fold="1")
    same = collect(tmp_path / "same", with_clip("a", "test"), frames={"f": 99.0})
    require_frames(own, INDEX.open(same.index))
    other = collect(tmp_path / "other", ROLES, frames={"d": 1.0})
    with pytest.raises(
        ArtifactError, match=r"development\.parquet: frames of clip d: expected as in .*index\.parquet, found"
    ):
        FrameInputs(open_spectrogram(other.index.parent)).require_development(own)
    index = INDEX.open(same.index)
    INDEX.write(same.index, index.columns, index.metadata | {"version": "newer"})
    with pytest.raises(ArtifactError, match="metadata version: expected as in"):
        require_frames(own, INDEX.open(same.index))
    fewer = collect(tmp_path / "fewer", {clip: role for clip, role in ROLES.items() if clip != "d"})
    with pytest.raises(ArtifactError, match=r"index\.parquet: clip d: expected a row, found none"):
        require_frames(own, INDEX.open(fewer.index))


def test_tables_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    made = collect(tmp_path / "made", ROLES)
    own = open_development(made.development, fold="1")
    with pytest.raises(ArtifactError, match="metadata fold: expected 2, found 1"):
        open_development(made.development, fold="2")
    other = collect(tmp_path / "other", with_clip("e", "train"))
    with pytest.raises(ArtifactError, match=r"targets\.parquet: clip_id: expected the clips of .*, found other clips"):
        open_targets(other.targets, own)
    targets = open_targets(made.targets, own)
    TARGETS.write(made.targets, targets.columns.set_column(1, "labels", [[[0], [7], [0]]]), targets.metadata)
    with pytest.raises(ArtifactError, match="labels: expected below 1, found 7"):
        open_targets(made.targets, own)
    made = collect(tmp_path / "fewer", ROLES)
    clips = CLIPS.open(made.clips)
    CLIPS.write(made.clips, clips.columns.slice(1), clips.metadata)
    with pytest.raises(ArtifactError, match=r"clips\.parquet: clip b: expected a row, found none"):
        development.run(made.clips, tmp_path / "fewer/split.parquet", made.index, made.development, made.targets)


def write_tokens(path: Path, clips: str, *, parts: int) -> Path:
    """Write the token sequences of clips, in tables of so many clips as shards have."""
    metadata = {"fold": "1", "vocabulary": "v", "vocabulary_size": 300, "num_codebooks": 1, "frame_rate": 100.0}
    tables = [
        TOKENS.arrow.empty_table().from_pylist(
            [{"clip_id": clip, "tokens": [[ord(clip)] * 3]} for clip in clips[start : start + parts]], TOKENS.arrow
        )
        for start in range(0, len(clips), parts)
    ]
    TOKENS.write_parts(path, tables, metadata)
    return path


@pytest.mark.parametrize("group", [1, 2, 3, 4096])
def test_selected_sequences_are_the_same_file_whatever_shards_they_come_from(
    tmp_path: Path, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "_ROWS_PER_GROUP", group)
    chosen = open_development(collect(tmp_path / "made", ROLES).development, fold="1")["clip_id"]
    files = []
    for clips, parts in (("bdfh", 2), ("abcdefghij", 3), ("bdh", 1)):
        tokens, path = (
            write_tokens(tmp_path / f"{clips}.parquet", clips, parts=parts),
            tmp_path / f"{clips}-own.parquet",
        )
        sequences.select_sequences(tokens, chosen, path)
        assert {clip: array.tolist() for clip, array in token_arrays(open_tokens(path)).items()} == {
            clip: [[ord(clip)] * 3] for clip in "bdh"
        }
        files.append(path.read_bytes())
    assert len(set(files)) == 1


def test_missing_sequences_are_counted(tmp_path: Path) -> None:
    own = open_development(collect(tmp_path / "made", ROLES).development, fold="1")
    front_end: Any = own.metadata["front_end"]
    TokenInputs(write_tokens(tmp_path / "all.parquet", "bdh", parts=3), front_end, []).require_development(own)
    few = TokenInputs(write_tokens(tmp_path / "few.parquet", "bf", parts=3), front_end, [])
    with pytest.raises(ArtifactError, match=r"few\.parquet: clips: expected all 3 of .*, found 2 missing"):
        few.require_development(own)
