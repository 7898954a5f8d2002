"""`sonolex fetch`: download a published corpus, check it, and unpack it below `audio/`.

    <to>/.fetch/<name>/    downloads, complete or `.part`, and files being unpacked; removed at the end
    <to>/<folder>/         the corpus; appears when everything is in it, with the checksums of its archives in .fetched.json

A run that was interrupted is continued by running it again: by bytes while it downloads, from the start while it unpacks.
"""

import contextlib
import hashlib
import json
import shlex
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipeline.artifacts.files import locked
from pipeline.errors import SonolexError
from tools.byte_progress import byte_progress, spell_size
from tools.fetching.catalogue import Archive, Corpus, RemoteFile
from tools.fetching.download import Patience, download, partial_path
from tools.fetching.unpack import Unpacked, unpack

_RECORD = ".fetched.json"
_PIECE = 1 << 20  # bytes read at a time
_REFUSED_NAMED = 10


@dataclass(frozen=True, slots=True)
class Options:
    """Where a corpus goes, and how."""

    to: Path  # folder of all corpora
    accepted: bool = False  # the licence, so that nobody is asked
    keep: bool = False  # the archives
    patience: Patience = field(default_factory=Patience)


def run(name: str, corpus: Corpus, options: Options, console: Console) -> None:
    """Fetch one corpus, unless it is there, and print the commands that follow."""
    root, work = options.to / corpus.folder, options.to / ".fetch" / name
    if is_fetched(root, corpus):
        _say(console, f"{root}: fetched before, nothing to do")
    else:
        _require_free(root, corpus)
        _say(console, _terms(corpus))
        _require_acceptance(accepted=options.accepted)
        with locked(work):
            if not is_fetched(root, corpus):  # by another process, meanwhile
                _fetch(corpus, root, work, options.patience, console)
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
            with contextlib.suppress(OSError):  # another corpus is being fetched
                work.parent.rmdir()
    setting = shlex.quote(f"corpus.root={root}")
    _say(console, f"Next:\n    sonolex compose {corpus.recipe} {setting}\n    dvc repro")


def catalogue_table(corpora: dict[str, Corpus]) -> Table:
    """Return the names of corpora with their sizes and licences."""
    table = Table()
    for column in ("name", "corpus", "download", "licence"):
        table.add_column(column, justify="right" if column == "download" else "left")
    for name, corpus in corpora.items():
        table.add_row(name, escape(corpus.title), spell_size(corpus.size), escape(corpus.licence))
    return table


def is_fetched(root: Path, corpus: Corpus) -> bool:
    """Return whether a folder holds what the catalogue says now, fetched by this command."""
    try:
        record = json.loads((root / _RECORD).read_text())
    except (OSError, ValueError):
        return False
    files = {file.name: file.checksum for file in corpus.files}
    if not isinstance(record, dict) or record.keys() != files.keys():
        return False
    return all(record[name] == (sum_ or record[name]) for name, sum_ in files.items())


def _fetch(corpus: Corpus, root: Path, work: Path, patience: Patience, console: Console) -> None:
    """Download, check and unpack; the folder of the corpus appears at the end."""
    _require_room(corpus, work)
    sums = {file.name: _bring(file, work / file.name, patience) for file in corpus.files}
    staging = work / "unpacked"
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
    with contextlib.ExitStack() as stack:
        stack.callback(
            shutil.rmtree, staging, ignore_errors=True
        )  # if there was no room for all, what is there takes some
        staging.mkdir()
        unpacked = Unpacked(staging, corpus.max_unpacked)
        for archive in corpus.archives:
            _unpack(archive, work, unpacked)
        (staging / _RECORD).write_text(json.dumps(sums, indent=2) + "\n")
        _require_free(root, corpus)
        staging.rename(root)
    _say(console, f"{root}: {unpacked.files:,} files, {spell_size(unpacked.size)}")
    if unpacked.refused:
        more = len(unpacked.refused) - _REFUSED_NAMED
        named = ", ".join(unpacked.refused[:_REFUSED_NAMED]) + (f", and {more:,} more" if more > 0 else "")
        _say(console, f"not unpacked, since it may not be: {named}")


