"""Page of augmentation: what each setting of `train.augmentation` does to the frames of one clip, as one HTML file.

Every setting is shown alone, for a clip that undergoes it: at both ends of its range, or at two random draws. What is 0 in
the settings is shown at an example value, which the caption says.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from pipeline.params import Params
from pipeline.reporting.pictures import mel_picture
from pipeline.reporting.rendering import write_html
from pipeline.training.augmentation.applying import Augmentation
from pipeline.training.augmentation.mixing import Mixed
from pipeline.training.augmentation.noise import NoiseBanks
from pipeline.training.augmentation.noise_sounds import open_background, open_coloured_noise
from pipeline.training.augmentation.partners import Partners, Use
from pipeline.training.augmentation.power import PowerScale
from pipeline.training.augmentation.settings import AugmentationParams, PartnersParams

TEMPLATE = "augmentation.html.j2"

_RANGES = {  # setting -> key of its range, unit
    "speed": ("range", "times the speed"), "pitch": ("range", "semitones"), "band_shift": ("range", "mel bands"),
    "gain": ("range", "dB"), "tilt": ("range", "dB per octave"), "equaliser": ("range", "dB"),
    "background": ("snr", "dB signal-to-noise ratio"), "coloured_noise": ("snr", "dB signal-to-noise ratio"),
    "erasing": ("area", "of the clip"),
}  # fmt: skip
_EXAMPLES = {"time_shift": 0.5, "time_stretch": 0.2, "reversal": 1.0, "noise": 0.5}  # of settings that are off
_MASKS = ("frame_masks", "band_masks")

Options = dict[str, object]


class Case(NamedTuple):
    """One picture of a setting."""

    caption: str
    changes: Options  # of the settings with everything off
    use: Use | None = None  # of the other clips, where there are any
    num_others: int = 0


def find_cases(params: AugmentationParams) -> Iterator[tuple[str, list[Case]]]:
    """Yield the name of each setting that models of frames take, with what is shown of it."""
    for name, example in _EXAMPLES.items():
        value = getattr(params, name)
        caption = f"at most {value or example:g}, a random draw" if name != "reversal" else "every clip"
        caption += "" if value else " (0 in params.yaml)"
        yield name, [Case(caption, {name: value or example})] * (1 if name == "reversal" else 2)
    for name, (key, unit) in _RANGES.items():
        part = getattr(params, name)
        if name == "background" and part.folder is None:
            continue
        low, high = getattr(part, key)
        ends = [Case(f"{end:g} {unit}", {name: _on(part, **{key: [end, end]})}) for end in (low, high)]
        yield name, [*ends, Case(f"{low:g} to {high:g} {unit}, a random draw", {name: _on(part)})]
    for name, use in (("sum_clips", Use.SUM), ("concatenate_clips", Use.CONCATENATE)):
        yield name, list(_mixtures(name, getattr(params, name), use))
    mixup: Options = {"mixup_probability": 1.0, "mixup_partners": "all"}
    domains = ("log", "power")
    yield "mixup_domain", [Case(domain, mixup | {"mixup_domain": domain}, Use.MIXUP, 1) for domain in domains]
    yield "freq_mixstyle", [Case("a random draw", {"freq_mixstyle": _on(params.freq_mixstyle)})] * 2
    for name in _MASKS:
        masks = getattr(params, name)
        yield name, [Case(f"{masks.count} of at most {masks.width:g}", {name: masks.model_dump()})] * 2


def write_augmentation_page(
    path: Path,
    title: str,
    clips: Sequence[np.ndarray],
    scale: PowerScale,
    params: AugmentationParams,
    copies: Sequence[tuple[str, np.ndarray]] = (),
) -> None:
    """Write the page of the first of these clips (frame, mel); the others are those that it is mixed with.

    `copies` are names and frames of its copies with another speed or pitch.
    """
    low, high = np.percentile(clips[0], [1, 99.8])
    sections = [
        (
            name,
            [
                (case.caption, mel_picture(show(case, clips, scale, params, seed), low, high))
                for seed, case in enumerate(cases)
            ],
        )
        for name, cases in find_cases(params)
    ]
    if copies:
        sections.insert(0, ("copies", [(name, mel_picture(frames, low, high)) for name, frames in copies]))
    before = mel_picture(clips[0], low, high)
    write_html(path, TEMPLATE, {"title": title, "before": before, "sections": sections}, {})


def show(
    case: Case, clips: Sequence[np.ndarray], scale: PowerScale, params: AugmentationParams, seed: int
) -> np.ndarray:
    """Return the frames (frame, mel) of the first clip after augmentation; hidden ones are at the clip's mean."""
    torch.manual_seed(seed)
    scale = scale._replace(mean=float(clips[0].mean()), size=max(float(clips[0].std()), 1e-3))
    changed = AugmentationParams.model_validate(_switched_off(params) | case.changes)
    banks = NoiseBanks(open_background(changed.background, scale), open_coloured_noise(changed.coloured_noise, scale))
    augmentation = Augmentation(changed, 1, scale, banks)
    partners = None if case.use is None else _partners_of_the_first(case.use, case.num_others)
    count = len(clips) if changed.freq_mixstyle.probability else 1 + case.num_others
    normal = [scale.normalise(torch.from_numpy(clip)) for clip in clips[:count]]
    frames, lengths = pad_sequence(normal, batch_first=True), torch.tensor([len(clip) for clip in normal])
    mask = torch.arange(frames.shape[1]) < lengths[:, None]
    frames = augmentation.change_sound(augmentation.change_time(frames, mask), mask)
    mixed = augmentation.combine(Mixed(frames, mask, torch.zeros(count, 1)), partners)
    own = augmentation.hide(mixed, frames_too=True)
    real = own.features[0] if own.mask is None else own.features[0][own.mask[0]]
    return np.asarray(real * scale.size + scale.mean)


def _mixtures(name: str, params: PartnersParams, use: Use) -> Iterator[Case]:
    """Yield a mixture of the most clips at each end of the gains, and a random one of the fewest."""
    fewest, most = (num - 1 for num in params.num_clips)
    for gain in params.gain:
        yield Case(f"{most + 1} clips, {gain:g} dB", {name: _on(params, gain=[gain, gain])}, use, most)
    low, high = params.gain
    yield Case(f"{fewest + 1} clips, {low:g} to {high:g} dB, a random draw", {name: _on(params)}, use, fewest)


def _partners_of_the_first(use: Use, count: int) -> Partners:
    owners = torch.zeros(count, dtype=torch.int64)
    return Partners(torch.arange(1, count + 1), owners, torch.full_like(owners, use), torch.zeros(count))


def _on(part: object, **changes: object) -> Options:
    return {**dict(part), "probability": 1.0, **changes}  # type: ignore[call-overload]


def _switched_off(params: AugmentationParams) -> Options:
    """Return settings in which everything is off, with the ranges of these."""
    options: Options = dict(params)
    for name, part in params:
        if name in _MASKS:
            options[name] = {"count": 0, "width": 0}
        elif isinstance(part, Params) and "probability" in dict(part):
            options[name] = {**dict(part), "probability": 0.0}
    return options | dict.fromkeys((*_EXAMPLES, "token_noise", "mixup_probability"), 0.0)
