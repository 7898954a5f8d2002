"""Weights as a folder: `weights.safetensors`, and a JSON card with every fact that is needed to use them.

No pickle is read or written. The card holds a digest of itself, and one of the weights: a folder that was edited, mixed from
two, or cut short does not open.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.artifacts.files import file_digest, replacing
from pipeline.artifacts.tables import check_facts, facts_digest
from pipeline.errors import ArtifactError

WEIGHTS = "weights.safetensors"

_DIGEST = "digest"  # of all facts; stands among them on the card


@dataclass(frozen=True)
class WeightsSchema:
    """Card, facts and maker of one kind of folder `<anywhere>/<model>/<fold>/<seed>`."""

    card: str  # name of the file
    stage: str  # that writes it, for error messages; a pattern where there are several
    facts: Mapping[str, type]  # `weights`, their digest, is added here

    def write(self, path: Path, weights: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Write a folder in one step; `facts` without the weights' digest."""
        with replacing(path) as partial:
            partial.mkdir(parents=True)
            save_file({name: np.asarray(values, order="C") for name, values in weights.items()}, partial / WEIGHTS)
            card = dict(facts) | {"weights": file_digest(partial / WEIGHTS)}
            self._check(path, card)
            card |= {_DIGEST: facts_digest(card)}
            (partial / self.card).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")

    def open(self, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return arrays by name, and the facts; checks the facts and that the weights are those written with them."""
        if not (path / WEIGHTS).exists():
            raise self.error(path, WEIGHTS, expected="a file", found="none")
        facts = self.read_card(path)
        digest = file_digest(path / WEIGHTS)
        if digest != facts["weights"]:
            raise self.error(path, WEIGHTS, expected=f"digest {facts['weights']} as written", found=digest)
        try:
            return load_file(path / WEIGHTS), facts
        except SafetensorError as error:
            raise self.error(path, WEIGHTS, expected="safetensors", found=str(error)) from None

    def read_card(self, path: Path) -> dict[str, Any]:
        """Read the facts of a folder without its weights, and check that they are as written."""
        if not (path / self.card).exists():
            raise self.error(path, self.card, expected="a file", found="none")
        try:
            facts: dict[str, Any] = json.loads((path / self.card).read_text())
        except ValueError as error:  # not JSON, or not even UTF-8
            raise self.error(path, self.card, expected="JSON", found=str(error)) from None
        written = facts.pop(_DIGEST, None)
        found = facts_digest(facts)
        if written != found:
            raise self.error(path, self.card, expected=f"facts of digest {written} as written", found=found)
        self._check(path, facts)
        return facts

    def error(self, path: Path, field: str, *, expected: object, found: object) -> ArtifactError:
        """Return the error that names a folder, a field of it, and the stage to rerun."""
        item = "-".join(path.parts[-3:]).replace("-pretrained-", "-")  # as dvc.yaml names it: by model, fold, seed
        return ArtifactError(path, field, expected=expected, found=found, stage=f"{self.stage}@{item}")

    def _check(self, path: Path, facts: Mapping[str, Any]) -> None:
        check_facts({**self.facts, "weights": str}, facts, lambda key, **found: self.error(path, key, **found))