def _bring(file: RemoteFile, path: Path, patience: Patience) -> str:
    """Download one file unless it is there, and return its checksum. Raises SonolexError if that is not the catalogue's.

    A file with another checksum stays until the next run, which takes it if the catalogue has been corrected by then, and
    otherwise downloads it anew.
    """
    algorithm = file.checksum.partition(":")[0] if file.checksum else "sha256"
    if path.exists():
        found = _checksum(path, algorithm)
        if file.checksum in (None, found):
            return found
        path.unlink()
    with byte_progress(file.name, file.size) as counter:
        download(file.url, path, file.size, counter, patience)
    found = _checksum(path, algorithm)
    if file.checksum not in (None, found):
        raise SonolexError(
            f"{path}: expected {file.checksum} ({file.checksum_from}), found {found}, of {file.url}; run the same command "
            "again, which downloads the file anew. If it is the same again, the publisher has changed the file: compare "
            "with the page of the corpus, correct the checksum in the catalogue, then run the command again, which takes "
            "the file as it is"
        )
    return found


def _checksum(path: Path, algorithm: str) -> str:
    """Return the checksum of a file as the catalogue writes it."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with byte_progress(f"check {path.name}", path.stat().st_size) as counter, path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            counter.advance(len(piece))
    return f"{algorithm}:{digest.hexdigest()}"


def _unpack(archive: Archive, work: Path, unpacked: Unpacked) -> None:
    paths = [work / part.name for part in archive.parts]
    with byte_progress(f"unpack {paths[-1].name}", None) as counter:
        unpack(paths, archive.strip, unpacked, counter)


def _terms(corpus: Corpus) -> str:
    """Return what a corpus is, what it takes, and on which terms it may be used."""
    unchecked = [file.name for file in corpus.files if file.checksum is None]
    lines = [
        corpus.title,
        f"download: {spell_size(corpus.size)}, published at {corpus.page}",
        f"licence: {corpus.licence}; {corpus.licence_url}",
        f"cite: {corpus.citation}",
        *([f"no checksum is known of {', '.join(unchecked)}"] if unchecked else []),
    ]
    return "\n".join(lines)


def _say(console: Console, text: str) -> None:
    """Print text as it is."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _require_acceptance(*, accepted: bool) -> None:
    """Ask for consent to the licence, unless it was given. Raises SonolexError without it."""
    if accepted:
        return
    if not sys.stdin.isatty():
        raise SonolexError("licence: expected your consent, found no terminal to ask on; give it with --yes")
    if not typer.confirm("Do you accept this licence?"):
        raise SonolexError("licence: expected your consent, found none; nothing was downloaded")


def _require_free(root: Path, corpus: Corpus) -> None:
    """Raise SonolexError if there is a folder in the place of the corpus."""
    if root.exists():
        setting = shlex.quote(f"corpus.root={root}")
        raise SonolexError(
            f"{root}: expected no such folder, found one that was not fetched with this catalogue; if it holds the corpus, "
            f"use it: `sonolex compose {corpus.recipe} {setting}`. Otherwise move it away, or choose another place with --to"
        )


def _require_room(corpus: Corpus, work: Path) -> None:
    """Raise SonolexError if what is still to download does not fit the disk."""
    missing = sum(_missing(file, work / file.name) for file in corpus.files)
    free = shutil.disk_usage(work).free
    if missing > free:
        raise SonolexError(
            f"{work}: expected {spell_size(missing)} free for the download, and about as much again for the unpacked files, "
            f"found {spell_size(free)}; make room, or choose another disk with --to"
        )


def _missing(file: RemoteFile, path: Path) -> int:
    """Return the bytes of a file that are still to download, 0 if its size is not known."""
    there = next((path.stat().st_size for path in (path, partial_path(path)) if path.exists()), 0)
    return max(0, (file.size or 0) - there)
