"""House rules that no linter knows: names, places, lengths, licences. Run by `make check`; prints every breach and exits 1."""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PACKAGES = ("flows", "pipelines", "evals", "mmcore", "infra")
MAX_LINES, MAX_FUNCTION = 350, 70
RETIRED = re.compile(
    r"(?<![\w./`'\"<{=|-])((refuses to|does not) know|mm_projectors?|connectors?|pictures?|(?<!audio )clips?|sounds?)(?![\w`'\"/=-]|\.\w)", re.I
)
"""Words that docs/glossary.md retires, where they are not part of a name."""
MEANT_OTHERWISE = re.compile(
    r"`[^`]*`|(?-i:CLIP)|clips nothing|clips at 255|clip its norm|clip 1\.0|clip times|sound like|which sounds the same|sound otherwise|audio clips?", re.I
)
"""Code, the model CLIP, clipping of numbers, to sound."""
NAMED_SO = (
    "mmcore/encoders/imagebind/",  # ImageBind's authors call the pieces of a medium clips
    "mmcore/model/sizes.py",  # the same
)
RETIRED_PARTS = frozenset(("picture", "pictures", "clip", "clips", "sound", "sounds"))
KEPT_NAMES = re.compile(r"_?clip|clip_text|tiny_clip|clip_two_tower|PicturesEvalConfig")
"""Names of the model CLIP and of the clipping of numbers, of a recipe, and of the config of the step eval_pictures."""
WORLD = (
    "mmcore/chat/wordings.py",
    "mmcore/concepts/",
    "pipelines/demo/",
    "evals/generation/prompts.py",
    "evals/generation/drawing_prompts.py",
    "evals/suites/stand_ins.py",
)
"""Files whose texts are data: what the model is asked, and captions."""
KEPT_TEXTS = re.compile(
    r"more than one picture|held-out pictures with at least one such picture|(pictures|sounds): their owners"  # of artifacts
    r"|^sound$"  # a column of eval_speaking
    r"|one picture each|^picture $"  # hashed, and names of clusters
)
"""Texts that are stored."""
SHOWN = ("flows/", "evals/pages/")
"""Where a single word is shown to somebody, unless it is a key."""
ALLOWED = re.compile(r"apache|bsd|mit\b|mit license|mpl|mozilla|psf|python software|isc|hpnd|historical permission|unlicense|lgpl|zlib|cmu|mit-cmu", re.I)


def sources() -> Iterator[tuple[str, Path, ast.Module]]:
    """(package, path, tree) of every module of ours."""
    for package in PACKAGES:
        for path in sorted((PROJECT / package).rglob("*.py")):
            yield package, path, ast.parse(path.read_text())


def places() -> Iterator[str]:
    """os.environ in one file, lmms_eval in one file, nothing unpickled, no file or function that grew out of hand."""
    for _, path, tree in sources():
        name = path.relative_to(PROJECT).as_posix()
        lines = len(path.read_text().splitlines())
        if lines > MAX_LINES:
            yield f"{name}: {lines} lines (at most {MAX_LINES})"
        if not ast.get_docstring(tree) and path.stat().st_size > 1:
            yield f"{name}: no module docstring"
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and (node.end_lineno or 0) - node.lineno > MAX_FUNCTION:
                yield f"{name}:{node.lineno}: {node.name} has {(node.end_lineno or 0) - node.lineno} lines (at most {MAX_FUNCTION})"
            of_os = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and isinstance(node.value, ast.Name) and node.value.id == "os"
            of_os = of_os or (isinstance(node, ast.ImportFrom) and node.module == "os")
            if of_os and name != "infra/settings.py":
                yield f"{name}:{node.lineno}: the environment is read in infra/settings.py only"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                module = node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name
                if module.split(".")[0] == "lmms_eval" and name != "evals/harness/adapter.py":
                    yield f"{name}:{node.lineno}: lmms_eval is imported in evals/harness/adapter.py only"
                if module.split(".")[0] in ("pickle", "dill", "joblib", "cloudpickle"):
                    yield f"{name}:{node.lineno}: {module}: nothing is pickled or unpickled here"
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Name) and node.exc.id == "NotImplementedError":
                yield f"{name}:{node.lineno}: a stub"


def words() -> Iterator[str]:
    """No retired word in a docstring, a comment, a text or a name."""
    for _, path, tree in sources():
        name = path.relative_to(PROJECT).as_posix()
        if not name.startswith(NAMED_SO):
            yield from (f"{name}:{line}: the glossary retires the word '{word}'" for line, word in retired_words(path, tree))
        if not name.startswith((*NAMED_SO, *WORLD)):
            yield from (f"{name}:{line}: the glossary retires the word '{word}'" for line, word in retired_texts(tree, shown=name.startswith(SHOWN)))
        if not name.startswith(NAMED_SO):
            stored = path.name == "config.py" or name.startswith("pipelines/recipes/")
            yield from (f"{name}:{line}: the glossary retires a word in the name {found}" for line, found in retired_names(tree, fields=not stored))


