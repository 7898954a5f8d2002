"""`sonolex predict`: what a trained model says is in files, and its metrics where labels are known.

    sonolex predict my-model recordings/ more/*.flac
    sonolex predict my-model day.flac --window 5 --hop 2.5 --timeline --to csv --out day.csv
    sonolex predict my-model test.csv --labels test.csv
    sonolex predict my-model dog.wav --explain dog.png

The table goes to standard output or to --out, all else to standard error.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from pipeline.errors import SonolexError
from pipeline.execution.threads import divide_cores, usable_threads
from pipeline.inference.classifier import Classifier
from pipeline.inference.files import FoundFiles, find_files
from pipeline.inference.labels import FileLabels, read_labels
from pipeline.inference.opening import open_classifier
from pipeline.inference.predicting import FilePrediction, predict_files
from pipeline.inference.prediction import Failure, Prediction
from pipeline.inference.records import TableFormat, Write, open_table
from pipeline.inference.windows import Windowing
from pipeline.spectrogram.sources import BadClip

SHOWN = 3  # classes of a row, unless --top or --all says another number


@dataclass(frozen=True)
class Options:
    """Options of the command; see its help."""

    classes: Path | None = None  # list of those of a published checkpoint without names
    window: float | None = None
    hop: float | None = None
    pool: str = "mean"
    timeline: bool = False
    timeline_to: tuple[Path, ...] = ()
    explain: Path | None = None  # picture, or a folder of pictures, of what the model looks at
    to: TableFormat | None = None
    out: Path | None = None
    top: int | None = SHOWN  # None = all classes
    labels: Path | None = None
    root: Path | None = None
    threads: int | None = None

    @property
    def windows(self) -> bool:
        """Whether files are predicted by windows."""
        return self.window is not None or self.timeline or bool(self.timeline_to)


@dataclass
class _Tally:
    """What has been predicted so far."""

    keep: bool  # the predictions, for metrics
    predicted: list[Prediction] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    num_predicted: int = 0
    seconds: float = 0.0  # of sound

    def add(self, item: FilePrediction | Failure) -> None:
        if isinstance(item, Failure):
            self.failures.append(item)
            return
        self.num_predicted += 1
        self.seconds += item.whole.end
        if self.keep:
            self.predicted.append(item.whole)


def run(bundle: Path, names: Sequence[str], options: Options, console: Console, messages: Console) -> int:
    """Predict, and return the exit status: 1 where a file could not be used, else 0.

    The table goes to `console` unless options.to says otherwise, remarks to `messages`. Raises SonolexError for options, a
    bundle, labels or names that cannot be used, before anything is predicted.
    """
    options = _checked(options)
    files = find_files(names, stdin=sys.stdin, root=options.root)
    for path, count in files.repeated.items():
        messages.print(f"note: {escape(str(path))} is named {count} times, and predicted once", soft_wrap=True)
    tracks = _tracks(options.timeline_to, files.paths)
    pictures = _pictures(options.explain, files.paths)
    threads = _divide_cores(options, len(files.paths))
    classifier = open_classifier(bundle, options.classes)
    if pictures:
        from pipeline.inference.explaining import explained_members

        explained_members(classifier)
    windowing = _windowing(options, classifier)
    labels = _labels(options, classifier, files.paths)
    classifier.prepare()
    tally, started = _Tally(keep=labels is not None), time.perf_counter()
    with _opened(options, classifier, console) as write, _bar(len(files.paths), messages) as bar:
        for item in _predict(files, classifier, windowing, threads, bar):
            tally.add(item)
            bar(1, 0.0)
            for row in _rows(item, options):
                write(row)
            if isinstance(item, FilePrediction):
                for track in tracks.get(item.whole.source, ()):
                    _write_track(track, classifier, item)
                if item.whole.source in pictures:
                    _write_explanation(pictures[item.whole.source], classifier, item)
    _print_summary(tally, time.perf_counter() - started, messages)
    if labels:
        _print_metrics(labels, tally, console if options.out or options.to is None else messages)
    return 1 if tally.failures else 0


def _checked(options: Options) -> Options:
    """Return options with what they imply. Raises SonolexError for those that contradict each other."""
    if options.out and options.to is None:
        known = {f".{name}": name for name in get_args(TableFormat)}
        to = known.get(options.out.suffix.lower())
        if to is None:
            raise SonolexError(f"--out: expected a name that ends in {', '.join(known)}, or --to, found {options.out}")
        options = replace(options, to=to)
    if options.to == "parquet" and options.out is None:
        raise SonolexError(
            "--to parquet: expected --out FILE, found none: Parquet is not written to a terminal or a pipe"
        )
    if (options.hop is not None or options.pool != "mean") and not options.windows:
        raise SonolexError("--hop, --pool: expected --window SECONDS beside them, found none")
    if options.windows and options.explain:
        raise SonolexError(
            "--explain: expected files that are predicted as a whole, found --window or --timeline; leave them out, "
            "and of a long recording predict a piece"
        )
    return options


def _divide_cores(options: Options, num_files: int) -> int:
    """Return the number of files, or parts of a file, to compute at once; the cores are divided among them."""
    cores = usable_threads()
    threads = options.threads or (cores if options.windows else min(cores, max(1, num_files)))
    divide_cores(threads)
    return threads


def _windowing(options: Options, classifier: Classifier) -> Windowing | None:
    if not options.windows:
        return None
    window, hop = classifier.timeline_windows(options.window, options.hop)
    shortest = classifier.front_end.min_samples / classifier.sample_rate
    return Windowing.of(window, hop, options.pool, shortest=shortest)


def _labels(options: Options, classifier: Classifier, paths: Sequence[Path]) -> FileLabels | None:
    if options.labels is None:
        return None
    labels = read_labels(options.labels, options.root, classifier.classes, classifier.label_kind)
    labels.require_any(paths)
    return labels


def _predict(
    files: FoundFiles,
    classifier: Classifier,
    windowing: Windowing | None,
    threads: int,
    bar: Callable[[int, float], None],
) -> Iterator[FilePrediction | Failure]:
    yield from files.failures
    yield from predict_files(
        classifier, files.paths, windowing, threads=threads, advance=lambda seconds: bar(0, seconds)
    )


def _rows(item: FilePrediction | Failure, options: Options) -> list[Prediction | Failure]:
    if isinstance(item, Failure):
        return [item]
    return [*item.windows] if options.timeline else [item.whole]


def _tracks(targets: Sequence[Path], paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Return file -> what to write along its time: a .txt, a .png, or both for every file in a folder."""
    tracks: dict[str, list[Path]] = {str(path): [] for path in paths}
    for target in targets:
        if target.suffix.lower() in (".txt", ".png"):
            if len(paths) != 1:
                raise SonolexError(
                    f"--timeline-to {target}: expected one file to predict, found {len(paths)}; name a folder, which gets a "
                    ".txt and a .png for each"
                )
            tracks[str(paths[0])].append(target)
        elif target.is_file() or target.suffix:
            raise SonolexError(f"--timeline-to: expected a name that ends in .txt or .png, or a folder, found {target}")
        else:
            for path, stem in zip(paths, _distinct_stems(paths), strict=True):
                tracks[str(path)] += [target / f"{stem}.txt", target / f"{stem}.png"]
    return tracks


