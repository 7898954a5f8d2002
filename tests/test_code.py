"""The version of a computation moves with the definitions that it follows from, and with nothing else."""

from pathlib import Path

import pytest

from pipeline.execution.code import code_version, reached, version_of
from pipeline.spectrogram.computing import computing_version
from pipeline.spectrogram.kaldi import KaldiFrontEnd
from pipeline.spectrogram.mel import MelFrontEnd

FILES = {
    "pipeline/work.py": '''
"""Work."""

import numpy as np
from rich import print as show

from pipeline import places
from pipeline.parts import Base, helper

LIMIT = 3


class Worker(Base):
    """Works."""

    def run(self, x: int) -> int:
        from pipeline.late import late

        # a comment
        return helper(x) + LIMIT + late(x) + places.offset


def unrelated() -> int:
    return 1
''',
    "pipeline/parts.py": """
SCALE = 2
UNUSED = 5


class Base:
    step = 1


def helper(x):
    return x * SCALE


def other(x):
    return x * UNUSED
""",
    "pipeline/late.py": "def late(x):\n    return x\n",
    "pipeline/places.py": "offset = 1\nelsewhere = 2\n",
}


ROOT = [("pipeline.work", "Worker")]


def _write(folder: Path) -> Path:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return _write(tmp_path / "project")


def _versions(project: Path, name: str, old: str, new: str) -> tuple[str, str]:
    """Return the version before and after an edit."""
    before = version_of(ROOT, project)
    edited = _write(project.with_name("edited"))
    path = edited / "pipeline" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return before, version_of(ROOT, edited)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("work.py", "LIMIT = 3", "LIMIT = 4"),
        ("work.py", "helper(x) +", "helper(x) -"),
        ("parts.py", "SCALE = 2", "SCALE = 3"),
        ("parts.py", "step = 1", "step = 2"),
        ("parts.py", "x * SCALE", "x + SCALE"),
        ("late.py", "return x", "return -x"),
        ("places.py", "offset = 1", "offset = 2"),
    ],
)
def test_what_a_result_follows_from_moves_the_version(project: Path, name: str, old: str, new: str) -> None:
    before, after = _versions(project, name, old, new)
    assert before != after


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("work.py", '"""Works."""', '"""Works, and how."""'),
        ("work.py", "# a comment", "# another"),
        ("work.py", "return 1", "return 2"),
        ("work.py", "LIMIT + late(x) + places.offset", "LIMIT + \\\n            late( x ) + (places.offset)"),
        ("parts.py", "UNUSED = 5", "UNUSED = 6"),
        ("parts.py", "x * UNUSED", "x - UNUSED"),
        ("places.py", "elsewhere = 2", "elsewhere = 3"),
    ],
)
def test_an_unrelated_edit_does_not(project: Path, name: str, old: str, new: str) -> None:
    before, after = _versions(project, name, old, new)
    assert before == after


def test_numeric_packages_count_and_others_do_not(project: Path) -> None:
    path = project / "pipeline" / "work.py"
    path.write_text(path.read_text().replace("return helper(x)", "show(x)\n        return np.abs(helper(x))"))
    definitions, packages = reached(ROOT, project)
    assert packages == {"numpy"}
    assert ("pipeline.work", "unrelated") not in definitions


def test_the_version_of_a_spectrogram_holds_its_own_front_end_alone() -> None:
    kaldi, mel = (reached([(kind.__module__, kind.__name__)])[0] for kind in (KaldiFrontEnd, MelFrontEnd))
    assert not [module for module, _ in kaldi if module.endswith((".mel", ".registry"))]
    assert ("pipeline.spectrogram.filterbank", "FilterBank") in kaldi.keys() & mel.keys()
    versions = {computing_version(kind.__new__(kind)) for kind in (KaldiFrontEnd, MelFrontEnd)}
    assert len(versions) == 2
    assert code_version(KaldiFrontEnd) == code_version(KaldiFrontEnd)
