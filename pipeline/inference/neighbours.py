"""Nearest neighbours among embeddings by cosine similarity, with FAISS's exact search."""

from typing import NamedTuple

import numpy as np

from pipeline.errors import SonolexError
from pipeline.inference.embedding import Embedder
from pipeline.inference.embedding_tables import Embeddings, standardised
from pipeline.inference.files import place_of


class Neighbour(NamedTuple):
    """A row of a file of embeddings, and how far it is from what was asked for."""

    file: str
    start: float  # seconds
    end: float  # seconds
    label: str
    distance: float  # 1 - cosine similarity: 0 = same direction, 1 = unrelated, 2 = opposite


def nearest(embeddings: Embeddings, query: np.ndarray, count: int, *, leave_out: str, raw: bool) -> list[Neighbour]:
    """Return the rows nearest to a vector (dim,), the nearest first, those of the file `leave_out` left out.

    Unless `raw`, every dimension is standardised over the rows first, so that no dimension outweighs the others by its unit.
    """
    import faiss

    stacked = np.concatenate([embeddings.vectors, query[None]]).astype(np.float32)
    if not raw:
        stacked = standardised(stacked, by=embeddings.vectors)
    stacked = np.ascontiguousarray(stacked / np.maximum(np.linalg.norm(stacked, axis=1, keepdims=True), 1e-12))
    rows = rows_of(embeddings, leave_out)
    index = faiss.IndexFlatIP(stacked.shape[1])
    index.add(stacked[:-1])
    similarities, found = index.search(stacked[-1:], min(count + len(rows), len(stacked) - 1))
    pairs = zip(found[0].tolist(), similarities[0].tolist(), strict=True)
    kept = [(row, 1 - similarity) for row, similarity in pairs if row not in rows]
    return [_neighbour(embeddings, row, distance) for row, distance in kept[:count]]


def rows_of(embeddings: Embeddings, file: str) -> set[int]:
    """Return the rows of a file, by its absolute path."""
    place = place_of(file)
    return {row for row, name in enumerate(embeddings.files) if place_of(name) == place}


def require_same_source(embeddings: Embeddings, where: object, embedder: Embedder) -> None:
    """Raise SonolexError unless an embedder is the one that made the embeddings."""
    card = embeddings.card
    made_by = card["model"] or "texture statistics"
    if embedder.layer != card["layer"]:
        raise SonolexError(
            f"{where}: expected embeddings of layer {embedder.layer}, found layer {card['layer']}; leave out --layer, or "
            "embed the files again"
        )
    if embedder.digest != card["digest"]:
        raise SonolexError(
            f"{where}: expected embeddings by this model, found those by another, {made_by}; name that model, or embed the "
            "files again by this one"
        )


def _neighbour(embeddings: Embeddings, row: int, distance: float) -> Neighbour:
    start, end = float(embeddings.starts[row]), float(embeddings.ends[row])
    return Neighbour(embeddings.files[row], start, end, embeddings.labels[row], distance)
