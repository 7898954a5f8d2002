"""No setting is ever ignored: every leaf of the small experiment is changed, run with a warm run cache, and compared.

What `dvc repro` leaves behind in a workspace that has run everything else before must be, byte for byte, what the stages'
commands make of the same params in an empty folder. Leaves that decide over different stages, none of which is behind the
other's, are changed in one round.
"""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML
from workspace import ROOT, SMALL, artifacts, change_params, clone_workspace, run

from pipeline.artifacts.settings import leaves
from pipeline.params import read_params

# Then the others.
ORDER = (
    "code",
    "corpus",
    "spectrogram",
    "duplicates",
    "split",
    "development",
    "vocabulary",
    "tokenize",
    "train",
    "evaluate",
    "thresholds",
)
LAST = "report"

# Other values for both networks.
NETWORK: dict[str, Any] = {
    "stem.kind": {"kind": "linear"},
    "stem.channels": [8, 16, 32],
    "stem.strides": [[2, 4], [2, 2], [2, 2]],
    "stem.kernel": 5,
    "encoder.kind": {"kind": "lstm", "input_size": None, "width": 32, "depth": 1, "dropout": 0.0},
    "encoder.width": 64,
    "encoder.depth": 2,
    "encoder.heads": 2,
    "encoder.mlp_ratio": 1.0,
    "encoder.drop_path": 0.3,
    "head.kind": {"kind": "class_token", "distillation_token": False},
    "head.pooling": "mean_max",
}

