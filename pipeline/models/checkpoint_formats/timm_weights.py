"""Checkpoint format of timm's convolutional networks: ImageNet weights of the encoder.

The first convolution is summed over the colour channels, for a feature map of one channel. The classifier's weights are
dropped.
"""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pipeline.artifacts.files import file_digest
from pipeline.errors import SonolexError
from pipeline.models.checkpoint_formats.checkpoint import Checkpoint, CheckpointParams
from pipeline.models.checkpoint_formats.files import hub_file, read_tensors, require_shapes
from pipeline.paths import input_path

if TYPE_CHECKING:
    from pipeline.models.network import Network, NetworkParams


class TimmWeightsParams(CheckpointParams):
    kind: Literal["timm"]
    highest_rate: ClassVar[float] = 1e-3  # of PSLA on AudioSet's balanced set
    source: str = Field(min_length=1)  # name of timm's weights, such as tf_efficientnet_b2.aa_in1k, or a file

    def require_source(self) -> None:
        if not input_path(self.source).exists():
            _repository(self.source)

    def require_network(self, network: "NetworkParams") -> None:
        if network.encoder.kind != "timm":
            raise ValueError(
                f"pretrained: weights of timm need encoder.kind timm, found {network.encoder.kind}; "
                "recipes/psla_audioset.yaml has it, or set pretrained to null"
            )


class TimmCheckpoint(Checkpoint):
    Params = TimmWeightsParams

    def __init__(self, params: TimmWeightsParams) -> None:
        path = input_path(params.source)
        if not path.exists():
            path = hub_file(_repository(params.source), ["model.safetensors"], source=params.source)
        self.where, self.digest, self.tensors = str(path), file_digest(path), read_tensors(path)
        self.require_digest(params.digest)

    def load_into(self, network: "Network", params: "NetworkParams") -> None:
        encoder: Any = network.encoder.network  # of timm, whose attributes have no types
        metadata: dict[str, Any] = encoder.pretrained_cfg
        tensors = {
            name: values for name, values in self.tensors.items() if not name.startswith(metadata["classifier"] + ".")
        }
        first = tensors.get(name := metadata["first_conv"] + ".weight")
        if first is not None and first.ndim == 4 and first.shape[1] == 3:
            tensors[name] = first.sum(1, keepdim=True)
        advice = "set encoder.network to the weights' network, or use other weights"
        require_shapes(encoder.state_dict(), tensors, self.where, "encoder", advice)
        encoder.load_state_dict(tensors, strict=False)


def _repository(name: str) -> str:
    import timm  # takes seconds

    known = timm.list_pretrained(name.partition(".")[0] + "*")
    if name not in known:
        examples = f" ({', '.join(known[:8])})" if known else " such as efficientnet_b2.ra_in1k"
        raise SonolexError(
            f"pretrained.source: expected a file, or a name of timm's weights{examples}, found {name!r}; name one of these"
        )
    return str(timm.get_pretrained_cfg(name, allow_unregistered=False).hf_hub_id)  # type: ignore[union-attr]
