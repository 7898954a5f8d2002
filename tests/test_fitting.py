"""Settings fitted to a corpus: the rules by number, and params.yaml as `sonolex compose` writes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import REPOSITORY
from typer.testing import CliRunner

from pipeline.check_params import load_experiment
from pipeline.params import read_params
from tools.fitting import CorpusSize, epochs_for, fitted, shorten
from tools.sonolex import app

RECIPES = REPOSITORY / "recipes"


@pytest.mark.parametrize(
    ("strides", "frames", "expected"),
    [
        ([4, 2, 2], 500, [4, 2, 2]),
        ([4, 2, 2], 160, [4, 2, 2]),
        ([4, 2, 2], 159, [2, 2, 2]),
        ([4, 2, 2], 40, [2, 2, 1]),
        ([4, 2, 2], 39, [2, 1, 1]),
        ([4, 2, 2], 3, [1, 1, 1]),
        ([2, 2, 2, 2], 40, [2, 2, 1, 1]),
        ([2], 10, [1]),
    ],
)
def test_strides_are_halved_until_a_clip_has_ten_positions(
    strides: list[int], frames: float, expected: list[int]
) -> None:
    assert shorten(strides, frames) == expected


def test_epochs_fall_with_the_root_of_the_number_of_clips_within_bounds() -> None:
    assert [epochs_for(number) for number in (1, 100, 240, 1600, 3000, 50_000, 2_000_000)] == [
        150,
        150,
        103,
        40,
        29,
        7,
        5,
    ]


def _fitted(clips: int, seconds: float) -> dict[str, Any]:
    base = read_params(RECIPES / "base.yaml")
    return dict(fitted(base, CorpusSize(clips, seconds, ("1", "2"))))


def test_words_keep_their_order_and_long_clips_do_not_need_to() -> None:
    assert _fitted(240, 0.4)["train"]["augmentation"]["time_shift"] == 0.1
    assert _fitted(240, 4.0)["train"]["augmentation"]["time_shift"] == 1.0


def test_texture_statistics_of_many_clips_need_no_copies() -> None:
    assert "frame_textures" not in _fitted(4_999, 4.0)["models"]
    textures = _fitted(5_000, 4.0)["models"]["frame_textures"]
    assert not any(textures["augmented_copies"].values())
    assert textures["mixtures"] == 0


def test_networks_grow_with_the_corpus_and_never_shrink() -> None:
    assert "encoder" not in _fitted(4_999, 4.0)["models"].get("ast", {})
    assert _fitted(5_000, 4.0)["models"]["ast"]["encoder"] == {"width": 192, "depth": 4, "heads": 4}
    large = _fitted(100_000, 4.0)
    assert large["models"]["bert"]["encoder"] == {"width": 384, "depth": 6, "heads": 6}
    assert large["train"]["batch_size"] == 64


def _compose_to(params: Path) -> list[str]:
    return ["compose", "table", "--recipes", str(RECIPES), "--params", str(params)]


def _say(*arguments: str) -> str:
    """Return what `sonolex` prints."""
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(autouse=True)
def _in_a_folder_without_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _words(folder: Path, number: int) -> Path:
    """Write clips of 0.4 s and a table of them; return the table."""
    rows = ["file,label"]
    for index in range(number):
        noise = np.random.default_rng(index).normal(size=6400) * 0.1
        soundfile.write(folder / f"{index}.wav", noise, 16000)
        rows.append(f"{index}.wav,{index % 2}")
    (folder / "clips.csv").write_text("\n".join(rows) + "\n")
    return folder / "clips.csv"


def test_compose_fits_a_table_of_words_and_what_is_set_by_hand_stays(tmp_path: Path) -> None:
    table, params = _words(tmp_path, 20), tmp_path / "params.yaml"
    arguments = [
        *_compose_to(params),
        f"corpus.root={tmp_path}",
        f"corpus.table={table}",
        "train.epochs=7",
    ]
    said = _say(*arguments)
    assert "fitted to 16 training clips a fold, of 0.4 s in the median" in said
    experiment = load_experiment(params)
    assert experiment.sections["train"].epochs == 7
    assert experiment.sections["experiment"].folds == ["1", "2", "3", "4", "5"]
    assert experiment.models["ast"].time_stride == 4
    assert experiment.models["token_transformer"].time_stride == 4
    assert "note" not in _say("check", "--params", str(params))
    _say(*arguments, "models.ast.stem.strides=[[4, 4], [2, 2], [2, 2]]")
    noted = _say("check", "--params", str(params))
    assert "models.ast: the median clip of 0.4 s has 40 frames, and so 2.5 positions" in noted
    assert "token_transformer" not in noted


def test_fitting_is_a_setting_of_the_command(tmp_path: Path) -> None:
    table, params = _words(tmp_path, 20), tmp_path / "params.yaml"
    arguments = [*_compose_to(params), f"corpus.root={tmp_path}", f"corpus.table={table}"]
    assert "fitted to" not in _say(*arguments, "fit=false")
    assert load_experiment(params).sections["train"].epochs == 16
    assert "fitted to 16 training clips" in _say(*arguments, "fit=true")
    result = CliRunner().invoke(app, [*arguments, "fit=maybe"])
    assert result.exit_code == 1
    assert "fit: expected true or false, whether settings are fitted to the corpus, found 'maybe'" in result.output


def test_check_names_classes_in_no_family_and_windows_longer_than_all_clips(tmp_path: Path) -> None:
    table, params = _words(tmp_path, 20), tmp_path / "params.yaml"
    families = tmp_path / "families.csv"
    families.write_text("class,family\n0,even\n")
    window = "{length: 3.0, hop: 3.0, fill: shift, pooling: mean}"
    _say(
        *_compose_to(params), f"corpus.root={tmp_path}", f"corpus.table={table}", "report.attention=[]",
        f"models.ast.window={window}",
        "train.loss.kind=bce", f"train.loss.families={{weight: 0.5, groups: {families}}}",
    )  # fmt: skip
    result = CliRunner().invoke(app, ["check", "--params", str(params)])
    assert result.exit_code == 1
    assert "expected a family for each of the 2 classes, found none for 1: 1; add a row for each" in result.output
    families.write_text("class,family\n0,even\n1,odd\n")
    assert "models.ast.window.length: expected at most the length of a training clip, found 3 s, and 0.4 s" in _say(
        "check", "--params", str(params)
    )


def test_without_the_corpus_settings_stay_and_it_is_said(tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    arguments = [
        *_compose_to(params),
        f"corpus.root={tmp_path}/none",
        f"corpus.table={tmp_path}/none.csv",
    ]
    said = _say(*arguments)
    assert "not fitted to the corpus" in said
    assert "expected the folder of the corpus, found none at" in said
    assert load_experiment(params).sections["train"].epochs == 16
