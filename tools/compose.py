"""`sonolex compose`: write params.yaml from the base, recipes and key=value overrides, merged in this order.

    recipes/base.yaml + recipes/<recipe>.yaml + key=value ... -> params.yaml

`recipes/base.yaml` is complete and commented; a recipe holds only differences, and several can be combined. Mappings are
merged key by key; all other values, lists included, are replaced. Comments of the base are kept.

A new mapping with a `kind` has the defaults of its kind (`recipes/defaults.yaml`) in every key that it does not give. Where
the `kind` of a mapping changes, keys that both kinds have with one default keep their values, other keys of the old kind go,
and defaults fill in the rest. All settings given by hand are one overlay: their order does not matter.
"""

import copy
import io
import shlex
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from rich.console import Console
from rich.markup import escape
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import CommentMark, YAMLError
from ruamel.yaml.representer import RoundTripRepresenter
from ruamel.yaml.tokens import CommentToken

from pipeline.artifacts.files import replacing
from pipeline.check_params import Experiment, load_experiment
from pipeline.errors import ParamsError, SonolexError
from pipeline.params import read_params
from tools.composed_file import changed_by_hand, sign
from tools.fitting import FIT, fitted, measure
from tools.idle_settings import idle_remarks
from tools.kind_defaults import KIND, PLACES, Choice, Defaults, find_choice, place_below
from tools.package_check import package_mistakes

BASE = "base"
DEFAULTS = "defaults"

_ABSENT = "(none)"


class _Representer(RoundTripRepresenter):
    """YAML representer that writes null as a word instead of an empty value."""


_Representer.add_representer(type(None), lambda self, _: self.represent_scalar("tag:yaml.org,2002:null", "null"))


def run(
    recipe: str,
    overrides: Sequence[str],
    *,
    recipes_path: Path,
    params_path: Path,
    console: Console,
    force: bool = False,
) -> None:
    """Write `params_path` if all of it is valid, and print the changed settings, with what is remarkable about them.

    Otherwise leaves the file as it is and raises ParamsError that names every mistake at once; so too where the file has
    been changed by hand, unless `force` is true: then the old one is kept beside it, as `params.yaml.bak`.
    """
    before = dict(_leaves(_load(params_path))) if params_path.exists() else {}
    by_hand = bool(before) and changed_by_hand(params_path.read_text(encoding="utf-8"), _base_text(recipes_path))
    merged = _merge(recipe, overrides, recipes_path)
    document, mistakes = merged.document, merged.mistakes
    remark = _fit(merged, open_composer(recipes_path)) if merged.fits and not mistakes else ""
    with replacing(params_path) as partial:
        partial.write_text(sign(dump(document), recipe, overrides), encoding="utf-8")
        try:
            experiment = load_experiment(partial)
        except ParamsError as error:
            mistakes.append(str(error).replace(str(partial), str(params_path)))
        if mistakes:
            raise ParamsError("\n".join(mistakes))
        if by_hand and not force:
            raise ParamsError(
                f"{params_path}: expected the file as `sonolex compose` wrote it, found it changed by hand; give the "
                "changes as key=value, or write them into an overlay, `sonolex compose RECIPE+mine.yaml`; or overwrite them "
                f"by --force, which keeps the old file as {params_path}.bak"
            )
        if by_hand:
            shutil.copyfile(params_path, f"{params_path}.bak")
            console.print(f"{escape(str(params_path))}.bak: the file as it was", soft_wrap=True)
    _print_changes(before, dict(_leaves(_load(params_path))), f"{params_path} = {recipe}", console)
    notes = [*package_mistakes(experiment, params_path), *remarks_on_settings(experiment, params_path, recipes_path)]
    for text in (*([remark] if remark else []), *(f"note: {note}" for note in notes)):
        console.print(escape(text), soft_wrap=True)


def remarks_on_settings(experiment: Experiment, params_path: Path, recipes_path: Path) -> list[str]:
    """Name the settings of a params file that have no effect; none where the recipes with the defaults are not here."""
    if not (recipes_path / f"{DEFAULTS}.yaml").is_file():
        return []
    return idle_remarks(read_params(params_path), experiment, open_composer(recipes_path).defaults)


