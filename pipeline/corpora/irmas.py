"""IRMAS adapter: excerpts of music with one predominant instrument to train on, several to test on (Bosch et al., 2012).

<root>/IRMAS-TrainingData/<code>/*.wav         3 s; the folder is the label, [tags] in names say drums and genre
<root>/IRMAS-TestingData-Part1/**/*.wav        5 to 20 s; a .txt beside each file has a code a line

The group of a clip is its song: the name without the number of the excerpt (`__2` in training, `-2` in test files).
"""

import re
from pathlib import PurePosixPath
from typing import ClassVar, Literal

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, read_class_table, read_text, reject
from pipeline.corpora.layouts import FolderContents, Recognised
from pipeline.corpora.walking import audio_files
from pipeline.params import FilePath

LICENCE = "IRMAS is CC BY-NC-SA 3.0 (Bosch, Janer, Fuhrmann and Herrera, 2012)"

_TRAINING, _TEST = re.compile(r"IRMAS-TrainingData$", re.IGNORECASE), re.compile(r"IRMAS-TestingData", re.IGNORECASE)


class Params(AdapterParams):
    kind: Literal["irmas"]
    class_table: FilePath  # index, code, display_name
    leave_out: list[str]  # training clips whose names have one of these tags: dru, nod, pop_roc, ...

    layout: ClassVar[str] = "IRMAS-TrainingData/ with a folder for each code, and IRMAS-TestingData-Part1/ and so on"
    published_folds: ClassVar[tuple[str, ...]] = ("train", "test")


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with IRMAS's training and test files; of the former alone, that of names with songs."""
    folders = sorted({path.parts[0] for path in contents.audio if len(path.parts) > 1})
    training = [name for name in folders if _TRAINING.match(name)]
    if not training:
        return None
    if any(map(_TEST.match, folders)):
        return Recognised("irmas", f"it has {', '.join(folders)}")
    pattern = f"{training[0]}/(?P<label>[^/]+)/(?P<group>.+)__[0-9]+"
    note = "the test files of IRMAS are not here: folds are drawn from the training files, and classes are its codes"
    return Recognised("pattern", f"it has {training[0]}", {"pattern": pattern}, notes=(note,))


def list_clips(params: Params) -> CorpusListing:
    """List training and test files. Raises CorpusError for unknown codes, and for test files without a .txt."""
    names = read_class_table(params.class_table, "code")
    files = audio_files(params.root)
    training = [path for path in files.paths if _TRAINING.match(path.parts[0]) and len(path.parts) > 2]
    test = [path for path in files.paths if _TEST.match(path.parts[0])]
    codes = {path: {path.parts[1]} for path in training} | {path: _codes_beside(params, path) for path in test}
    reject(params.root, {
        "training folders, of which at least one is needed (IRMAS-TrainingData/<code>)": [] if training else ["none found"],
        f"codes that are not in {params.class_table.name}": sorted(
            f"{code!r} of {path}" for path, found in codes.items() for code in found - names.keys()
        ),
        "test files without a label in their .txt": [str(path) for path in test if not codes[path]],
    })  # fmt: skip
    kept = [path for path in training if not set(tags_of(path)) & set(params.leave_out)]
    files.left_out["tagged"] = len(training) - len(kept)
    clips = [_clip(path, "train", codes[path], names) for path in kept]
    clips += [_clip(path, "test", codes[path], names) for path in test]
    return CorpusListing(tuple(names.values()), "many", LICENCE, clips, left_out=files.left_out)


def tags_of(path: PurePosixPath) -> list[str]:
    """Return the tags of a training file's name, without its own code: `[cel][nod][cla]0058__1` in cel has nod and cla."""
    tags = re.findall(r"\[([^\[\]]*)\]", path.name)
    if path.parts[1] in tags:
        tags.remove(path.parts[1])
    return tags


def song_of(path: PurePosixPath) -> str:
    """Return the name of the song that a file was cut from."""
    return re.sub(r"(__|-)\d+$", "", path.stem)


def _clip(path: PurePosixPath, role: str, codes: set[str], names: dict[str, str]) -> ClipRow:
    labels = tuple(name for code, name in names.items() if code in codes)
    return ClipRow(str(path), str(path), labels, group=f"{role}/{song_of(path)}", fold=role)


def _codes_beside(params: Params, path: PurePosixPath) -> set[str]:
    """Return the codes in the .txt beside a test file: a line each, with tabs, spaces and empty lines as they come."""
    text = read_text(params.root / path.with_suffix(".txt"), f"the labels of {path.name}, a code a line")
    return set(text.split())
