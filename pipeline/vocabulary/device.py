"""Nearest codes by PyTorch, for machines with a GPU: one matrix product and one argmax a block of frames.

Conventions: features (frame, feature) and codes (code, feature) float32. In full float32: TF32 keeps ten bits, and frames
between two codes would change sides. Rounding may still decide
otherwise than NumPy's for frames that lie equally far from two codes.
"""

from pathlib import Path

import numpy as np

_SCORES_PER_BLOCK = 1 << 27  # 512 MiB of float32 on the GPU
_WORTHWHILE = 1 << 24  # scores; fewer are found sooner than torch is imported


def choose_device(num_scores: int) -> str | None:
    """Return the device of PyTorch to find so many scores (frames x codes) on, or None for NumPy on the processor."""
    if num_scores < _WORTHWHILE or not Path("/dev/nvidiactl").exists():  # importing torch takes seconds
        return None
    import torch

    return "cuda" if torch.cuda.is_available() else None


def nearest_on(device: str, features: np.ndarray, codes: np.ndarray, count: int = 1) -> np.ndarray:
    """Return argmin over codes c of |x - c|^2 for each row x of `features`, and the next: (count, frame) int64."""
    import torch

    weights = torch.from_numpy(np.ascontiguousarray(codes)).to(device)
    offsets = torch.from_numpy((-0.5 * np.einsum("cf,cf->c", codes, codes, dtype=np.float64)).astype(np.float32))
    offsets = offsets.to(device)
    block = max(1, _SCORES_PER_BLOCK // len(codes))
    nearest = np.empty((count, len(features)), dtype=np.int64)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            for start in range(0, len(features), block):
                inputs = torch.from_numpy(np.ascontiguousarray(features[start : start + block])).to(device)
                scores = torch.addmm(offsets, inputs, weights.T)
                best = scores.argmax(dim=1)[None] if count == 1 else scores.topk(count, dim=1).indices.T
                nearest[:, start : start + block] = best.cpu().numpy()
    finally:
        torch.set_float32_matmul_precision(precision)
    return nearest
