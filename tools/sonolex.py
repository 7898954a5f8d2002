"""Console program `sonolex`; each command is a module that is imported when the command is called."""

import sys
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console
from typer.core import TyperGroup

from pipeline.artifacts.layout import Layout
from pipeline.errors import SonolexError


class _Commands(TyperGroup):
    """Command group that prints a SonolexError, or an error of the storage, as a message, without a traceback."""

    def invoke(self, ctx: Any) -> object:  # typer's own Context, or click's, by its release
        try:
            return super().invoke(ctx)
        except SonolexError as error:
            sys.stderr.write(f"error: {error}\n")
            raise typer.Exit(1) from None
        except OSError as error:
            from pipeline.execution.stage import storage_message

            message = storage_message(error)
            if not message:
                raise
            sys.stderr.write(f"error: {message}\n")
            raise typer.Exit(1) from None


def _console() -> Console:
    """Return a console as wide as the terminal; in a file or a pipe wider than the default of 80 columns."""
    return Console(width=None if sys.stdout.isatty() else 160)


app = typer.Typer(
    cls=_Commands,
    help="Learn a vocabulary of sound, and train transformers on it. `dvc repro` or `sonolex repro` runs the stages.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def new(
    folder: Annotated[Path, typer.Argument(help="folder of sounds, or a published corpus as it was unpacked")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="as for compose")] = None,
    kind: Annotated[str | None, typer.Option(help="read it as this corpus.kind, such as folder or pattern")] = None,
    recipes: Annotated[Path, typer.Option(help="folder of the recipes")] = Path("recipes"),
    params: Annotated[Path, typer.Option(help="file to write")] = Path("params.yaml"),
    yes: Annotated[bool, typer.Option("--yes", "-y", help="write without asking")] = False,
    force: Annotated[bool, typer.Option(help="overwrite changes that were made by hand; keeps FILE.bak")] = False,
) -> None:
    """Look at a folder of sounds, and write params.yaml that reads it, after a yes. Exits with 1 if nothing was written."""
    from tools import new as command

    written = command.run(
        folder,
        overrides or [],
        command.Options(kind, yes, force),
        recipes_path=recipes,
        params_path=params,
        console=_console(),
        messages=Console(stderr=True),
        confirm=(lambda: typer.confirm(f"write {params}?")) if sys.stdin.isatty() else None,
    )
    if not written:
        raise typer.Exit(1)


@app.command()
def compose(
    recipe: Annotated[
        str, typer.Argument(help="a recipe, or several: esc50+ast_tiny224, esc50+mine.yaml; none lists them")
    ] = "",
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="train.epochs=80")] = None,
    recipes: Annotated[Path, typer.Option(help="folder of the recipes")] = Path("recipes"),
    params: Annotated[Path, typer.Option(help="file to write")] = Path("params.yaml"),
    force: Annotated[bool, typer.Option(help="overwrite changes that were made by hand; keeps FILE.bak")] = False,
) -> None:
    """Write params.yaml from recipes, overlays of your own, and key=value settings."""
    from tools import compose as command

    console = _console()
    if recipe:
        command.run(recipe, overrides or [], recipes_path=recipes, params_path=params, console=console, force=force)
    else:
        command.print_recipes(recipes, console)


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="a corpus; none lists them")] = "",
    to: Annotated[Path, typer.Option(help="folder of all corpora")] = Path("audio"),
    yes: Annotated[bool, typer.Option("--yes", help="accept the licence without being asked")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="keep the archives, in .fetch")] = False,
    show: Annotated[bool, typer.Option("--list", help="only list the corpora: names, sizes, licences")] = False,
    catalogue: Annotated[Path, typer.Option(help="addresses and checksums")] = Path("metadata/corpora.yaml"),
) -> None:
    """Download a published corpus, check it, and unpack it. An interrupted download goes on where it ended."""
    from pipeline.execution.stage import start_logging
    from tools import fetch as command
    from tools.fetching.catalogue import find_corpus, load_catalogue

    corpora = load_catalogue(catalogue)
    if show or not name:
        _console().print(command.catalogue_table(corpora))
        return
    start_logging()  # of the progress, without a terminal
    command.run(name, find_corpus(corpora, name), command.Options(to, accepted=yes, keep=keep), _console())


