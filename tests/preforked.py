"""A `python` that starts in no time: programs are forked from one process that has imported the heavy packages already.

The graph's tests run hundreds of stages, each a second of work behind seconds of imports. With the folder `bin` first on
PATH, `python -m MODULE ...` asks a server, by a Unix socket, for a fork that runs the module as a program: in the caller's
folder, with its arguments, environment and streams. The project's own modules are imported in the fork, from that folder.
Anything but `-m` goes to the real interpreter. Where no test edits the code, the project's modules too may be imported
beforehand (`environment(project=True)`): a stage then starts in a fiftieth of a second.
"""

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HEAVY = (
    "typer", "rich.progress", "pydantic", "ruamel.yaml", "psutil", "jinja2", "numpy", "scipy.sparse", "scipy.signal",
    "sklearn.linear_model", "sklearn.svm", "sklearn.kernel_ridge", "sklearn.metrics", "torch", "torch._dynamo", "faiss",
    "pyarrow.parquet", "pyarrow.compute", "zarr", "soundfile", "soxr", "safetensors.numpy", "tokenizers",
    "matplotlib.figure", "dvc.cli", "dvc.repo", "dvc.commands.repro", "dvc.commands.status", "dvc.stage.cache",
    "dvc_data.index", "networkx",
)  # fmt: skip

_CLIENT = f"""#!{sys.executable} -SE
import json, os, socket, sys
if sys.argv[1:2] != ["-m"]:
    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect(os.environ["PREFORKED_SOCKET"])
    request = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode()
    server.sendall(len(request).to_bytes(8, "little"))
    socket.send_fds(server, [b"x"], [0, 1, 2])
    server.sendall(request)
    answer = server.recv(1)
    os._exit(answer[0] if answer else 1)
"""


@functools.cache
def environment(*, project: bool = False) -> dict[str, str]:
    """Start the server, which ends with this process, and return the variables that lead to it."""
    folder = Path(tempfile.mkdtemp(prefix="preforked"))
    client = folder / "bin" / "python"
    client.parent.mkdir()
    client.write_text(_CLIENT)
    client.chmod(0o755)
    address = folder / "socket"
    command = [sys.executable, __file__, str(address), *(["project"] if project else [])]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    atexit.register(server.kill)
    while not address.exists():
        if server.poll() is not None:
            raise RuntimeError(f"the server of {__file__} ended with {server.returncode}")
        time.sleep(0.05)
    path = os.pathsep.join([str(client.parent), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {"PREFORKED_SOCKET": str(address), "PATH": path}


def serve(address: str, *, project: bool) -> None:
    import importlib

    for name in [*HEAVY, *(project_modules() if project else [])]:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks leave no zombies
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address + ".partial")
    listening.listen(64)
    Path(address + ".partial").rename(address)
    parent = os.getppid()
    listening.settimeout(5.0)
    while os.getppid() == parent:
        try:
            caller, _ = listening.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listening.close()
            _answer(caller)
        caller.close()


def project_modules() -> list[str]:
    """Return the names of all modules of the project, from which programs are forked."""
    root = Path(__file__).parent.parent
    sys.path.insert(0, str(root))
    files = (file for top in ("pipeline", "stages") for file in sorted((root / top).rglob("*.py")))
    names = [".".join(file.relative_to(root).with_suffix("").parts) for file in files if file.name != "__init__.py"]
    return [name for name in names if not name.startswith("pipeline.execution.dask")]


def _answer(caller: socket.socket) -> None:
    """Run one program in this fork, tell its exit status, and end."""
    caller.settimeout(None)
    size = int.from_bytes(_receive(caller, 8), "little")
    _, streams, _, _ = socket.recv_fds(caller, 1, 3)
    arguments, folder, variables = json.loads(_receive(caller, size))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.path[0] = folder
    status = 0
    try:
        _run(arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    finally:
        import contextlib

        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()  # of what the program registered; a fork has none of its own
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        caller.sendall(bytes([status & 255]))
        os._exit(status)


def _run(arguments: list[str]) -> None:
    import runpy

    module, *rest = arguments
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _receive(caller: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += caller.recv(size - len(data))
    return data


if __name__ == "__main__":
    serve(sys.argv[1], project="project" in sys.argv[2:])
