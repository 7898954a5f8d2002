"""Code identity moves with the definitions that a result follows from, and with nothing else."""

from pathlib import Path

import pytest

from pipeline.errors import SonolexError
from pipeline.execution.code import EVERY_KIND, Sources, code_version, project_sources, reach, releases, version_of
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
    "pipeline/kinds.py": """
from pipeline.registry import Registry

KINDS = Registry("kind", {"plain": "pipeline.plain", "fancy": "pipeline.fancy", "exact": "pipeline.exact:Exact"})


def learn(kind, data):
    return KINDS[kind].fit(data)


def apply(kind, data):
    return KINDS[kind].encode(data)
""",
    "pipeline/plain.py": """
RATE = 1


def fit(data):
    return data * RATE


def encode(data):
    return data + 1
""",
    "pipeline/fancy.py": "def fit(data):\n    return -data\n",
    "pipeline/exact.py": "class Exact:\n    def fit(self, data):\n        return data\n",
    "pipeline/effects.py": """
import os

STEP = 1


def used():
    return STEP


def _after():
    return None


os.register_at_fork(after_in_child=_after)
if __name__ == "__main__":
    used()
""",
    "pipeline/typed.py": """
import logging

from pipeline.parts import Base, helper, other

log = logging.getLogger(__name__)


def run(value: Base) -> int:
    count: int = helper(value)
    log.info("count %d of %s", count, other(value))
    return count
""",
    "pipeline/reporting/pages.py": 'TEMPLATE = "page.html.j2"\n\n\ndef render():\n    return TEMPLATE\n',
    "pipeline/reporting/templates/page.html.j2": "<h1>{% include 'look.css.j2' %}</h1>\n",
    "pipeline/reporting/templates/look.css.j2": "h1 { color: red }\n",
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
    return _edited(project, name, old, new, ROOT)


def _edited(
    project: Path, name: str, old: str, new: str, roots: list[tuple[str, str]], kinds: frozenset[str] = frozenset()
) -> tuple[str, str]:
    before = version_of(Sources(project), roots, kinds)
    edited = _write(project.with_name("edited"))
    path = edited / "pipeline" / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return before, version_of(Sources(edited), roots, kinds)


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
    found = reach(Sources(project), ROOT)
    assert set(found.packages) == {"numpy"}
    assert ("pipeline.work", "unrelated") not in found.definitions


