"""Drawing of the report's charts: matplotlib's SVG, made to take its colours and its font from the page.

Conventions: a figure is a string with one `<svg>` element, to stand inside an HTML page. matplotlib draws with placeholder
colours, which become CSS variables afterwards (`--ink`, `--line`, `--model-0` ...), so that one drawing serves the light and
the dark page. The same data give the same bytes: no date, and ids that follow from the figure's name.
"""

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

NUM_MODEL_COLOURS = 8
LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")  # the second of each from the ninth model on
INK, LINE = "#fe0001", "#fe0002"
WIDTH = 9.4  # inches, of a figure as wide as the page
_LEGEND_LINE = 0.22  # inches
_MODEL = "#fd00{:02x}"


def model_colour(position: int) -> str:
    """Return the placeholder colour of the model at a position."""
    return _MODEL.format(position % NUM_MODEL_COLOURS)


def apart(position: int, styles: Sequence[str]) -> str:
    """Return what tells the model at a position from those of its colour."""
    return styles[position // NUM_MODEL_COLOURS % len(styles)]


def rectangle(x: float, y: float, side: float, colour: str, strength: float) -> "Rectangle":
    """Return a square without an edge, as strong as 0 to 1."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), side, side, facecolor=colour, alpha=strength, linewidth=0)


def spell(name: str) -> str:
    """Return a name as people write it."""
    return name.replace("_", " ")


def explain(axis: "Axes", names: Sequence[str]) -> None:
    """Set the legend of an axis above its figure, in as many columns as `names` leave room for."""
    handles, labels = axis.get_legend_handles_labels()
    axis.figure.legend(handles, labels, loc="outside upper center", ncols=_legend_columns(names))


def _legend_columns(names: Sequence[str]) -> int:
    widest = 0.5 + 0.08 * max(map(len, names), default=0)  # inches: a handle with its margins, and letters of 9 points
    return max(1, min(6, int(WIDTH / widest), len(names)))


def legend_height(names: Sequence[str]) -> float:
    """Return the height of a legend, inches."""
    return _LEGEND_LINE * -(-len(names) // _legend_columns(names))


def render(
    name: str,
    draw: Callable[[Sequence["Axes"]], None],
    *,
    size: tuple[float, float],
    columns: int = 1,
    share_rows: bool = False,
) -> str:
    """Draw a figure of `size` inches on `columns` axes and return it as SVG for the page."""
    from matplotlib.figure import Figure

    with _style(name):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False, sharey=share_rows)[0]
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), name)


def _style(name: str) -> AbstractContextManager[None]:
    import matplotlib as mpl

    style: AbstractContextManager[None] = mpl.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
            "svg.hashsalt": name,  # ids differ between the figures of one page, and not between runs
            "font.family": ["DejaVu Sans"],
            "font.size": 9.5,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": LINE,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "grid.color": LINE,
            "grid.linewidth": 0.7,
            "xtick.color": LINE,
            "ytick.color": LINE,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "legend.frameon": False,
            "legend.fontsize": 9,
        }
    )
    return style


def _for_page(svg: str, name: str) -> str:
    """Strip what only a file needs, put CSS variables in the place of colours, and let the width follow the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    width = float(re.search(r'<svg[^>]*?width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?)width="[^"]*"', rf'\1aria-hidden="true" style="width:{width / 72:.2f}in"', svg, count=1)
    svg = re.sub(r"<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="([\w.]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)([\w.]+)', rf"\1{name}-\2", svg)
    svg = svg.replace(INK, "var(--ink)").replace(LINE, "var(--line)")
    for position in range(NUM_MODEL_COLOURS):
        svg = svg.replace(model_colour(position), f"var(--model-{position})")
    return svg