@app.command()
def check(
    params: Annotated[Path, typer.Option(help="file to check")] = Path("params.yaml"),
    recipes: Annotated[Path, typer.Option(help="folder of the recipes, for the defaults")] = Path("recipes"),
) -> None:
    """Check params.yaml, the packages that it needs, the corpus, its folds and its size; report all mistakes at once."""
    from pipeline.check_params import load_experiment
    from tools.compose import remarks_on_settings
    from tools.corpus_check import corpus_mistakes, length_remarks, rate_remarks, token_table_mistakes
    from tools.network_check import layer_mistakes, network_mistakes, weights_mistakes
    from tools.package_check import package_mistakes

    loaded = load_experiment(params)
    mistakes = [
        *package_mistakes(loaded, params),
        *network_mistakes(loaded, params),
        *layer_mistakes(loaded, params),
        *weights_mistakes(loaded, params),
        *token_table_mistakes(loaded, Layout(), params),
        *corpus_mistakes(loaded, Layout(), params),
    ]
    if mistakes:
        raise SonolexError("\n".join(mistakes))
    of_settings = remarks_on_settings(loaded, params, recipes)
    for remark in (*of_settings, *length_remarks(loaded, Layout()), *rate_remarks(loaded)):
        typer.echo(f"{params}: note: {remark}")
    sections = loaded.sections
    experiment = sections["experiment"]
    runs = len(experiment.models) * len(experiment.folds) * len(experiment.seeds)
    typer.echo(f"{params}: no mistakes; corpus {sections['corpus'].kind}, {runs} models to train")


@app.command("find-rate")
def find_rate(
    model: Annotated[str, typer.Argument(help="a network of the experiment, by its name in tables")],
    fold: Annotated[str, typer.Option(help="whose training clips it sees; by default the experiment's first")] = "",
    lowest: Annotated[float, typer.Option(help="rate of the first step", min=1e-12)] = 1e-7,
    highest: Annotated[
        float, typer.Option(help="rate of the last step, unless the loss diverges before", max=10)
    ] = 1.0,
    steps: Annotated[int, typer.Option(help="batches, one for each rate", min=20)] = 200,
    out: Annotated[Path, typer.Option(help="table and figure to write, as OUT.csv and OUT.png")] = Path("find_rate"),
) -> None:
    """Run a learning-rate range test of a model, and suggest a rate. No artifact changes."""
    from pipeline.execution.stage import start_logging
    from pipeline.training.range_test import Range
    from tools import find_rate as command

    start_logging()
    if lowest >= highest:
        raise SonolexError(f"--lowest: expected less than --highest {highest:g}, found {lowest:g}")
    suggested, points = command.run(model, fold, Range(lowest, highest, steps), out)
    rates = f"{len(points)} steps, at rates from {lowest:g} to {points[-1].rate:.2g}" if points else "no step"
    typer.echo(f"{out}.csv, {out}.png: {rates}")
    advice = f"suggested train.learning_rate: {suggested:.1e}" if suggested else "the loss never falls: no suggestion"
    typer.echo(advice)


@app.command()
def doctor(
    params: Annotated[Path, typer.Option(help="the experiment, for the disk space that it needs")] = Path(
        "params.yaml"
    ),
) -> None:
    """Check this machine: versions, cores, GPU, file system, disk space. Exits with 1 if something is broken."""
    from tools import doctor as command

    if command.run(params, Layout(), _console()):
        raise typer.Exit(1)


@app.command()
def plan(
    params: Annotated[Path, typer.Option(help="the experiment")] = Path("params.yaml"),
) -> None:
    """Show what a run would do: shards reused and to compute per stage, reasons, and estimated time."""
    from tools import plan as command

    command.run(params, _console())


@app.command()
def repro(
    targets: Annotated[list[str] | None, typer.Argument(help="stages, as for `dvc repro`; none = all")] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="stages at once; by default the cores")
    ] = None,
    force: Annotated[bool, typer.Option("--force", "-f", help="run also what has not changed")] = False,
    dry: Annotated[bool, typer.Option(help="only list the stages, in order")] = False,
) -> None:
    """Run `dvc repro` with stages in parallel. Exits with 1 if one failed; stages that do not depend on it are run."""
    from tools import repro as command

    if status := command.run(targets or [], jobs=jobs, force=force, dry=dry, console=_console()):
        raise typer.Exit(status)