def retired_words(path: Path, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, word) of the retired words in docstrings and comments."""
    for line, text in (*((node.lineno, str(node.value)) for node in _docstrings(tree)), *_comments(path)):
        yield from ((line, found.group(1)) for found in RETIRED.finditer(MEANT_OTHERWISE.sub("_", text)))


def retired_texts(tree: ast.Module, *, shown: bool) -> Iterator[tuple[int, str]]:
    """(line, word) of the retired words in other texts of several words, and in those of one that is no key, if they are `shown`."""
    left_out: set[int] = {id(node) for node in _docstrings(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            left_out |= set(map(id, node.keys))
        elif isinstance(node, ast.Subscript):
            left_out.add(id(node.slice))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("MediaError", "NoTrackError"):  # the ledger keeps them
            left_out |= set(map(id, ast.walk(node)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out and (shown or " " in node.value):
            text = MEANT_OTHERWISE.sub("_", KEPT_TEXTS.sub("_", node.value))
            yield from ((node.lineno, found.group(1)) for found in RETIRED.finditer(text))


def retired_names(tree: ast.Module, *, fields: bool) -> Iterator[tuple[int, str]]:
    """(line, name) of functions, classes, parameters and variables with a retired word in them; fields: those that a class annotates, too."""
    kept = (
        set()
        if fields
        else {id(part.target) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for part in node.body if isinstance(part, ast.AnnAssign)}
    )
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            name, line = node.name, node.lineno
        elif isinstance(node, ast.arg):
            name, line = node.arg, node.lineno
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store) and id(node) not in kept:
            name, line = node.id if isinstance(node, ast.Name) else node.attr, node.lineno
        else:
            continue
        parts = {part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)}
        if parts & RETIRED_PARTS and not KEPT_NAMES.fullmatch(name):
            yield line, name


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    """Texts that are statements of their own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value


def _comments(path: Path) -> Iterator[tuple[int, str]]:
    with path.open() as lines:
        yield from ((token.start[0], token.string) for token in tokenize.generate_tokens(lines.readline) if token.type == tokenize.COMMENT)


def circles() -> Iterator[str]:
    """No file imports itself by way of others; imports inside functions and those for types only count."""
    import grimp

    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    for circle in circles_of({module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}):
        yield f"a circle of imports: {' -> '.join(circle)}"


def circles_of(imports: dict[str, set[str]]) -> Iterator[list[str]]:
    """The circles, each from a module to itself, until cutting one import of each leaves none."""
    while True:
        try:
            graphlib.TopologicalSorter(imports).prepare()
            return
        except graphlib.CycleError as error:
            circle = list(reversed(error.args[1]))
            imports = {**imports, circle[0]: imports[circle[0]] - {circle[1]}}
            yield circle


def private() -> Iterator[str]:
    """No module imports or reads a _private name of another module of ours."""
    for _, path, tree in sources():
        name = path.relative_to(PROJECT).as_posix()
        yield from (f"{name}:{line}: {what} is private to its file" for line, what in private_names(tree))


def private_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of every _private name of ours that the module takes from another."""
    taken: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            taken |= {alias.asname or alias.name for alias in node.names}
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names if _is_private(alias.name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and isinstance(node.value, ast.Name) and node.value.id in taken:
            yield node.lineno, f"{node.value.id}.{node.attr}"


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def names() -> Iterator[str]:
    """No installed package brings a top-level name of ours."""
    owners = importlib.metadata.packages_distributions()
    for package in PACKAGES:
        others = [owner for owner in owners.get(package, []) if owner != "anyloom"]
        if others:
            yield f"the installed package {others[0]} also brings a top-level `{package}`"


def licences() -> Iterator[str]:
    """Every direct dependency has a licence that allows use in this project."""
    import tomllib

    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.split(r"[\[=<>!~ ]", requirement)[0]
        meta = importlib.metadata.metadata(name)
        text = " ".join(
            [meta.get("License-Expression") or "", (meta.get("License") or "")[:200], *(c for c in meta.get_all("Classifier") or [] if c.startswith("License"))]
        )
        if not ALLOWED.search(text):
            yield f"{name}: licence {text.strip()[:80]!r} is not on the list"


def leaks() -> Iterator[str]:
    """No path of a developer's machine and no registry host in the tree."""
    files = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True).stdout.split()
    pattern = re.compile(r"(^|[^A-Za-z0-9._-])/(?:[w]ork|[r]oot|[h]ome)/")
    for name in files:
        path = PROJECT / name
        if path.suffix in (".py", ".md", ".toml", ".yaml", ".txt", ".lock", ".json", "") and path.is_file():
            for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if pattern.search(line) or "files.python" + "hosted" in line:
                    yield f"{name}:{number}: a path of one machine or a registry host"


def main() -> int:
    """Print every breach."""
    breaches = [breach for rule in (places, words, circles, private, names, licences, leaks) for breach in rule()]
    print("\n".join(breaches) or f"house rules: {sum(1 for _ in sources())} modules, no breach")
    return int(bool(breaches))


if __name__ == "__main__":
    sys.exit(main())
