import json
import re
import shlex
import shutil
import sys
import wave
from inspect import signature
from pathlib import Path
from subprocess import Popen, run
from typing import Any, get_args

import numpy as np
import pytest
import soundfile
import workspace
from conftest import REPOSITORY, WAV_CLASSES
from ruamel.yaml import YAML

from benchmarks.workspace import copy_project
from pipeline.artifacts.clips import open_clips
from pipeline.check_params import load_experiment
from pipeline.corpora import demo, esc50, table
from pipeline.corpora.base import AdapterParams, corpus_name, read_rows
from pipeline.corpora.manifest import manifest_columns, refresh_manifest
from pipeline.corpora.registry import ADAPTERS, CorpusParams
from pipeline.corpora.splitting import SplitParams, assign_roles, fold_names
from pipeline.errors import CorpusError, ParamsError
from pipeline.params import validate_params
from tools.compose import compose, dump

LIMITS = {"max_bad_fraction": 0.01, "max_duration": 60.0}


def demo_params(root: Path, **settings: Any) -> demo.Params:
    values = {"kind": "demo", "root": str(root), "clips_per_class": 2, "duration": 0.25, "seed": 0}
    return validate_params(demo.Params, values | LIMITS | settings, "corpus")


def table_params(root: Path, name: str = "clips.csv", **settings: Any) -> table.Params:
    values = {
        "kind": "table",
        "root": str(root),
        "table": str(root / name),
        "path_column": "path",
        "labels_column": "labels",
        "label_separator": None,
        "label_kind": "one",
        "classes": None,
        "fold_column": None,
        "group_column": None,
        "start_column": None,
        "duration_column": None,
        "licence": "ours",
    }
    return validate_params(table.Params, values | LIMITS | settings, "corpus")


def esc50_params(root: Path, csv: str = "meta/esc50.csv") -> esc50.Params:
    return esc50.Params(kind="esc50", root=root, table=csv, **LIMITS)


def test_registry_and_files_agree() -> None:
    for kind, adapter in ADAPTERS.items():
        assert adapter.__name__ == f"pipeline.corpora.{kind}"
        assert get_args(adapter.Params.model_fields["kind"].annotation) == (kind,)
        lines = (REPOSITORY / "pipeline" / "corpora" / f"{kind}.py").read_text().splitlines()
        assert (
            len(lines) < 130
        )  # settings, listing, and how its layout is recognised: more belongs into modules of its own
        assert issubclass(adapter.Params, AdapterParams)
        assert adapter.Params.layout
        assert list(signature(adapter.list_clips).parameters) == ["params"]  # as `CorpusAdapter` has it


def test_a_misspelt_key_and_an_unknown_kind_are_named(tmp_path: Path) -> None:
    values = {"kind": "esc50", "root": str(tmp_path), "tabel": "meta/esc50.csv", **LIMITS}
    with pytest.raises(ParamsError, match=r"corpus\.tabel: unknown key; did you mean `table`"):
        validate_params(CorpusParams, values, "corpus")
    with pytest.raises(ParamsError, match="'esc51'"):
        validate_params(CorpusParams, values | {"kind": "esc51"}, "corpus")


def test_identity_is_that_of_the_clips_and_not_of_the_machine(tmp_path: Path) -> None:
    here, there = table_params(tmp_path), table_params(tmp_path / "elsewhere", max_duration=5.0)
    assert here.identity() == there.identity()
    assert str(tmp_path) not in here.identity()
    assert demo_params(tmp_path).identity() != demo_params(tmp_path, seed=1).identity()


def test_naming_a_corpus_starts_neither_scipy_nor_torch() -> None:
    program = "import sys, stages.split; sys.exit(bool({'torch', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    assert run([sys.executable, "-c", program], cwd=REPOSITORY, check=False).returncode == 0


# demo


