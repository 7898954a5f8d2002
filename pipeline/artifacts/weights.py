"""Artifacts of weights: a folder with `weights.safetensors`, and a JSON card with the metadata needed to use them.

No pickle is read or written. The card holds a digest of itself and one of the weights: a folder that was edited, truncated
or mixed from two does not open.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, NotRequired, TypeVar

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pipeline.artifacts.files import file_digest, parse_json, replacing
from pipeline.artifacts.layout import address_of
from pipeline.artifacts.settings import Metadata
from pipeline.artifacts.tables import check_metadata, metadata_digest, metadata_types
from pipeline.errors import ArtifactError

WEIGHTS = "weights.safetensors"
EPOCHS: Final = "epochs"  # folder of the checkpoint ensemble, and its entry on the card: epoch -> digest

_DIGEST = "digest"  # entry of the card: digest of all other metadata


class WeightsCard(Metadata):
    """Base of what a card holds: what `write` adds to the metadata that it is given."""

    weights: str  # digest of the file
    epochs: NotRequired[dict[str, str]]  # EPOCHS


C = TypeVar("C", bound=WeightsCard)


@dataclass(frozen=True)
class WeightsSchema(Generic[C]):
    """Schema of one kind of folder `<anywhere>/<model>/<fold>/<seed>`: card, metadata, and the stage that writes it."""

    card: str  # name of the file
    stage: str  # that writes it, for error messages; a pattern where there are several
    metadata: type[C]  # a TypedDict: of the card

    def write(
        self,
        path: Path,
        weights: Mapping[str, np.ndarray],
        metadata: Mapping[str, object],
        epochs: Mapping[int, Mapping[str, np.ndarray]] | None = None,
    ) -> None:
        """Write a folder in one step; `metadata` without the weights' digest. Those of epochs get a file each."""
        with replacing(path) as partial:
            partial.mkdir(parents=True)
            card = dict(metadata) | {"weights": _write(partial / WEIGHTS, weights)}
            if epochs:
                (partial / EPOCHS).mkdir()
                card[EPOCHS] = {str(epoch): _write(_epoch_path(partial, epoch), epochs[epoch]) for epoch in epochs}
            self._check(path, card)
            card |= {_DIGEST: metadata_digest(card)}
            (partial / self.card).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")

    def open(self, path: Path) -> tuple[dict[str, np.ndarray], C]:
        """Return arrays by name and the metadata; check the metadata and the digest of the weights."""
        metadata = self.read_card(path)
        return self._read(path, path / WEIGHTS, metadata["weights"]), metadata

    def open_epoch(self, path: Path, metadata: C, epoch: int) -> dict[str, np.ndarray]:
        """Return the arrays of a kept epoch, by name, and check their digest."""
        return self._read(path, _epoch_path(path, epoch), metadata[EPOCHS][str(epoch)])

    def read_card(self, path: Path) -> C:
        """Read the metadata of a folder without its weights, and check its digest."""
        if not (path / self.card).exists():
            raise self.error(path, self.card, expected="a file", found="none")
        try:
            metadata = parse_json((path / self.card).read_bytes())
        except ValueError as error:  # not JSON, or not even UTF-8
            raise self.error(path, self.card, expected="JSON", found=str(error)) from None
        written = metadata.pop(_DIGEST, None)
        found = metadata_digest(metadata)
        if written != found:
            raise self.error(path, self.card, expected=f"metadata of digest {written} as written", found=found)
        self._check(path, metadata)
        card: C = metadata
        return card

    def read_metadata(self, path: Path) -> C:
        """Read the metadata alone, without the weights."""
        return self.read_card(path)

    def error(self, path: Path, field: str, *, expected: object, found: object) -> ArtifactError:
        """Build the error that names a folder, a field of it, and the stage to rerun."""
        return ArtifactError(path, field, expected=expected, found=found, stage=address_of(self.stage, path))

    def _read(self, folder: Path, path: Path, digest: str) -> dict[str, np.ndarray]:
        field = path.relative_to(folder).as_posix()
        if not path.exists():
            raise self.error(folder, field, expected="a file", found="none")
        found = file_digest(path)
        if found != digest:
            raise self.error(folder, field, expected=f"digest {digest} as written", found=found)
        try:
            weights: dict[str, np.ndarray] = load_file(path)
        except SafetensorError as error:
            raise self.error(folder, field, expected="safetensors", found=str(error)) from None
        return weights

    def _check(self, path: Path, metadata: Mapping[str, object]) -> None:
        expected = metadata_types(self.metadata, metadata)
        check_metadata(expected, metadata, lambda key, **found: self.error(path, key, **found))


def _epoch_path(path: Path, epoch: int) -> Path:
    return path / EPOCHS / f"{epoch}.safetensors"


def _write(path: Path, weights: Mapping[str, np.ndarray]) -> str:
    """Write a file of weights and return its digest."""
    save_file({name: np.asarray(values, order="C") for name, values in weights.items()}, path)
    return file_digest(path)
