"""README.md: its length, its order, and figures that agree with docs/results.md."""

import re

from conftest import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
SECTIONS = ["Results", "The graph", "Your own audio", "Using a trained model", "Comparing experiments", "Commands"]


def rows_of(page: str) -> dict[str, list[str]]:
    """Return model -> cells of the row, of the first table with a column `accuracy`."""
    lines = page.splitlines()
    head = next(number for number, line in enumerate(lines) if line.startswith("|") and "accuracy" in line)
    names = [cell.strip() for cell in lines[head].split("|")[1:-1]]
    rows: dict[str, list[str]] = {}
    for line in lines[head + 2 :]:
        if not line.startswith("|"):
            break
        cells = dict(zip(names, (cell.strip() for cell in line.split("|")[1:-1]), strict=True))
        rows[cells["model"]] = [cells[name] for name in ("accuracy", "mAP", "parameters", "training per fold")]
    return rows


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 200
    assert len(rows_of(README)) <= 8
    assert README.count("![") == 1


def test_sections_come_in_the_order_in_which_a_reader_needs_them() -> None:
    found = re.findall(r"^## (.*)$", README, re.MULTILINE)
    assert [name for name in found if name in SECTIONS] == SECTIONS


def test_its_figures_are_those_of_the_results_page() -> None:
    full = rows_of((REPOSITORY / "docs/results.md").read_text())
    assert len(full) == 17
    for model, cells in rows_of(README).items():
        assert full[model] == cells, model


def test_anchors_of_links_are_headings() -> None:
    for page, anchor in re.findall(r"\]\((docs/[^)#]+)#([^)]+)\)", README):
        headings = re.findall(r"^#+ (.*)$", (REPOSITORY / page).read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in slugs, f"{page}#{anchor}"
