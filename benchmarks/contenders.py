"""Contenders of `benchmarks/training.py`: one training step each, of one shape, with one optimiser and one loss."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.features import FRONT_END
from pipeline.artifacts.model import InputMetadata
from pipeline.artifacts.spectrogram import SpectrogramMetadata
from pipeline.models.base import NOT_NORMALISED
from pipeline.models.network import Network, NetworkParams
from pipeline.params import read_params, validate_params
from pipeline.spectrogram.kaldi import KaldiFrontEnd
from pipeline.training.augmentation.settings import AugmentationParams
from pipeline.training.averaging import NoAverageParams
from pipeline.training.batches import StoredBatch
from pipeline.training.classification import Classification
from pipeline.training.distributed import ALONE, DistributedContext
from pipeline.training.loss_settings import AutoParams
from pipeline.training.losses import loss_of
from pipeline.training.optimiser import AdamWParams, build_optimiser
from pipeline.training.schedules import ConstantParams
from pipeline.training.settings import TrainParams
from pipeline.training.step import Learner, keep_freed_memory

PATCH, BANDS, RATE = 16, 128, 1e-4
_RECIPE = Path(__file__).parent.parent / "recipes" / "base.yaml"

ADAMW = AdamWParams(kind="adamw", betas=(0.9, 0.999), weight_decay=0.05)


class Shape(NamedTuple):
    """Sizes common to all contenders."""

    width: int
    depth: int
    heads: int
    frames: int
    batch: int  # clips
    stride: int = PATCH  # of patches, in frames and bands
    classes: int = 50

    @property
    def grid(self) -> tuple[int, int]:
        """Return the numbers of patches along time and frequency."""
        return (self.frames - PATCH) // self.stride + 1, (BANDS - PATCH) // self.stride + 1

    @property
    def positions(self) -> int:
        """Return the number of positions of a clip, two class tokens included."""
        return self.grid[0] * self.grid[1] + 2

    def flops(self) -> float:
        """Return the floating-point operations of a step, as `benchmarks/training.py` counts them."""
        linear = 12 * self.width**2 * self.positions  # multiplications of a block: 3 + 1 + 4 + 4 squares of the width
        attention = 2 * self.positions**2 * self.width
        patches = PATCH**2 * self.width * (self.positions - 2)
        return 3 * 2 * self.batch * (self.depth * (linear + attention) + patches + self.width * self.classes)


TINY = Shape(width=192, depth=12, heads=3, frames=512, batch=16)
BASE = Shape(width=768, depth=12, heads=12, frames=1024, batch=64, classes=527)


def _clips(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return noise (clip, frame, band), and a class per clip."""
    return torch.randn(shape.batch, shape.frames, BANDS), torch.randint(shape.classes, (shape.batch,))


def _build(shape: Shape) -> Network:
    positions = {"kind": "learned", "frames": shape.frames, "shorter": "mask"}
    stem = {"kind": "patches", "frames": PATCH, "bands": PATCH, "positions": positions}
    stem |= {"stride_frames": shape.stride, "stride_bands": shape.stride}
    encoder = {"kind": "transformer", "width": shape.width, "depth": shape.depth, "heads": shape.heads}
    section = {
        "kind": "network",
        "input": {"kind": "frames", "normalisation": "none", "std_scale": 2.0},
        "stem": stem,
        "encoder": encoder | {"mlp_ratio": 4.0, "drop_path": 0.0},
        "head": {"kind": "class_token", "distillation_token": True},
        "window": None,
        "pretrained": None,
    }
    return Network(validate_params(NetworkParams, section, "models.ast"), InputMetadata(n_mels=BANDS), shape.classes)


class BenchmarkLearner(Learner[Network]):
    """The learner of `pipeline/training`, with a batch of noise to take steps on."""

    def __init__(self, shape: Shape, params: TrainParams, device: torch.device) -> None:
        keep_freed_memory()
        context = DistributedContext(0, 1, device)
        super().__init__(
            _build(shape).to(device).train(), params, Classification(params, loss_of("one"), 1, None), context
        )
        inputs, classes = _clips(shape)
        front_end: SpectrogramMetadata = {
            **KaldiFrontEnd(FRONT_END).metadata, "dtype": "float32", "scale": 1.0, "offset": 0.0
        }  # fmt: skip
        batch = StoredBatch(inputs.to(device), None, torch.arange(shape.batch), front_end, NOT_NORMALISED)
        self._part = batch, F.one_hot(classes, shape.classes).float().to(device)

    def one_step(self) -> None:
        """Take a step as the training loop does."""
        self.step([self._part], len(self._part[1]), RATE)


def no_augmentation() -> AugmentationParams:
    """Return the settings of augmentation that leave batches as they are."""
    masks = {"count": 0, "width": 0}
    base = read_params(_RECIPE)["train"]["augmentation"]  # where what is not named here is off
    off = {"time_shift": 0.0, "mixup_probability": 0.0, "token_noise": 0.0, "frame_masks": masks, "band_masks": masks}
    return AugmentationParams.model_validate(base | off)


