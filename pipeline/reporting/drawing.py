"""Drawing of the report's charts: matplotlib's SVG, with colours and font of the page.

Conventions: a figure is a string with an `<svg>` element, or two for two widths, to stand inside an HTML page. matplotlib
draws with placeholder colours, which become CSS variables afterwards (`--ink`, `--line`, `--model-0` ...), so one drawing
serves the light and the dark page. The same data give the same bytes: no date, and ids follow from the figure's name.
"""

import io
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from pipeline.reporting.model_styles import NUM_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Rectangle

LINES, MARKERS = ("-", "--", ":", "-."), ("o", "s", "^", "D")  # by `ModelStyle.shape`
INK, LINE = "#fe0001", "#fe0002"
WIDTH, NARROW = 9.4, 3.3  # inches, of a figure as wide as the page, and as a phone
_LEGEND_LINE = 0.22  # inches
_COLOUR = "#fd00{:02x}"


def colour(number: int) -> str:
    """Return the placeholder of a colour of the page."""
    return _COLOUR.format(number % NUM_COLOURS)


def rectangle(x: float, y: float, side: float, face: str, opacity: float) -> "Rectangle":
    """Return a square without an edge, of an opacity from 0 to 1."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), side, side, facecolor=face, alpha=opacity, linewidth=0)


def class_label(name: str) -> str:
    """Return the name of a class with spaces for underscores."""
    return name.replace("_", " ")


def add_legend(axis: "Axes") -> None:
    """Set the legend of an axis above its figure, in as many columns as there is room for."""
    handles, labels = axis.get_legend_handles_labels()
    figure = axis.get_figure(root=True)
    assert figure is not None
    figure.legend(handles, labels, loc="outside upper center", ncols=_legend_columns(labels, figure.get_figwidth()))


def _legend_columns(names: Sequence[str], width: float) -> int:
    widest = 0.5 + 0.08 * max(map(len, names), default=0)  # inches: a handle with its margins, and letters of 9 points
    return max(1, min(6, int(width / widest), len(names)))


def legend_height(names: Sequence[str], width: float = WIDTH) -> float:
    """Return the height of a legend in a figure of a width, both in inches."""
    return _LEGEND_LINE * -(-len(names) // _legend_columns(names, width))


def render(
    name: str,
    draw: Callable[[Sequence["Axes"]], None],
    *,
    size: tuple[float, float],
    columns: int = 1,
    share_rows: bool = False,
    narrow: float | None = None,
) -> str:
    """Draw a figure of `size` inches on `columns` axes and return it as SVG for the page.

    With `narrow`, a height in inches, it is drawn a second time for phones, NARROW inches wide, with its axes one below the
    other: scaled down, its text would be too small to read. The page shows one of the two.
    """
    if narrow is None:
        return _draw(name, draw, size, (1, columns), share_rows)
    wide = _draw(name, draw, size, (1, columns), share_rows)
    stacked = _draw(f"{name}-narrow", draw, (NARROW, narrow), (columns, 1), False)
    return f'<div class="wide">{wide}</div><div class="narrow">{stacked}</div>'


def _draw(
    name: str,
    draw: Callable[[Sequence["Axes"]], None],
    size: tuple[float, float],
    grid: tuple[int, int],
    share_rows: bool,
) -> str:
    from matplotlib.figure import Figure

    with _style(name):
        figure = Figure(figsize=size, layout="constrained")
        axes: list[Axes] = figure.subplots(*grid, squeeze=False, sharey=share_rows).ravel().tolist()
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_page(buffer.getvalue(), name)


def _style(name: str) -> AbstractContextManager[None]:
    import matplotlib as mpl

    style: AbstractContextManager[None] = mpl.rc_context(
        {
            "svg.fonttype": "none",  # text stays text: selectable, and in the page's font
            "text.parse_math": False,  # a class may be called "A$AP"
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
    for number in range(NUM_COLOURS):
        svg = svg.replace(colour(number), f"var(--model-{number})")
    return svg
