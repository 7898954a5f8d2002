"""Model card of a bundle: its README.md, with the front matter that the Hugging Face hub reads.

Everything in it follows from the bundle's content and its members; no figure is typed. The same bundle has the same card.
"""

import io
import math
from collections.abc import Mapping, Sequence

from ruamel.yaml import YAML

from pipeline.artifacts.clips import LabelKind
from pipeline.artifacts.layout import ALL_SEEDS
from pipeline.artifacts.vocabulary import Vocabulary
from pipeline.evaluation.metric_definition import Interval, reported_metrics
from pipeline.inference.bundle import BundleContent, FoldMetrics, TrainingClips
from pipeline.inference.classifier import Member
from pipeline.reporting.summary import (
    ModelSummary,
    Run,
    duration,
    spread,
    summarise,
    table_metrics,
    uncertainty,
)
from pipeline.spectrogram.log_mel import describe_frame

TASK = "audio-classification"  # the hub's name of it

# The hub's identifiers of licences that audio and weights commonly have
# (https://huggingface.co/docs/hub/repositories-licenses); any other is `other`, with its name beside it.
_LICENCES = frozenset(
    {
        "agpl-3.0", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
        "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "lgpl-3.0", "mit", "openrail", "unlicense",
    }
)  # fmt: skip

_SHOWN_CLASSES = 1000  # a card lists up to so many