# Another value that is valid in the small experiment, for every leaf that may decide a result.
CHANGES: dict[str, Any] = {
    "experiment.frame_models": ["ast"],
    "experiment.token_models": ["token_transformer"],
    "experiment.folds": ["2"],
    "experiment.seeds": [1],
    "experiment.ensembles": [],
    "corpus.max_duration": 0.4,
    "corpus.clips_per_class": 10,
    "corpus.duration": 0.6,
    "corpus.seed": 1,
    "split.validation_fraction": 0.3,
    "spectrogram.front_end.sample_rate": 20000,
    "spectrogram.front_end.win_length": 320,
    "spectrogram.front_end.hop_length": 200,
    "spectrogram.front_end.n_fft": 1024,
    "spectrogram.front_end.n_mels": 32,
    "spectrogram.front_end.f_min": 40.0,
    "spectrogram.front_end.f_max": 6000.0,
    "spectrogram.front_end.pre_emphasis": 0.9,
    "spectrogram.mix": "left",
    "spectrogram.silence": "keep",
    "spectrogram.dtype": "uint8",
    "spectrogram.copies": [{"speed": 1.1}],
    "spectrogram.clips_per_shard.minimum": 8,
    "spectrogram.clips_per_shard.average": 40,
    "vocabularies.kmeans.num_tokens": 20,
    "vocabularies.kmeans.normalisation": "l2",
    "vocabularies.kmeans.features.deltas": 2,
    "vocabularies.kmeans.features.stack": 2,
    "vocabularies.kmeans.features.pca": 8,
    "vocabularies.kmeans.bpe": {"num_tokens": 24},
    "vocabularies.kmeans.sample_frames": 500,
    "vocabularies.kmeans.iterations": 3,
    "vocabularies.kmeans.restarts": 2,
    "vocabularies.kmeans.exact": True,
    "vocabularies.kmeans.seed": 1,
    "train.epochs": 3,
    "train.sampling": "balanced",
    "train.batch_size": 8,
    "train.accumulate": 2,
    "train.learning_rate": 1e-3,
    "train.schedule.kind": {"kind": "constant", "warmup_steps": 3},
    "train.schedule.warmup": 0.5,
    "train.optimiser.kind": "adam",
    "train.optimiser.betas": [0.8, 0.9],
    "train.optimiser.weight_decay": 0.5,
    "train.gradient_clip": 0.1,
    "train.loss.kind": {"kind": "focal", "gamma": 2.0, "pos_weight": "balanced", "families": None},
    "train.label_smoothing": 0.0,
    "train.average.kind": {"kind": "none"},
    "train.average.decay": 0.5,
    "train.checkpoint_ensemble": [1, 2],
    "train.num_threads": 2,
    "train.precision": "bfloat16",
    "train.patchout": 0.5,
    "train.augmentation.time_shift": 0.0,
    "train.augmentation.time_stretch": 0.3,
    "train.augmentation.copies": 0.5,
    "train.augmentation.reversal": 0.5,
    **{
        f"train.augmentation.{name}.probability": 0.5
        for name in (
            "speed",
            "pitch",
            "band_shift",
            "gain",
            "tilt",
            "equaliser",
            "coloured_noise",
            "sum_clips",
            "concatenate_clips",
            "freq_mixstyle",
            "erasing",
        )
    },
    "train.augmentation.mixup_probability": 0.0,
    "train.augmentation.mixup_alpha": 5.0,
    "train.augmentation.mixup_domain": "power",
    "train.augmentation.mixup_partners": "all",
    "train.augmentation.retokenize": True,
    "train.augmentation.token_noise": 0.0,
    "train.augmentation.frame_masks.count": 3,
    "train.augmentation.frame_masks.width": 8,
    "train.augmentation.band_masks.count": 3,
    "train.augmentation.band_masks.width": 4,
    "train.augmentation.noise": 0.5,
    "train.gradient_flow": True,
    "train.freeze.stages": [{"epochs": 1, "train": ["head"]}, {"train": "all"}],
    "train.rates.stem": 0.5,
    "train.rates.encoder": 0.5,
    "train.rates.head": 2.0,
    "train.rates.layer_decay": 0.5,
    "models.ast.input.normalisation": "clip",
    "models.ast.input.std_scale": 2.0,
    **{f"models.ast.{key}": value for key, value in NETWORK.items()},
    "models.ast.window": {"length": 0.2, "hop": 0.1, "fill": "silence", "pooling": "max"},
    "models.frame_statistics.penalty": 0.01,
    "models.frame_statistics.kernel_width": 3.0,
    "models.token_transformer.input.embedding": "random",
    "models.token_transformer.input.embedding_rate": 1.0,
    **{f"models.token_transformer.{key}": value for key, value in NETWORK.items()},
    "models.token_transformer.window": {"length": 0.2, "hop": 0.1, "fill": "repeat", "pooling": "attention"},
    "models.bag_of_tokens.sublinear": False,
    "models.bag_of_tokens.regularisation": 0.1,
    "models.bag_of_tokens.iterations": 1,
    "thresholds.value": 0.4,
    "report.headline": ["frame_statistics"],
    "report.examples": 2,
    "report.worst": 2,
    "report.attention": [],
    "report.references": [{"tokens": "bag_of_tokens", "frames": "frame_statistics"}],
    "atlas.tokens": 8,
    "atlas.snippets": 1,
    "atlas.seconds": 0.2,
    "atlas.clips": 2,
}

# Sections that stand for a leaf's: another kind brings keys of its own.
KINDS = {key: key.removesuffix(".kind") for key in CHANGES if key.endswith(".kind") and isinstance(CHANGES[key], dict)}

# Settings that some other leaf makes valid.
ALSO: dict[str, dict[str, Any]] = {
    "experiment.frame_models": {"experiment.ensembles": []},
    "experiment.token_models": {"experiment.ensembles": []},
    "models.ast.stem.kind": {},
    "models.ast.encoder.kind": {"report.attention": []},
    "models.ast.window": {"report.attention": []},
    "corpus.max_duration": {"corpus.max_bad_fraction": 1.0, "corpus.duration": 0.3},
    "train.accumulate": {},
    "train.augmentation.copies": {"spectrogram.copies": [{"pitch": 2}]},
}

