"""Registry of the corpora that Sonolex reads.

An adapter is one module with `Params` (`AdapterParams` with `kind` and its own keys) and `list_clips(params) ->
CorpusListing`, and one line here.
"""

from typing import Annotated, Any

from pipeline.registry import Registry

ADAPTERS = Registry(
    "corpus",
    {
        "audioset": "pipeline.corpora.audioset",
        "demo": "pipeline.corpora.demo",
        "esc50": "pipeline.corpora.esc50",
        "table": "pipeline.corpora.table",
    },
)

CorpusParams = Annotated[Any, ADAPTERS.params]  # AdapterParams of one kind
