"""Code identity: a digest of exactly the definitions that a result depends on.

From its roots (functions and classes) names are followed through the project's modules, definition by definition, as in
dead-code elimination. A changed filter gives another digest; an edit elsewhere in the same file, a comment, a docstring, a
type annotation of a function, a log message or a reformatted line gives the same. A class named in an annotation is
followed, since its methods are called on the argument. Of packages outside the project, those that compute count by their
release.

Entries of a `pipeline.registry.Registry` are followed only for the kinds that params choose. In a chosen module the
definitions are followed whose names occur as attributes in reached code, since they are called through the registry: where
`fit` is mentioned, `fit` of the chosen kind is reached. What `pipeline.registry.collect` finds is followed in all modules of
the package.

Everything that depends on code uses these digests: the stage `code`, the memo store, resumption, Dask workers.

Conventions: a definition is (module, name) at the top level of a module; a class is one definition with all its methods. The
name "" stands for a module's other statements, such as a call at import; they belong to all of its definitions.
"""

import ast
import copy
import hashlib
import importlib.metadata
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import SonolexError

PROJECT = ("pipeline", "stages")  # packages that are followed
FOLDER = Path(__file__).parents[2]
TEMPLATES = "pipeline/reporting/templates"  # of pages, named in the code by file

# Modules that cannot change a result: logging and progress, names of errors, and paths (a wrong path fails, since DVC
# requires the outputs that dvc.yaml names).
LEFT_OUT = frozenset(
    f"pipeline.{name}"
    for name in (
        "artifacts.layout",
        "errors",
        "execution.memory",
        "execution.progress",
        "execution.stage",
        "training.progress_bar",
        "training.trackers",
    )
)

# Import name -> distributions, of packages whose releases can change numbers; that of a YAML reader cannot.
NUMERIC = {
    "av": ("av",),
    "faiss": ("faiss-cpu", "faiss-gpu"),
    "librosa": ("librosa",),
    "numpy": ("numpy",),
    "scipy": ("scipy",),
    "sklearn": ("scikit-learn",),
    "soundfile": ("soundfile",),
    "soxr": ("soxr",),
    "timm": ("timm",),
    "tokenizers": ("tokenizers",),
    "torch": ("torch",),
    "torchaudio": ("torchaudio",),
    "vector_quantize_pytorch": ("vector-quantize-pytorch",),
    "zarr": ("zarr",),
}

Definition = tuple[str, str]  # module, name


class _EveryKind(frozenset[str]):
    """Set that contains every kind."""

    def __contains__(self, _kind: object) -> bool:
        return True


EVERY_KIND = _EveryKind()  # follows all entries of registries, where the chosen kinds are not known


class Reach(NamedTuple):
    """Definitions and packages that a result depends on."""

    definitions: dict[Definition, str]  # -> digest of its source without comments and layout
    packages: dict[str, str]  # distribution -> release

    @property
    def digest(self) -> str:
        """Return a digest of the definitions, without packages: 16 hex digits."""
        digest = hashlib.sha256()
        for (module, name), text in sorted(self.definitions.items()):
            digest.update(f"{module}\x1f{name}\x1f{text}\x1e".encode())
        return digest.hexdigest()[:16]


def code_version(*roots: Callable[..., object], kinds: Collection[str] = ()) -> str:
    """Return a digest of the code behind functions and classes of the project, with packages: 16 hex digits.

    `kinds` are the entries of registries that params choose.
    """
    names = [(root.__module__, root.__qualname__.split(".")[0]) for root in roots]
    return version_of(project_sources(), names, kinds)


def version_of(sources: "Sources", roots: Iterable[Definition], kinds: Collection[str] = ()) -> str:
    """Return the digest for roots given by name; see `code_version`."""
    found = reach(sources, roots, kinds)
    text = "\x1e".join([found.digest, *(f"{name}=={release}" for name, release in sorted(found.packages.items()))])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def reach(sources: "Sources", roots: Iterable[Definition], kinds: Collection[str] = ()) -> Reach:
    """Return all definitions and packages that roots depend on, with the entries of registries that `kinds` name."""
    return _Walk(sources, kinds).run(roots)


def kinds_in(params: object) -> set[str]:
    """Return the values of all keys `kind` in plain params, at any depth: the chosen entries of registries."""
    kinds: set[str] = set()
    if isinstance(params, Mapping):
        kinds |= {params["kind"]} if isinstance(params.get("kind"), str) else set()
    values = params.values() if isinstance(params, Mapping) else params if isinstance(params, list) else ()
    return kinds.union(*map(kinds_in, values))


