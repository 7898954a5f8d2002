"""Worker process of `sonolex repro`: brings one stage up to date by DVC, in a fork of the main process.

The fork inherits DVC and the loaded graph, so a stage needs neither the import nor the parsing of `dvc.yaml` and `dvc.lock`
again. Everything but the stage's command happens under DVC's own lock of the repository. The process

- reports over a connection: `running` when the command starts, `busy` while another DVC process holds a path, and at the end
  `ran`, `restored` (from the run cache), `unchanged`, `failed` or `stopped`;
- ends its command on request, when the other end of the connection closes, or on SIGINT or SIGTERM, and then lets DVC
  release its locks; DVC's own work is never interrupted, since an incomplete dvc.lock is useless.
"""

import contextlib
import copy
import fcntl
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

import dvc.logger
import dvc.stage.run
import dvc.utils.serialize._yaml
import psutil
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo, lock_repo
from dvc.stage import Stage

from tools.dvc_lock import record

log = logging.getLogger(__name__)

GRACE = 10.0  # seconds from SIGINT to SIGKILL


class TurnLock:
    """DVC's repository lock, with a kernel lock in front of it for this program's processes.

    DVC polls its lock twice a second, so a lock that many processes need for milliseconds would be idle most of the time.
    """

    def __init__(self, repo: Repo) -> None:
        folder, hardlink = repo.tmp_dir, repo.config["core"].get("hardlink_lock", False)
        self._inner = make_lock(f"{folder}/lock", tmp_dir=folder, hardlink_lock=hardlink, wait=True)
        self._path = Path(folder) / "sonolex-turn.lock"

    @property
    def is_locked(self) -> bool:
        return bool(self._inner.is_locked)

    def lock(self) -> None:
        self._turn = self._path.open("w")
        fcntl.flock(self._turn, fcntl.LOCK_EX)
        try:
            self._inner.lock()
        except BaseException:
            self._turn.close()
            raise

    def unlock(self) -> None:
        self._inner.unlock()
        self._turn.close()

    def __enter__(self) -> None:
        self.lock()

    def __exit__(self, *_: object) -> None:
        self.unlock()


