"""Outcomes of an attack's trials, and their counts as rows of a table."""

from collections import Counter
from collections.abc import Mapping
from typing import Literal, TypeAlias

# right: as without damage. named: a SonolexError, or a clip with a reason. unknowable: another result, and nothing in the
# file can tell. silent: another result, though something can.
Outcome: TypeAlias = Literal["right", "named", "unknowable", "traceback", "silent"]
OUTCOMES: tuple[Outcome, ...] = ("right", "named", "unknowable", "traceback", "silent")


class Tally:
    """Outcomes of one kind of attack, with a line for each that should not have been."""

    def __init__(self, kind: str) -> None:
        self.kind, self.counts, self.faults = kind, Counter[Outcome](), list[str]()

    def add(self, outcome: Outcome, what: str) -> None:
        """Count a trial; `what` describes it well enough to repeat it."""
        self.counts[outcome] += 1
        if outcome in ("traceback", "silent"):
            self.faults.append(f"{outcome}: {self.kind}: {what}")

    def row(self) -> Mapping[str, str | int]:
        """Return the counts as a row of a table."""
        return {"kind": self.kind, "trials": self.counts.total(), **{name: self.counts[name] for name in OUTCOMES}}
