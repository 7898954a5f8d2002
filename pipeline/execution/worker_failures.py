"""Accounting of lost workers: shards run again, and shards given up because every worker that runs them is lost.

A worker can be killed for lack of memory, with its machine, or by a fault that one file triggers in a library. Shards are
pure functions of their specs, so all shards in flight are run again. A shard whose worker is lost even when it is the only
one in flight is given up: the others are finished, and then the run ends with an error that names it.
"""

from dataclasses import dataclass, field

from pipeline.errors import SonolexError

_MOST_GIVEN_UP = 3  # at this number the cause is not a single shard
_NAME_LENGTH = 200  # characters of a shard's description


@dataclass
class WorkerFailures:
    """Counts of lost workers and shards in one run."""

    label: str  # of the run, in messages
    remedy: str  # advice against lack of memory, in messages
    workers: int = 0  # lost
    shards: int = 0  # run again
    causes: set[str] = field(default_factory=set)  # such as SIGKILL, where they are known
    given_up: list[str] = field(default_factory=list)  # descriptions of shards

    def give_up(self, spec: object) -> None:
        """Record a shard that is given up. Raises SonolexError, naming all of them, when there are too many."""
        text = str(spec)
        self.given_up.append(text if len(text) <= _NAME_LENGTH else f"{text[:_NAME_LENGTH]}...")
        if len(self.given_up) == _MOST_GIVEN_UP:
            raise self.error()

    def error(self) -> SonolexError:
        """Build the error that names the shards that were given up."""
        causes = f" ({', '.join(sorted(self.causes))})" if self.causes else ""
        found = f"found {len(self.given_up)} that took their worker with them each time{causes}, even alone"
        return SonolexError(
            "\n  ".join([f"{self.label}: expected every shard to be computed, {found}; {self.remedy}", *self.given_up])
        )

    def incidents(self) -> list[str]:
        """Return sentences about losses for the report; empty if there were none."""
        if not self.workers:
            return []
        workers = f"{_count(self.workers, 'worker was', 'workers were')} lost"
        causes = f" ({', '.join(sorted(self.causes))})" if self.causes else ""
        return [f"{workers}{causes}; {_count(self.shards, 'shard was', 'shards were')} run again"]


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
