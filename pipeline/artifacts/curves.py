"""Training curves: `epochs.csv` in the folder of a run, one row per epoch; for a baseline `fitted.txt`.

Conventions: `epoch` counts from 1; every other column is one number per epoch. The same training gives the same bytes, so
the table holds no durations; these are in the stage report (`pipeline/execution/stage.py`). Rows are written during
training, each in one piece, so the table can be watched.
"""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ArtifactError

EPOCHS = "epochs.csv"
FITTED = "fitted.txt"

_STAGE = "train_*"


@contextmanager
def writing_epochs(folder: Path) -> Iterator[Callable[[Mapping[str, float]], int]]:
    """Start a new table; yield a function that appends an epoch's numbers and returns the number of the epoch."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / EPOCHS).open("w", newline="", encoding="utf-8") as file:
        done = 0

        def append(row: Mapping[str, float]) -> int:
            nonlocal done
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            if not done:
                writer.writerow(["epoch", *row])
            done += 1
            writer.writerow([done, *(f"{value:.6g}" for value in row.values())])
            file.write(text.getvalue())
            file.flush()  # one write: a reader meets whole rows
            return done

        yield append


def write_fitted(folder: Path) -> None:
    """Write the note that stands in for curves where a model has no epochs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FITTED).write_text(
        "Fitted in one go: there are no curves.\
",
        encoding="utf-8",
    )


def read_epochs(folder: Path, columns: Sequence[str] = ()) -> list[dict[str, float]] | None:
    """Return a run's rows, without `epoch`, the first epoch first; None for a model without epochs.

    Raises ArtifactError when the table is missing, lacks some of `columns`, does not count epochs from 1, or holds anything
    but numbers.
    """
    path = folder / EPOCHS
    if (folder / FITTED).exists():
        return None
    if not path.exists():
        raise ArtifactError(path, "file", expected="a row for each epoch", found="no file", stage=_STAGE)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if lacking := sorted(set(columns) - set(reader.fieldnames or ())):
            expected, found = ", ".join(lacking), ", ".join(reader.fieldnames or ()) or "none"
            raise ArtifactError(path, "columns", expected=expected, found=found, stage=_STAGE)
        try:
            rows = [{name: float(value) for name, value in row.items()} for row in reader]
        except (TypeError, ValueError) as error:
            raise ArtifactError(path, "rows", expected="numbers", found=str(error), stage=_STAGE) from None
    epochs = [row.pop("epoch", None) for row in rows]
    if not rows or epochs != [float(number) for number in range(1, len(rows) + 1)]:
        raise ArtifactError(path, "epoch", expected="1, 2, ... in order", found=epochs, stage=_STAGE)
    return rows
