"""`sonolex plan`: what `dvc repro` would run, per stage: shards reused and to compute, reasons, estimated time and size.

DVC reports the stages that it would rerun. For stages that work by shards (spectrogram, tokenize) the memo store shows which
are cached; the corpus is compared in its current state. Times are those of earlier runs on this machine.
"""

import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from pipeline.artifacts.clips import ClipTable, open_clips
from pipeline.artifacts.layout import Layout
from pipeline.artifacts.spectrogram import open_spectrogram
from pipeline.artifacts.training_labels import TrainingLabelTable
from pipeline.artifacts.vocabulary import open_vocabulary
from pipeline.check_params import Experiment, load_experiment
from pipeline.corpora.manifest import refresh_manifest
from pipeline.corpora.relabelling import refresh_training_labels
from pipeline.errors import SonolexError
from pipeline.evaluation.tokenizing import tokenize_clips
from pipeline.execution.housekeeping import versions
from pipeline.execution.memo import Memo, read_entry
from pipeline.execution.threads import num_cores
from pipeline.grid import ExperimentParams
from pipeline.spectrogram import building
from pipeline.stage_code import find_earlier
from pipeline.vocabulary import sequences
from stages import code
from tools.corpus_check import length_remarks
from tools.unchanged import unchanged_outputs

_MEASURED = 200  # entries of the memo from which a rate is estimated


@dataclass
class StagePlan:
    """Plan of one stage, with all items of its matrix."""

    stage: str
    items: int = 0
    stale: int = 0
    reasons: Counter[str] = field(default_factory=Counter)  # reason -> items, or shards where the stage has shards
    shards: int = 0
    reused: int = 0
    clips: int = 0  # to compute
    seconds: float | None = 0.0  # None = never measured
    size: int | None = None  # bytes to write

    @property
    def to_compute(self) -> int:
        return self.shards - self.reused


def make_plan(params_path: Path, layout: Layout) -> list[StagePlan]:
    """Return one entry per stage, in the order of the graph."""
    experiment = load_experiment(params_path)
    with tempfile.TemporaryDirectory() as folder:
        clips = _manifest_now(experiment, layout.clips, Path(folder) / "clips.parquet")
        labels = _labels_now(experiment, clips, layout.training_labels, Path(folder) / "labels.parquet")
        moved = not _same_clips(clips, layout.clips) or (labels is not None and labels.path != layout.training_labels)
        plans = _asked_of_dvc(experiment, layout, clips, labels, moved=moved)
        if clips is not None and "spectrogram" in plans:
            _plan_spectrogram(plans["spectrogram"], experiment, clips)
        if "tokenize" in plans:
            _plan_sequences(plans, experiment, layout)
    return list(plans.values())


def plan_table(plans: list[StagePlan]) -> RichTable:
    """Return a plan as a table for the terminal."""
    table = RichTable(title="what `dvc repro` would do now")
    for name in ("stage", "items to run", "shards reused", "to compute", "clips", "why", "time", "bytes"):
        table.add_column(name, justify="left" if name in ("stage", "why") else "right")
    for plan in plans:
        sharded = plan.shards > 0
        time = "-" if not plan.stale else "not measured yet" if plan.seconds is None else _spell_time(plan.seconds)
        table.add_row(
            plan.stage,
            f"{plan.stale} of {plan.items}",
            str(plan.reused) if sharded else "",
            str(plan.to_compute) if sharded else "",
            f"{plan.clips:,}" if sharded else "",
            ", ".join(f"{why} ({count})" if count > 1 else why for why, count in plan.reasons.most_common()),
            time,
            "" if plan.size is None else f"{plan.size:,}",
        )
    return table


def run(params_path: Path, console: Console) -> None:
    """Print the plan."""
    plans = make_plan(params_path, Layout())
    console.print(plan_table(plans))
    for remark in length_remarks(load_experiment(params_path), Layout()):
        console.print(f"{params_path}: note: {remark}", soft_wrap=True)
    known = [plan.seconds for plan in plans if plan.stale and plan.seconds is not None]
    console.print(
        f"about {_spell_time(sum(known))} of work, by earlier measurements; each stage also takes seconds to start"
    )


def _manifest_now(experiment: Experiment, path: Path, scratch: Path) -> ClipTable | None:
    """Return the manifest that the stage corpus would write now; None where there is no corpus yet."""
    params = experiment.sections["corpus"]
    if params.makes_audio and not params.root.is_dir():
        return None
    refresh = refresh_manifest(params, path, written_to=scratch)
    return open_clips(scratch if refresh.written else path)


def _labels_now(
    experiment: Experiment, clips: ClipTable | None, path: Path, scratch: Path
) -> TrainingLabelTable | None:
    """Return the training labels that the stage corpus would write now; None where there is no corpus yet."""
    if clips is None:
        return None
    return refresh_training_labels(experiment.sections["labels"].use, clips, path, written_to=scratch)


def _same_clips(clips: ClipTable | None, path: Path) -> bool:
    try:
        return clips is not None and open_clips(path).columns.equals(clips.columns)
    except SonolexError:
        return False