def _pictures(target: Path | None, paths: Sequence[Path]) -> dict[str, Path]:
    """Return file -> the picture of its explanation: the .png that `target` is, or one for every file in that folder."""
    if target is None:
        return {}
    if target.suffix.lower() == ".png":
        if len(paths) != 1:
            raise SonolexError(
                f"--explain {target}: expected one file to predict, found {len(paths)}; name a folder, which gets a .png "
                "for each"
            )
        return {str(paths[0]): target}
    if target.is_file() or target.suffix:
        raise SonolexError(f"--explain: expected a name that ends in .png, or a folder, found {target}")
    stems = zip(paths, _distinct_stems(paths), strict=True)
    return {str(path): target / f"{stem}.png" for path, stem in stems}


def _write_explanation(target: Path, classifier: Classifier, item: FilePrediction) -> None:
    from pipeline.inference.explaining import explain_file
    from tools.draw_attention import write_figure  # loads matplotlib

    best = int(item.whole.scores.argmax())
    try:
        found = explain_file(classifier, Path(item.whole.source), best)
    except BadClip as error:  # changed since it was predicted
        raise SonolexError(str(error)) from None
    title = f"{item.whole.source}\n{classifier.classes[best]} ({item.whole.scores[best]:.0%})"
    write_figure(target, title, found.frames, found.values, classifier.metadata, label=found.label)


def _distinct_stems(paths: Sequence[Path]) -> list[str]:
    """Return a name for each file: its own without the ending, numbered where several have it."""
    seen: Counter[str] = Counter()
    stems = []
    for path in paths:
        seen[path.stem] += 1
        stems.append(path.stem if seen[path.stem] == 1 else f"{path.stem}-{seen[path.stem]}")
    return stems