def test_a_new_release_of_a_package_moves_what_computes_with_it(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project / "pipeline" / "work.py"
    path.write_text(path.read_text().replace("return helper(x)", "return np.abs(helper(x))"))
    before = version_of(Sources(project), ROOT), version_of(Sources(project), [("pipeline.parts", "helper")])
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    releases.cache_clear()
    after = version_of(Sources(project), ROOT), version_of(Sources(project), [("pipeline.parts", "helper")])
    releases.cache_clear()
    assert before[0] != after[0]
    assert before[1] == after[1]


@pytest.mark.parametrize(
    ("name", "old", "new", "moves"),
    [
        ("plain.py", "data * RATE", "data - RATE", True),
        ("plain.py", "RATE = 1", "RATE = 2", True),
        ("plain.py", "data + 1", "data + 2", False),  # encode, which learn does not call
        ("fancy.py", "-data", "+data", False),  # a kind that params do not choose
        ("kinds.py", '"fancy": "pipeline.fancy"', '"fancy": "pipeline.fancy", "new": "pipeline.new"', False),
        ("kinds.py", "].encode(data)", "].encode(-data)", False),
    ],
)
def test_registries_are_followed_for_chosen_kinds_and_called_names(
    project: Path, name: str, old: str, new: str, moves: bool
) -> None:
    before, after = _edited(project, name, old, new, [("pipeline.kinds", "learn")], frozenset({"plain"}))
    assert (before != after) is moves


def test_what_is_collected_from_a_package_is_followed_in_all_of_its_modules(tmp_path: Path) -> None:
    texts = {
        "pipeline/found.py": (
            "from pipeline.registry import collect\n\ndef run():\n    return collect('pipeline.some', 'ITEMS')\n"
        ),
        "pipeline/some/__init__.py": "",
        "pipeline/some/one.py": "def used():\n    return 1\n\n\ndef unused():\n    return 1\n\n\nITEMS = (used,)\n",
        "pipeline/some/inner/two.py": "ITEMS = (2,)\n",  # of a package inside it
    }
    root = [("pipeline.found", "run")]
    before = version_of(Sources(tmp_path, texts), root)
    three = {"pipeline/some/three.py": "ITEMS = (3,)\n"}
    assert version_of(Sources(tmp_path, texts | three), root) != before  # a new file counts by itself
    for name, old, new, moves in (("one", "return 1", "return 2", True), ("inner/two", "2", "3", False)):
        path = f"pipeline/some/{name}.py"
        edited = texts | {path: texts[path].replace(old, new, 1)}
        assert (version_of(Sources(tmp_path, edited), root) != before) is moves
    unused = texts["pipeline/some/one.py"].replace("unused():\n    return 1", "unused():\n    return 3")
    assert version_of(Sources(tmp_path, texts | {"pipeline/some/one.py": unused}), root) == before
    for path, text in texts.items():  # and from files
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert version_of(Sources(tmp_path), root) == before


def test_a_class_behind_a_registry_is_followed_whole_and_every_kind_where_none_is_known(project: Path) -> None:
    root = [("pipeline.kinds", "learn")]
    assert ("pipeline.exact", "Exact") in reach(Sources(project), root, {"exact"}).definitions
    everything = reach(Sources(project), root, EVERY_KIND).definitions
    assert {("pipeline.plain", "fit"), ("pipeline.fancy", "fit"), ("pipeline.exact", "Exact")} <= set(everything)


@pytest.mark.parametrize(
    ("old", "new", "moves"),
    [
        ("after_in_child=_after", "before=_after", True),  # runs when the module is imported
        ("return None", "return 1", True),
        ("    used()", "    used() + 1", False),  # of the program, not of the import
    ],
)
def test_what_an_import_does_belongs_to_all_definitions(project: Path, old: str, new: str, moves: bool) -> None:
    before, after = _edited(project, "effects.py", old, new, [("pipeline.effects", "used")])
    assert (before != after) is moves


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("value: Base) -> int", "value: Base) -> float"),
        ("count: int = helper", "count: float = helper"),
        ('log.info("count %d of %s", count, other(value))', 'log.warning("%d", count)'),
    ],
)
def test_annotations_and_log_messages_count_for_nothing(project: Path, old: str, new: str) -> None:
    root = [("pipeline.typed", "run")]
    before, after = _edited(project, "typed.py", old, new, root)
    assert before == after
    assert {name for _, name in reach(Sources(project), root).definitions} == {"run", "helper", "SCALE", "Base"}


@pytest.mark.parametrize("name", ["page.html.j2", "look.css.j2"])
def test_templates_count_with_those_that_they_include(project: Path, name: str) -> None:
    before, after = _edited(
        project, f"reporting/templates/{name}", "h1", "h2", [("pipeline.reporting.pages", "render")]
    )
    assert before != after


def test_a_template_that_is_missing_is_no_hole_in_the_digest(project: Path) -> None:
    (project / "pipeline/reporting/templates/look.css.j2").unlink()
    with pytest.raises(SonolexError, match=r"templates/look\.css\.j2: expected the template .*found no such file"):
        reach(Sources(project), [("pipeline.reporting.pages", "render")])


def test_the_version_of_a_spectrogram_holds_its_own_front_end_alone() -> None:
    kaldi, mel = (
        reach(project_sources(), [(kind.__module__, kind.__name__)]).definitions
        for kind in (KaldiFrontEnd, MelFrontEnd)
    )
    assert not [module for module, _ in kaldi if module.endswith((".mel", ".registry"))]
    assert ("pipeline.spectrogram.filterbank", "FilterBank") in kaldi.keys() & mel.keys()
    versions = {computing_version(kind.__new__(kind)) for kind in (KaldiFrontEnd, MelFrontEnd)}
    assert len(versions) == 2
    assert code_version(KaldiFrontEnd) == code_version(KaldiFrontEnd)