def _asked_of_dvc(
    experiment: Experiment, layout: Layout, clips: ClipTable | None, labels: TrainingLabelTable | None, *, moved: bool
) -> dict[str, StagePlan]:
    """Return stage -> plan from DVC's status, including stages that would rerun after those before them.

    `clips` and `labels` are the manifest and the training labels as they would be now; `moved` = they differ from those on
    disk.
    """
    from dvc.repo import Repo

    grid = experiment.sections["experiment"]
    code.run(Layout())  # as `dvc repro` does first: stages depend on its output
    with Repo() as repo:
        status: dict[str, list[object]] = repo.status()
        recorded = {
            stage.addressing: {dep.def_path: dep.hash_info.value for dep in stage.deps} for stage in repo.index.stages
        }
        names = [stage.addressing for stage in repo.index.stages if stage.addressing != "code"]
        order = list(repo.index.graph.nodes)
        before = {stage.addressing: {dep.addressing for dep in repo.index.graph.successors(stage)} for stage in order}
        written = {stage.addressing: [Path(out.def_path) for out in stage.outs] for stage in order}
    reasons = {name: _classify(found, recorded[name]) for name, found in status.items() if name != "code"}
    if moved:
        reasons["corpus"] = {"input"}
    stays = set()
    if clips is not None and labels is not None and (moved or any("input" in why for why in reasons.values())):
        stays = unchanged_outputs(grid, experiment.sections["split"], layout, (clips, labels), reasons)
    changing = {name: {dep for dep in before[name] if _reads(recorded[name], written[dep], stays)} for name in before}
    stale = {name for name, why in reasons.items() if why}
    grown = True
    while grown:  # dependents of stale stages may run too
        followers = {name for name in names if name not in stale and changing[name] & stale}
        for name in followers:
            reasons[name] = {"follows " + " and ".join(sorted({dep.split("@")[0] for dep in changing[name] & stale}))}
        stale |= followers
        grown = bool(followers)
    plans: dict[str, StagePlan] = {}
    reports = report_paths(grid, layout)
    for name in sorted(names, key=lambda name: (_depth(name, before), name)):
        stage = name.partition("@")[0]
        plan = plans.setdefault(stage, StagePlan(stage))
        plan.items += 1
        if name in stale:
            plan.stale += 1
            plan.reasons.update(reasons[name])
            seconds = _last_seconds(reports.get(name, layout.stage_report(*name.split("@"))))
            plan.seconds = None if seconds is None or plan.seconds is None else plan.seconds + seconds
    return plans


def _reads(deps: Iterable[str], outs: Collection[Path], stays: set[Path]) -> bool:
    """Return whether dependencies are among the outputs of another stage, but for those that would stay as they are."""
    paths = [path for path in map(Path, deps) if path not in stays]
    return any(path.is_relative_to(out) or out.is_relative_to(path) for path in paths for out in outs)


def _depth(name: str, before: dict[str, set[str]]) -> int:
    return 1 + max((_depth(dep, before) for dep in before[name]), default=0)


def _classify(found: Sequence[object], recorded: dict[str, str | None]) -> set[str]:
    """Return why DVC considers a stage changed: code, a package, input, a parameter by name, output, or new.

    `recorded` are the MD5 digests of the stage's dependencies in its last run.
    """
    reasons = set()
    for entry in found:
        if entry == "always changed":
            continue
        if not isinstance(entry, dict):
            reasons.add(str(entry))
            continue
        if "changed outs" in entry:
            reasons.add("output missing or changed")
        for path, change in entry.get("changed deps", {}).items():
            if isinstance(change, dict):  # params.yaml: {key: what happened}
                reasons |= {f"param {key}" for key in change}
            elif Path(path).parts[0] == Layout().code.name:
                reasons |= _code_changes(Path(path), recorded.get(path)) if change == "modified" else {"never run"}
            else:
                reasons.add("input" if change == "modified" else "never run")
    return {"never run"} if "never run" in reasons else reasons


def _code_changes(path: Path, recorded: str | None) -> set[str]:
    """Return the differences of a file of the stage `code` from its version with the recorded MD5 digest."""
    name = path.relative_to(Layout().code).as_posix()
    was, now = find_earlier(code.outcomes(), name, recorded), json.loads(path.read_text())
    if was is None:
        return {"code or settings"}
    reasons = {"code"} if was["code"] != now["code"] else set()
    for package in {*was["packages"], *now["packages"]}:
        if was["packages"].get(package) != now["packages"].get(package):
            reasons.add(f"release of {package}")
    before, after = was.get("settings", {}), now.get("settings", {})
    if was.get("files", {}) != now.get("files", {}):
        reasons.add("input")
    return reasons | {f"param {key}" for key in {**before, **after} if before.get(key) != after.get(key)}


