"""Accounting of lost workers: shards run again, and shards given up because they take every worker with them.

A worker can be killed for want of memory, with its machine, or by a fault in a library that one file sets off. Shards
are pure functions of their specs, so all that were in flight are run again. A shard that is lost even when it is the only
one in flight has itself to blame: it is set aside, the others are finished, and then the run ends with an error that
names it.
"""

from dataclasses import dataclass, field

from pipeline.errors import SonolexError

_MOST_GIVEN_UP = 3  # more, and what is wrong is no single shard
_NAME_LENGTH = 200  # characters of a shard's description


@dataclass
class WorkerFailures:
    """The count of them in one run of shards."""

    label: str  # of the run, in messages
    remedy: str  # what to do where memory is short, in messages
    workers: int = 0  # lost
    shards: int = 0  # run again
    causes: set[str] = field(default_factory=set)  # such as SIGKILL, where they are known
    given_up: list[str] = field(default_factory=list)  # descriptions of shards

    def give_up(self, spec: object) -> None:
        """Set a shard aside for good. Raises SonolexError, naming all such, when they are many."""
        text = str(spec)
        self.given_up.append(text if len(text) <= _NAME_LENGTH else f"{text[:_NAME_LENGTH]}...")
        if len(self.given_up) == _MOST_GIVEN_UP:
            raise self.error()

    def error(self) -> SonolexError:
        """Return the error that names the shards that were given up."""
        causes = f" ({', '.join(sorted(self.causes))})" if self.causes else ""
        found = f"found {len(self.given_up)} that took their worker with them each time{causes}, even alone"
        return SonolexError(
            "\n  ".join([f"{self.label}: expected every shard to be computed, {found}; {self.remedy}", *self.given_up])
        )

    def incidents(self) -> list[str]:
        """Return what happened as sentences for the report; none if nothing did."""
        if not self.workers:
            return []
        workers = f"{_count(self.workers, 'worker was', 'workers were')} lost"
        causes = f" ({', '.join(sorted(self.causes))})" if self.causes else ""
        return [f"{workers}{causes}; {_count(self.shards, 'shard was', 'shards were')} run again"]


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
