"""What `dvc plots` makes of the report's CSV files: every chart names its model, and the page says what it needs."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, browse
from conftest import REPOSITORY
from ruamel.yaml import YAML
from test_reporting import CLASSES, EXPERIMENT, report, write_experiment
from workspace import run

from pipeline.reporting import drawing

CURVED = ("ast", "token_transformer-kmeans")  # the third model is fitted in one go


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with results, and the section `plots` of dvc.yaml alone."""
    root = tmp_path_factory.mktemp("plots")
    write_experiment(root, audio=False)
    report(root)
    plots = YAML(typ="safe").load(REPOSITORY / "dvc.yaml")["plots"]
    YAML().dump({"plots": plots}, root / "dvc.yaml")
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q")
    for name in ("config", "plots.html"):
        shutil.copy(REPOSITORY / ".dvc" / name, root / ".dvc")
    shutil.copy(REPOSITORY / ".gitignore", root)
    run(root, "git", "add", "-f", "results/plots", "dvc.yaml", ".dvc", ".gitignore")
    run(root, "git", "commit", "-qm", "results")
    return root


def charts(repository: Path, *command: str) -> dict[str, dict[str, Any]]:
    """Return title -> Vega-Lite specification of the charts that a command draws."""
    answer = json.loads(run(repository, "dvc", "plots", *command, "--json").stdout)
    assert "errors" not in answer
    specifications = [chart["content"] for group in answer["data"].values() for chart in group]
    found = {chart["title"]["text"]: chart for chart in specifications}
    assert len(found) == len(specifications)  # no two have one title
    return found


@pytest.fixture(scope="module")
def shown(repository: Path) -> dict[str, dict[str, Any]]:
    """Return the charts of `dvc plots show`."""
    return charts(repository, "show")


def encodings(chart: Any) -> Iterator[dict[str, Any]]:
    """Yield the encodings of a chart and of its parts."""
    if isinstance(chart, dict):
        yield from [chart["encoding"]] if "encoding" in chart else []
    for part in chart.values() if isinstance(chart, dict) else chart if isinstance(chart, list) else ():
        yield from encodings(part)


def test_a_class_may_have_a_name_that_mathtext_cannot_parse() -> None:
    svg = drawing.render("figure", lambda axes: axes[0].set_title("A$AP {x$"), size=(3, 2))
    assert "A$AP {x$" in svg


def test_every_chart_names_its_model(repository: Path, shown: dict[str, dict[str, Any]]) -> None:
    models = [*EXPERIMENT.models, *(ensemble.name for ensemble in EXPERIMENT.ensembles)]
    expected = {f"results/plots/{kind}/{model}.csv" for kind in ("confusion", "per_class") for model in models}
    expected |= {f"results/plots/loss/{model}.csv" for model in CURVED}
    assert set(shown) == set(charts(repository, "diff", "HEAD")) == expected


def test_a_confusion_matrix_has_actual_and_predicted_as_in_the_report(shown: dict[str, dict[str, Any]]) -> None:
    chart = shown["results/plots/confusion/ast.csv"]
    axes = next(encoding for encoding in encodings(chart) if "y" in encoding)
    assert (axes["x"]["field"], axes["y"]["field"]) == ("predicted", "actual")  # a row is an actual class
    values = chart["data"]["values"]
    assert len(values) == 12
    wrong = [row for row in values if row["actual"] != row["predicted"]]
    assert [(row["actual"], row["predicted"]) for row in wrong] == [(CLASSES[1], CLASSES[0])]


def test_axes_say_what_they_show(shown: dict[str, dict[str, Any]]) -> None:
    loss = next(e for e in encodings(shown["results/plots/loss/ast.csv"]) if "y" in e and "title" in e["y"])
    assert loss["y"]["title"] == "training loss, mean over folds and seeds"
    classes = next(e for e in encodings(shown["results/plots/per_class/ast.csv"]) if "x" in e and "title" in e["x"])
    assert classes["x"]["title"] == "average precision, mean over folds"


def test_the_page_says_that_it_needs_a_network_and_git_ignores_it(
    repository: Path, shown: dict[str, dict[str, Any]]
) -> None:
    run(repository, "dvc", "plots", "show", "-q")
    page = (repository / "dvc_plots/index.html").read_text()
    assert page.count("vegaEmbed('#") + page.count('vegaEmbed("#') == len(shown)
    for tokens in ("These charts need a network", "report/index.html", "cdn.jsdelivr.net/npm/vega"):
        assert tokens in page
    assert not re.search(r"\{[a-z_]+\}", page.partition("<script")[0])  # no placeholder is left
    assert run(repository, "git", "status", "--short", "--", "dvc_plots").stdout == ""


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_without_a_network_the_page_says_so(repository: Path, tmp_path: Path) -> None:
    run(repository, "dvc", "plots", "show", "-q")
    with browse(repository / "dvc_plots/index.html", tmp_path) as page:
        assert page.run("document.getElementById('no-network').checkVisibility()")
        assert not page.errors