def test_demo_writes_its_files_once_and_alike(tmp_path: Path) -> None:
    listing = demo.list_clips(demo_params(tmp_path / "a"))
    assert len(listing.clips) == 2 * len(listing.classes)
    path = tmp_path / "a" / listing.clips[0].source
    assert path.name == f"{listing.clips[0].clip_id}.wav"
    with wave.open(str(path)) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16000)
        assert file.getnframes() == 4000
        samples = np.frombuffer(file.readframes(4000), "<i2")
    assert 1000 < np.abs(samples.astype(int)).max() <= 32767

    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.parent.iterdir()}
    assert demo.list_clips(demo_params(tmp_path / "a")) == listing
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in path.parent.iterdir()} == before
    demo.list_clips(demo_params(tmp_path / "b"))
    other = tmp_path / "b" / path.parent.name
    assert {p.name: p.read_bytes() for p in other.iterdir()} == {k: v for k, (_, v) in before.items()}


def test_demo_fills_gaps_and_makes_everything_anew_for_another_program(tmp_path: Path) -> None:
    listing = demo.list_clips(demo_params(tmp_path))
    first, second = (tmp_path / clip.source for clip in listing.clips[:2])
    as_made = first.read_bytes()
    first.unlink()
    second.write_bytes(b"kept: only what is missing is made")
    own = first.with_name("my-recording.wav")
    own.write_bytes(b"mine")
    demo.list_clips(demo_params(tmp_path))
    assert first.read_bytes() == as_made
    assert second.read_bytes().startswith(b"kept")

    first.with_name("settings.json").write_text("of an older program")
    demo.list_clips(demo_params(tmp_path))
    assert first.read_bytes() == as_made
    assert not second.read_bytes().startswith(b"kept")
    assert own.read_bytes() == b"mine"


def test_the_folds_that_the_demo_is_said_to_have_are_those_of_its_clips(tmp_path: Path) -> None:
    listing = demo.list_clips(demo_params(tmp_path, clips_per_class=5))
    assert {clip.fold for clip in listing.clips} == set(demo.Params.published_folds)


def test_demos_of_other_settings_lie_side_by_side(tmp_path: Path) -> None:
    """Experiments of one project that run at once share the root."""
    demos = [
        demo.list_clips(demo_params(tmp_path, **settings)).clips for settings in ({}, {"seed": 1}, {"duration": 0.3})
    ]
    files = [{clip.clip_id: (tmp_path / clip.source).read_bytes() for clip in clips} for clips in demos]
    assert files[0].keys() == files[1].keys() == files[2].keys()
    assert files[0] != files[1] != files[2]
    assert len({clip.source for clips in demos for clip in clips}) == 3 * len(files[0])


def test_two_programs_make_one_demo_between_them(tmp_path: Path) -> None:
    program = (
        "import json, sys; from pathlib import Path; from pipeline.corpora import demo; "
        "params = demo.Params.model_validate(json.loads(sys.argv[1]) | {'root': Path(sys.argv[2])}); "
        "sys.exit(not all((params.root / clip.source).exists() for clip in demo.list_clips(params).clips))"
    )
    command = [sys.executable, "-c", program, demo_params(tmp_path).model_dump_json(), str(tmp_path)]
    started = [Popen(command, cwd=REPOSITORY) for _ in range(2)]
    assert [process.wait(timeout=120) for process in started] == [0, 0]
    assert list(tmp_path.rglob("*.wav"))


# esc50


def test_esc50_orders_classes_by_target_and_takes_published_metadata(wav_corpus: Path) -> None:
    listing = esc50.list_clips(esc50_params(wav_corpus))
    assert listing.classes == WAV_CLASSES
    clip = next(clip for clip in listing.clips if clip.clip_id == "2-2101-A-1")
    assert clip.source == "audio/2-2101-A-1.wav"
    assert (clip.labels, clip.group, clip.fold) == (("noise",), "2101", "2")


def test_esc50_names_a_missing_table_and_contradicting_targets(wav_corpus: Path) -> None:
    with pytest.raises(CorpusError, match=r"esc51\.csv: expected the corpus's table of clips, found no such file"):
        esc50.list_clips(esc50_params(wav_corpus, "meta/esc51.csv"))
    path = wav_corpus / "meta" / "esc50.csv"
    path.write_text(path.read_text().replace(",1,noise,", ",0,noise,", 1).replace(",2,clicks,", ",two,clicks,", 1))
    with pytest.raises(CorpusError) as error:
        esc50.list_clips(esc50_params(wav_corpus))
    assert "values of target that are not numbers (1): two" in str(error.value)
    assert "values of target with several classes (1): 0 (noise, tone)" in str(error.value)


