"""Warnings of a survey: what would mislead a model, or stop a run, each with what to do."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from pipeline.corpora.splitting import PUBLISHED_ROLES
from tools.survey import Sound, Survey

_SURPRISING = 0.01  # probability below which one format of all clips of a class is no chance
_NAMED = 4  # offenders that a warning names; the rest are counted


def fault_warnings(found: Survey, max_bad_fraction: float) -> list[str]:
    """Name the reasons for which clips of the sample cannot be used, with an example of each."""
    if not found.faults:
        return []
    number = sum(map(len, found.faults.values()))
    share = number / found.num_decoded
    reasons = "; ".join(
        f"{len(messages)} {reason} ({messages[0]})" for reason, messages in sorted(found.faults.items())
    )
    above = (
        f": more than corpus.max_bad_fraction={max_bad_fraction:g}, and the run would stop; mend or delete them, or add "
        f"corpus.max_bad_fraction={min(1.0, round(1.5 * share + 0.01, 2)):g}"
        if share > max_bad_fraction
        else ": they are left out"
    )
    return [f"{number} of {found.num_decoded} decoded clips cannot be used{above}. {reasons}"]


def bandwidth_warnings(sounds: Sequence[Sound], f_max: float) -> list[str]:
    """Say which clips end, by their sample rate, below the highest frequency that the front end reads, if not all do."""
    rates = Counter(sound.header.rate for sound in sounds if sound.header is not None)
    low = {rate: count for rate, count in sorted(rates.items()) if rate / 2 < f_max}
    if not low or len({min(rate / 2, f_max) for rate in rates}) < 2:
        return []
    total, several = sum(rates.values()), ", ".join(f"{count} of {rate:,} Hz" for rate, count in low.items())
    return [
        f"mixed bandwidth: of {total} clips {several} have nothing above half of that, where the front end reads "
        f"to {f_max:,.0f} Hz: a model can tell them by it; add spectrogram.front_end.f_max={min(low) / 2:.1f}"
    ]


def format_warnings(sounds: Sequence[Sound]) -> list[str]:
    """Name the classes all of whose clips have one format, where that is no chance: the format gives the class away."""
    overall = Counter(sound.format for sound in sounds)
    by_class: dict[str, Counter[str]] = defaultdict(Counter)
    for sound in sounds:
        for label in sound.labels:
            by_class[label][sound.format] += 1
    leaks = []
    for label, formats in sorted(by_class.items()):
        [(name, count)] = formats.most_common(1)
        share = overall[name] / len(sounds)
        if len(formats) == 1 and share**count < _SURPRISING:
            leaks.append(f"{label} ({count} clips, all {name}, as {share:.0%} of all)")
    return leaks and [
        f"classes in one format only: {_some(leaks)}: a model can learn the format in place of the sound; convert all clips "
        "to one format, the poorest that occurs, or take sounds of these classes in the others too"
    ]


def copy_warnings(found: Survey) -> list[str]:
    """Count the files with the same content, and name those with different labels."""
    if not found.copies:
        return []
    labels = dict(zip(found.clips["clip_id"].to_pylist(), map(tuple, found.clips["labels"].to_pylist()), strict=True))
    differing = [group for group in found.copies if len({frozenset(labels[clip]) for clip in group}) > 1]
    spare = sum(len(group) - 1 for group in found.copies)
    texts = [
        f"{spare} files are copies of others, byte for byte, such as {' = '.join(found.copies[0][:3])}: a split keeps "
        "copies in one role"
    ]
    if differing:
        one_each = [{frozenset(labels[clip]): clip for clip in reversed(group)}.values() for group in differing]
        names = [" = ".join(f"{clip} ({', '.join(labels[clip])})" for clip in sorted(group)) for group in one_each]
        texts.append(f"{len(differing)} files have copies with other labels: {_some(names)}; correct one of them")
    return texts


def near_duplicate_warnings(found: Survey) -> list[str]:
    """Count the pairs of decoded clips that hold the same recording, though their files are no copies of each other."""
    groups = {clip: number for number, group in enumerate(found.copies) for clip in group}
    pairs = [pair for pair in found.alike if groups.get(pair.clip_id, pair.clip_id) != groups.get(pair.other_id)]
    if not pairs:
        return []
    names = [f"{pair.clip_id} = {pair.other_id} ({pair.correlation:.2f})" for pair in pairs]
    return [
        f"{len(pairs)} pairs among {found.num_decoded} decoded clips seem to hold the same recording: {_some(names)}; the "
        "run searches all clips, and split.near_duplicates=exclude keeps a recording in one role"
    ]


def group_warnings(groups: Mapping[str, int], num_folds: int, wanted: int) -> list[str]:
    """Name the classes with fewer groups than the folds that were wanted, of which `num_folds` are drawn."""
    few = [f"{name} ({count})" for name, count in sorted(groups.items(), key=lambda pair: pair[1]) if count < wanted]
    return few and [
        f"classes with fewer groups than {wanted} folds: {_some(few)}: {num_folds} folds are drawn, since each tests every "
        "class; more clips, or these classes left out, allow more"
    ]


def fold_obstacles(found: Survey) -> list[str]:
    """Name the classes that a published role or fold lacks, which stops the split; empty where folds are drawn."""
    names, labels = found.clips["fold"].to_pylist(), found.clips["labels"].to_pylist()
    if set(names) == {""}:
        return []
    present: dict[str, set[str]] = defaultdict(set)
    for name, own in zip(names, labels, strict=True):
        present[PUBLISHED_ROLES.get(name.lower(), f"the fold {name}")].update(own)
    needed = ("train", "test") if present.keys() <= set(PUBLISHED_ROLES.values()) else sorted(present)
    missing = {role: [name for name in found.listing.classes if name not in present[role]] for role in needed}
    return [
        f"classes without a clip in {role}, which the split needs: {_some(lacking)}; leave them out, or add clips"
        for role, lacking in missing.items()
        if lacking
    ]


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
