"""The laws of the house (ARCHITECTURE section 4) as functions: the root of a source tree in, its violations out.

They read the tree and do not import it, so that the same functions can be shown to fail on a mutant tree; the few that
must run something do so in a process of their own.
"""

import ast
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("align", "recipes", "rewards", "sandbox")
FOLDERS = (*PACKAGES, "benchmarks", "tests")

FORBIDDEN_IMPORTS = {
    "align": ("rewards", "recipes", "sandbox", "benchmarks", "tests"),
    "rewards": ("align", "recipes", "sandbox", "benchmarks", "tests"),
    "sandbox": ("recipes", "benchmarks", "tests"),
    "recipes": ("benchmarks", "tests"),
    "benchmarks": ("tests",),
}
GOLD = ("sandbox.world", "sandbox.measure", "sandbox.annotators")
"""The truth about the sandbox: none of it may rest on what it judges."""

PURE_FILES = ("losses.py", "select.py", "masks.py", "evaluate.py", "metrics.py", "saliency.py")
PURE_IMPORTS = {"torch", "numpy", "scipy", "jaxtyping", *sys.stdlib_module_names}

HEAVY_LIBRARIES = (
    "accelerate", "datasets", "diffusers", "huggingface_hub", "open_clip", "peft", "torch", "transformers", "wandb",
)  # fmt: skip
WORKING_CALLS = re.compile(
    r"^(open|print|load|from_pretrained|read_\w+|write_\w+|mkdir|\w*download\w*|is_available|device_count|manual_seed|"
    r"getenv|run|Popen|system|import_module|urlopen|create_connection|simplefilter|filterwarnings|basicConfig)$"
)

IMPORT_ALL = """
import importlib, sys
NETWORK = {"socket.connect", "socket.getaddrinfo", "urllib.Request"}
sys.addaudithook(lambda event, details: print(f"importing {module} asks the network") if event in NETWORK else None)
for module in sys.argv[1:]:
    importlib.import_module(module)
"""


@dataclass(frozen=True)
class Source:
    """A file of the tree."""

    path: Path
    relative: Path
    tree: ast.Module
    lines: int

    @property
    def module(self) -> str:
        """Its dotted name."""
        parts = self.relative.with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> str:
        """The package that its relative imports start from."""
        return self.module if self.relative.name == "__init__.py" else self.module.rpartition(".")[0]


def sources(root: Path, folders: tuple[str, ...] = PACKAGES) -> list[Source]:
    """Every Python file below `folders`, parsed."""
    paths = sorted(path for folder in folders for path in (root / folder).rglob("*.py"))
    return [_source(path, path.relative_to(root)) for path in paths]


def _source(path: Path, relative: Path) -> Source:
    text = path.read_text(encoding="utf-8")
    return Source(path, relative, ast.parse(text), len(text.splitlines()))


def imports(source: Source) -> Iterator[tuple[str, int]]:
    """Each imported name with its line, wherever the import stands: `from a import b` gives `a.b`."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = source.package.split(".")[: len(source.package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _name(node.func).endswith(("import_module", "__import__")):
            yield from ((value, node.lineno) for value in _literals(node))


def directions(root: Path) -> list[str]:
    """Law 1: who may import whom, and the sandbox's truth rests on none of the three."""
    found = [
        f"{source.relative}:{line} imports {name}"
        for source in sources(root, FOLDERS)
        for name, line in imports(source)
        if name.split(".")[0] in FORBIDDEN_IMPORTS.get(source.module.split(".")[0], ())
    ]
    graph = import_graph(root)
    return found + [
        f"{truth} reaches {module}"
        for truth in GOLD
        for module in sorted(reachable(graph, truth))
        if module.split(".")[0] != "sandbox"
    ]


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module -> modules of the house that it imports, local imports included."""
    found = sources(root)
    modules = {source.module for source in found}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for source in found:
        for name, _ in imports(source):
            target = name if name in modules else name.rpartition(".")[0]
            if target in modules and target != source.module:
                graph[source.module].add(target)
    return graph


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """All modules that `start` imports, directly or not (itself only when it is on a circle)."""
    seen: set[str] = set()
    waiting = list(graph.get(start, ()))
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting.extend(graph[module])
    return seen


def circles(root: Path) -> list[str]:
    """Law 1: no module reaches itself."""
    graph = import_graph(root)
    return [f"{module} is on a circle of imports" for module in sorted(graph) if module in reachable(graph, module)]


def doors(root: Path) -> list[str]:
    """Law 2: within align, diffusers' pipelines only in families/; wandb only in align/log.py."""
    found: list[str] = []
    for source in sources(root):
        for name, line in _uses(source):
            pipeline = name.startswith("diffusers.") and re.search(r"pipelines\b|Pipeline", name)
            if pipeline and source.relative.parts[0] == "align" and source.relative.parts[1] != "families":
                found.append(f"{source.relative}:{line} uses {name}")
            if name.split(".")[0] == "wandb" and source.module != "align.log":
                found.append(f"{source.relative}:{line} uses {name}")
    return found


