"""ESC-50 adapter, and of its subset ESC-10: environmental sounds of 5 s in five published folds (Piczak, 2015).

<root>/audio/*.wav, *.ogg    named by the table
<root>/meta/esc50.csv        filename, fold, target, category, esc10, src_file, take

Clips cut from one Freesound recording share `src_file`, and lie in one fold.
"""

from pathlib import PurePosixPath
from typing import ClassVar, Literal

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, numbered_classes, read_rows
from pipeline.corpora.layouts import FolderContents, Recognised
from pipeline.params import PathBelow

LICENCE = "ESC-50 is CC BY-NC 3.0, its subset ESC-10 is CC BY 3.0; the recordists are named in the corpus's own LICENSE"


class Params(AdapterParams):
    kind: Literal["esc50"]
    table: PathBelow  # CSV below root, meta/esc50.csv or meta/esc10.csv; or absolute

    layout: ClassVar[str] = "audio/ with the clips, and the CSV named by corpus.table"


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with ESC-50's table, or ESC-10's."""
    for table in ("meta/esc50.csv", "meta/esc10.csv"):
        if contents.has(table):
            return Recognised("esc50", f"it has {table}", {} if table == "meta/esc50.csv" else {"table": table})
    return None


def list_clips(params: Params) -> CorpusListing:
    """List the clips of the table; the classes are its categories in the order of their targets."""
    path = params.root / params.table
    rows = read_rows(path, ("filename", "fold", "target", "category", "src_file"))
    clips = [
        ClipRow(
            clip_id=PurePosixPath(row["filename"]).stem,
            source=f"audio/{row['filename']}",
            labels=(row["category"],),
            group=row["src_file"],
            fold=row["fold"],
        )
        for row in rows
    ]
    return CorpusListing(numbered_classes(path, rows, number="target", name="category"), "one", LICENCE, clips)
