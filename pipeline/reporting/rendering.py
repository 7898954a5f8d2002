"""Pages from templates: one HTML file each, which needs neither a server nor a network.

The pages share their look (`look.css.j2`) and how numbers are spelled.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.artifacts.files import replacing


def write_html(
    path: Path, template: str, values: Mapping[str, object], filters: Mapping[str, Callable[..., str]]
) -> None:
    """Render a template of `templates/` with `values`, and `filters` beside the common ones, and write it in one step."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "number": _number, "count": _count} | dict(filters)
    html = environment.get_template(template).render(values)
    with replacing(path) as partial:
        partial.write_text(html, encoding="utf-8")


def _percent(value: float, digits: int = 1) -> str:
    return "n/a" if math.isnan(value) else f"{100 * value:.{digits}f}"


def _number(value: float, digits: int = 3) -> str:
    return "n/a" if math.isnan(value) else f"{value:.{digits}f}"


def _count(value: int) -> str:
    return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