# What changes no result of this experiment, and why. All are changed together, and every artifact must stay as it was.
NO_RESULT: dict[str, Any] = {
    "corpus.root": "audio/moved",  # where the audio lies
    "corpus.max_bad_fraction": 0.5,  # when a run stops
    "labels.models": ["frame_statistics"],  # no fold is enhanced
    "labels.types": [1],
    "labels.threshold": "median",
    "pretrain.epochs": 2,  # no model is pretrained
    "pretrain.batch_size": 8,
    "pretrain.learning_rate": 1e-3,
    "pretrain.schedule.warmup": 0.2,
    "pretrain.mask_share": 0.3,
    "pretrain.mask_span": 10,
    "execution.workers": 2,
    "execution.memo": ".sonolex/other",
    "launch.trackers": ["dvclive"],
}

# Recorded by the artifacts, as all settings of a stage and kind are, without changing a number in them.
RECORDED: dict[str, Any] = {
    "split.num_folds": 4,  # the demo publishes folds
    "split.seed": 1,  # no clip is drawn for validation
    "split.near_duplicates": "exclude",  # the demo has none
    "duplicates.search": False,
    "duplicates.threshold": 0.85,
    "spectrogram.uint8_range.low": -10.0,  # dtype is float16
    "spectrogram.uint8_range.high": 10.0,
    "train.activation_checkpointing": True,  # the same numbers by other means
    "train.epoch_metric": "mAP",  # no clip validates
    "train.freeze.batch_norm": "updated",  # nothing is frozen
    "models.token_transformer.input.embedding_width": 32,  # of a random embedding
    "atlas.attribution_clips": 3,  # no model is attributed
    "atlas.attribution_steps": 4,
    # Of augmentation that is off.
    **{
        f"train.augmentation.{name}.range": [0.5, 0.7]
        for name in ("speed", "pitch", "band_shift", "gain", "tilt", "equaliser")
    },
    "train.augmentation.equaliser.bands": 3,
    **{f"train.augmentation.{name}.snr": [1.0, 2.0] for name in ("background", "coloured_noise")},
    "train.augmentation.coloured_noise.colours": ["blue"],
    **{
        f"train.augmentation.{name}.{key}": value
        for name in ("sum_clips", "concatenate_clips")
        for key, value in {
            "num_clips": [2, 3],
            "gain": [0.0, 1.0],
            "random_start": False,
            "most_labels": 2,
            "same_group": True,
            "absent_labels": True,
        }.items()
    },
    "train.augmentation.concatenate_clips.whole": True,
    "train.augmentation.freq_mixstyle.alpha": 0.2,
    "train.augmentation.erasing.area": [0.1, 0.2],
    "train.augmentation.erasing.aspect": [1.0, 1.0],
}

# Leaves that have no other value here, with the reason.
UNTRIED = {
    "experiment.pretrained_models": "adds stages: test_graph.py",
    "experiment.supervised_vocabularies": "adds a stage: test_graph.py",
    "experiment.learned_vocabularies": "adds a stage: test_learned_vocabularies.py",
    "vocabularies.kmeans.features.hidden_states": "needs the list learned_vocabularies: test_learned_vocabularies.py",
    "vocabularies.kmeans.features.lda": "needs the list supervised_vocabularies: test_graph.py",
    "experiment.vocabularies": "another entry is another experiment: test_graph.py",
    "corpus.kind": "another corpus: test_recipes.py",
    "labels.use": "needs a table of enhanced labels: test_enhancement.py",
    "labels.enhance": "needs inner folds: test_enhancement.py",
    "labels.ontology": "a file",
    "spectrogram.clips_per_shard.maximum": "fifty clips make no shard so large: test_shards.py",
    "spectrogram.front_end.kind": "its keys are others': test_mel.py",
    "vocabularies.kmeans.kind": "its keys are others': test_kinds.py",
    "pretrain.schedule.kind": "no model is pretrained",
    "train.augmentation.background.probability": "needs a folder of sounds: test_noise_sounds.py",
    "train.augmentation.background.folder": "needs a folder of sounds: test_noise_sounds.py",
    "train.early_stop_patience": "needs validation clips: test_resuming.py",
    "train.keep_best": "needs validation clips: test_epoch_choice.py",
    "train.rates.input": "frames have no weights: test_fine_tuning.py",
    "train.lora": "needs peft: test_lora.py",
    "atlas.attribution": "adds a stage: test_token_attribution.py",
    "train.compile": "takes a compiler and a minute: test_step.py",
    "models.ast.kind": "another model", "models.token_transformer.kind": "another model",
    "models.ast.input.kind": "another input", "models.token_transformer.input.kind": "another input",
    "models.frame_statistics.kind": "another model", "models.bag_of_tokens.kind": "another model",
    "thresholds.kind": "fitted ones need clips with several labels: test_thresholds.py",
    "models.ast.pretrained": "needs published weights: test_checkpoint_formats.py",
    "models.token_transformer.pretrained": "needs published weights",
    "execution.executor": "needs a cluster: test_dask.py", "execution.scheduler": "needs a cluster: test_dask.py",
    "launch.train_processes": "each process draws numbers of its own: test_distributed_stages.py",
}  # fmt: skip


