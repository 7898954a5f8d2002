"""`sonolex neighbours`: the sounds that are most alike to a clip, from a file of embeddings.

    sonolex neighbours dog.wav vectors.parquet --model my-model

A clip that is in the file needs no model; neither do texture statistics.
"""

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.errors import SonolexError
from pipeline.inference.embedding import TEXTURES, open_embedder_of
from pipeline.inference.embedding_tables import Embeddings, open_embeddings
from pipeline.inference.file_embedding import embed_files
from pipeline.inference.neighbours import Neighbour, nearest, require_same_source, rows_of
from pipeline.inference.prediction import Failure


def run(
    clip: Path,
    path: Path,
    *,
    model: Path | None = None,
    layer: str | None = None,
    classes: Path | None = None,
    top: int = 5,
    raw: bool = False,
    console: Console,
) -> None:
    """Print the nearest rows. Raises SonolexError for a clip or a file that cannot be used, or that do not fit together."""
    embeddings = open_embeddings(path)
    if not embeddings.files:
        raise SonolexError(f"{path}: expected at least one embedding, found none: no file could be used")
    query = _vector(clip, path, embeddings, model, layer, classes)
    found = nearest(embeddings, query, top, leave_out=str(clip), raw=raw)
    if not found:
        raise SonolexError(f"{path}: expected embeddings of other files than {clip}, found none; embed more files")
    console.print(_table(found))


def _vector(
    clip: Path, path: Path, embeddings: Embeddings, model: Path | None, layer: str | None, classes: Path | None
) -> np.ndarray:
    """Return the clip's vector (dim,): that of the file, or a new one by the model that made it."""
    card, rows = embeddings.card, sorted(rows_of(embeddings, str(clip)))
    textures = card["layer"] == TEXTURES
    if model is None and layer is None and len(rows) == 1:
        return np.asarray(embeddings.vectors[rows[0]])
    if model is None and not textures:
        raise SonolexError(
            f"{path}: expected --model beside a clip without a row of its own, found none; name {card['model']}"
        )
    embedder = open_embedder_of(None if textures and layer is None else model, layer or card["layer"], classes)
    require_same_source(embeddings, path, embedder)
    (found,) = embed_files(embedder, [clip], threads=1)
    if isinstance(found, Failure):
        raise SonolexError(f"{found.reason}: {found.message}")
    return found.parts[0].vector


def _table(found: list[Neighbour]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("distance", "file", "seconds", "label"):
        table.add_column(name, justify="right" if name == "distance" else "left", overflow="fold")
    for row in found:
        table.add_row(f"{row.distance:.3f}", escape(row.file), f"{row.start:.2f} to {row.end:.2f}", escape(row.label))
    return table