@pytest.mark.slow
def test_esc10_as_published(tmp_path: Path, esc10_root: Path) -> None:
    params = esc50_params(esc10_root, "meta/esc10.csv")
    refresh = refresh_manifest(params, tmp_path / "clips.parquet", tmp_path / "content.sqlite")
    assert (refresh.num_clips, refresh.num_missing, refresh.num_hashed) == (400, 0, 400)
    clips = open_clips(tmp_path / "clips.parquet")
    assert clips.metadata["classes"][:4] == ["dog", "rooster", "rain", "sea_waves"]
    assert len(clips.metadata["classes"]) == 10
    split = SplitParams(num_folds=5, validation_fraction=0.1, seed=0, near_duplicates="report")
    assert fold_names(clips, split) == ["1", "2", "3", "4", "5"]
    tested: list[str] = []
    for fold in fold_names(clips, split):
        roles = assign_roles(clips, fold, split)  # raises where a group straddles roles
        test = [i for i, role in zip(clips.list("clip_id"), roles, strict=True) if role == "test"]
        assert len(test) == 80
        assert all(clip_id.startswith(f"{fold}-") for clip_id in test)
        assert 20 <= roles.count("validation") <= 44  # 32 asked for; groups are whole
        tested += test
    assert sorted(tested) == clips.list("clip_id")


# table


def write_csv(root: Path, text: str, name: str = "clips.csv") -> None:
    (root / name).write_text(text)


def test_table_reads_every_optional_column(tmp_path: Path) -> None:
    write_csv(
        tmp_path,
        "path,labels,part,bird,from,lasts\n"
        "./a.wav,wren;robin,train,w1,0.5,2\n"
        "a.wav,robin,train,w1,4,\n"
        'sub/b c.ogg,"[""wren"", ""tit, great""]",test,w2,,\n'
        "silence.wav,,test,w3,,\n",
    )
    listing = table.list_clips(
        table_params(
            tmp_path,
            label_separator=";",
            label_kind="many",
            fold_column="part",
            group_column="bird",
            start_column="from",
            duration_column="lasts",
        )
    )
    assert listing.classes == ("robin", "tit, great", "wren")
    assert [c.clip_id for c in listing.clips] == ["a.wav@0.5", "a.wav@4", "sub/b c.ogg", "silence.wav"]
    assert [c.source for c in listing.clips] == ["a.wav", "a.wav", "sub/b c.ogg", "silence.wav"]
    assert [c.labels for c in listing.clips] == [("wren", "robin"), ("robin",), ("wren", "tit, great"), ()]
    assert [(c.start, c.duration) for c in listing.clips] == [(0.5, 2.0), (4.0, 0.0), (0.0, 0.0), (0.0, 0.0)]
    assert [(c.group, c.fold) for c in listing.clips] == [
        ("w1", "train"),
        ("w1", "train"),
        ("w2", "test"),
        ("w3", "test"),
    ]


def test_tsv_and_json_lines_say_the_same_as_csv(tmp_path: Path) -> None:
    write_csv(tmp_path, "\ufeffpath,labels\na.wav,wren\nb.wav,tit\n")
    write_csv(tmp_path, "path\tlabels\na.wav\twren\nb.wav\ttit\n", "clips.tsv")
    lines = [{"path": "a.wav", "labels": ["wren"]}, {"path": "b.wav", "labels": "tit", "note": "\u2028"}]
    write_csv(tmp_path, "\n".join(json.dumps(x, ensure_ascii=False) for x in lines) + "\n\n", "clips.jsonl")
    csv, tsv, jsonl = (table.list_clips(table_params(tmp_path, f"clips.{s}")) for s in ("csv", "tsv", "jsonl"))
    assert csv == tsv == jsonl


