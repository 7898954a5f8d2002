"""Zarr artifacts: named axes, dtype and units of every array, and metadata for the whole store, checked on open.

Conventions: an artifact is one Zarr group; its metadata is the group's attribute `sonolex`; arrays carry their dimension
names and units natively. Chunks are compressed with zstd, where that pays, and end in a CRC-32C; a digest covers the
metadata. A flipped byte is thus an error on reading, never a wrong number. Empty chunks are written: Zarr would drop digital
silence otherwise, and a missing file would then read as silence too. Zarr raises many kinds of exceptions over damaged
metadata (JSON, Unicode, unknown codecs, wrong types), hence the wide `except` around its calls.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import numpy as np
import zarr
from typing_extensions import TypeVar
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore

from pipeline.artifacts import forks
from pipeline.artifacts.files import replacing
from pipeline.artifacts.tables import check_metadata, metadata_digest, metadata_types
from pipeline.errors import ArtifactError

M = TypeVar("M", bound=Mapping[str, object], default=dict[str, Any])  # metadata of one kind of store


@dataclass(frozen=True)
class ArraySchema:
    """Axes, allowed dtypes and units of one array."""

    dims: tuple[str, ...]
    dtypes: tuple[str, ...]
    units: str
    compress: bool = True  # with zstd

    def write(self, group: zarr.Group, name: str, values: np.ndarray, chunks: tuple[int, ...] | None = None) -> None:
        """Write one whole array into one shard file, whose `chunks` can be read separately."""
        if values.ndim != len(self.dims) or str(values.dtype) not in self.dtypes:
            raise ValueError(f"{name}: expected {self.dims} {self.dtypes}, found {values.shape} {values.dtype}")
        shape = tuple(max(1, size) for size in values.shape)
        chunks = tuple(min(c, s) for c, s in zip(chunks or shape, shape, strict=True))
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=values.dtype,
            chunks=chunks,
            shards=tuple(-(-size // chunk) * chunk for size, chunk in zip(shape, chunks, strict=True)),
            compressors=[*([ZstdCodec(level=1)] if self.compress else []), Crc32cCodec()],
            dimension_names=self.dims,
            attributes={"units": self.units},
            config={"write_empty_chunks": True},
        )
        if chunks == shape or forks.threads_lost():
            array[...] = values
        else:
            assert isinstance(group.store, LocalStore)
            _fill(group.store.root / array.path, values)


@dataclass(frozen=True)
class GroupSchema(Generic[M]):
    """Schema of one kind of Zarr store: its arrays and metadata. The key `*` of `arrays` stands for any number of arrays."""

    name: str
    version: int
    stage: str
    arrays: Mapping[str, ArraySchema]
    metadata: type[M] | Mapping[str, type]  # a TypedDict; or key -> class of its value

    def write(
        self, path: Path, arrays: Mapping[str, np.ndarray], metadata: M, folders: Mapping[str, Path] | None = None
    ) -> None:
        """Write the whole store in one step (temporary folder, then rename), with copies of other `folders` by name."""
        self._check_metadata(path, metadata)
        with replacing(path) as partial:
            group = self.create(partial, metadata)
            for name, values in arrays.items():
                self.arrays[name].write(group, name, values)
            for name, folder in (folders or {}).items():
                shutil.copytree(folder, partial / name)

    def create(self, path: Path, metadata: M) -> zarr.Group:
        """Create an empty store with its metadata."""
        head = {
            "artifact": self.name,
            "version": self.version,
            "digest": metadata_digest(metadata),
            "metadata": dict(metadata),
        }
        return zarr.create_group(path, attributes={"sonolex": head})

    def open(self, path: Path) -> tuple[dict[str, np.ndarray], M]:
        """Read every array of a small store, checked, and its metadata."""
        group, metadata = self.open_group(path)
        arrays = {}
        for name in self.arrays:
            array = self.open_array(path, group, name)
            try:
                arrays[name] = np.asarray(array[...])
            except Exception as error:
                raise self.error(path, name, expected="chunks as written", found=str(error)) from None
        return arrays, metadata

    def open_group(self, path: Path) -> tuple[zarr.Group, M]:
        """Open the store itself and check its metadata."""
        if not path.exists():
            raise self.error(path, "store", expected=f"a {self.name} store", found="nothing")
        try:
            group = zarr.open_group(path, mode="r")
            head: Any = group.attrs.get("sonolex")
        except Exception as error:
            raise self.error(path, "store", expected="a Zarr group", found=str(error)) from None
        if not isinstance(head, dict):
            raise self.error(path, "attributes", expected="Sonolex metadata", found="none: written by another program")
        for key, expected in (("artifact", self.name), ("version", self.version)):
            if head.get(key) != expected:
                raise self.error(path, key, expected=expected, found=head.get(key))
        if not isinstance(head.get("metadata"), dict):
            raise self.error(path, "attributes", expected="metadata", found=head.get("metadata"))
        self._check_metadata(path, head["metadata"])
        digest = metadata_digest(head["metadata"])
        if digest != head.get("digest"):
            raise self.error(path, "metadata", expected=f"digest {head.get('digest')} as written", found=digest)
        return group, head["metadata"]

    def read_metadata(self, path: Path) -> M:
        """Read the metadata alone, without the arrays."""
        return self.open_group(path)[1]

    def open_array(self, path: Path, group: zarr.Group, name: str) -> zarr.Array[Any]:
        """Open one array and check axes, dtype, units, and that its shard file is there."""
        schema = self.arrays.get(name) or self.arrays["*"]
        try:
            array = group.get(name)
        except Exception as error:
            raise self.error(path, name, expected="an array", found=f"damaged metadata: {error}") from None
        if not isinstance(array, zarr.Array):
            raise self.error(path, name, expected="an array", found="nothing")
        for field_name, expected, found in (
            ("dims", list(schema.dims), list(array.metadata.dimension_names or [])),  # type: ignore[union-attr]
            ("dtype", " or ".join(schema.dtypes), str(array.dtype)),
            ("units", schema.units, array.attrs.get("units")),
        ):
            if found != expected and not (field_name == "dtype" and found in schema.dtypes):
                raise self.error(path / name, field_name, expected=expected, found=found)
        # Zarr itself would read a missing shard as its fill value: silence.
        shard = path.joinpath(name, "c", *("0" for _ in schema.dims))
        if array.size and not shard.exists():
            raise self.error(path / name, "shard", expected=f"the file {shard.relative_to(path)}", found="none")
        return array

    def error(self, path: Path, field_name: str, *, expected: object, found: object) -> ArtifactError:
        """Build the error for a store of this kind."""
        return ArtifactError(path, field_name, expected=expected, found=found, stage=self.stage)

    def _check_metadata(self, path: Path, metadata: Mapping[str, object]) -> None:
        expected = self.metadata if isinstance(self.metadata, Mapping) else metadata_types(self.metadata, metadata)
        check_metadata(expected, metadata, lambda key, **found: self.error(path, key, **found))


def _fill(path: Path, values: np.ndarray) -> None:
    """Write all chunks of an empty array. Raises OSError as the system reports it (disk full).

    tensorstore writes, on one thread: zarr-python spends 0.5 ms on each chunk, 4.9 ms on the frames of a ten-second clip
    (zstd, float16, 128 bands) where tensorstore takes 1.3 ms.
    """
    import tensorstore  # here: stages that write small arrays start without it

    forks.threads_start()
    context = {"data_copy_concurrency": {"limit": 1}, "file_io_concurrency": {"limit": 1}, "file_io_sync": False}
    spec = {
        "driver": "zarr3",
        "kvstore": {"driver": "file", "path": str(path.absolute())},
        "store_data_equal_to_fill_value": True,
    }
    try:
        tensorstore.open(spec, write=True, context=tensorstore.Context(context)).result().write(values).result()
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from None