class StageLog:
    """Log file of a stage's output; it replaces the previous one only if it is kept."""

    def __init__(self, path: Path) -> None:
        self.path, self._partial = path, path.with_suffix(".partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._partial.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)

    def keep(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # kept already
            self._partial.replace(self.path)

    def drop(self) -> None:
        self._partial.unlink(missing_ok=True)


def parse_once() -> None:
    """Cache DVC's parsing of YAML: it parses params.yaml four times per stage, at 0.1 s and more each."""
    parse = dvc.utils.serialize._yaml.parse_yaml
    known: dict[str, object] = {}

    def parse_yaml(text: str, path: object, typ: str = "safe") -> object:
        if typ != "safe":
            return parse(text, path, typ)
        if text not in known:
            known[text] = parse(text, path)
        return copy.deepcopy(known[text])

    dvc.utils.serialize._yaml.parse_yaml = parse_yaml


class Stopped(Exception):  # noqa: N818 - not an error
    """Raised where a stage would start its command after the run was stopped."""


def work(
    stage: Stage,
    later: Collection[str],
    connection: Connection,
    siblings: Iterable[Connection],
    log_path: Path,
    environment: Mapping[str, str],
    force: bool,
) -> None:
    """Bring a stage up to date, as the target of a forked process; see the module."""
    os.setpgid(0, 0)  # Ctrl-C reaches only the main process, which decides
    for sibling in siblings:  # otherwise the end of the program would not close them
        sibling.close()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    os.environ.update(environment)
    stage.repo.lock = TurnLock(stage.repo)
    stage_log = StageLog(log_path)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    for name in (
        "dvc",
        "dvc_objects",
        "dvc_data",
    ):  # their handlers write, in colour, to a terminal that is no longer there
        logging.getLogger(name).handlers.clear()
    dvc.logger.setup(logging.INFO)
    threading.Thread(target=_end_command_on_stop, args=(connection, stop), daemon=True).start()
    try:
        outcome, text = _outcome(stage, later, connection, stop, stage_log, force)
    except Stopped:
        outcome, text = "stopped", ""
    except Exception as error:  # any exception of DVC or of a stage's files: the run continues without this stage
        outcome, text = ("stopped", "") if stop.is_set() else ("failed", _causes(error))
        if not isinstance(error, DvcException):
            log.exception("%s", stage.addressing)
        sys.stderr.write(f"{text}\n")
    if stop.is_set():
        kill_others(os.getpid())
    if outcome in ("unchanged", "stopped"):
        stage_log.drop()
    else:
        stage_log.keep()
    with contextlib.suppress(OSError):  # the other end is closed
        connection.send((outcome, text))


def _outcome(
    stage: Stage,
    later: Collection[str],
    connection: Connection,
    stop: threading.Event,
    stage_log: StageLog,
    force: bool,
) -> tuple[str, str]:
    """Reproduce the stage by DVC, and retry while another DVC process holds its paths."""
    ran = False

    def begin() -> None:
        nonlocal ran
        if stop.is_set():
            raise Stopped
        ran = True
        stage_log.keep()
        with contextlib.suppress(OSError):
            connection.send(("running", ""))

    _call_before_commands(begin)
    while True:
        try:
            changed = _reproduce(stage, later, stop, force)
        except LockError as error:
            with contextlib.suppress(OSError):
                connection.send(("busy", str(error).partition("\n")[0]))
            if stop.wait(1.0):
                raise Stopped from None
            with lock_repo(stage.repo):
                stage = stage.reload()  # the other process may have run it
        else:
            return ("unchanged" if not changed else "ran" if ran or not stage.cmd or stage.frozen else "restored"), ""


def _reproduce(stage: Stage, later: Collection[str], stop: threading.Event, force: bool) -> bool:
    """Do what `dvc repro --single-item` does; return whether the stage changed."""
    with lock_repo(stage.repo), stage.repo.scm_context(quiet=True):
        if stop.is_set():
            raise Stopped
        changed = stage.reproduce(force=force, interactive=False)
        if changed is not None:
            record(stage, later)
    return changed is not None


def _call_before_commands(begin: Callable[[], None]) -> None:
    run_command = dvc.stage.run.cmd_run

    def cmd_run(*args: object, **kwargs: object) -> None:
        begin()
        run_command(*args, **kwargs)

    dvc.stage.run.cmd_run = cmd_run


def _end_command_on_stop(connection: Connection, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(OSError):
            if connection.poll(0.2):  # a request to stop, or closed: there are no other messages
                stop.set()
    deadline = time.monotonic() + GRACE
    asked: set[int] = set()
    while time.monotonic() < deadline:  # the command may be about to start
        for process in _others(os.getpid()):
            if process.pid not in asked:
                _send(process, signal.SIGINT)
                asked.add(process.pid)
        time.sleep(0.2)
    while True:
        kill_others(os.getpid())
        time.sleep(1.0)


def kill_others(leader: int) -> None:
    """Kill a worker's command and all processes that it started, but not the worker.

    All are stopped first: a shell whose program is killed before itself would go on, and could end as if all were well.
    """
    others = _others(leader)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in others:
            _send(process, number)


def _others(leader: int) -> list[psutil.Process]:
    """Return the processes of a worker's group, and its children in groups of their own, without the worker."""
    found = {process for process in psutil.process_iter() if _group(process.pid) == leader}
    with contextlib.suppress(psutil.Error):
        found |= set(psutil.Process(leader).children(recursive=True))
    return [process for process in found if process.pid != leader]


def _send(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.Error):
        process.send_signal(number)


def _group(number: int) -> int:
    try:
        return os.getpgid(number)
    except OSError:
        return -1


def _causes(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts.append(str(error) or type(error).__name__)
        error = error.__cause__
    return ": ".join(texts)
