"""What neural models share: a picture that augmentation may act on; and the transformers: stem, encoder and head."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.encoder import Encoder
from pipeline.models.heads import Head


class PictureClassifier(nn.Module):
    """`model(inputs, mask) -> logits` as `classify(embed(inputs), mask)`; augmentation acts between the two."""

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the picture that augmentation may mix and mask: the inputs themselves, unless a subclass embeds them."""
        return inputs

    def classify(self, picture: Tensor, mask: Tensor | None) -> Tensor:
        """Map a picture (batch, frame, feature) and its mask (batch, frame) to logits (batch, class)."""
        raise NotImplementedError

    def forward(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        return self.classify(self.embed(inputs), mask)


class Transformer(PictureClassifier):
    """A picture goes through stem, encoder and head, which a subclass builds."""

    stem: Any
    encoder: Encoder
    head: Head

    def classify(self, picture: Tensor, mask: Tensor | None) -> Tensor:
        x, mask = self.head.open(*self.stem(picture, mask))
        logits: Tensor = self.head(self.encoder(x, mask, self.head.num_tokens or None), mask)
        return logits

    def classify_columns(self, picture: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map a picture to logits (batch, column, class), and say which columns (batch, column) are the clip's.

        Column t is centred on frame `stem.stride` * t + `stem.centre`.
        """
        x, positions = self.stem(picture, mask)
        if mask is None:
            mask = torch.ones(picture.shape[:2], dtype=torch.bool, device=picture.device)
        num_columns = x.shape[1] // self.stem.num_rows
        x, positions = self.head.open(x, positions)
        logits = self.head.columns(self.encoder(x, positions), self.stem.num_rows)
        return logits, self.stem.real_columns(mask, num_columns)
