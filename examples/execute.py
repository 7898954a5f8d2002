"""Execute a notebook in place: run its code cells in one namespace and store their outputs.

    python -m examples.execute examples/first_vocabulary.ipynb

A minimal substitute for a Jupyter kernel, so that the lock file does not need Jupyter. It stores printed text, the value of
a cell's last expression unless a semicolon follows it, and open matplotlib figures. Cells are plain Python, without magics.

Conventions: a notebook is the JSON object of nbformat 4.5.
"""

import argparse
import ast
import base64
import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

_DPI = 80


def execute(notebook: dict[str, Any]) -> dict[str, Any]:
    """Run the code cells in order, replace their outputs and execution counts, and return the namespace.

    An exception of a cell propagates with a note that names the cell.
    """
    plt.switch_backend("Agg")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    code_cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(code_cells, start=1):
        try:
            cell["outputs"] = _run_cell("".join(cell["source"]), count, namespace)
        except Exception as error:
            error.add_note(f"in code cell {count} of the notebook:\n{''.join(cell['source'])}")
            raise
        finally:
            plt.close("all")
        cell["execution_count"] = count
    return namespace


def _run_cell(source: str, count: int, namespace: dict[str, Any]) -> list[dict[str, Any]]:
    """Run one cell and return its outputs in Jupyter's order: printed text, value, figures."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    name, value, printed = f"<cell {count}>", None, io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)  # noqa: S102 - running the cells is the purpose
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)  # noqa: S307
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        outputs.append({"name": "stdout", "output_type": "stream", "text": _lines(printed.getvalue())})
    if value is not None and not source.rstrip().endswith(";"):
        data: dict[str, Any] = {"text/plain": _lines(repr(value))}
        outputs.append({"data": data, "execution_count": count, "metadata": {}, "output_type": "execute_result"})
    for number in plt.get_fignums():
        data = {"image/png": _png(number), "text/plain": ["<Figure>"]}
        outputs.append({"data": data, "metadata": {}, "output_type": "display_data"})
    return outputs


def _png(number: int) -> str:
    """Return an open figure as base64; the file holds no version or date, so equal pictures are equal bytes."""
    buffer = io.BytesIO()
    plt.figure(number).savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return base64.b64encode(buffer.getvalue()).decode()


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Execute the notebooks that the command line names; a notebook is written only when all of its cells ran."""
    parser = argparse.ArgumentParser(description="Execute notebooks in place and store the outputs of their cells.")
    parser.add_argument("notebooks", nargs="+", type=Path)
    for path in parser.parse_args(arguments).notebooks:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        execute(notebook)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
