"""OpenMIC-2018 adapter: 20,000 excerpts of music of 10 s, each judged for some of 20 instruments (Humphrey et al., 2018).

<root>/audio/<first three characters>/<sample_key>.ogg
<root>/openmic-2018-aggregated-labels.csv        sample_key, instrument, relevance, num_responses
<root>/partitions/split01_train.csv, split01_test.csv    a sample_key a line

`relevance` is the share, weighted by trust, of listeners who heard the instrument. Instruments that nobody was asked about
are unknown: they count in neither loss nor metrics.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.corpora.base import AdapterParams, ClipRow, CorpusListing, read_rows, read_text, reject
from pipeline.corpora.layouts import FolderContents, Recognised
from pipeline.corpora.spelling import found_classes

LICENCE = "OpenMIC-2018 is CC BY 4.0 (Humphrey, Durand and McFee, 2018); the excerpts have the licences of the FMA"

_TABLE = "openmic-2018-aggregated-labels.csv"
_Share = Annotated[float, Field(ge=0, le=1)]


class Params(AdapterParams):
    kind: Literal["openmic2018"]
    positive: _Share  # relevance from which a clip has the instrument
    negative: _Share  # relevance below which it has not; from there to `positive` the label is unknown

    layout: ClassVar[str] = f"audio/, partitions/ and {_TABLE}"
    published_folds: ClassVar[tuple[str, ...]] = ("train", "test")

    @model_validator(mode="after")
    def _require_order(self) -> "Params":
        if self.negative > self.positive:
            raise ValueError(
                f"positive and negative: expected negative at most positive, found {self.negative} and {self.positive}"
            )
        return self


def recognise(contents: FolderContents) -> Recognised | None:
    """Return the layout of a folder with OpenMIC's table of labels."""
    return Recognised("openmic2018", f"it has {_TABLE}") if contents.has(_TABLE) else None


def list_clips(params: Params) -> CorpusListing:
    """List the clips of the table; the classes are its instruments, sorted."""
    path = params.root / _TABLE
    judged: dict[str, dict[str, float]] = {}  # sample_key -> instrument -> relevance
    wrong: list[str] = []
    for row in read_rows(path, ("sample_key", "instrument", "relevance")):
        try:
            judged.setdefault(row["sample_key"], {})[row["instrument"]] = float(row["relevance"])
        except ValueError:
            wrong.append(f"{row['sample_key']} ({row['relevance']!r})")
    roles = _roles(params.root / "partitions")
    unplaced = [key for key in judged if key not in roles]
    reject(path, {"not a relevance from 0 to 1": wrong, "clips that no file in partitions/ names": unplaced})
    classes = found_classes(judged.values())
    clips = [_clip(params, key, relevances, roles[key], classes) for key, relevances in sorted(judged.items())]
    return CorpusListing(classes, "many", LICENCE, clips)


def _clip(params: Params, key: str, relevances: dict[str, float], role: str, classes: tuple[str, ...]) -> ClipRow:
    present = tuple(name for name, relevance in relevances.items() if relevance >= params.positive)
    absent = {name for name, relevance in relevances.items() if relevance < params.negative}
    unknown = tuple(name for name in classes if name not in absent and name not in present)
    return ClipRow(key, f"audio/{key[:3]}/{key}.ogg", present, fold=role, unknown=unknown)


def _roles(folder: Path) -> dict[str, str]:
    """Return the role of each sample_key. Raises CorpusError for keys in both lists."""
    keys = {
        role: read_text(folder / f"split01_{role}.csv", "OpenMIC's list of clips").split() for role in ("train", "test")
    }
    reject(folder, {"clips in both lists": sorted(set(keys["train"]) & set(keys["test"]))})
    return {key: role for role, own in keys.items() for key in own}
