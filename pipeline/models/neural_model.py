"""Interface between models and the training loop."""

from torch import nn


class NeuralModel(nn.Module):
    """Base of models trained by gradient descent; the training loop reads its capabilities and sets its options."""

    supports_patchout: bool = False
    supports_activation_checkpointing: bool = False
    supports_masking: bool = True  # augmentation may hide parts of clips
    supports_token_noise: bool = True  # tokens, if it reads any, may become near ones
    embedding_rate: float = 1.0  # learning rate of embeddings relative to other weights
    patchout: float = 0.0  # fraction of positions dropped before the encoder in training; set by the loop

    def set_activation_checkpointing(self, on: bool) -> None:
        """Compute the encoder's activations again in the backward pass, or keep them."""
        if on:
            raise ValueError("activation checkpointing: expected a model that supports it")
