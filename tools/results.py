"""`sonolex results`: print the results of the last run, and the path of the report page."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pipeline.artifacts.layout import Layout
from pipeline.reporting.summary import read_summary, results_table, training_times
from tools.staleness import note


def run(summary_path: Path, page_path: Path, reports_path: Path, console: Console) -> None:
    """Print the table of results. Raises SonolexError while there are none.

    Training times are those of this machine's stage reports below `reports_path`, if there are any.
    """
    runs = read_summary(summary_path)
    table = results_table(runs, training_times(runs, reports_path))
    # In a narrow terminal the table would lose whole columns: let it overflow instead.
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=1000)).maximum)
    console.print(table)
    if stale := note(Layout()):
        console.print(escape(stale), soft_wrap=True, style="yellow")
    there = page_path.resolve() if page_path.exists() else f"missing: expected {page_path}; `dvc repro` writes it"
    console.print(f"report: {escape(str(there))}", soft_wrap=True)