def make_learner(
    shape: Shape, *, device: torch.device = ALONE.device, epochs: int = 1, **changes: Any
) -> BenchmarkLearner:
    """Return a learner without augmentation, averaging and clipping, which the others do not have."""
    base = read_params(_RECIPE)["train"]
    settings: dict[str, Any] = {
        "epochs": epochs, "sampling": "shuffled", "batch_size": shape.batch, "accumulate": 1, "learning_rate": RATE,
        "schedule": ConstantParams(kind="constant", warmup_steps=0), "optimiser": ADAMW, "gradient_clip": None,
        "loss": AutoParams(kind="auto"), "label_smoothing": 0.0,
        "average": NoAverageParams(kind="none"), "checkpoint_ensemble": [], "early_stop_patience": 0,
        "epoch_metric": base["epoch_metric"], "keep_best": base["keep_best"],
        "freeze": base["freeze"], "rates": base["rates"], "lora": None,
        "num_threads": torch.get_num_threads(), "precision": "float32", "compile": False, "activation_checkpointing": False,
        "patchout": 0.0, "gradient_flow": False, "augmentation": no_augmentation(),
    }  # fmt: skip
    return BenchmarkLearner(shape, TrainParams(**(settings | changes)), device)


def sonolex(shape: Shape, part: float = 0.0) -> Callable[[], None]:
    """Return a step of Sonolex's network; the fraction `part` of the positions is dropped (train.patchout)."""
    learner = make_learner(shape)

    learner.model.patchout = part
    return learner.one_step


def hugging_face(shape: Shape) -> Callable[[], None]:
    """Return a step of transformers' ASTModel with sdpa, and a linear head."""
    from transformers import ASTConfig, ASTModel

    config = ASTConfig(
        hidden_size=shape.width, num_hidden_layers=shape.depth, num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width, patch_size=PATCH, frequency_stride=shape.stride, time_stride=shape.stride,
        max_length=shape.frames, num_mel_bins=BANDS,
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model, head = ASTModel(config), nn.Linear(shape.width, shape.classes)
    return _plain_step(nn.ModuleList([model, head]), lambda clips: head(model(clips).pooler_output), shape)


def timm_vit(shape: Shape) -> Callable[[], None]:
    """Return a step of timm's vision transformer for one channel; other strides by another patch convolution."""
    from timm.models.vision_transformer import VisionTransformer

    rows, columns = shape.grid
    model = VisionTransformer(
        img_size=(rows * PATCH, columns * PATCH), patch_size=PATCH, in_chans=1, num_classes=shape.classes,
        embed_dim=shape.width, depth=shape.depth, num_heads=shape.heads,
    )  # fmt: skip
    model.patch_embed.strict_img_size = False
    model.patch_embed.proj = nn.Conv2d(1, shape.width, PATCH, shape.stride)
    return _plain_step(model, lambda clips: model(clips[:, None]), shape)


def _plain_step(model: nn.Module, logits: Callable[[Tensor], Tensor], shape: Shape) -> Callable[[], None]:
    """Return a plain training step, with the same kind of optimiser as ours."""
    optimiser = build_optimiser(model.train(), ADAMW, RATE, embedding_rate=1.0)
    clips, classes = _clips(shape)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(logits(clips), classes).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), float("inf"), foreach=True)
        optimiser.step()

    return step


def products(shape: Shape) -> Callable[[], None]:
    """Return the matrix products of a step and torch's attention, forward and backward, into allocated memory."""
    rows, width = shape.batch * shape.positions, shape.width
    linears = []
    for inner, outer in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
        x, w, gradient = torch.randn(rows, inner), torch.randn(outer, inner), torch.randn(rows, outer)
        linears.append((x, w, gradient, torch.empty_like(gradient), torch.empty_like(x), torch.empty_like(w)))
    heads = (shape.batch, shape.positions, shape.heads, width // shape.heads)
    q, k, v = (torch.randn(heads).transpose(1, 2).requires_grad_() for _ in range(3))
    back = torch.randn(heads).transpose(1, 2)

    def step() -> None:
        keep_freed_memory()
        for _ in range(shape.depth):
            for x, w, gradient, y, back_x, back_w in linears:
                torch.mm(x, w.t(), out=y)
                torch.mm(gradient, w, out=back_x)
                torch.mm(gradient.t(), x, out=back_w)
            torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), back)

    return step


CONTENDERS: dict[str, Callable[[Shape], Callable[[], None]]] = {
    "sonolex": sonolex,
    "Hugging Face ASTModel": hugging_face,
    "timm ViT": timm_vit,
    "products": products,
    "sonolex, patchout 0.25": partial(sonolex, part=0.25),
    "sonolex, patchout 0.5": partial(sonolex, part=0.5),
}