def small_params() -> dict[str, Any]:
    """Return the params of the small experiment, with those models alone that it names."""
    document = read_params(ROOT / "params.yaml")
    grid = SMALL["experiment.frame_models"] + SMALL["experiment.token_models"]
    document["models"] = {name: document["models"][name] for name in grid}
    return document


def rounds() -> list[list[str]]:
    """Return the leaves that are changed together: independent sections side by side, all others alone."""
    sections = (
        "train",
        "models.ast",
        "models.token_transformer",
        "models.bag_of_tokens",
        "models.frame_statistics",
        "atlas",
    )
    left = {section: [key for key in CHANGES if key.startswith(f"{section}.")] for section in sections}
    vocabulary = [key for key in CHANGES if key.startswith("vocabularies.")]
    beside_training = [*left["models.bag_of_tokens"], *left["models.frame_statistics"], *left["atlas"]]
    found = [[key, *beside_training[i : i + 1]] for i, key in enumerate(left["train"])]
    beside_vocabulary = left["models.ast"][: len(vocabulary)]
    found += [[key, *beside_vocabulary[i : i + 1]] for i, key in enumerate(vocabulary)]
    beside_tokens = left["models.ast"][len(vocabulary) :]
    found += [[key, *beside_tokens[i : i + 1]] for i, key in enumerate(left["models.token_transformer"])]
    assert len(beside_training) <= len(left["train"])
    assert len(beside_tokens) <= len(left["models.token_transformer"])
    known = {key for keys in found for key in keys}
    return found + [[key] for key in CHANGES if key not in known]


def test_every_leaf_is_tried_or_excused() -> None:
    keys = {key for key, _ in leaves(small_params())}
    listed = [*CHANGES, *NO_RESULT, *RECORDED, *UNTRIED]
    assert len(set(listed)) == len(listed)
    assert set(listed) == keys


def commands(workspace: Path) -> Iterator[list[str]]:
    """Yield the commands of all stages of dvc.lock that params.yaml names now, each behind those that it needs."""
    named = run(workspace, "dvc", "stage", "list", "--name-only", project=True).stdout.split()
    lock = YAML(typ="safe").load(workspace / "dvc.lock")["stages"]

    def place(name: str) -> int:
        stage = next((i for i, known in enumerate(ORDER) if name.startswith(known)), len(ORDER))
        return stage + (name == LAST)

    for name in sorted(named, key=place):
        yield lock[name]["cmd"].split()


def made_from_nothing(warm: Path, folder: Path) -> dict[str, str]:
    """Run the commands of the warm workspace's stages, one after the other, in an empty folder with its params."""
    clone_workspace(warm, folder)
    shutil.copy(warm / "params.yaml", folder)
    for command in commands(warm):
        run(folder, *command, project=True)
    return artifacts(folder)


