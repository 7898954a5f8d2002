"""From what a corpus lists to the manifest: every clip checked, its file identified by content, in an order of its own.

Conventions: the manifest holds neither times nor absolute paths, and is sorted by clip id, so that the same corpus gives
the same manifest on every machine. A clip whose file is missing stays in it, with no content.
"""

import hashlib
import logging
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.artifacts.clips import CLIPS, open_clips
from pipeline.artifacts.tables import Table
from pipeline.corpora.base import CorpusListing, reject
from pipeline.corpora.content import STORE_PATH, Contents, content_digests
from pipeline.corpora.registry import ADAPTERS, CorpusParams
from pipeline.errors import ArtifactError, CorpusError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refresh:
    """What became of the manifest."""

    num_clips: int
    num_missing: int  # clips whose file is not there
    num_hashed: int  # files that were read
    written: bool  # False: the file on disk is right and was left as it was


def refresh_manifest(params: CorpusParams, path: Path, store_path: Path = STORE_PATH) -> Refresh:
    """Bring the manifest at `path` up to date with the corpus; where nothing changed, its bytes stay as they are.

    Without the corpus's audio, a manifest of this very corpus (pulled from a DVC remote) is kept: what was computed from
    it can be used, and only new spectrograms need the audio. Raises CorpusError when there is no such manifest, and for
    whatever is wrong with the listing.
    """
    if not params.root.is_dir() and not params.makes_audio:
        return _keep(params, path, found="no such folder")
    listing = ADAPTERS[params.kind](params)
    columns, contents = manifest_columns(listing, params.root, store_path)
    num_missing = columns["content"].count("")
    if num_missing == len(columns["content"]):
        return _keep(params, path, found=f"none of the {num_missing} clips' files, {columns['source'][0]} for one")
    if num_missing:
        first = columns["source"][columns["content"].index("")]
        log.warning(
            "%d of %d clips have no readable file below %s, %s for one",
            num_missing,
            len(columns["content"]),
            params.root,
            first,
        )
    facts = {
        "corpus": params.identity(),
        "classes": list(listing.classes),
        "label_kind": listing.label_kind,
        "licence": listing.licence,
    }
    written = not _holds(path, columns, facts)
    if written:
        CLIPS.write(path, columns, facts)
    return Refresh(len(columns["content"]), num_missing, contents.num_hashed, written)


def manifest_columns(
    listing: CorpusListing, root: Path, store_path: Path = STORE_PATH
) -> tuple[dict[str, list[Any]], Contents]:
    """Return the manifest's columns, checked and in its order, and the contents of the files behind them.

    Raises CorpusError that names everything wrong with the listing at once.
    """
    check_listing(listing, root)
    clips = sorted(listing.clips, key=lambda clip: clip.clip_id)
    sources = sorted({clip.source for clip in clips})
    contents = content_digests([root / source for source in sources], store_path)
    digests = dict(zip(sources, contents.digests, strict=True))
    targets = {name: target for target, name in enumerate(listing.classes)}
    columns: dict[str, list[Any]] = {
        "clip_id": [clip.clip_id for clip in clips],
        "source": [clip.source for clip in clips],
        "member": [clip.member for clip in clips],
        "start": [clip.start for clip in clips],
        "duration": [clip.duration for clip in clips],
        "labels": [sorted({targets[label] for label in clip.labels}) for clip in clips],
        "group": [clip.group or clip.source for clip in clips],
        "fold": [clip.fold for clip in clips],
        "content": [_content(digests[clip.source], clip.member) for clip in clips],
    }
    return columns, contents


def check_listing(listing: CorpusListing, root: Path) -> None:
    """Raise CorpusError with every clip, label and class that cannot stand in a manifest."""
    clips, classes = listing.clips, set(listing.classes)
    if not clips:
        raise CorpusError(f"{root}: expected a corpus with clips, found none listed")
    places = [(clip.source, clip.member, clip.start) for clip in clips]
    unknown = Counter(label for clip in clips for label in clip.labels if label not in classes)
    problems = {
        "classes listed twice": _repeated(listing.classes),
        f"unknown labels, where the classes are {', '.join(listing.classes[:20])}{' ...' * (len(classes) > 20)}": [
            f"{label!r} (of {count} clip{'s' * (count > 1)})" for label, count in sorted(unknown.items())
        ],
        "clip ids listed twice": _repeated([clip.clip_id for clip in clips]),
        "clips listed twice, by file and start (several labels belong in one row)": [
            f"{'/'.join(filter(None, place[:2]))} at {place[2]:g} s" for place in _repeated(places)
        ],
        "clips that are no file below the root": [c.clip_id for c in clips if not _is_below(c.source)],
        "clips with a negative or endless start or duration": [
            c.clip_id for c in clips if not (0 <= c.start < math.inf and 0 <= c.duration < math.inf)
        ],
    }
    if listing.label_kind == "one":
        problems["clips without exactly one label, where label_kind is one"] = [
            f"{c.clip_id} ({', '.join(c.labels) or 'none'})" for c in clips if len(set(c.labels)) != 1
        ]
    reject(root, problems)


def _repeated(values: Any) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _is_below(source: str) -> bool:
    """Tell whether a source is a plain relative path in its shortest form; others would name one file in many ways."""
    path = PurePosixPath(source)
    return bool(source) and not path.is_absolute() and ".." not in path.parts and str(path) == source and source != "."


def _content(digest: str, member: str) -> str:
    """Return the digest of a clip's encoded audio; that of a tar's member follows from the tar and the member's name."""
    if not (digest and member):
        return digest
    return hashlib.sha256(f"{digest}\x1f{member}".encode()).hexdigest()[:32]


def _keep(params: CorpusParams, path: Path, found: str) -> Refresh:
    """Keep the manifest of a corpus whose audio is not on this machine, if there is one."""
    previous = _previous(path)
    if previous is not None and previous.facts["corpus"] == params.identity():
        log.warning(
            "the audio is not here (%s: %s): keeping %s with its %d clips. What is already computed can be used; "
            "spectrograms cannot be recomputed.",
            params.root,
            found,
            path,
            len(previous),
        )
        return Refresh(len(previous), previous.list("content").count(""), 0, written=False)
    manifest = "none" if previous is None else f"that of another corpus, {previous.facts['corpus']}"
    raise CorpusError(
        f"{params.root}: expected the corpus `{params.kind}` ({params.layout}), found {found}; and to go on without audio, "
        f"expected its manifest at {path}, found {manifest}. Put the corpus there, or set corpus.root in params.yaml to "
        f"where it is, or fetch what others have computed from it with `dvc pull`"
    )


def _holds(path: Path, columns: dict[str, list[Any]], facts: dict[str, Any]) -> bool:
    previous = _previous(path)
    if previous is None or previous.facts != facts:
        return False
    return all(previous.list(name) == values for name, values in columns.items())


def _previous(path: Path) -> Table | None:
    """Open the manifest as the last run left it; a damaged one counts as none, since it can be made again."""
    try:
        return open_clips(path)
    except ArtifactError as error:
        if path.exists():
            log.warning("%s", error)
        return None
