"""Catalogue of published corpora, `metadata/corpora.yaml`: addresses, checksums, licences and citations."""

import difflib
import re
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import Field, TypeAdapter, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.errors import SonolexError, spell
from pipeline.params import Params

_FILE_NAME = r"^\w[\w. -]*$"  # of one folder or file, never `..`


class RemoteFile(Params):
    """One file on a server."""

    url: str = Field(pattern=r"^https?://[^/]+/.")
    size: int | None = Field(ge=0)  # bytes
    checksum: str | None = Field(pattern=r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$")
    checksum_from: str | None  # who published the checksum

    @field_validator("url")
    @classmethod
    def _ends_in_a_name(cls, url: str) -> str:
        if not re.fullmatch(_FILE_NAME, _last_part(url)):
            raise ValueError("expected an address that ends in the name of a file")
        return url

    @property
    def name(self) -> str:
        return _last_part(self.url)


class Archive(Params):
    """A tar or zip: one file, or the parts of a split zip in order."""

    parts: list[RemoteFile] = Field(min_length=1)
    strip: str | None  # top folder of the archive, left out of the names of files


class Corpus(Params):
    """One corpus: what it is, on which terms, and its archives."""

    title: str
    folder: str = Field(pattern=_FILE_NAME)  # below the folder of all corpora
    recipe: str  # for `sonolex compose`
    page: str
    licence: str
    licence_url: str
    citation: str
    max_unpacked: int = Field(gt=0)  # bytes
    archives: list[Archive] = Field(min_length=1)

    @property
    def files(self) -> list[RemoteFile]:
        return [part for archive in self.archives for part in archive.parts]

    @property
    def size(self) -> int | None:
        """Bytes to download, or None if the size of a file is not known."""
        sizes = [file.size for file in self.files if file.size is not None]
        return sum(sizes) if len(sizes) == len(self.files) else None


def load_catalogue(path: Path) -> dict[str, Corpus]:
    """Return corpora by name. Raises SonolexError that names every wrong key."""
    try:
        document = YAML(typ="safe").load(path)
    except FileNotFoundError:
        raise SonolexError(
            f"{path}: expected the catalogue of corpora, found no file; run in the project's folder, or name one with "
            "--catalogue"
        ) from None
    except YAMLError as error:
        raise SonolexError(f"{path}: expected YAML, found a syntax error: {error}; correct it") from None
    try:
        return TypeAdapter(dict[Annotated[str, Field(pattern=_FILE_NAME)], Corpus]).validate_python(document)
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(map(str, one['loc']))}: {one['msg']}, found {spell(one['input'])}"
            for one in error.errors()
        ]
        raise SonolexError("\n".join(lines)) from None


def find_corpus(corpora: dict[str, Corpus], name: str) -> Corpus:
    """Return a corpus by its name. Raises SonolexError that lists all names."""
    if name in corpora:
        return corpora[name]
    close = difflib.get_close_matches(name.lower(), corpora, n=1, cutoff=0.5)
    hint = f"did you mean `sonolex fetch {close[0]}`? " if close else ""
    raise SonolexError(
        f"corpus: expected one of {', '.join(corpora)}, found {name!r}; {hint}`sonolex fetch --list` describes them"
    )


def _last_part(url: str) -> str:
    return PurePosixPath(unquote(urlsplit(url).path)).name