def changed(before: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return params with other values at these leaves."""
    document = deepcopy(before)
    for key in keys:
        for name, value in {KINDS.get(key, key): CHANGES[key], **ALSO.get(key, {})}.items():
            *sections, last = name.split(".")
            place = document
            for section in sections:
                place = place[section]
            place[last] = value
    return document


def try_rounds(workspace: Path, scratch: Path, todo: list[list[str]]) -> list[str]:
    """Try rounds in a workspace that has run everything; return what went wrong, one line each."""
    before, base = read_params(workspace / "params.yaml"), artifacts(workspace)
    yaml, faults = YAML(), []
    for number, keys in enumerate(todo):
        yaml.dump(changed(before, keys), workspace / "params.yaml")
        done = run(workspace, "dvc", "repro", "-q", check=False, project=True)
        if done.returncode:
            faults.append(f"{keys}: dvc repro: {done.stderr[-600:]}")
            continue
        found = artifacts(workspace)
        expected = made_from_nothing(workspace, scratch / str(number))
        # What earlier rounds left under other names is no output of this one.
        wrong = [path for path in expected if found.get(path) != expected[path]]
        if wrong:
            faults.append(f"{keys}: {len(wrong)} artifacts differ from a clean run's: {wrong[:4]}")
        if all(base.get(path) == digest for path, digest in expected.items()):
            faults.append(f"{keys}: no artifact differs from those of the old value")
        shutil.rmtree(scratch / str(number))
    return faults


@pytest.mark.slow
@pytest.mark.exhaustive
def test_every_setting_takes_effect_with_a_warm_run_cache(finished: Path, tmp_path: Path) -> None:
    todo = rounds()
    halves = [todo[0::2], todo[1::2]]
    copies = [shutil.copytree(finished, tmp_path / f"workspace{i}", symlinks=True) for i in range(2)]
    (tmp_path / "scratch").mkdir()
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(try_rounds, copy, scratch_below(tmp_path / "scratch", i), half)
            for i, (copy, half) in enumerate(zip(copies, halves, strict=True))
        ]
        faults = [fault for job in jobs for fault in job.result()]
    assert not faults, "\n".join(faults)


def scratch_below(folder: Path, number: int) -> Path:
    path = folder / str(number)
    path.mkdir()
    return path


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_changes_no_result_changes_none(finished: Path, tmp_path: Path) -> None:
    workspace = shutil.copytree(finished, tmp_path / "workspace", symlinks=True)
    before = artifacts(workspace)
    change_params(workspace, NO_RESULT)
    run(workspace, "dvc", "repro", "-q", project=True)
    assert artifacts(workspace) == before
    run(workspace, "dvc", "repro", "-q", "--force", "--no-run-cache", project=True)
    assert artifacts(workspace) == before


def numbers(workspace: Path) -> dict[str, Any]:
    """Return path -> digest of every artifact that holds numbers; of tables, the columns without their metadata."""
    found: dict[str, Any] = artifacts(workspace)
    for path in list(found):
        if path.endswith(".parquet"):
            found[path] = pq.read_table(workspace / path).replace_schema_metadata(None)
        elif path.endswith(("model.json", "index.html")):  # the record, and the page that shows it
            del found[path]
    return found


@pytest.mark.slow
@pytest.mark.exhaustive
def test_what_is_only_recorded_changes_no_number(finished: Path, tmp_path: Path) -> None:
    workspace = shutil.copytree(finished, tmp_path / "workspace", symlinks=True)
    before, expected = artifacts(workspace), numbers(workspace)
    change_params(workspace, RECORDED)
    run(workspace, "dvc", "repro", "-q", project=True)
    assert numbers(workspace) == expected
    after = artifacts(workspace)
    assert {path for path in before if before[path] != after[path]} >= {
        "data/splits/1.parquet",
        "data/spectrogram/index.parquet",
        "models/ast/1/0/model.json",
    }