def report_paths(grid: ExperimentParams, layout: Layout) -> dict[str, Path]:
    """Return the stage report of every address in dvc.yaml that does not name it; DVC numbers items that are mappings."""
    runs = {
        run.stage(step): layout.stage_report(step, run.name) for run in grid.runs() for step in ("train", "evaluate")
    }
    atlases = {f"atlas@{name}": layout.stage_report("atlas", f"{name}-{grid.folds[0]}") for name in grid.vocabularies}
    networks = {
        f"network@learned{number}-{fold}": layout.stage_report("network", f"{entry.vocabulary}-{fold}")
        for (number, entry), fold in product(enumerate(grid.learned_vocabularies), grid.folds)
    }
    return runs | atlases | networks


def _last_seconds(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text())["seconds"])
    except (OSError, ValueError, KeyError):
        return None


def _plan_spectrogram(plan: StagePlan, experiment: Experiment, clips: ClipTable) -> None:
    params, corpus = experiment.sections["spectrogram"], experiment.sections["corpus"]
    root = experiment.sections["execution"].memo
    shards = building.plan_shards(clips, params.clips_per_shard)
    todo: list[tuple[Memo, list[str]]] = []
    clips_written = 0
    for copy in (None, *params.copies):
        memo = building.open_memo(root, params, corpus.max_duration, copy)
        reuse = building.find_known(memo, shards, clips)
        plan.shards, plan.reused = plan.shards + len(shards), plan.reused + len(reuse.entries)
        keys = [clip.key for p in reuse.todo for clip in building.manifest_clips(clips, p.start, p.stop)]
        plan.clips += sum(key not in reuse.known for key in keys) if plan.stale else 0
        clips_written += len(keys)
        todo.append((memo, [p.name for p in reuse.todo]))
    if plan.stale:
        _reckon(plan, root, todo, clips_written, experiment)


def _plan_sequences(plans: dict[str, StagePlan], experiment: Experiment, layout: Layout) -> None:
    """Look up token sequences where spectrogram and vocabulary are unchanged; a new vocabulary needs all again."""
    plan = plans["tokenize"]
    root = experiment.sections["execution"].memo
    settled = not plans["spectrogram"].stale and not plans["vocabulary"].stale
    todo: list[str] = []
    clips = 0
    grid = experiment.sections["experiment"]
    for name, fold in product(grid.vocabularies, grid.folds):
        try:
            spectrogram = open_spectrogram(layout.spectrogram)
            shards = sequences.plan_sequences(spectrogram)
            vocabulary = open_vocabulary(layout.vocabulary(name, fold))
        except SonolexError:
            plan.shards += plans["spectrogram"].shards
            continue
        if vocabulary.external:  # read anew each time
            continue
        memo = sequences.open_memo(root, vocabulary, spectrogram, tokenize_clips)
        entries, known = sequences.find_known(memo, shards) if settled or not plan.stale else ({}, {})
        plan.shards, plan.reused = plan.shards + len(shards), plan.reused + len(entries)
        missing = [name for name in shards if name not in entries]
        todo += missing
        clips += sum(key not in known for name in missing for key in shards[name].index.list("key"))
    if plan.stale:
        plan.clips = clips
        if todo and settled:
            _reckon(plan, root, [(memo, todo)], clips, experiment)


def _reckon(
    plan: StagePlan,
    root: Path,
    todo: Sequence[tuple[Memo, list[str]]],  # version of the memo, and its shards to compute
    clips_written: int,
    experiment: Experiment,
) -> None:
    """Set the reasons why shards are not cached, and estimate the cost of computing them from the memo's records."""
    plan.reasons = Counter(reason for memo, names in todo for reason in _uncached(root / plan.stage, memo, names))
    num_shards = sum(len(names) for _, names in todo)
    measured = [entry for path in list((root / plan.stage).glob("*/*/"))[-_MEASURED:] if (entry := read_entry(path))]
    computed, written = sum(entry.computed for entry in measured), sum(entry.clips for entry in measured)
    workers = min(experiment.sections["execution"].workers or num_cores(), max(1, num_shards))
    plan.seconds = sum(entry.seconds for entry in measured) / computed * plan.clips / workers if computed else None
    plan.size = round(sum(entry.size for entry in measured) / written * clips_written) if written else None
    if not num_shards:
        plan.seconds, plan.size = 0.0, 0


def _uncached(folder: Path, memo: Memo, names: Sequence[str]) -> list[str]:
    """Return for each shard why the memo lacks it: its params or code have changed since another version, or its clips.

    Versions of another copy of the clips do not count, nor those of the clips for a copy.
    """
    if not names:
        return []
    copy = memo.about["params"].get("copy")
    others = {
        v: about for v, about in versions(folder.parent, folder.name).items() if about["params"].get("copy") == copy
    }
    if copy and not others:
        return ["param"] * len(names)
    found: defaultdict[str, set[str]] = defaultdict(set)
    for version, about in others.items():
        if version != memo.version:
            for name in _names(folder / version):
                found[name] |= {key for key in ("params", "code") if about.get(key) != memo.about[key]}
    return [
        " and ".join("param" if key == "params" else key for key in sorted(found[name], reverse=True))
        if name in found
        else "input"
        for name in names
    ]


def _names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir() if entry.is_dir() and entry.name[0] != "."}


def _spell_time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, hours = seconds / 60, seconds / 3600
    return f"{minutes:.0f} min" if minutes < 90 else f"{hours:.1f} h"