@app.command()
def graph(
    status: Annotated[bool, typer.Option(help="show what is up to date, which takes as long as `dvc status`")] = False,
    mermaid: Annotated[bool, typer.Option(help="in Mermaid's language, for Markdown")] = False,
) -> None:
    """Draw the stages and their dependencies, in 100 columns."""
    from tools import graph as command

    command.run(status=status, mermaid=mermaid, console=_console())


@app.command()
def gc(
    max_size: Annotated[
        str | None, typer.Option(help="size to keep, such as 500M or 20G; least recently used entries are removed")
    ] = None,
    max_days: Annotated[float | None, typer.Option(help="days without use after which an entry is removed")] = None,
    verify: Annotated[bool, typer.Option(help="read every file and remove damaged entries")] = False,
    dry_run: Annotated[bool, typer.Option(help="only show what would be removed")] = False,
    params: Annotated[Path, typer.Option(help="the experiment, for the path of the memo")] = Path("params.yaml"),
) -> None:
    """Remove damaged, old and least recently used entries of the memo store, and what killed runs have left."""
    from pipeline.execution.executors import ExecutionParams
    from pipeline.params import load_params
    from tools import gc as command

    root = load_params(ExecutionParams, "execution", params).memo
    command.run(root, max_size=max_size, max_days=max_days, verify=verify, dry_run=dry_run, console=_console())


@app.command()
def why(
    clip: Annotated[str, typer.Argument(help="id of a clip, as in the manifest")],
) -> None:
    """Trace one clip through every artifact."""
    from pipeline.artifacts.layout import Layout
    from tools import why as command
    from tools.staleness import note

    _console().print(command.findings_table(clip, command.trace(clip, Layout())))
    if stale := note(Layout()):
        typer.echo(stale)


@app.command()
def doubtful(
    model: Annotated[
        list[str] | None, typer.Option(help="a model of the experiment; by default those of labels.models")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="clips of the page")] = 40,
    page: Annotated[Path, typer.Option(help="page to write")] = Path("report/doubtful.html"),
    params: Annotated[Path, typer.Option(help="the experiment")] = Path("params.yaml"),
) -> None:
    """Rank the clips by how likely their labels are wrong, and write a page to listen and correct them."""
    from tools import doubtful as command

    command.run(
        model or [], count=count, page=page, layout=Layout(params.parent), params_path=params, console=_console()
    )


@app.command()
def bundle(
    out: Annotated[Path, typer.Option(help="folder to write")],
    name: Annotated[str, typer.Argument(help="a model of the experiment, or an ensemble")] = "",
    folds: Annotated[
        list[str] | None, typer.Option(help="fold whose model is taken, or all; by default the first")
    ] = None,
    retrain: Annotated[bool, typer.Option(help="train one model on all clips by the same recipe")] = False,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="in place of a model: a published AST or PSLA, a folder or a file; several predict the mean"),
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="of a checkpoint without: file with a class a line")] = None,
    licence: Annotated[str, typer.Option(help="of the weights, such as cc-by-4.0")] = "",
    params: Annotated[Path, typer.Option(help="the experiment")] = Path("params.yaml"),
) -> None:
    """Write a trained model, an ensemble or a published checkpoint as one folder to hand over."""
    from pipeline.execution.stage import start_logging
    from tools import bundle as command

    command.require_choice(name, checkpoint or [], classes, folds or [], retrain=retrain)
    if checkpoint:
        command.run_checkpoints(checkpoint, out, classes=classes, licence=licence, console=_console())
        return
    if retrain:
        start_logging()  # the stages log their progress
    command.run(
        name,
        out,
        folds=folds or [],
        retrain=retrain,
        licence=licence,
        params_path=params,
        layout=Layout(params.parent),
        console=_console(),
    )


