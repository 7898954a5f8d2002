"""What all models share whose picture goes through a stem, an encoder and a head."""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models.heads import Head


class PictureClassifier(nn.Module):
    """`model(inputs, mask) -> logits` as `classify(embed(inputs), mask)`; augmentation acts between the two.

    A subclass builds the three parts and says in `embed` what picture (batch, frame, feature) its inputs are.
    """

    stem: Any
    encoder: nn.Module
    head: Head

    def embed(self, inputs: Tensor) -> Tensor:
        """Return the picture that augmentation may mix and mask: the inputs themselves, unless a subclass embeds them."""
        return inputs

    def classify(self, picture: Tensor, mask: Tensor | None) -> Tensor:
        """Map a picture (batch, frame, feature) to logits (batch, class)."""
        x, mask = self.head.open(*self.stem(picture, mask))
        tokens = self.head.num_tokens  # with class tokens nothing else is read behind the encoder
        logits: Tensor = self.head(self.encoder(x, mask, tokens) if tokens else self.encoder(x, mask), mask)
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

    def context(self, picture: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map a picture to what the encoder makes of each column, and say which columns (batch, column) are the clip's.

        A column, of (batch, column, row x width), holds its rows' positions side by side. The head takes no part.
        """
        x, positions = self.stem(picture, mask)
        if mask is None:
            mask = torch.ones(picture.shape[:2], dtype=torch.bool, device=picture.device)
        columns = self.encoder(x, positions).reshape(len(x), -1, self.stem.num_rows * x.shape[2])
        return columns, self.stem.real_columns(mask, columns.shape[1])

    def forward(self, inputs: Tensor, mask: Tensor | None) -> Tensor:
        return self.classify(self.embed(inputs), mask)
