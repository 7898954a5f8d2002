"""Grad-CAM of a convolutional network over the spectrogram of a clip (Selvaraju et al., 2017, arXiv 1610.02391).

A class's map is the sum of the encoder's last feature maps, each weighted by the mean of the gradient of the class's logit
over it; what is negative, and speaks against the class, is set to 0. Between the centres of cells it is interpolated.

Conventions: C channel; feature maps are (C, cell in time, cell in frequency); a map over the spectrogram is (frame, mel).
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.artifacts.attention import GRAD_CAM
from pipeline.artifacts.model import TrainedModel
from pipeline.errors import SonolexError
from pipeline.evaluation.network_prediction import build_network
from pipeline.evaluation.prediction import describe_model, params_of
from pipeline.training.batches import Batches
from pipeline.training.inputs import Inputs


@dataclass(frozen=True, eq=False)
class ClipGradCam:
    """Grad-CAM of one class in one clip."""

    logits: np.ndarray  # (class,) float32
    target: int  # class that is explained
    cells: (
        np.ndarray
    )  # (cell in time, cell in frequency) float32: the weighted sum of the maps, negative values included
    strides: tuple[int, int]  # frames and bands from one cell to the next
    centre: float  # frame and band that the first cell is centred on
    num_frames: int
    num_read: int  # frames of the clip that the network reads, from its start
    n_mels: int

    def over_spectrogram(self) -> np.ndarray:
        """Return the map (frame, mel), scaled to a mean of 1, or 0 where nothing speaks for the class."""
        frames = _interpolation(self.num_read, self.strides[0], self.centre, self.cells.shape[0])
        bands = _interpolation(self.n_mels, self.strides[1], self.centre, self.cells.shape[1])
        values = frames @ np.maximum(self.cells, 0) @ bands.T
        found = np.full((self.num_frames, self.n_mels), np.nan)
        found[: self.num_read] = values / max(values.mean(), np.finfo(np.float32).tiny)
        return found


class GradCamReader:
    """Runs one trained model on clips, and back to its feature maps."""

    method: ClassVar[str] = GRAD_CAM

    def __init__(self, model: TrainedModel, inputs: Inputs) -> None:
        """Take a convolutional network that reads frames, and the frames. Raises SonolexError for any other model."""
        if params_of(model).explanation != "grad_cam":
            raise SonolexError(
                f"{model.path}: expected a network with a convolutional encoder over frames, found {describe_model(model)}"
            )
        self._model, self._inputs = model, inputs
        self._network = build_network(model)

    def read(self, clip_id: str, target: int | None = None) -> ClipGradCam:
        """Return the map of a class, by default of the likeliest one."""
        batches = Batches(self._inputs, [clip_id], self._model.metadata["input"]["normalisation"])
        batch = batches.take([0]).to(torch.device("cpu"))
        network, num_frames = self._network, self._inputs.num_frames(clip_id)
        with torch.no_grad():
            x, mask = network.stem(network.embed(batch.inputs), batch.mask)
            maps, mask = network.encoder.feature_maps(x, mask)
        maps.requires_grad_()
        logits: Tensor = network.head(*network.encoder.positions_of(maps, mask))[0]
        target = int(logits.argmax()) if target is None else target
        (gradients,) = torch.autograd.grad(logits[target], maps)
        cells = (gradients.mean((2, 3), keepdim=True) * maps).sum(1)[0]
        return ClipGradCam(
            logits=logits.detach().numpy(),
            target=target,
            cells=cells.detach().numpy(),
            strides=network.encoder.map_strides,
            centre=network.encoder.centre,
            num_frames=num_frames,
            num_read=min(num_frames, network.stem.max_frames or num_frames),
            n_mels=network.input.num_features // network.input.num_channels,
        )


def _interpolation(size: int, stride: int, centre: float, cells: int) -> np.ndarray:
    """Return weights (size, cells) of linear interpolation between cells whose centres are a stride apart."""
    place = np.clip((np.arange(size) - centre) / stride, 0, cells - 1)
    return np.asarray(np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))))
