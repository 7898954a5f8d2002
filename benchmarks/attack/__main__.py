"""Attack on everything that may be damaged: sound files, artifacts, memo, checkpoints, indexes, and running stages.

    python -m benchmarks.attack [--mutants 1000] [--kills 50] [--flips 150] [--seed 0] [--json FILE]

Makes a small experiment of the demo corpus, runs it, attacks copies of it, and prints a table of outcomes with a line for
every traceback and every silent fault; the exit status is 1 where there are any. Kills are for each stage, flips for each of
artifacts, memo, checkpoints and index.
"""

import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.attack import flips, kills, mutants
from benchmarks.attack.outcomes import Tally
from benchmarks.measuring import report
from benchmarks.workspace import make_repository, run_in

_SMALL = (
    "experiment.folds=['1']", "corpus.clips_per_class=5", "corpus.duration=0.5", "spectrogram.front_end.n_mels=24",
    "vocabularies.kmeans.num_tokens=16", "train.epochs=2", "models.ast.encoder.depth=1",
    "models.token_transformer.encoder.depth=1", "report.examples=1", "report.worst=1", "atlas.tokens=4", "atlas.clips=1",
    "experiment.frame_models=[ast]", "experiment.token_models=[token_transformer]",
    "experiment.pretrained_models=[token_transformer]",
)  # fmt: skip


def run(folder: Path, num_mutants: int, num_kills: int, num_flips: int, seed: int) -> list[Tally]:
    """Attack with so many trials of each kind, 0 = none, and return the outcomes."""
    tallies = mutants.attack(folder, num_mutants, seed) if num_mutants else []
    if not num_kills and not num_flips:
        return tallies
    workspace = folder / "workspace"
    make_repository(workspace, "demo", _SMALL)
    run_in(workspace, "dvc", "repro", "-q")
    if num_flips:
        for targets in flips.GROUPS.values():
            tallies += flips.attack(workspace, folder / "flips", targets, num_flips, seed)
    if num_kills:
        tallies += kills.attack(workspace, folder / "left", num_kills, repro, seed)
    return tallies


def repro(workspace: Path) -> None:
    """Run every stage whose outputs are missing, and take none from earlier runs."""
    run_in(workspace, "dvc", "repro", "-q", "--no-run-cache")


def main(
    num_mutants: Annotated[int, typer.Option("--mutants", help="of sound files")] = 1000,
    num_kills: Annotated[int, typer.Option("--kills", help="of each stage")] = 50,
    num_flips: Annotated[int, typer.Option("--flips", help="in each of artifacts, memo, checkpoints and index")] = 150,
    seed: int = 0,
    json: Annotated[Path | None, typer.Option(help="write the rows there")] = None,
) -> None:
    logging.disable(logging.WARNING)  # every healed entry of the memo has one
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        tallies = run(folder, num_mutants, num_kills, num_flips, seed)
    finally:
        shutil.rmtree(folder)
    report("attack", f"Attack with seed {seed}", [tally.row() for tally in tallies], json_path=json)
    faults = [fault for tally in tallies for fault in tally.faults]
    sys.stdout.write("".join(f"{fault}\n" for fault in faults))
    raise typer.Exit(bool(faults))


if __name__ == "__main__":
    typer.run(main)
