"""Check of the optional packages that an experiment needs: which stages would find missing in the middle of a run.

Those of front ends and of encoders are needed by the check of params.yaml itself, which names them.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from pipeline.check_params import Experiment
from pipeline.models.network import NetworkParams


class Need(NamedTuple):
    """A setting that needs a package."""

    setting: str
    package: str  # of PACKAGES
    advice: str  # instead of installing it


# Distribution -> module that its presence is known by, requirement as pip takes it, and extra of Sonolex; "" = none.
PACKAGES = {
    "distributed": ("distributed", "distributed>=2025.5", "cluster"),
    "dvclive": ("dvclive", "dvclive>=3.48", "dvclive"),
    "mlflow": ("mlflow", "mlflow", ""),
    "peft": ("peft", "peft>=0.17", "lora"),
    "tensorboard": ("tensorboard", "tensorboard", ""),
    "vector-quantize-pytorch": ("vector_quantize_pytorch", "vector-quantize-pytorch>=1.32", "neural"),
    "wandb": ("wandb", "wandb", ""),
}


def package_mistakes(experiment: Experiment, params_path: Path) -> list[str]:
    """Name the settings of an experiment whose package is not installed, with the command that installs it.

    Packages are looked for and not imported: trackers would set themselves up.
    """
    mistakes = []
    for setting, package, advice in needs(experiment):
        module, requirement, extra = PACKAGES[package]
        if importlib.util.find_spec(module) is None:
            of_extra = f" (the extra sonolex[{extra}])" if extra else ""
            mistakes.append(
                f"{params_path}: {setting}: expected the package {package}, found none; pip install '{requirement}'"
                f"{of_extra}, or {advice}"
            )
    return mistakes


def needs(experiment: Experiment) -> list[Need]:
    """Return the settings of an experiment that need an optional package."""
    sections = experiment.sections
    grid, train = sections["experiment"], sections["train"]
    found = [
        Need(f"vocabularies.{name}.kind neural", "vector-quantize-pytorch", "take another kind")
        for name in grid.vocabularies
        if experiment.vocabularies[name].kind == "neural"
    ]
    if any(isinstance(experiment.models[name], NetworkParams) for name in grid.entries):
        trackers = sections["launch"].trackers
        found += [Need("train.lora", "peft", "set it to null")] if train.lora is not None else []
        found += [Need(f"launch.trackers {name}", name, "remove it there") for name in trackers]
    if sections["execution"].executor == "dask":
        found.append(Need("execution.executor dask", "distributed", "set it to local"))
    return found