def compose(recipe: str, overrides: Sequence[str], recipes_path: Path) -> tuple[CommentedMap, list[str]]:
    """Return the merged document, not fitted to its corpus, and a message for each override that could not be parsed.

    `recipe` may be several, such as `esc50+ast_tiny224`, merged from left to right; one that ends in `.yaml` is a file of
    one's own.
    """
    merged = _merge(recipe, overrides, recipes_path)
    return merged.document, merged.mistakes


class _Merged(NamedTuple):
    document: CommentedMap
    mistakes: list[str]
    by_hand: CommentedMap  # what the overrides set, as an overlay
    fits: bool  # to its corpus, as a recipe or an override asks


def _merge(recipe: str, overrides: Sequence[str], recipes_path: Path) -> _Merged:
    known = list_recipes(recipes_path)
    document, composer = _load(recipes_path / f"{BASE}.yaml"), open_composer(recipes_path)
    for name in recipe.split("+"):
        own = name.endswith((".yaml", ".yml"))
        if not own and name not in known:
            raise ParamsError(_describe_unknown(name, known, recipes_path))
        composer.merge(document, _load(Path(name) if own else recipes_path / f"{name}.yaml"), PLACES)
    mistakes, by_hand = [], CommentedMap()
    for override in overrides:
        try:
            composer.merge(by_hand, _parse_override(override), None)
        except ParamsError as error:
            mistakes.append(str(error))
    fits = by_hand.pop(FIT, document.pop(FIT, False))
    if not isinstance(fits, bool):
        mistakes.append(f"{FIT}: expected true or false, whether settings are fitted to the corpus, found {fits!r}")
    composer.merge(document, copy.deepcopy(by_hand), PLACES)
    return _Merged(document, mistakes, by_hand, fits is True)


def _fit(merged: _Merged, composer: "Composer") -> str:
    """Fit a document to its corpus, in place, and return what it was fitted to, or why it could not be."""
    document = cast(dict[str, Any], plain(merged.document))
    try:
        size = measure(document)
    except SonolexError as error:
        return f"not fitted to the corpus, which cannot be read yet; compose again when it can: {error}"
    composer.merge(merged.document, fitted(document, size), PLACES)
    composer.merge(merged.document, merged.by_hand, PLACES)  # what is set by hand stays
    return (
        f"fitted to {size.training_clips:,} training clips a fold, of {size.seconds:.2g} s in the median: folds, strides, "
        "masks, epochs and sizes (docs/training.md has the rules)"
    )


def spell_setting(key: str, value: object) -> str:
    """Return a setting as it is given to compose, key=value."""
    return f"{key}={_spell(value)}"


def spell_command(recipe: str, overrides: Sequence[str]) -> str:
    """Return the command that composes a recipe and settings, for a shell."""
    return shlex.join(["sonolex", "compose", recipe, *overrides])


def open_composer(recipes_path: Path) -> "Composer":
    """Return what merges with the defaults of a folder of recipes."""
    return Composer(Defaults(_load(recipes_path / f"{DEFAULTS}.yaml")))


def list_recipes(recipes_path: Path) -> list[str]:
    """Return the names of all recipes; neither the base nor the defaults are one."""
    return sorted(path.stem for path in recipes_path.glob("*.yaml") if path.stem not in (BASE, DEFAULTS))


def print_recipes(recipes_path: Path, console: Console) -> None:
    """Print each recipe with its description."""
    names = list_recipes(recipes_path)
    for name in names:
        text = f"{name:{max(map(len, names))}}  {describe_recipe(recipes_path / f'{name}.yaml')}"
        console.print(escape(text), soft_wrap=True)


