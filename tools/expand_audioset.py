"""Unpack AudioSet's tars into folders, for programs that cannot read them in place (Sonolex can, and needs no copy).

    python -m tools.expand_audioset TARS --out FOLDER

    bal_train00.tar, ...  ->  FOLDER/bal_train/<first two letters>/<video>.flac

TARS are tar files, or folders that hold them; the set is part of a tar's name. Only audio files are written, under names
made only from the id of their video. After an interruption, run it again: files are written under a temporary name first,
and existing files of full size are skipped.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table as Grid

from pipeline.corpora.audioset_files import SET_NAMES, VIDEO_IN_NAME
from pipeline.corpora.tar_walk import Member, Walk
from pipeline.errors import CorpusError, SonolexError
from pipeline.execution.stage import stage_main
from tools.byte_progress import byte_progress

_PIECE = 1 << 20  # bytes copied at a time
_REFUSED_NAMED = 10


@dataclass
class Expansion:
    """Result of unpacking one tar."""

    path: Path
    written: int = 0
    there: int = 0  # files written by an earlier run
    repeated: int = 0  # further files of a video; the first counts
    not_audio: int = 0
    refused: list[str] = field(default_factory=list)  # name and why
    damage: str = ""


def find_tars(paths: Sequence[Path]) -> list[Path]:
    """Return the given tars and those in the given folders, in order. Raises CorpusError for a name without a set."""
    tars: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise CorpusError(f"{path}: expected a tar file or a folder that holds some, found none")
        tars += found
    for path in tars:
        set_name(path)
    return tars


def set_name(path: Path) -> str:
    """Return the set that a tar belongs to: `bal_train` for `bal_train07.tar`."""
    match = re.fullmatch(rf"({'|'.join(SET_NAMES)})\d*\.tar", path.name)
    if match is None:
        raise CorpusError(f"{path}: expected <set>.tar or <set><number>.tar, with a set of {', '.join(SET_NAMES)}")
    return match[1]


def expand(tars: Sequence[Path], out: Path) -> list[Expansion]:
    """Unpack all tars, also after a damaged one, and return the result of each."""
    done: list[Expansion] = []
    seen: set[Path] = set()
    with byte_progress("expand", sum(path.stat().st_size for path in tars)) as counter:
        for path in tars:
            done.append(Expansion(path))
            try:
                _expand_one(done[-1], out / set_name(path), seen, counter.advance)
            except CorpusError as error:  # not a tar
                done[-1].damage = str(error).removeprefix(f"{path}: ")
    return done


def _expand_one(result: Expansion, folder: Path, seen: set[Path], advance: Callable[[int], None]) -> None:
    position = 0
    with result.path.open("rb") as file:
        walk = Walk(file, result.path)
        for member in walk:
            advance(member.offset + member.size - position)
            position = member.offset + member.size
            match = re.search(VIDEO_IN_NAME, member.name)
            if member.refused:
                result.refused.append(f"{member.name!r} ({member.refused})")
            elif match is None:
                result.not_audio += 1
            else:
                video = match["video"]
                target = folder / video[:2] / f"{video}{Path(member.name).suffix}"
                if target in seen:
                    result.repeated += 1
                elif target.is_file() and target.stat().st_size == member.size:
                    result.there += 1
                else:
                    _copy(file, member, target)
                    result.written += 1
                seen.add(target)
        result.damage = walk.damage
        advance(result.path.stat().st_size - position)


def _copy(file: BinaryIO, member: Member, target: Path) -> None:
    """Write a member's bytes, under a temporary name until the file is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    file.seek(member.offset)
    left = member.size
    with partial.open("wb") as output:
        while left:
            piece = file.read(min(left, _PIECE))
            if not piece:
                raise OSError(f"{file.name} became shorter while it was read")
            output.write(piece)
            left -= len(piece)
    os.replace(partial, target)


def results_table(done: Sequence[Expansion]) -> Grid:
    grid = Grid()
    for name in ("tar", "written", "there before", "repeated", "not audio", "refused", "whole"):
        grid.add_column(name, justify="left" if name in ("tar", "whole") else "right")
    for one in done:
        counts = (one.written, one.there, one.repeated, one.not_audio, len(one.refused))
        grid.add_row(escape(one.path.name), *map(str, counts), "no" if one.damage else "yes")
    sums = [
        sum(values)
        for values in zip(*((d.written, d.there, d.repeated, d.not_audio, len(d.refused)) for d in done), strict=True)
    ]
    if len(done) > 1:
        grid.add_section()
        grid.add_row(f"{len(done)} tars", *map(str, sums), f"{sum(not d.damage for d in done)}")
    return grid


def main(
    tars: Annotated[list[Path], typer.Argument(help="tar files, or folders of them")],
    out: Annotated[Path, typer.Option(help="folder to write to")],
) -> None:
    done = expand(find_tars(tars), out)
    console = Console(width=None if os.isatty(1) else 160)
    console.print(results_table(done))
    problems = []
    for one in done:
        if one.refused:
            more = f", and {len(one.refused) - _REFUSED_NAMED} more" if len(one.refused) > _REFUSED_NAMED else ""
            problems.append(f"{one.path}: refused {', '.join(one.refused[:_REFUSED_NAMED])}{more}")
        if one.damage:
            problems.append(
                f"{one.path}: {one.damage}; the members before are unpacked. Fetch it again, then run this again"
            )
    if problems:
        raise SonolexError("\n".join(problems))


if __name__ == "__main__":
    stage_main(main)
