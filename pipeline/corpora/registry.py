"""The corpora that Sonolex reads. A new one is one file, one entry of `ADAPTERS`, one member of `CorpusParams`."""

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import Field

from pipeline.corpora import audioset, demo, esc50, table
from pipeline.corpora.base import CorpusListing

CorpusParams = Annotated[
    audioset.AudiosetParams | demo.DemoParams | esc50.Esc50Params | table.TableParams,
    Field(discriminator="kind"),
]

ADAPTERS: dict[str, Callable[[Any], CorpusListing]] = {
    "audioset": audioset.list_clips,
    "demo": demo.list_clips,
    "esc50": esc50.list_clips,
    "table": table.list_clips,
}