def _uses(source: Source) -> Iterator[tuple[str, int]]:
    """Imported names, and dotted names in the code such as `diffusers.DiffusionPipeline`."""
    yield from imports(source)
    yield from ((_name(node), node.lineno) for node in ast.walk(source.tree) if isinstance(node, ast.Attribute))


def pure_files(root: Path) -> list[str]:
    """Law 3: equations and statistics need torch, numpy, scipy and the standard library only."""
    return [
        f"{source.relative}:{line} imports {name}"
        for source in sources(root, ("align", "rewards"))
        if source.path.name in PURE_FILES
        for name, line in imports(source)
        if name.split(".")[0] not in PURE_IMPORTS
    ]


def idle_imports(root: Path) -> list[str]:
    """Law 4: importing does nothing. No bare call at module or class level; no assignment or default that works."""
    return [
        f"{source.relative}:{call.lineno} calls {_name(call.func)} at import"
        for source in sources(root, (*PACKAGES, "benchmarks"))
        for call in _calls_at_import(source.tree.body, _heavy_names(source))
    ]


def _heavy_names(source: Source) -> set[str]:
    """The names that a module binds to heavy libraries or to things in them."""
    nodes = [node for node in ast.walk(source.tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {
        alias.asname or alias.name.split(".")[0]
        for node in nodes
        for alias in node.names
        if ((isinstance(node, ast.ImportFrom) and node.module) or alias.name).split(".")[0] in HEAVY_LIBRARIES
    }


def _calls_at_import(body: list[ast.stmt], heavy: set[str]) -> Iterator[ast.Call]:
    """The calls that an import makes, but for those that only declare something, and for decorators."""
    for node in body:
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.Expr):
            yield from _executed(node)
        elif not _is_main_guard(node):
            children: list[ast.AST] = [node.args] if function else list(ast.iter_child_nodes(node))
            heads = [child for child in children if isinstance(child, ast.arguments | ast.expr | ast.withitem)]
            yield from (call for head in heads for call in _executed(head) if _works(call, heavy))
            yield from _calls_at_import([] if function else _blocks(node), heavy)


def _executed(node: ast.AST) -> Iterator[ast.Call]:
    """The calls in an expression, without those that wait in a lambda."""
    if isinstance(node, ast.Call):
        yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.Lambda):
            yield from _executed(child)


def _blocks(node: ast.stmt) -> list[ast.stmt]:
    """The statements inside a class, an if, a loop, a with or a try."""
    handlers = [statement for handler in getattr(node, "handlers", []) for statement in handler.body]
    return [*getattr(node, "body", []), *getattr(node, "orelse", []), *getattr(node, "finalbody", []), *handlers]


def _works(call: ast.Call, heavy: set[str]) -> bool:
    """Whether a call does more than declare."""
    name = _name(call.func)
    return name.split(".")[0] in heavy or bool(WORKING_CALLS.match(name.rpartition(".")[2]))


def _is_main_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def quiet_imports(root: Path) -> list[str]:
    """Law 4: every module can be imported, and none asks the network for anything."""
    modules = [source.module for source in sources(root)]
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL, *modules], cwd=root, capture_output=True, text=True)
    return done.stdout.splitlines() + ([done.stderr] if done.returncode else [])


def lengths(root: Path) -> list[str]:
    """Law 5: a recipe is under 200 lines, any other file under 400."""
    return [
        f"{source.relative} has {source.lines} lines"
        for source in sources(root, FOLDERS)
        if source.lines >= (200 if source.relative.parts[0] == "recipes" else 400)
    ]