def test_given_classes_keep_their_order_and_reveal_a_misspelt_label(tmp_path: Path) -> None:
    write_csv(tmp_path, "path,labels\na.wav,wren\nb.wav,wrn\n")
    listing = table.list_clips(table_params(tmp_path, classes=["wren", "robin"]))
    assert listing.classes == ("wren", "robin")
    with pytest.raises(
        CorpusError, match=r"unknown labels, where the classes are wren, robin \(1\): 'wrn' \(of 1 clip\)"
    ):
        manifest_columns(listing, tmp_path, tmp_path / "content.sqlite")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.wav,wren\n", "line 2: expected a column `labels`, found only: path, label"),
        ("path,labels\na.wav\n", "line 2: expected 2 values, one per column, found another number"),
        ("path,labels\na.wav,wren,tit\n", "line 2: expected 2 values, one per column, found another number"),
        ('path,labels\na.wav,"wren\n', "expected separated values, found"),
        ("path,labels\n", "expected at least one clip, found none"),
        ('path,labels\na.wav,"[""wren"""\n', "not a JSON list of labels (1): a.wav"),
        ("path,labels\na.wav,[1]\n", "not a JSON list of labels (1): a.wav ([1])"),
    ],
)
def test_a_broken_table_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    write_csv(tmp_path, text)
    with pytest.raises(CorpusError, match=re.escape(message)):
        table.list_clips(table_params(tmp_path))


@pytest.mark.parametrize("labels", ["[" * 100_000, '["\\ud800"]'])
def test_labels_that_are_no_list_of_texts_are_named(tmp_path: Path, labels: str) -> None:
    (tmp_path / "clips.tsv").write_text(f"path\tlabels\na.wav\t{labels}\n")
    with pytest.raises(CorpusError, match=r"not a JSON list of labels \(1\): a\.wav"):
        table.list_clips(table_params(tmp_path, "clips.tsv"))


def test_every_bad_number_is_named_at_once(tmp_path: Path) -> None:
    rows = "".join(f"{i:02}.wav,wren,soon\n" for i in range(12))
    write_csv(tmp_path, "path,labels,from\n" + rows)
    with pytest.raises(CorpusError) as error:
        table.list_clips(table_params(tmp_path, start_column="from"))
    assert "not a number of seconds (12): 00.wav@soon ('soon'), " in str(error.value)
    assert str(error.value).endswith("and 2 more")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{broken\n", "line 1: expected JSON"),
        ("[1]\n", "line 1: expected a JSON object, found list"),
        ("{}\n" + "[" * 100_000 + "\n", "line 2: expected JSON, found lists or objects nested too deeply"),
        ('{"path": "\\ud800.wav"}\n', "line 1: path: expected Unicode, found half of a surrogate pair"),
    ],
)
def test_broken_json_lines_are_named_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    write_csv(tmp_path, text, "clips.jsonl")
    with pytest.raises(CorpusError, match=re.escape(message)):
        read_rows(tmp_path / "clips.jsonl", ())


def test_a_table_that_is_not_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_bytes(b"path,labels\n\xff\xfe.wav,wren\n")
    with pytest.raises(CorpusError, match=r"clips\.csv: expected text in UTF-8"):
        table.list_clips(table_params(tmp_path))


def test_own_audio_end_to_end(tmp_path: Path, wav_corpus: Path) -> None:
    root = tmp_path / "mine"
    rows = ["file,call,recording"]
    for clip in esc50.list_clips(esc50_params(wav_corpus)).clips:
        target = root / clip.labels[0] / Path(clip.source).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(wav_corpus / clip.source, target)
        rows.append(f"{target.relative_to(root)},{clip.labels[0]},{clip.group}")
    write_csv(root, "\n".join(rows) + "\n")
    params = table_params(root, path_column="file", labels_column="call", group_column="recording")
    refresh = refresh_manifest(params, tmp_path / "clips.parquet", tmp_path / "content.sqlite")
    assert (refresh.num_clips, refresh.num_missing, refresh.written) == (12, 0, True)
    clips = open_clips(tmp_path / "clips.parquet")
    split = SplitParams(num_folds=4, validation_fraction=0.0, seed=0, near_duplicates="report")
    assert [assign_roles(clips, fold, split).count("test") for fold in fold_names(clips, split)] == [3, 3, 3, 3]