def describe_recipe(path: Path) -> str:
    """Return the description of a recipe, its first comment."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def dump(document: CommentedMap) -> str:
    """Return the document as text, comments included."""
    stream = io.StringIO()
    _yaml().dump(document, stream)
    return stream.getvalue()


def _base_text(recipes_path: Path) -> str:
    return dump(_load(recipes_path / f"{BASE}.yaml"))


def _describe_unknown(name: str, known: list[str], recipes_path: Path) -> str:
    """Say that a recipe is none, and what was probably meant."""
    hint = ""
    if name.lower().replace("-", "") == "esc10":
        hint = "; ESC-10 is a table of ESC-50: `sonolex compose esc50 corpus.root=PATH corpus.table=meta/esc10.csv`"
    elif "=" in name:
        hint = f"; name a recipe before the settings: `sonolex compose demo {name}`"
    return f"recipe: expected one of {', '.join(known)} (in {recipes_path}), found {name!r}{hint}"


def _yaml() -> YAML:
    yaml = YAML()  # round trip, YAML 1.2: keeps comments, quotes and the spelling of numbers; 1e-4 is a number
    yaml.Representer = _Representer
    yaml.preserve_quotes = True
    yaml.width = 4096  # never wrap a line
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def _load(path: Path) -> CommentedMap:
    if not path.is_file():
        raise ParamsError(
            f"{path}: expected a file, found none; run in the project's folder, or name one with --recipes"
            if path.name in (f"{BASE}.yaml", f"{DEFAULTS}.yaml")
            else f"{path}: expected an overlay of your own, found no such file"
        )
    try:
        document = _yaml().load(path)
    except YAMLError as error:
        raise ParamsError(f"{path}: expected YAML, found a syntax error: {error}") from None
    if document is None:  # only comments: a recipe that changes nothing
        return CommentedMap()
    if not isinstance(document, CommentedMap):
        raise ParamsError(f"{path}: expected sections (`train:`, ...), found {type(document).__name__}")
    return document


def _parse_override(override: str) -> CommentedMap:
    """Turn `train.epochs=80` into the overlay {train: {epochs: 80}}; the value is YAML, so `[a, b]` is a list."""
    keys, sign, text = override.partition("=")
    names = keys.strip().split(".")
    if not sign or not all(names):
        raise ParamsError(f"override: expected key=value, such as train.epochs=80, found {override!r}")
    try:
        value = _yaml().load(text)
    except YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ParamsError(f"override of {keys}: expected a YAML value, found {text!r} ({reason})") from None
    for name in reversed(names):
        value = CommentedMap({name: value})
    return value  # type: ignore[no-any-return]


class Composer:
    """Lays mappings over others, and completes those of a kind from its defaults."""

    def __init__(self, defaults: Defaults) -> None:
        self.defaults = defaults

    def merge(self, base: CommentedMap, overlay: CommentedMap, place: object) -> None:
        """Lay `overlay` over `base`, in place. `place` says what both are, see `tools/kind_defaults.py`."""
        for key, value in overlay.items():
            old, below = base.get(key), place_below(place, base, key)
            if not isinstance(value, CommentedMap):
                _put(base, key, value)
            elif isinstance(old, CommentedMap) and not _changes_kind(old, value, below):
                self.merge(old, value, below)
            else:
                _put(base, key, completed := self.complete(value, below, old))
                if completed is not value:
                    _copy_remark(base, key, overlay)

    def complete(self, given: CommentedMap, place: object, old: object = None) -> CommentedMap:
        """Return a mapping with all keys of its kind: those given, those kept of an `old` one, and defaults."""
        choice = find_choice(place)
        kind = given.get(KIND, self.defaults.kind(choice)) if choice else None
        if choice and isinstance(kind, str) and kind in choice.kinds and not choice.kinds[kind].keys() <= given.keys():
            filled = self._defaults(choice, kind, place)
            if isinstance(old, CommentedMap):
                self._lay(filled, self._kept(choice, kind, place, old), choice, place)
            self._lay(filled, given, choice, place)
            return filled
        for key, value in given.items():
            if isinstance(value, CommentedMap):
                given[key] = self.complete(value, place_below(place, given, key))
        return given

    def _defaults(self, choice: Choice, kind: str, place: object) -> CommentedMap:
        """Return a mapping of one kind with all of its defaults, its parts' too, and their comments."""
        filled = CommentedMap({KIND: kind})
        for source, key in self.defaults.items(choice, kind):
            filled[key] = copy.deepcopy(source[key])
            _copy_remark(filled, key, source)
            if isinstance(filled[key], CommentedMap):
                filled[key] = self.complete(filled[key], place_below(place, filled, key))
        return filled

    def _kept(self, choice: Choice, kind: str, place: object, old: CommentedMap) -> CommentedMap:
        """Return those values of an `old` mapping that mean the same in another kind: both have one default, or none."""
        before = str(old.get(KIND))
        if before not in choice.kinds:
            return CommentedMap()
        was, now = self._defaults(choice, before, place), self._defaults(choice, kind, place)
        shared = choice.kinds[before].keys() & choice.kinds[kind].keys() & old.keys() - {KIND}
        return CommentedMap(
            {key: value for key, value in old.items() if key in shared and was.get(key) == now.get(key)}
        )

    def _lay(self, filled: CommentedMap, given: CommentedMap, choice: Choice, place: object) -> None:
        """Lay what is given over defaults, each key where its kind has it, with what is remarked of it."""
        order = list(choice.kinds[filled[KIND]])
        for key, value in given.items():
            if key in order and key not in filled:
                filled.insert(sum(other in filled for other in order[: order.index(key)]), key, None)
            self.merge(filled, CommentedMap({key: value}), place)
            _copy_remark(filled, key, given)