def model_card(content: BundleContent, members: Sequence[Member]) -> str:
    """Return the text of a bundle's README.md."""
    summary = _summary(content)
    sections = [
        f"---\n{_front_matter(content, members, summary)}---\n\n# {content['name']}\n\n{_lead(content, members)}",
        _use(content),
        _classes(content),
        _results(content, summary),
        _training_data(content),
        _front_end(members),
        _limits(content, members),
        _making(content, members),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(content: BundleContent, members: Sequence[Member], summary: ModelSummary | None) -> str:
    matter: dict[str, object] = {**_licence(content["licence"]), "library_name": "sonolex", "pipeline_tag": TASK}
    kinds = sorted({_kind(member) for member in members})
    matter["tags"] = ["audio", TASK, "sonolex", *kinds]
    if summary and len(content["metrics"]) == 1:  # of several folds no figure is this model's own
        matter["model-index"] = [{"name": content["name"], "results": [_hub_result(content, summary)]}]
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 1 << 16
    yaml.dump(matter, text)
    return text.getvalue()


def _licence(stated: str) -> dict[str, str]:
    if not stated:
        return {"license": "unknown"}
    if stated.lower() in _LICENCES:
        return {"license": stated.lower()}
    return {"license": "other", "license_name": stated}


def _hub_result(content: BundleContent, summary: ModelSummary) -> dict[str, object]:
    corpus = content["trained_on"]["corpus"]
    metrics = [
        {"type": metric.name, "name": metric.label, "value": round(summary.mean[metric.name], 4)}
        for metric in table_metrics([summary])
        if math.isfinite(summary.mean[metric.name])
    ]
    return {
        "task": {"type": TASK},
        "dataset": {"name": corpus, "type": corpus, "split": f"test clips of fold {content['metrics'][0]['fold']}"},
        "metrics": metrics,
    }


def _lead(content: BundleContent, members: Sequence[Member]) -> str:
    count = len(content["classes"])
    labels = "exactly one" if content["label_kind"] == "one" else "any number"
    kinds = {
        "trained": "trained",
        "retrained": "trained on all clips",
        "published": "with published weights, not trained",
    }
    first = (
        f"A model that says which of {count} classes a sound belongs to, {labels} of them; {kinds[content['origin']]}"
    )
    several = f" It is the mean of the probabilities of {len(members)} models." if len(members) > 1 else ""
    rows = [_member_row(member) for member in members]
    head = "| model | reads | fold | seed | parameters |\n|---|---|---|---|---:|"
    return "\n".join([f"{first} by Sonolex.{several}", "", head, *rows])


def _member_row(member: Member) -> str:
    about = member.model.metadata
    vocabulary = f", {_vocabulary(member.vocabulary)}" if member.vocabulary else ""
    cells = (
        f"`{about['model']}`: {_kind(member)}",
        f"{about['reads']}{vocabulary}",
        about["fold"] or "none",
        about["seed"],
        f"{about['num_parameters']:,}",
    )
    return f"| {' | '.join(map(str, cells))} |"


def _kind(member: Member) -> str:
    section = member.model.metadata["params"]
    return str(section["encoder"]["kind"] if "encoder" in section else section["kind"])


def _vocabulary(vocabulary: Vocabulary) -> str:
    about = vocabulary.metadata
    count = about["num_codebooks"]
    return f"{count} codebook{'s' * (count > 1)} of {about['num_tokens']} (`{about['kind']}`)"


def _use(content: BundleContent) -> str:
    name = content["name"]
    return f"""## Use

```
sonolex predict {name} recording.wav
```

```python
import sonolex

model = sonolex.load("{name}")  # the path of this folder
print(model.predict("recording.wav").top(3))
```"""


def _classes(content: BundleContent) -> str:
    names = content["classes"]
    listed = ", ".join(f"`{name}`" for name in names[:_SHOWN_CLASSES])
    more = f" and {len(names) - _SHOWN_CLASSES:,} more, see bundle.json" if len(names) > _SHOWN_CLASSES else ""
    thresholds = sorted(set(content["thresholds"]))
    spelled = f"{thresholds[0]:g}" if len(thresholds) == 1 else "those in bundle.json, one a class"
    decided = f"\n\nA class is decided for at a probability of {spelled} and above." * (content["label_kind"] == "many")
    return f"## Classes\n\n{listed}{more}.{decided}"


def _summary(content: BundleContent) -> ModelSummary | None:
    runs = [_run(fold, content["label_kind"]) for fold in content["metrics"]]
    return summarise(runs)[0] if runs else None


def _run(fold: FoldMetrics, label_kind: LabelKind) -> Run:
    metrics, undefined = reported_metrics(), [math.nan, math.nan]
    intervals = {name: fold["intervals"].get(name, undefined) for name, about in metrics.items() if about.interval}
    return Run(
        model="",
        label_kind=label_kind,
        reads="",
        fold=fold["fold"],
        seed=ALL_SEEDS,
        num_clips=fold["num_clips"],
        num_present_classes=fold["num_present_classes"],
        values={name: fold["values"].get(name, math.nan) for name in metrics},
        intervals={name: Interval(*limits) for name, limits in intervals.items()},
        num_parameters=0,
        clips_seen=0,
        weights="",
    )


def _results(content: BundleContent, summary: ModelSummary | None) -> str:
    if summary is None:
        return f"## Results\n\n{_NO_RESULTS[content['origin']]}"
    folds, about = content["metrics"], uncertainty(summary)
    rows = [f"| {metric.label} | {spread(summary, metric.name)} |" for metric in table_metrics([summary])]
    head = f"| metric | {_over(folds)} |\n|---|---:|"
    parts = ["## Results", "\n".join([head, *rows]), f"{about[0].upper()}{about[1:]}."]
    if len(folds) > 1:
        parts += [_OF_FOLDS, _fold_table(folds, content["label_kind"])]
    return "\n\n".join(parts)


_NO_RESULTS = {
    "retrained": "This model has no test score of its own: it was trained on all clips of its corpus, so that none is left "
    "to test it on. Scores of models of the same recipe, each tested on a fold that it was not trained on, are those of the "
    "bundle of the folds.",
    "published": "None were measured here; its authors' are in their publication. `sonolex predict --labels` measures it.",
}

_OF_FOLDS = (
    "Each fold's model was measured on the fold's own test clips, which it was not trained on. This bundle is the mean of "
    "these models, and every clip of the corpus was trained on by some of them: the mean itself has no unseen clip, and no "
    "score of its own."
)


def _over(folds: Sequence[FoldMetrics]) -> str:
    clips = sum(fold["num_clips"] for fold in folds)
    where = f"of fold {folds[0]['fold']}" if len(folds) == 1 else f"of {len(folds)} folds"
    return f"{clips:,} test clips {where}"


def _fold_table(folds: Sequence[FoldMetrics], label_kind: LabelKind) -> str:
    metrics = [
        metric
        for metric in reported_metrics().values()
        if label_kind in metric.headline and metric.name in folds[0]["values"]
    ]
    lines = [
        f"| fold | test clips | {' | '.join(metric.label for metric in metrics)} |",
        f"|---|---:|{'---:|' * len(metrics)}",
    ]
    for fold in folds:
        own = summarise([_run(fold, label_kind)])[0]
        cells = " | ".join(spread(own, metric.name) for metric in metrics)
        lines.append(f"| {fold['fold']} | {fold['num_clips']:,} | {cells} |")
    return "\n".join(lines)


def _training_data(content: BundleContent) -> str:
    about = content["trained_on"]
    if not about["clips"]:
        text = "Published weights: what they were trained on, and what may be done with them, their authors say."
    else:
        text = (
            f"{about['clips']:,} clips of {_lengths(about)}, {duration(about['seconds'])} in all, of the corpus "
            f"`{about['corpus']}`. Licence of the corpus: {about['licence'] or 'not stated'}."
        )
    return f"## Training data\n\n{text} Licence of the weights: {content['licence'] or 'not stated'}."


def _lengths(about: TrainingClips) -> str:
    shortest, longest = f"{about['shortest']:.1f}", f"{about['longest']:.1f}"
    return f"{longest} s" if shortest == longest else f"{shortest} to {longest} s"


def _front_end(members: Sequence[Member]) -> str:
    about = members[0].model.metadata["front_end"]
    to_ms = 1000 / about["sample_rate"]
    text = (
        f"{describe_frame(about)} from {about['f_min']:,.0f} to {about['f_max']:,.0f} Hz of sounds at "
        f"{about['sample_rate']:,} Hz, windows of {about['win_length'] * to_ms:g} ms every {about['hop_length'] * to_ms:g} "
        f"ms (`{about['front_end']}`), {about['units']}, kept as {about['dtype']}. bundle.json and the members' model.json "
        "hold every setting, the normalisation and, of models that read tokens, the vocabulary."
    )
    return f"## Front end\n\n{text}"


def _limits(content: BundleContent, members: Sequence[Member]) -> str:
    front_end, about = members[0].model.metadata["front_end"], content["trained_on"]
    limits = [_OTHER_SOUNDS[content["label_kind"]]]
    if about["clips"]:
        limits.append(
            f"It was trained on clips of {_lengths(about)}. A longer sound is better classified by windows of that length "
            "(`--window`), since events that are short in it are averaged away."
        )
    if (read := _seconds_read(members)) is not None:
        limits.append(f"Of a longer sound it reads the first {read:.2f} s alone.")
    limits.append(
        f"Sounds of any rate are resampled to {front_end['sample_rate']:,} Hz and their channels averaged: it hears nothing "
        f"above {front_end['f_max']:,.0f} Hz, and no direction. A recording of a lower rate lacks bands that it expects."
    )
    limits.append(
        "Scores are probabilities on sounds such as those that it was trained on. Other microphones, rooms and mixtures "
        "were not tested; measure it on your own labelled sounds before you rely on it."
    )
    return "\n".join(["## Limits", "", *(f"- {limit}" for limit in limits)])


_OTHER_SOUNDS = {
    "one": "It knows no other classes: every sound, noise and speech included, gets one of them, and a high score does not "
    "mean that the sound is of any.",
    "many": "It knows no other classes. A sound of none of them should have low scores for all, which nobody has tested.",
}


def _seconds_read(members: Sequence[Member]) -> float | None:
    """Return how much of a sound networks with a table of positions read, seconds; None where all members read all."""
    limits = []
    for member in members:
        about = member.model.metadata
        positions = about["params"].get("stem", {}).get("positions", {})
        if "frames" in positions and about["reads"] == "frames":
            limits.append(positions["frames"] / about["front_end"]["frame_rate"])
    return max(limits) if len(limits) == len(members) else None


def _making(content: BundleContent, members: Sequence[Member]) -> str:
    facts = [f"- {name}: `{value}`" for name, value in sorted(content["made_from"].items())]
    digests = [member.model.metadata["input"].get("pretrained", {}).get("digest") for member in members]
    facts += [
        f"- digest of the weights that training began with: `{digest}`"
        for digest in dict.fromkeys(filter(None, digests))
    ]
    trained = _releases(content["trained_with"])
    facts += [f"- trained with {trained}"] if trained else []
    facts.append(f"- bundled with {_releases(content['releases'])}")
    return "\n".join(
        ["## How it was made", "", *facts, "", "`params` in bundle.json are the settings that it follows from."]
    )


def _releases(releases: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {release}" for name, release in sorted(releases.items()))
