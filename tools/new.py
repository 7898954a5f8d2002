"""`sonolex new FOLDER`: look at a folder of sounds, show what is in it, and propose the recipe that reads it.

    folder -> survey -> sonolex compose RECIPE key=value ... -> params.yaml

What is written is what the shown command would write. Nothing is written without a yes.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from ruamel.yaml.comments import CommentedMap

from pipeline.check_params import Experiment, load_experiment
from pipeline.corpora.base import AdapterParams
from pipeline.corpora.layouts import FolderContents, Recognised, look_into
from pipeline.corpora.recognition import RECOGNISERS, recognised
from pipeline.corpora.registry import CorpusParams
from pipeline.corpora.splitting import count_training_clips
from pipeline.corpora.walking import AUDIO_SUFFIXES
from pipeline.duplicates.settings import DuplicateParams
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import validate_params
from pipeline.spectrogram.settings import SpectrogramParams
from tools import compose
from tools.corpus_check import remarks_on_length, too_many_clips
from tools.survey import Advance, Survey, survey
from tools.survey_table import survey_table
from tools.survey_warnings import (
    bandwidth_warnings,
    copy_warnings,
    fault_warnings,
    fold_obstacles,
    format_warnings,
    group_warnings,
    near_duplicate_warnings,
)

LONGEST = 600.0  # seconds of a clip that a proposal takes whole

_FEWEST_FOLDS = _FEWEST_CLASSES = 2
_NAMED = 8  # classes that a message names
_PACKED = (".tar", ".parquet")  # endings of files that hold many sounds


class Proposal(NamedTuple):
    """A recipe and its settings, and what is said of them."""

    layout: Recognised
    found: Survey
    settings: list[str]  # key=value, as for compose
    warnings: list[str]
    obstacles: list[str]  # what would stop a run


class Options(NamedTuple):
    """Options of the command; see its help."""

    kind: str | None = None  # of the adapter; None = the likeliest
    yes: bool = False
    force: bool = False


def run(
    folder: Path,
    overrides: Sequence[str],
    options: Options,
    *,
    recipes_path: Path,
    params_path: Path,
    console: Console,
    messages: Console,
    confirm: Callable[[], bool] | None,
) -> bool:
    """Show what a folder holds, and write `params_path` after a yes; return whether it was written.

    `confirm` asks, None where there is nobody to ask. Raises SonolexError where the folder cannot be read as a corpus.
    """
    with _progress(messages) as advance:
        advance(f"look through {folder}", 0, 1)
        contents = look_into(folder)
        proposal = propose(contents, overrides, options.kind, recipes_path, advance)
    command = compose.spell_command(proposal.layout.kind, proposal.settings)
    _print(proposal, folder, command, console)
    if proposal.obstacles:
        console.print("\nnothing is written: a run would stop (exit status 1)")
        return False
    if not options.yes and (confirm is None or not confirm()):
        why = "add --yes, where nobody can be asked" if confirm is None else "as you say"
        console.print(f"\nnothing is written: {why} (exit status 1)")
        return False
    compose.run(
        proposal.layout.kind,
        proposal.settings,
        recipes_path=recipes_path,
        params_path=params_path,
        console=console,
        force=options.force,
    )
    console.print("next: `dvc repro` runs all stages, then report/index.html shows everything")
    return True


def propose(
    contents: FolderContents, overrides: Sequence[str], kind: str | None, recipes_path: Path, advance: Advance
) -> Proposal:
    """Return the proposal for the likeliest layout that can be read. Raises CorpusError that says why there is none."""
    _require_sounds(contents)
    failures = []
    for layout in _layouts(contents, kind):
        try:
            proposal = _propose(contents, layout, overrides, recipes_path, advance)
        except (CorpusError, ParamsError) as error:
            failures.append(f"cannot be read as {layout.kind}, though {layout.why}: {error}")
        else:
            return proposal._replace(warnings=failures + proposal.warnings)
    if failures:
        raise CorpusError("\n".join(failures))
    asked = f" as {kind} says" if kind else ""
    raise CorpusError(
        f"{contents.root}: expected labels of at least two classes{asked}, found none: neither folders, nor names such as "
        f"{contents.audio[0].name if contents.audio else contents.others[0].name}, nor a table tell them; write a "
        "table with the columns file and label, and put it there as clips.csv"
    )


def _layouts(contents: FolderContents, kind: str | None) -> Iterator[Recognised]:
    if kind is not None and kind not in RECOGNISERS:
        raise ParamsError(f"--kind: expected one of {', '.join(RECOGNISERS)}, found {kind!r}")
    return (layout for layout in recognised(contents) if kind in (None, layout.kind))


def _require_sounds(contents: FolderContents) -> None:
    if contents.audio or any(path.suffix in _PACKED for path in contents.others):
        return
    some = f", {contents.others[0]} for one" if contents.others else ""
    raise CorpusError(
        f"{contents.root}: expected files that end in {', '.join(AUDIO_SUFFIXES[:8])} and so on, or tar or Parquet files of "
        f"sounds, found none among {len(contents.others)} files{some}"
    )


def _propose(
    contents: FolderContents, layout: Recognised, overrides: Sequence[str], recipes_path: Path, advance: Advance
) -> Proposal:
    root = contents.root / layout.below if layout.below else contents.root
    settings = [compose.spell_setting("corpus.root", str(root))]
    settings += [compose.spell_setting(f"corpus.{key}", value) for key, value in layout.settings.items()]
    document = _composed(layout.kind, [*settings, *overrides], recipes_path)
    params = _corpus_params(document)
    frames = validate_params(SpectrogramParams, compose.plain(document["spectrogram"]), "spectrogram")
    threshold = validate_params(DuplicateParams, compose.plain(document["duplicates"]), "duplicates").threshold
    whole = params.model_copy(update={"max_duration": max(LONGEST, params.max_duration)})
    found = survey(whole, frames, threshold, advance)
    if len(found.listing.classes) < _FEWEST_CLASSES:
        raise CorpusError(f"{root}: expected at least two classes, found {', '.join(found.listing.classes) or 'none'}")
    warnings, obstacles = list(layout.notes), fold_obstacles(found)
    settings += _length_settings(found, params.max_duration)
    if set(found.clips["fold"].to_pylist()) == {""}:
        folds = _choose_folds(layout.kind, found, document)
        settings += folds.settings
        warnings += folds.warnings
        obstacles += folds.obstacles
    settings += overrides
    if not obstacles:
        experiment = _experiment(layout.kind, settings, recipes_path)
        warnings += _warnings(found, experiment)
        split = experiment.sections["split"]
        obstacles += too_many_clips(experiment, count_training_clips(found.clips["fold"], split, root))
    return Proposal(layout, found, settings, warnings, obstacles)


def _warnings(found: Survey, experiment: Experiment) -> list[str]:
    corpus, f_max = experiment.sections["corpus"], experiment.sections["spectrogram"].metadata["f_max"]
    return [
        *fault_warnings(found, corpus.max_bad_fraction),
        *bandwidth_warnings(found.sounds, f_max),
        *format_warnings(found.sounds),
        *copy_warnings(found),
        *near_duplicate_warnings(found),
        *(remarks_on_length(experiment, float(np.median(found.seconds))) if len(found.seconds) else []),
    ]


def _length_settings(found: Survey, max_duration: float) -> list[str]:
    """Return the setting that lets the longest clip in, of a sample with room for longer ones."""
    longest = float(found.seconds[-1]) if len(found.seconds) else 0.0
    if longest <= max_duration:
        return []
    room = 1.0 if len(found.sounds) == len(found.clips) else 2.0
    return [compose.spell_setting("corpus.max_duration", float(min(LONGEST, int(longest * room) + 1)))]


def _choose_folds(kind: str, found: Survey, document: CommentedMap) -> "_Folds":
    """Return the settings by which each drawn fold tests every class; classes of one group are left out if they can be."""
    groups, wanted = found.groups_of_classes(), int(document["split"]["num_folds"])
    lone = sorted(name for name, count in groups.items() if count < _FEWEST_FOLDS)
    if lone and (kind != "folder" or len(groups) - len(lone) < _FEWEST_CLASSES):
        obstacle = f"classes with one group alone, which cannot be in training and in test: {', '.join(lone[:_NAMED])}"
        return _Folds(obstacles=[f"{obstacle}; add clips of other recordings, or take these classes out"])
    settings, warnings = [], []
    if lone:
        settings.append(compose.spell_setting("corpus.ignore", [*document["corpus"]["ignore"], *lone]))
        warnings.append(f"left out by corpus.ignore, since they have one clip or group alone: {', '.join(lone)}")
        groups = {name: count for name, count in groups.items() if name not in lone}
    num_folds = min(wanted, *groups.values())
    if num_folds < wanted:
        settings.append(compose.spell_setting("split.num_folds", num_folds))
    return _Folds(settings, warnings + group_warnings(groups, num_folds, wanted))


class _Folds(NamedTuple):
    settings: Sequence[str] = ()
    warnings: Sequence[str] = ()
    obstacles: Sequence[str] = ()


def _composed(recipe: str, settings: Sequence[str], recipes_path: Path) -> CommentedMap:
    document, mistakes = compose.compose(recipe, settings, recipes_path)
    if mistakes:
        raise ParamsError("\n".join(mistakes))
    return document


def _corpus_params(document: CommentedMap) -> AdapterParams:
    params: AdapterParams = validate_params(CorpusParams, compose.plain(document["corpus"]), "corpus")
    return params


def _experiment(recipe: str, settings: Sequence[str], recipes_path: Path) -> Experiment:
    """Return the experiment that compose would write. Raises ParamsError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.yaml")
        quiet = Console(quiet=True)
        compose.run(recipe, settings, recipes_path=recipes_path, params_path=path, console=quiet)
        return load_experiment(path)


def _print(proposal: Proposal, folder: Path, command: str, console: Console) -> None:
    console.print(escape(str(folder)), style="bold", soft_wrap=True)
    console.print(survey_table(proposal.found, f"{proposal.layout.kind}: {proposal.layout.why}"))
    for warning in [*proposal.warnings, *proposal.obstacles]:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    console.print("\nproposed:")
    console.print(f"  {escape(command)}", soft_wrap=True)


@contextmanager
def _progress(messages: Console) -> Iterator[Advance]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task("")
        yield lambda what, done, total: progress.update(task, description=what, completed=done, total=total)
