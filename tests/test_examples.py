"""The notebooks: their cells run in a fresh namespace, and what is committed are the outputs of a complete run."""

import base64
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from examples.execute import execute, main

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MAX_BYTES = 300_000


def read(path: Path) -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def make_notebook(*sources: str) -> dict[str, Any]:
    cells = [
        {
            "cell_type": "code",
            "id": f"c{number}",
            "metadata": {},
            "execution_count": None,
            "outputs": [],
            "source": [text],
        }
        for number, text in enumerate(sources)
    ]
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def kinds_of_output(notebook: dict[str, Any]) -> list[list[list[str]]]:
    """Return what each cell leaves: the names of streams, and the media types of data."""
    return [[sorted(output.get("data", [output.get("name")])) for output in c["outputs"]] for c in code_cells(notebook)]


def test_the_first_vocabulary_runs_and_shows_what_its_text_says() -> None:
    committed = read(EXAMPLES / "first_vocabulary.ipynb")
    executed = copy.deepcopy(committed)
    namespace = execute(executed)
    assert kinds_of_output(executed) == kinds_of_output(committed)
    assert namespace["pair_accuracy"] >= 0.8  # "the pair of nearly every test clip"
    assert namespace["accuracy"] <= 0.7  # "a guess" between the two: half of the pairs that are right
    assert namespace["error"] < 8  # dB


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_outputs_are_of_one_complete_run(path: Path) -> None:
    cells = code_cells(read(path))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    assert pictures
    for picture in pictures:
        assert base64.b64decode("".join(picture)).startswith(b"\x89PNG")
    assert path.stat().st_size < MAX_BYTES


def test_a_cell_that_raises_stops_the_run_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.ipynb"
    path.write_text(json.dumps(make_notebook("x = 1", "x / 0", "x")))
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError) as caught:
        main([str(path)])
    assert "code cell 2" in caught.value.__notes__[0]
    assert path.read_bytes() == before


def test_execution_stores_text_values_and_figures(tmp_path: Path) -> None:
    path = tmp_path / "small.ipynb"
    figure = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    path.write_text(json.dumps(make_notebook("print('a')\nx = 2", "x + 1", "x;", figure)))
    main([str(path)])
    printed, value, silent, drawn = code_cells(read(path))
    assert printed["outputs"] == [{"name": "stdout", "output_type": "stream", "text": ["a\n"]}]
    assert value["outputs"][0]["data"] == {"text/plain": ["3"]}
    assert silent["outputs"] == []
    assert [set(output["data"]) for output in drawn["outputs"]] == [{"image/png", "text/plain"}]
    assert drawn["execution_count"] == 4
