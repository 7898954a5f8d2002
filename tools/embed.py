"""`sonolex embed`: vectors of sounds, by a layer of a trained model or by texture statistics, which need no training.

    sonolex embed my-model recordings/ --layer encoder.blocks.3 --out vectors.parquet
    sonolex embed --textures recordings/ --out vectors.npz --projector projector --picture vectors.png

Remarks go to standard error.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from pipeline.errors import SonolexError
from pipeline.execution.threads import divide_cores, usable_threads
from pipeline.inference.embedding import Embedder, open_embedder_of
from pipeline.inference.embedding_tables import (
    FORMAT,
    Embeddings,
    EmbeddingsCard,
    require_suffix,
    write_embeddings,
    write_projector,
)
from pipeline.inference.file_embedding import EmbeddedFile, embed_files
from pipeline.inference.files import PATH_COLUMNS, choose_column, find_files, place_of, read_table
from pipeline.inference.labels import LABEL_COLUMNS
from pipeline.inference.prediction import Failure
from pipeline.inference.windows import Windowing


@dataclass(frozen=True)
class Options:
    """Options of the command; see its help."""

    layer: str | None = None
    classes: Path | None = None
    frames: bool = False
    window: float | None = None
    hop: float | None = None
    out: Path | None = None
    projector: Path | None = None
    picture: Path | None = None
    labels: Path | None = None
    root: Path | None = None
    threads: int | None = None

    @property
    def rows(self) -> Literal["files", "windows", "frames"]:
        """What a row is of."""
        return "frames" if self.frames else "files" if self.window is None else "windows"


def run(model: Path | None, names: Sequence[str], options: Options, messages: Console) -> int:
    """Embed files, and return the exit status: 1 where a file could not be used, else 0.

    Without a model the embeddings are texture statistics. Raises SonolexError for options, a model or names that cannot be
    used, before anything is embedded.
    """
    _check(options)
    files = find_files(names, stdin=sys.stdin, root=options.root)
    labels = None if options.labels is None else _read_labels(options.labels, options.root)
    threads = options.threads or min(usable_threads(), max(1, len(files.paths)))
    divide_cores(threads)
    embedder = open_embedder_of(model, options.layer, options.classes)
    windowing = _windowing(options, embedder)
    if options.frames and embedder.hop is None:
        raise SonolexError(
            f"--frames: expected a layer along time, found {embedder.layer}; take another, such as encoder"
        )
    started = time.perf_counter()
    failures: list[Failure] = list(files.failures)
    embedded: list[EmbeddedFile] = []
    found = embed_files(embedder, files.paths, windowing=windowing, frames=options.frames, threads=threads)
    with _bar(len(files.paths), messages) as advance:
        for item in found:
            if isinstance(item, Failure):
                failures.append(item)
            else:
                embedded.append(item)
            advance()
    embeddings = _gather(_card(model, embedder, options), embedded, failures, labels)
    _write(embeddings, options)
    _print_summary(embeddings, len(embedded), time.perf_counter() - started, messages)
    return 1 if failures else 0


def _check(options: Options) -> None:
    """Raise SonolexError for options that contradict each other, or that write nothing."""
    if options.out is None and options.projector is None and options.picture is None:
        raise SonolexError("expected --out FILE.parquet or .npz, --projector FOLDER or --picture FILE.png, found none")
    if options.out is not None:
        require_suffix(options.out)
    if options.picture is not None and options.picture.suffix.lower() != ".png":
        raise SonolexError(f"--picture: expected a name that ends in .png, found {options.picture}")
    if options.projector is not None and options.projector.is_file():
        raise SonolexError(f"--projector: expected a folder, found the file {options.projector}; name another")
    if options.frames and options.window is not None:
        raise SonolexError("--frames, --window: expected one of them, found both; leave one out")
    if options.hop is not None and options.window is None:
        raise SonolexError("--hop: expected --window SECONDS beside it, found none")


def _windowing(options: Options, embedder: Embedder) -> Windowing | None:
    if options.window is None:
        return None
    return Windowing.of(options.window, options.hop, "mean", shortest=embedder.min_samples / embedder.sample_rate)


def _card(model: Path | None, embedder: Embedder, options: Options) -> EmbeddingsCard:
    return {
        "format": FORMAT,
        "model": "" if model is None else str(model),
        "digest": embedder.digest,
        "layer": embedder.layer,
        "dim": embedder.dim,
        "rows": options.rows,
    }


def _gather(
    card: EmbeddingsCard,
    embedded: Sequence[EmbeddedFile],
    failures: list[Failure],
    labels: Mapping[Path, str] | None,
) -> Embeddings:
    rows = [(file.source, part) for file in embedded for part in file.parts]
    return Embeddings(
        card=card,
        files=[source for source, _ in rows],
        starts=np.array([part.start for _, part in rows], dtype=np.float64),
        ends=np.array([part.end for _, part in rows], dtype=np.float64),
        labels=[_label(source, labels) for source, _ in rows],
        vectors=np.array([part.vector for _, part in rows], dtype=np.float32).reshape(len(rows), card["dim"]),
        failures=failures,
    )


def _write(embeddings: Embeddings, options: Options) -> None:
    if options.out is not None:
        write_embeddings(options.out, embeddings)
    if options.projector is not None:
        write_projector(options.projector, embeddings)
    if options.picture is not None and embeddings.files:
        from pipeline.reporting.embedding_plots import write_picture  # loads matplotlib

        write_picture(options.picture, embeddings)


def _read_labels(path: Path, root: Path | None) -> dict[Path, str]:
    """Return absolute path -> label of the files in a table."""
    rows = read_table(path)
    files, column = choose_column(path, rows[0], PATH_COLUMNS), choose_column(path, rows[0], LABEL_COLUMNS)
    return {place_of((root or path.parent) / Path(row[files]).expanduser()): row[column] for row in rows}


def _label(source: str, labels: Mapping[Path, str] | None) -> str:
    """Return a file's label: that of the table, or without one the name of the file's folder."""
    return place_of(source).parent.name if labels is None else labels.get(place_of(source), "")


@contextmanager
def _bar(total: int, messages: Console) -> Iterator[Callable[[], None]]:
    """Yield a function to call after every file."""
    if not messages.is_terminal:
        yield lambda: None
        return
    with Progress(console=messages, transient=True) as progress:
        task = progress.add_task("embed", total=total)
        yield lambda: progress.advance(task)


def _print_summary(embeddings: Embeddings, num_files: int, seconds: float, messages: Console) -> None:
    card, failures = embeddings.card, embeddings.failures
    line = (
        f"{len(embeddings.files)} embeddings of {num_files} files, layer {card['layer']}, {card['dim']} numbers each, "
        f"in {seconds:.1f} s"
    )
    messages.print(escape(line), soft_wrap=True, highlight=False)
    for reason, count in Counter(failure.reason for failure in failures).most_common():
        example = next(failure.message for failure in failures if failure.reason == reason)
        messages.print(f"{count} failed, {reason}: {escape(example)}", soft_wrap=True, highlight=False)
