"""Table of a survey, a row for each property of a corpus."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from pipeline.corpora.splitting import PUBLISHED_ROLES
from tools.survey import Survey, describe_channels

_NAMED = 6  # values of a row


def survey_table(found: Survey, layout: str) -> Table:
    """Return the table, given how the layout was recognised."""
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in [("layout", layout), *_rows(found)]:
        table.add_row(name, escape(value))
    return table


def _rows(found: Survey) -> Iterator[tuple[str, str]]:
    yield "clips", f"{len(found.clips):,}"
    yield "classes", _classes(found)
    yield "folds", _folds(found)
    yield "groups", _groups(found)
    headers = [sound.header for sound in found.sounds if sound.header is not None]
    of = "" if len(found.sounds) == len(found.clips) else f", of a sample of {len(found.sounds):,} clips"
    yield "formats", _count([sound.encoding for sound in found.sounds]) + of
    yield "rates", _count([f"at {header.rate:,} Hz" for header in headers]) + of
    yield "channels", _count([describe_channels(header.channels) for header in headers]) + of
    yield "length", _lengths(found.seconds) + of
    faults = _count([reason for reason, messages in found.faults.items() for _ in messages])
    yield "cannot be used", f"{faults}, of {found.num_decoded:,} decoded clips"
    yield "copies", _copies(found)
    left_out = {reason.replace("_", " "): count for reason, count in found.listing.left_out.items() if count}
    yield "left out", ", ".join(f"{count:,} {reason}" for reason, count in left_out.items()) or "nothing"


def _classes(found: Survey) -> str:
    sizes = found.class_sizes
    numbers = sorted(sizes.values())
    spread = f"{numbers[0]:,}" if numbers[0] == numbers[-1] else f"{numbers[0]:,} to {numbers[-1]:,}"
    kind = "one for each clip" if found.listing.label_kind == "one" else "any number for each clip"
    names = [f"{name} ({count:,})" for name, count in sizes.most_common()]
    return f"{len(sizes)} of {spread} clips, {kind}: {_some(names)}"


def _folds(found: Survey) -> str:
    counts = Counter(found.clips["fold"].to_pylist())
    if set(counts) == {""}:
        return "none published: they are drawn"
    kind = "roles" if all(name.lower() in PUBLISHED_ROLES for name in counts) else "folds"
    return f"published {kind}: {_some([f'{name} ({count:,})' for name, count in sorted(counts.items())])}"


def _groups(found: Survey) -> str:
    groups = [group for group in found.clips["group"].to_pylist() if group]
    return f"{len(set(groups)):,}, named by the corpus" if groups else "none named: each file by itself"


def _copies(found: Survey) -> str:
    compared = found.comparison
    spare = sum(len(group) - 1 for group in compared.copies)
    of = f"{compared.num_files:,} files"
    if compared.num_compared < compared.num_suspects:
        of = f"the first {compared.num_compared:,} of {compared.num_suspects:,} files that have the size of another"
    return f"{spare or 'none'}, byte for byte, of {of}"


def _lengths(seconds: np.ndarray) -> str:
    if not len(seconds):
        return "not known"
    return f"{seconds[0]:.3g} to {seconds[-1]:.3g} s, median {np.median(seconds):.3g} s"


def _count(values: Sequence[str]) -> str:
    """Return how often each value occurs, the most frequent first."""
    return _some([f"{count:,} {value}" for value, count in Counter(values).most_common()]) or "none"


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