def docstrings(root: Path) -> list[str]:
    """Law 5: every module says what it is; only an empty __init__.py says nothing."""
    return [
        f"{source.relative} has no docstring"
        for source in sources(root, FOLDERS)
        if not ast.get_docstring(source.tree) and (source.tree.body or source.path.name != "__init__.py")
    ]


def devices(root: Path) -> list[str]:
    """Law 6: no `import *`, no `.cuda()`, no device literal outside align/device.py."""
    found: list[str] = []
    for source in sources(root, (*PACKAGES, "benchmarks")):
        for node in ast.walk(source.tree):
            where = f"{source.relative}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
                found.append(f"{where} imports *")
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                found.append(f"{where} calls .cuda()")
            elif _is_cuda(node) and source.module != "align.device":
                found.append(f"{where} names cuda")
    return found


def _is_cuda(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and bool(re.match(r"cuda(:|$)", node.value))


def finality(root: Path) -> list[str]:
    """House style: a class is abstract or final, and super() is only for __init__."""
    nodes = [(source, node) for source in sources(root) for node in ast.walk(source.tree)]
    classes = [(source, node) for source, node in nodes if isinstance(node, ast.ClassDef)]
    concrete = {node.name for _, node in classes if not _is_abstract(node)}
    starts = {id(node.value) for _, node in nodes if isinstance(node, ast.Attribute) and node.attr == "__init__"}
    inherits = [
        f"{source.relative}:{node.lineno} {node.name} inherits from a class that is not abstract"
        for source, node in classes
        if concrete & {_name(base).rpartition(".")[2] for base in node.bases}
    ]
    supers = [
        f"{source.relative}:{node.lineno} calls super() for something else than __init__"
        for source, node in nodes
        if isinstance(node, ast.Call) and _name(node.func) == "super" and id(node) not in starts
    ]
    return inherits + supers


def _is_abstract(node: ast.ClassDef) -> bool:
    """Whether a class says that it is abstract, or has a method that does."""
    text = ast.unparse(node)
    return bool({"ABC", "Protocol"} & {_name(base).split("[")[0] for base in node.bases}) or "@abstractmethod" in text


def warnings_are_errors(root: Path) -> list[str]:
    """Law 7: pytest turns warnings into errors, and an exception to it names the message it is for."""
    options = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    first, *others = options.get("filterwarnings", [""])
    found = [] if first == "error" else ["filterwarnings does not begin with 'error'"]
    return found + [f"'{rule}' names no message" for rule in others if not re.match(r"\w+:[^:]+", rule)]


def light_commands(root: Path) -> list[str]:
    """Law 4: `align --help` and the answer to a YAML typo load nothing heavy."""
    with tempfile.TemporaryDirectory() as folder:
        typo = Path(folder) / "typo.yaml"
        typo.write_text("ouput_dir: x\n", encoding="utf-8")
        asked = {"align --help": ["--help"], "a YAML typo": ["filter-finetune", "--config", str(typo)]}
        return [f"{name} loads {module}" for name, argv in asked.items() for module in _loaded(root, argv)]


def _loaded(root: Path, argv: list[str]) -> list[str]:
    """The heavy libraries in memory after `align` has answered `argv`."""
    script = "import sys; from recipes.cli import main; main(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script, *argv], cwd=root, capture_output=True, text=True, check=True)
    return sorted({"numpy", *HEAVY_LIBRARIES} & set(done.stdout.splitlines()[-1].split()))


def lock_without_addresses(root: Path) -> list[str]:
    """Section 6: the committed lock records versions and hashes, no address; uv.lock, which does, is ignored."""
    lines = (root / "requirements.lock").read_text(encoding="utf-8").splitlines()
    addresses = [line for line in lines if re.search(r"://| @ |--(extra-)?index|--find-links", line)]
    ignored = "uv.lock" in (root / ".gitignore").read_text(encoding="utf-8").splitlines()
    return addresses + ([] if ignored else ["uv.lock is not in .gitignore"])


def _name(node: ast.expr) -> str:
    """`a.b.c` of a dotted name, also under a call or a subscript."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    inner = getattr(node, "func", None) or getattr(node, "value", None)
    return _name(inner) if isinstance(inner, ast.expr) else ""


def _literals(call: ast.Call) -> list[str]:
    """The strings among a call's arguments."""
    return [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