@app.command()
def predict(
    bundle: Annotated[Path, typer.Argument(help="a folder that `sonolex bundle` wrote, or a published AST")],
    paths: Annotated[
        list[str], typer.Argument(help="files, folders, patterns, tables with a column of paths; - is a list on stdin")
    ],
    window: Annotated[float | None, typer.Option(help="seconds; predict in windows, as long recordings need")] = None,
    hop: Annotated[float | None, typer.Option(help="seconds between windows; by default half a window")] = None,
    pool: Annotated[str, typer.Option(help="of the windows' probabilities: mean or max")] = "mean",
    timeline: Annotated[bool, typer.Option("--timeline", help="a row for each window")] = False,
    timeline_to: Annotated[
        list[Path] | None,
        typer.Option(help="label track of Audacity (.txt), picture (.png), or a folder for both of every file"),
    ] = None,
    explain: Annotated[
        Path | None,
        typer.Option(help="picture (.png), or a folder for one of every file: what the model looks at"),
    ] = None,
    to: Annotated[str | None, typer.Option(help="csv, jsonl or parquet; by default a table to read")] = None,
    out: Annotated[Path | None, typer.Option(help="file to write; by default standard output")] = None,
    top: Annotated[int, typer.Option(min=1, help="likeliest classes of a row")] = 3,
    all_classes: Annotated[bool, typer.Option("--all", help="all classes")] = False,
    labels: Annotated[Path | None, typer.Option(help="table of paths and labels; prints the metrics")] = None,
    root: Annotated[
        Path | None, typer.Option(help="folder of relative paths in tables; by default each table's own")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="of a checkpoint without: file with a class a line")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="files at once; by default the cores")] = None,
) -> None:
    """Predict what is in files, by a trained model. Exits with 1 if a file could not be used."""
    from pipeline.inference.records import TableFormat
    from tools import predict as command

    if to is not None and to not in get_args(TableFormat):
        raise SonolexError(f"--to: expected one of {', '.join(get_args(TableFormat))}, found {to!r}")
    options = command.Options(
        classes=classes,
        window=window,
        hop=hop,
        pool=pool,
        timeline=timeline,
        timeline_to=tuple(timeline_to or ()),
        explain=explain,
        to=cast("TableFormat | None", to),
        out=out,
        top=None if all_classes else top,
        labels=labels,
        root=root,
        threads=threads,
    )
    if status := command.run(bundle, paths, options, console=_console(), messages=Console(stderr=True)):
        raise typer.Exit(status)


@app.command()
def serve(
    bundles: Annotated[list[str], typer.Argument(metavar="[NAME=]BUNDLE...", help="folders of `sonolex bundle`")],
    host: Annotated[str, typer.Option(help="address to listen on; 0.0.0.0 = all, also for others")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 = any that is free")] = 8000,
    max_size: Annotated[str, typer.Option(help="largest upload, such as 500K or 32M")] = "32M",
    max_seconds: Annotated[float, typer.Option(min=0.1, help="longest sound")] = 60.0,
    max_requests: Annotated[int, typer.Option(min=1, help="requests at once; more are answered 503")] = 64,
    max_per_client: Annotated[int, typer.Option(min=1, help="of one address; more are answered 429")] = 32,
) -> None:
    """Offer bundles over HTTP, with a page to try them."""
    from tools import serve as command
    from tools.gc import parse_size

    command.run(
        bundles,
        host=host,
        port=port,
        max_bytes=parse_size(max_size),
        max_seconds=max_seconds,
        requests=max_requests,
        requests_of_client=max_per_client,
        console=_console(),
    )


@app.command()
def embed(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="[MODEL] PATHS...",
            help="a model, unless --textures; then files, folders, patterns, tables of paths; - is a list on stdin",
        ),
    ],
    textures: Annotated[bool, typer.Option("--textures", help="texture statistics, which need no model")] = False,
    layer: Annotated[
        str | None, typer.Option(help="of the network, by default encoder; any other name lists them")
    ] = None,
    classes: Annotated[Path | None, typer.Option(help="of a checkpoint without: file with a class a line")] = None,
    frames: Annotated[bool, typer.Option("--frames", help="a row for every time step of the layer")] = False,
    window: Annotated[float | None, typer.Option(help="seconds; a row for each window, for long recordings")] = None,
    hop: Annotated[float | None, typer.Option(help="seconds between windows; by default half a window")] = None,
    out: Annotated[Path | None, typer.Option(help="file to write: .parquet or .npz")] = None,
    projector: Annotated[
        Path | None, typer.Option(help="folder for vectors.tsv and metadata.tsv, for the embedding projector")
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG of the first two principal components")] = None,
    labels: Annotated[Path | None, typer.Option(help="table of paths and labels; by default folders' names")] = None,
    root: Annotated[
        Path | None, typer.Option(help="folder of relative paths in tables; by default each table's own")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="files at once; by default the cores")] = None,
) -> None:
    """Write vectors of files, by a layer of a model or by texture statistics. Exits with 1 if a file could not be used."""
    from tools import embed as command

    if textures and (layer is not None or classes is not None):
        raise SonolexError(
            "--textures: expected no --layer and no --classes beside it, which are for models; leave them out"
        )
    model, paths = (None, names) if textures else (Path(names[0]), names[1:])
    if not paths:
        raise SonolexError(f"expected a model and then paths, found {names[0]} alone; --textures needs no model")
    options = command.Options(
        layer=layer,
        classes=classes,
        frames=frames,
        window=window,
        hop=hop,
        out=out,
        projector=projector,
        picture=picture,
        labels=labels,
        root=root,
        threads=threads,
    )
    if status := command.run(model, paths, options, Console(stderr=True)):
        raise typer.Exit(status)


