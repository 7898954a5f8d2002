"""The section `duplicates`: search for near-duplicates, clips of one recording in files that differ."""

from typing import Annotated

from pydantic import Field

from pipeline.params import Params


class DuplicateParams(Params):
    """The section `duplicates`."""

    search: bool  # false: no clip is compared, and none is found
    threshold: Annotated[float, Field(ge=0.5, le=1)]  # smallest correlation of near-duplicates
