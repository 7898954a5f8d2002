"""Learning-rate schedules: factors on the peak rate, by step."""

import math


def warmup_cosine(step: int, num_steps: int, warmup: float) -> float:
    """Rise linearly over the part `warmup` of the run, then fall along half a cosine to 0 (Loshchilov and Hutter, 2017)."""
    rising = round(warmup * num_steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, num_steps - rising)))