@app.command()
def neighbours(
    clip: Annotated[Path, typer.Argument(help="a file with a row in the embeddings, or any other")],
    embeddings: Annotated[Path, typer.Argument(help="a file that `sonolex embed` wrote")],
    model: Annotated[Path | None, typer.Option(help="the model of the embeddings, for a clip without a row")] = None,
    layer: Annotated[str | None, typer.Option(help="the layer to expect; by default that of the embeddings")] = None,
    classes: Annotated[Path | None, typer.Option(help="of a checkpoint without: file with a class a line")] = None,
    top: Annotated[int, typer.Option(min=1, help="rows to show")] = 5,
    raw: Annotated[bool, typer.Option("--raw", help="cosine of the vectors as they are, not standardised")] = False,
) -> None:
    """Print the sounds that are most alike to a clip, by their embeddings."""
    from tools import neighbours as command

    command.run(clip, embeddings, model=model, layer=layer, classes=classes, top=top, raw=raw, console=_console())


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="folder of a trained model: models/<model>/<fold>/<seed>")],
    to: Annotated[str, typer.Option(help="onnx, torch (a .pt2 file), huggingface or original")],
    out: Annotated[Path, typer.Option(help="file to write; with huggingface a folder")],
    start: Annotated[
        str, typer.Option("--input", help="of onnx and torch: waveform; or frames or tokens, as the model reads them")
    ] = "waveform",
    vocabulary: Annotated[
        Path | None, typer.Option(help="of a model of tokens; by default the one of the model's project and fold")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="with onnx: quantise the classifier's weights")] = False,
) -> None:
    """Write a trained model for other programs: ONNX, torch.export, Hugging Face, or the format of AST's authors."""
    from tools import export as command

    for option, value, known in (("--to", to, command.TARGETS), ("--input", start, command.STARTS)):
        if value not in known:
            raise SonolexError(f"{option}: expected one of {', '.join(known)}, found {value!r}")
    exported = command.run(
        model,
        cast("command.Target", to),
        out,
        start=cast("command.Start", start),
        vocabulary=vocabulary,
        int8=int8,
    )
    for remark in exported.remarks:
        typer.echo(f"note: {remark}")
    typer.echo(f"{out}: logits differ from the model's by at most {exported.difference:.1g}")


@app.command()
def leaderboard(
    markdown: Annotated[bool, typer.Option(help="as Markdown, for a README")] = False,
) -> None:
    """Print the models of the last run by accuracy or mAP, with their costs: parameters, tokens, bits, speed, bytes."""
    from pipeline.grid import ExperimentParams
    from pipeline.params import load_params
    from tools import leaderboard as command

    experiment = load_params(ExperimentParams, "experiment")
    command.run(Layout(), experiment, _console(), markdown=markdown)


@app.command()
def results(
    summary: Annotated[Path, typer.Option(help="table of runs")] = Path("results/summary.csv"),
    page: Annotated[Path, typer.Option(help="report page")] = Path("report/index.html"),
) -> None:
    """Print the results of the last run, and the path of the report."""
    from tools import results as command

    command.run(summary, page, Layout().stage_reports, _console())


if __name__ == "__main__":  # otherwise `python -m tools.sonolex` would silently do nothing
    app()