class Sources:
    """The project's source files below a folder, each read once, on first access."""

    def __init__(self, folder: Path, texts: dict[str, str] | None = None) -> None:
        """Set the folder; `texts` (path below it -> text) replaces files that may have changed since."""
        self.folder, self._texts = folder, texts
        self._modules: dict[str, _Module | None] = {}

    def module(self, name: str) -> "_Module | None":
        """Return a module of the project; None for a package or a name that is not a module."""
        if name not in self._modules:
            text = self.text(f"{name.replace('.', '/')}.py") if name.split(".")[0] in PROJECT else None
            self._modules[name] = None if text is None else _parse(text)
        return self._modules[name]

    def modules_of(self, package: str) -> list[str]:
        """Return the modules of a package, those of packages inside it apart."""
        path = package.replace(".", "/")
        paths = (
            self._texts if self._texts is not None else [f"{path}/{f.name}" for f in (self.folder / path).glob("*.py")]
        )
        inside = (file for file in map(Path, paths) if file.suffix == ".py" and file.stem != "__init__")
        return sorted(f"{package}.{file.stem}" for file in inside if file.parent.as_posix() == path)

    def text(self, path: str) -> str | None:
        """Return the text of a file, or None where it is missing."""
        if self._texts is not None:
            return self._texts.get(path)
        file = self.folder / path
        return file.read_text(encoding="utf-8") if file.is_file() else None


@cache
def project_sources() -> Sources:
    """Return the project's own sources, as they are at the first call."""
    return Sources(FOLDER)


def snapshot(folder: Path = FOLDER) -> dict[str, str]:
    """Return the text of every source file and template of the project: path below the folder -> text."""
    files = [file for top in PROJECT for suffix in ("py", "j2") for file in (folder / top).rglob(f"*.{suffix}")]
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in sorted(files)}


@cache
def _parse(text: str) -> "_Module":
    return _Module(ast.parse(text))


class _Walk:
    """Traversal from roots to all definitions that they reach."""

    def __init__(self, sources: Sources, kinds: Collection[str]) -> None:
        self.sources, self.kinds = sources, kinds
        self.definitions: dict[Definition, str] = {}
        self.visited: set[Definition] = set()
        self.packages: set[str] = set()
        self.chosen: set[str] = set()  # modules behind registries
        self.attributes: set[str] = set()  # names of attributes accessed on any object
        self.todo: list[Definition] = []

    def run(self, roots: Iterable[Definition]) -> Reach:
        self.todo += roots
        while self.todo:
            while self.todo:
                self._visit(*self.todo.pop())
            self.todo += self._called_through_registries()
        found = {name: release for package in self.packages for name, release in releases(package).items()}
        return Reach(self.definitions, found)

    def _visit(self, module: str, name: str) -> None:
        source = self.sources.module(module)
        if source is None or module in LEFT_OUT or (module, name) in self.visited:
            return
        self.visited.add((module, name))
        if name in source.registries:
            self._choose(source.registries[name])
            self._follow(source.imports.get("Registry"))
        if name not in source.definitions:  # imported there and re-exported
            self._follow(source.imports.get(name))
            return
        found = source.definitions[name]
        self.definitions[module, name] = found.digest
        if name and "" in source.definitions:
            self.todo.append((module, ""))
        self.attributes |= found.attributes
        for template in found.templates:
            self._add_template(template)
        for package, asked in found.collected:
            self.todo += [(name, asked) for name in self.sources.modules_of(package)]
        for mentioned, attribute in found.mentions:
            if mentioned in found.imports:
                self._follow(found.imports[mentioned], attribute)
            elif mentioned in source.definitions or mentioned in source.registries:
                self.todo.append((module, mentioned))
            elif mentioned in source.imports:
                self._follow(source.imports[mentioned], attribute)

    def _choose(self, targets: dict[str, str]) -> None:
        for kind, target in targets.items():
            if kind in self.kinds:
                module, _, name = target.partition(":")
                if name:
                    self.todo.append((module, name))
                else:
                    self.chosen.add(module)

    def _called_through_registries(self) -> list[Definition]:
        """Return unvisited definitions of chosen modules, re-exports included, whose names are accessed as attributes."""
        found: list[Definition] = []
        for name, source in ((name, self.sources.module(name)) for name in sorted(self.chosen)):
            asked = {*source.definitions, *source.imports} & self.attributes if source else set()
            found += [(name, attribute) for attribute in asked if (name, attribute) not in self.visited]
        return found

    def _follow(self, imported: str | None, attribute: str = "") -> None:
        """Visit the definition behind an imported name: `a.b` or `a.b:name`; outside the project, record the package."""
        if imported is None:
            return
        module, _, name = imported.partition(":")
        top = module.split(".")[0]
        if top not in PROJECT:
            self.packages.update({top} & NUMERIC.keys())
            return
        submodule = f"{module}.{name}" if name else module
        if name and self.sources.module(submodule) is not None:  # `from pipeline.training import augmentation`
            if attribute:
                self.todo.append((submodule, attribute))
        elif name or attribute:
            self.todo.append((module, name or attribute))

    def _add_template(self, template: str) -> None:
        """Add a page's template, with the templates that it includes."""
        path = f"{TEMPLATES}/{template}"
        if (path, "") in self.definitions:
            return
        text = self.sources.text(path)
        if text is None:
            raise SonolexError(f"{path}: expected the template that the code names, found no such file; restore it")
        self.definitions[path, ""] = hashlib.sha256(text.encode()).hexdigest()
        for other in _included(text):
            self._add_template(other)


