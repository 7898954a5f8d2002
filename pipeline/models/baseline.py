"""What baselines are told when they are fitted: all `fit(params, inputs, targets, setting)` take the same."""

from typing import Any, NamedTuple

from pipeline.artifacts.vocabulary import Vocabulary

# Logit of a class that no training clip shows: sigmoid and softmax both make it 0 beside any class that was seen. Its
# negative is that of a class which all of them show.
UNSEEN_LOGIT = -30.0


class Setting(NamedTuple):
    """What there is besides training clips and their targets (clip, class) 0-1."""

    input_facts: dict[str, Any]  # of the frames or tokens, see `pipeline/training/inputs.py`
    front_end: dict[str, Any]  # facts of the front end behind them
    label_kind: str  # "one" or "many" labels a clip
    seed: int
    vocabulary: Vocabulary | None = None  # behind tokens
