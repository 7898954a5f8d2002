"""Registry of the corpora that Sonolex reads.

An adapter is one module, which defines what `CorpusAdapter` says, and one line here.
"""

from typing import Annotated

from pipeline.corpora.base import AdapterParams, CorpusAdapter
from pipeline.registry import Registry

ADAPTERS: Registry[CorpusAdapter] = Registry(
    "corpus",
    {
        "audioset": "pipeline.corpora.audioset",
        "demo": "pipeline.corpora.demo",
        "esc50": "pipeline.corpora.esc50",
        "table": "pipeline.corpora.table",
    },
)

CorpusParams = Annotated[AdapterParams, ADAPTERS.params]  # those of one kind
