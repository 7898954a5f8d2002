"""UrbanSound8K adapter: city sounds of at most 4 s in ten published folds (Salamon, Jacoby and Bello, 2014).

<root>/audio/fold1/*.wav ... fold10/     named by the table
<root>/metadata/UrbanSound8K.csv         slice_file_name, fsID, start, end, salience, fold, classID, class

Clips cut from one Freesound recording share `fsID`, and lie in one fold.
"""

from pathlib import PurePosixPath
from typing import ClassVar, Literal

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, numbered_classes, read_rows
from pipeline.corpora.layouts import FolderContents, Recognised
from pipeline.params import PathBelow

LICENCE = "UrbanSound8K is CC BY-NC 3.0; the recordists are named in the corpus's own FREESOUNDCREDITS.txt"


class Params(AdapterParams):
    kind: Literal["urbansound8k"]
    table: PathBelow  # CSV below root, or absolute

    layout: ClassVar[str] = "audio/fold1 to fold10 with the clips, and the CSV named by corpus.table"
    published_folds: ClassVar[tuple[str, ...]] = tuple(str(fold) for fold in range(1, 11))


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with UrbanSound8K's table."""
    table = "metadata/UrbanSound8K.csv"
    return Recognised("urbansound8k", f"it has {table}") if contents.has(table) else None


def list_clips(params: Params) -> CorpusListing:
    """List the clips of the table; the classes are in the order of `classID`."""
    path = params.root / params.table
    rows = read_rows(path, ("slice_file_name", "fsID", "fold", "classID", "class"))
    clips = [
        ClipRow(
            clip_id=PurePosixPath(row["slice_file_name"]).stem,
            source=f"audio/fold{row['fold']}/{row['slice_file_name']}",
            labels=(row["class"],),
            group=row["fsID"],
            fold=row["fold"],
        )
        for row in rows
    ]
    return CorpusListing(numbered_classes(path, rows, number="classID", name="class"), "one", LICENCE, clips)
