"""Speech Commands adapter: words of 1 s, 35 of them in version 2, in published splits by speaker (Warden, 2018).

<root>/<word>/<speaker>_nohash_<take>.wav
<root>/validation_list.txt, testing_list.txt    paths below root, a line each; all other files are for training

The group of a clip is its speaker. `_background_noise_` holds noise to mix in, and no clips.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, read_text, reject
from pipeline.corpora.layouts import FolderContents, Recognised
from pipeline.corpora.spelling import found_classes
from pipeline.corpora.walking import audio_files, report_left_out

LICENCE = "Speech Commands is CC BY 4.0 (Warden, 2018)"

_LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
_NOISE = "_background_noise_"


class Params(AdapterParams):
    kind: Literal["speech_commands"]

    layout: ClassVar[str] = "a folder of WAV files for each word, validation_list.txt and testing_list.txt"
    published_folds: ClassVar[tuple[str, ...]] = ("train", "validation", "test")


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with both of Speech Commands' lists."""
    if not all(map(contents.has, _LISTS.values())):
        return None
    return Recognised("speech_commands", f"it has {' and '.join(_LISTS.values())}")


def list_clips(params: Params) -> CorpusListing:
    """List the files of all words, and files that the lists name and that are missing; the classes are sorted."""
    lists = {role: _read_list(params.root / name) for role, name in _LISTS.items()}
    both = sorted(lists["validation"] & lists["test"])
    reject(params.root, {f"files that {_LISTS['validation']} and {_LISTS['test']} both name": both})
    roles = {name: role for role, names in lists.items() for name in names}
    files = audio_files(params.root, (_NOISE,))
    stray = [path for path in files.paths if len(path.parts) != 2]
    report_left_out(params.root, "files that do not lie in <word>/", stray, "move them into a folder of their word")
    files.left_out["stray"] = len(stray)
    names = {str(path) for path in files.paths if len(path.parts) == 2} | roles.keys()
    clips = [_clip(name, roles.get(name, "train")) for name in sorted(names)]
    classes = found_classes(clip.labels for clip in clips)
    return CorpusListing(classes, "one", LICENCE, clips, left_out=files.left_out)


def _clip(name: str, role: str) -> ClipRow:
    word, _, file = name.partition("/")
    return ClipRow(name, name, (word,), group=file.partition("_nohash_")[0], fold=role)


def _read_list(path: Path) -> set[str]:
    """Return the files that a list names. Raises CorpusError where the list is missing, or names a file in no folder."""
    names = [line.strip() for line in read_text(path, "Speech Commands' list of files").splitlines() if line.strip()]
    reject(path, {"lines that are not WORD/FILE": [name for name in names if name.count("/") != 1]})
    return set(names)