def test_the_worked_example_of_the_guide_reads_as_the_guide_says(tmp_path: Path) -> None:
    guide = (REPOSITORY / "docs" / "corpora.md").read_text()
    write_csv(tmp_path, next(re.finditer(r"```\n(file,start.*?)```", guide, re.DOTALL))[1], "calls.csv")
    command = next(re.finditer(r"sonolex compose (table .*?)\nsonolex check", guide, re.DOTALL))[1]
    recipe, *overrides = shlex.split(command.replace("\\\n", ""))
    document, mistakes = compose(recipe, overrides, REPOSITORY / "recipes")
    assert not mistakes
    (tmp_path / "params.yaml").write_text(dump(document))
    load_experiment(tmp_path / "params.yaml")
    example = YAML(typ="safe").load(dump(document))
    assert example["experiment"]["folds"] == ["1", "2", "3"]
    settings = example["corpus"] | {"root": str(tmp_path), "table": str(tmp_path / "calls.csv")}
    listing = table.list_clips(validate_params(table.Params, settings, "corpus"))
    columns = manifest_columns(listing, tmp_path, tmp_path / "content.sqlite")[0].to_pydict()
    assert listing.classes == ("robin", "wren")
    assert columns["clip_id"][0] == "garden/2024-05-01.wav@12.5"
    assert columns["group"] == ["w1", "w1", "r1", "w1", "w2"]
    assert columns["duration"] == [3.0, 3.0, 2.4, 3.0, 0.0]


def test_a_corpus_is_called_by_its_table_or_its_kind() -> None:
    assert corpus_name('{"kind": "esc50", "table": "meta/esc10.csv"}') == "esc10"
    assert corpus_name('{"kind": "demo", "seed": 0}') == "demo"
    assert corpus_name("by hand") == "by hand"


def test_the_corpus_that_the_docs_add_is_one_file_and_one_line(tmp_path: Path) -> None:
    """docs/extending.md, word for word, from the recordings to the manifest."""
    section = (REPOSITORY / "docs/extending.md").read_text().partition("## A corpus")[2]
    source, line = re.findall(r"```python\n(.*?)```", section, re.DOTALL)[:2]
    command = re.search(r"`sonolex (compose demo corpus\.kind=birds corpus\.root=)PATH`", section)
    assert command is not None
    project, audio = tmp_path / "project", tmp_path / "recordings"
    project.mkdir()
    copy_project(project)
    (project / "pipeline/corpora/birds.py").write_text(source)
    registry = project / "pipeline/corpora/registry.py"
    registry.write_text(registry.read_text().replace('        "demo": ', line + '        "demo": '))
    audio.mkdir()
    people = ("ann", "bob", "cy", "dee", "eve")
    names = [f"{bird}-{person}-1" for bird in ("owl", "wren") for person in people]
    for number, name in enumerate(names):
        soundfile.write(audio / f"{name}.wav", np.random.default_rng(number).uniform(-0.1, 0.1, 8000), 16000)
    for program in (["tools.sonolex", *command[1].split()], ["stages.code"], ["stages.corpus"]):
        program[-1] += str(audio) if program[0].startswith("tools") else ""
        workspace.run(project, "python", "-m", *program)
    clips = open_clips(project / "data/clips.parquet")
    assert clips.list("clip_id") == names
    assert clips.list("group") == [*people, *people]
    assert clips.metadata["classes"] == ["owl", "wren"]
    soundfile.write(audio / "nameless.wav", np.zeros(10), 16000)
    done = workspace.run(project, "python", "-m", "stages.corpus", check=False)
    assert "names without three parts (1): nameless.wav" in done.stderr
    (audio / "nameless.wav").unlink()
    for person in people[1:]:
        (audio / f"owl-{person}-1.wav").unlink()
    done = workspace.run(project, "python", "-m", "stages.corpus", check=False)  # before any frame is computed
    assert re.search(r"fold 1: classes without a (training|test) clip \(1\): owl", done.stderr)
