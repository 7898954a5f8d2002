"""README.md: its length, its order, and figures that agree with docs/results.md."""

import itertools
import re

import pytest
from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
SECTIONS = ["Results", "The graph", "Your own audio", "Using a trained model", "Comparing experiments", "Commands"]


def rows_of(page: str, column: str) -> dict[str, dict[str, str]]:
    """Return model -> cells by column, of the first table with a column of this name."""
    lines = page.splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] if line.startswith("|") else [] for line in lines]
    head = next(number for number, names in enumerate(cells) if column in names)
    rows = itertools.takewhile(bool, cells[head + 2 :])
    return {row[0]: dict(zip(cells[head], row, strict=True)) for row in rows}


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 200
    assert len(rows_of(README, "parameters")) <= 8
    assert README.count("![") == 1


def test_sections_come_in_the_order_in_which_a_reader_needs_them() -> None:
    found = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert [name for name in found if name in SECTIONS] == SECTIONS


@pytest.mark.parametrize(("column", "num_models"), [("parameters", 19), ("macro F1, fitted threshold", 10)])
def test_its_figures_are_those_of_the_results_page(column: str, num_models: int) -> None:
    """Inputs are words, not figures, and may be said otherwise."""
    full = rows_of((REPOSITORY / "docs/results.md").read_text(), column)
    assert len(full) == num_models
    for model, cells in rows_of(README, column).items():
        cells.pop("input", None)
        assert cells == {name: full[model][name] for name in cells}, model


def test_anchors_of_links_are_headings() -> None:
    for page, anchor in re.findall(r"\]\((docs/[^)#]+)#([^)]+)\)", README):
        headings = re.findall(r"^#+ (.*)$", (REPOSITORY / page).read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{page}#{anchor}"
