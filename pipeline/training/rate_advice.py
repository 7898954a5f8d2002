"""Warning of learning rates that overwrite pretrained weights, by the rate that the encoder's weights would have."""

from pipeline.models.base import ModelParams
from pipeline.models.network import NetworkParams
from pipeline.training.optimiser import SgdParams
from pipeline.training.settings import TrainParams


def rate_remark(model: ModelParams, train: TrainParams) -> str | None:
    """Return a warning for a network with published weights whose encoder would learn too fast; None without one.

    Rates of SGD have another scale and are not judged, nor those of adapters, nor of a head on a frozen encoder.
    """
    if not isinstance(model, NetworkParams) or train.lora is not None or isinstance(train.optimiser, SgdParams):
        return None
    stages = train.freeze.stages
    if stages and not any(name.startswith("encoder") for stage in stages for name in stage.names):
        return None
    return model.rate_remark(train.learning_rate * train.rates.encoder)