def _write_track(target: Path, classifier: Classifier, item: FilePrediction) -> None:
    if target.suffix.lower() == ".txt":
        from pipeline.inference.timeline import write_label_track

        write_label_track(target, item.windows)
    else:
        from pipeline.reporting.timelines import write_picture  # loads matplotlib

        try:
            write_picture(target, classifier, Path(item.whole.source), item.windows)
        except BadClip as error:  # changed since it was predicted
            raise SonolexError(str(error)) from None


@contextmanager
def _opened(options: Options, classifier: Classifier, console: Console) -> Iterator[Write]:
    """Yield a function that adds a row to the table that options name."""
    if options.to:
        with open_table(options.to, options.out, classifier.classes, options.top) as write:
            yield write
        return
    rows: list[Prediction | Failure] = []
    yield rows.append
    console.print(_table(rows, options))


def _table(rows: Sequence[Prediction | Failure], options: Options) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("file", overflow="fold")
    if options.timeline:
        table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("what is decided for" if _many(rows) else "class", overflow="fold")
    table.add_column("probabilities", overflow="fold")
    for row in rows:
        cells = [escape(row.source)]
        if isinstance(row, Failure):
            cells += [""] * options.timeline + [f"[red]{row.reason}[/red]", escape(row.message)]
        else:
            cells += [f"{row.start:.2f} to {row.end:.2f}"] * options.timeline
            top = row.top(len(row.classes) if options.top is None else options.top)
            scores = ", ".join(f"{name} {100 * score:.1f} %" for name, score in top)
            cells += [escape(", ".join(row.labels)), escape(scores)]
        table.add_row(*cells)
    return table


def _many(rows: Sequence[Prediction | Failure]) -> bool:
    return any(isinstance(row, Prediction) and row.label_kind == "many" for row in rows)


@contextmanager
def _bar(total: int, messages: Console) -> Iterator[Callable[[int, float], None]]:
    """Yield a function to call with the number of files just done, and the seconds of the current one that are done."""
    if not messages.is_terminal:
        yield lambda _files, _seconds: None
        return
    started, done = time.perf_counter(), 0
    columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=messages, transient=True) as progress:
        task = progress.add_task("predict", total=total, text="")

        def advance(files: int, seconds: float) -> None:
            nonlocal done
            done += files
            rate = done / max(time.perf_counter() - started, 1e-9)
            text = f"{rate:.0f} files/s" if done else f"{_clock(seconds)} of the first"
            progress.update(task, completed=done, text=text)

        yield advance


def _print_summary(tally: _Tally, elapsed: float, messages: Console) -> None:
    """Print what was predicted, and how fast: the real-time factor is the time taken per second of sound."""
    num_files = tally.num_predicted + len(tally.failures)
    line = f"{num_files} files, {_clock(tally.seconds)} of sound in {elapsed:.1f} s: {num_files / elapsed:.1f} files/s"
    if tally.seconds:
        factor = elapsed / tally.seconds
        line += f", real-time factor {factor:.2g} ({1 / factor:.3g} times as fast as it plays)"
    if tally.failures:
        reasons = Counter(failure.reason for failure in tally.failures)
        line += f"; {len(tally.failures)} failed: " + ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
    messages.print(line, soft_wrap=True, highlight=False)


def _print_metrics(labels: FileLabels, tally: _Tally, console: Console) -> None:
    from pipeline.evaluation.metric_definition import reported_metrics  # loads scipy
    from pipeline.evaluation.metrics import evaluate_clips, evaluate_intervals

    clips = labels.scored(tally.predicted)
    if clips is None:
        console.print("no metrics: no file that has labels could be used")
        return
    scores, intervals = evaluate_clips(clips), evaluate_intervals(clips)
    table = Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for column in ("metric", "value", "95 % interval"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric in reported_metrics().values():
        unit, limits = " %" * metric.percent, [metric.spell(limit) for limit in intervals.get(metric.name, ())]
        interval = " to ".join(limits) + unit if limits and all(limits) else ""
        if value := metric.spell(scores.values[metric.name]):
            table.add_row(metric.label, value + unit, interval)
    console.print(table)
    console.print(_spell_coverage(labels, tally, len(clips.clip_ids), scores.num_present_classes), soft_wrap=True)


def _spell_coverage(labels: FileLabels, tally: _Tally, counted: int, present: int) -> str:
    """Return which files the metrics are of."""
    failed = labels.count_of([failure.source for failure in tally.failures])
    others = tally.num_predicted - counted
    absent = len(labels.labels) - counted - failed
    parts = [f"metrics of {counted} files with labels of {present} classes"]
    parts += [f"{failed} with labels could not be used"] if failed else []
    parts += [f"{others} have no labels in {labels.path}"] if others else []
    parts += [f"{absent} of its files were not named"] if absent else []
    return escape("; ".join(parts))


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