@cache
def releases(package: str) -> dict[str, str]:
    """Return the installed distributions of a package with their releases, without the local version after a plus."""
    found = {}
    for name in NUMERIC[package]:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _included(template: str) -> list[str]:
    return [word.strip("\"'") for word in template.replace("%}", " ").split() if word.strip("\"'").endswith(".j2")]


class _Module:
    """A parsed module: its definitions, registries, and the targets of its imports."""

    def __init__(self, tree: ast.Module) -> None:
        self.imports = _imports(iter(tree.body))
        self.registries: dict[str, dict[str, str]] = {}
        statements: dict[str, list[ast.stmt]] = {}
        for node in tree.body:
            registry = _registry(node)
            if registry:
                self.registries |= registry
                continue
            for name in _defined(node):
                statements.setdefault(name, []).append(node)
        self.definitions = {name: _Parsed(nodes) for name, nodes in statements.items()}


class _Parsed:
    """A definition, analysed when it is first reached."""

    def __init__(self, nodes: list[ast.stmt]) -> None:
        self._nodes = nodes

    @cached_property
    def _bare(self) -> list[ast.stmt]:
        return [bare for node in self._nodes if (bare := _Bare().visit(node)) is not None]

    @cached_property
    def digest(self) -> str:
        # Annotations name classes whose methods are called, so they are followed, but do not count in the digest.
        untyped = (_Untyped().visit(copy.deepcopy(node)) for node in self._bare)
        return hashlib.sha256("\n".join(map(ast.unparse, untyped)).encode()).hexdigest()

    @cached_property
    def mentions(self) -> list[tuple[str, str]]:
        """Every name, with the attribute accessed on it, if any."""
        return [mention for node in self._bare for mention in _mentions(node)]

    @cached_property
    def attributes(self) -> set[str]:
        """Names of attributes accessed on any object, those in `getattr(x, "name")` included."""
        return {name for node in self._bare for child in ast.walk(node) for name in _asked(child)}

    @cached_property
    def imports(self) -> dict[str, str]:
        return _imports(child for node in self._nodes for child in ast.walk(node))

    @cached_property
    def collected(self) -> list[tuple[str, str]]:
        """The package and the name of every call of `collect`, which must be literals."""
        calls = (child for node in self._bare for child in ast.walk(node) if isinstance(child, ast.Call))
        named = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "collect")
        return [(ast.literal_eval(call.args[0]), ast.literal_eval(call.args[1])) for call in named]

    @cached_property
    def templates(self) -> list[str]:
        strings = (child for node in self._bare for child in ast.walk(node) if isinstance(child, ast.Constant))
        return [
            text.value for text in strings if isinstance(text.value, str) and re.fullmatch(r"[\w.]+\.j2", text.value)
        ]


class _Bare(ast.NodeTransformer):
    """Transformer that drops docstrings, other bare strings, and log messages."""

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return None
        call = node.value.func if isinstance(node.value, ast.Call) else None
        if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "log":
            return None
        return self.generic_visit(node)


class _Untyped(ast.NodeTransformer):
    """Transformer that drops annotations of functions and their variables; pydantic reads those of class fields."""

    def __init__(self) -> None:
        self._inside = 0  # depth of enclosing functions

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if not self._inside:
            return self.generic_visit(node)
        if node.value is None:
            return None
        return self.generic_visit(ast.copy_location(ast.Assign(targets=[node.target], value=node.value), node))

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        args = node.args
        for argument in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg):
            if argument is not None:
                argument.annotation = None
        self._inside += 1
        self.generic_visit(node)
        self._inside -= 1
        return node


def _registry(node: ast.stmt) -> dict[str, dict[str, str]]:
    """Return name -> {kind: target} for an assignment of a `Registry(...)` of literals; else an empty mapping."""
    value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Name) or value.func.id != "Registry":
        return {}
    return {name: dict(ast.literal_eval(value.args[1])) for name in _defined(node)}


def _defined(node: ast.stmt) -> list[str]:
    """Return the names that a top-level statement defines; "" for any other statement."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)]
    if isinstance(node, ast.Import | ast.ImportFrom) or _is_string(node):
        return []
    if isinstance(node, ast.If) and {"TYPE_CHECKING", "__name__"} & {
        name.id for name in ast.walk(node.test) if isinstance(name, ast.Name)
    }:
        return []
    return [""]


def _is_string(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _imports(nodes: Iterator[ast.AST]) -> dict[str, str]:
    found: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {(alias.asname or alias.name.split(".")[0]): alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(alias.asname or alias.name): f"{node.module}:{alias.name}" for alias in node.names}
    return found


def _mentions(node: ast.AST) -> Iterator[tuple[str, str]]:
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
            yield child.value.id, child.attr
        elif isinstance(child, ast.Name):
            yield child.id, ""


def _asked(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
        yield from (arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
