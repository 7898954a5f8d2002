"""Registry of the corpora that Sonolex reads.

An adapter is one module, which defines what `CorpusAdapter` says, and one line here.
"""

from typing import Annotated

from pipeline.corpora.base import AdapterParams, CorpusAdapter, CorpusListing
from pipeline.corpora.spelling import tidied
from pipeline.registry import Registry

ADAPTERS: Registry[CorpusAdapter] = Registry(
    "corpus",
    {
        "audioset": "pipeline.corpora.audioset",
        "beside": "pipeline.corpora.beside",
        "datafile": "pipeline.corpora.datafile",
        "demo": "pipeline.corpora.demo",
        "esc50": "pipeline.corpora.esc50",
        "folder": "pipeline.corpora.folder",
        "fsd50k": "pipeline.corpora.fsd50k",
        "huggingface": "pipeline.corpora.huggingface",
        "irmas": "pipeline.corpora.irmas",
        "mixtures": "pipeline.corpora.mixtures",
        "openmic2018": "pipeline.corpora.openmic2018",
        "pattern": "pipeline.corpora.pattern",
        "speech_commands": "pipeline.corpora.speech_commands",
        "table": "pipeline.corpora.table",
        "urbansound8k": "pipeline.corpora.urbansound8k",
    },
)

CorpusParams = Annotated[AdapterParams, ADAPTERS.params]  # those of one kind


def list_corpus(params: CorpusParams) -> CorpusListing:
    """List the clips of a corpus by its adapter, with names spelled alike; see `pipeline/corpora/spelling.py`."""
    return tidied(ADAPTERS[params.kind].list_clips(params), params.root)