def _changes_kind(old: CommentedMap, new: CommentedMap, place: object) -> bool:
    return KIND in new and new[KIND] != old.get(KIND) and find_choice(place) is not None


def _copy_remark(container: CommentedMap, key: str, source: CommentedMap) -> None:
    """Give the value at `key` the remark that stands on its first line in `source`, if any."""
    tokens = source.ca.items.get(key)
    if tokens and tokens[2] and (remark := tokens[2].value.partition("\n")[0]):
        container.ca.items[key] = [None, None, CommentToken(f"{remark}\n", CommentMark(0)), None]


def _put(base: CommentedMap, key: str, value: object) -> None:
    """Set a value without losing the comment above the next key.

    ruamel.yaml attaches a comment to the last value *before* it, at any depth: replacing or appending the last value of a
    section would remove the next section's heading, or leave it in the middle.
    """
    last = key if key in base else next(reversed(base), None)
    heading = _swap_tail(base, last, "") if last is not None else ""
    if isinstance(base.get(key), CommentedMap) or isinstance(value, CommentedMap):
        base.ca.items.pop(key, None)  # a comment on the old mapping's first line does not apply to the new one
    base[key] = value
    _swap_tail(base, key, heading)


def _swap_tail(container: Any, key: Any, heading: str) -> str:
    """Replace the comment lines after the value at `key`, and return the old ones."""
    value = container[key]
    while isinstance(value, CommentedMap | CommentedSeq) and value and not value.fa.flow_style():
        container = value
        key = next(reversed(value)) if isinstance(value, CommentedMap) else len(value) - 1
        value = container[key]
    slot = 2 if isinstance(container, CommentedMap) else 0
    tokens = container.ca.items.get(key) or [None, None, None, None]
    old = tokens[slot].value if tokens[slot] else ""
    remark, _, tail = old.partition("\n")  # `remark` is on the value's own line
    if remark or heading:
        column = tokens[slot].column if tokens[slot] else 0
        tokens[slot] = CommentToken(f"{remark}\n{heading}", CommentMark(column))
        container.ca.items[key] = tokens
    else:
        container.ca.items.pop(key, None)
    return tail


def _leaves(node: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every setting as (dotted key, value as YAML); a list is one setting."""
    if isinstance(node, CommentedMap) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, _spell(node)


def _spell(value: object) -> str:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style, yaml.width = True, 4096
    stream = io.StringIO()
    yaml.dump(plain(value), stream)
    return stream.getvalue().removesuffix("...\n").strip()


def plain(value: object) -> object:
    """Return a value without ruamel's formatting information."""
    if isinstance(value, CommentedSeq):
        return [plain(item) for item in value]
    if isinstance(value, CommentedMap):
        return {str(key): plain(item) for key, item in value.items()}
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def _print_changes(before: dict[str, str], after: dict[str, str], title: str, console: Console) -> None:
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if not before:
        console.print(f"{escape(title)}: written, {len(after)} settings")
    elif not changed:
        console.print(f"{escape(title)}: nothing changed, {len(after)} settings")
    else:
        console.print(f"{escape(title)}: {len(changed)} of {len(after)} settings changed")
        width = max(map(len, changed))
        for key in changed:
            was, now = escape(before.get(key, _ABSENT)), escape(after.get(key, _ABSENT))
            console.print(f"  {key:{width}}  [red]{was}[/] -> [green]{now}[/]", soft_wrap=True)
