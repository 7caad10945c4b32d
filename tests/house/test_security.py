"""What the package never does: read by its syntax tree, so that neither a docstring nor an alias counts."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.house.source import FILES, SOURCE, name_of, tree_of

# what is forbidden: a full name, or the beginning of one that ends in a point
REASONS = {
    "reads pickles": "torch.load pandas.read_pickle",
    "runs the content of a file": "torch.jit.load torch.package. pickle. cPickle. _pickle. dill. cloudpickle. joblib.",
    "reads more than tensors": "torch.export.load",
    "runs code of a repository": "torch.hub.",
    "changes what the weights-only loader lets pass": "torch.serialization.",
    "code objects": "marshal.",
    "pickles": "shelve.",
    "runs text": "eval exec compile pandas.eval",
    "hides the three above": "builtins.",
    "runs files": "runpy.",
    "imports by a name that is data": "__import__ importlib.import_module pkgutil.",
    # a class of another package is registered by the program that runs
    "looks for what other packages offer": "importlib.metadata.EntryPoint importlib.metadata.entry_points",
    "imports files": "importlib.util. importlib.machinery.",
    "makes objects": "yaml.load yaml.load_all yaml.full_load yaml.unsafe_load",
    "runs programs": "subprocess. os.system os.popen os.exec os.spawn pty.",
    "leaves Python": "ctypes. cffi.",
    "another may take the name first": "tempfile.mktemp",
    "unpacks paths": "tarfile. shutil.unpack_archive",
    "expands entities": "xml.",
    "may read pickles": "numpy.load pandas.read_hdf",
    "opens connections": "socket. http. urllib.request. requests. httpx.",
}
FORBIDDEN = {name: reason for reason, names in REASONS.items() for name in names.split()}
# (file, name): why it may; every entry has to be needed
ALLOWED = {
    ("weight_files.py", "torch.load"): "reads weights from elsewhere; weights_only=True, see below",
    ("published/loading.py", "torch.hub."): "download_url_to_file and the folder for it; addresses of our own table",
    ("published/loading.py", "torch.serialization."): "numbers of NumPy, for the one call",
    ("lazy.py", "importlib.import_module"): "names of our own tables",
    ("registry.py", "importlib.import_module"): "places in our own table; what the user names by --import",
    ("registry.py", "importlib.util."): "a Python file that the user names by --import",
    ("cli/main.py", "importlib.import_module"): "verbs of our own list",
    ("checkup.py", "importlib.import_module"): "packages that our own metadata declares",
    ("serve/app.py", "socket."): "the service listens on the address that its caller names",
}
# names that only a call with these plain values makes harmless: (name, keyword, value)
WITH = {"torch.load": ("weights_only", True), "numpy.load": ("allow_pickle", False)}


def forbidden(name: str) -> str | None:
    """The entry of FORBIDDEN that a name falls under."""
    for entry in FORBIDDEN:
        if name == entry or (entry.endswith(".") and (name + ".").startswith(entry)):
            return entry
        if entry in ("os.exec", "os.spawn") and name.startswith(entry):
            return entry
    return None


def full_names(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every name that a file uses or imports, spelled out through its imports."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                known[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}", node
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and (name := dotted(node)):
            first, _, rest = name.partition(".")
            yield ".".join(filter(None, (known.get(first, first), rest))), node


def dotted(node: ast.AST) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (inner := dotted(node.value)):
        return f"{inner}.{node.attr}"
    return None


def findings(tree: ast.Module) -> dict[str, list[int]]:
    """Forbidden names -> the lines that use them; tamed calls are left out, imports of a tamed one too."""
    found: dict[str, list[int]] = {}
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for name, node in full_names(tree):
        entry = forbidden(name)
        literal = (call := calls.get(id(node))) and len(call.args) == 1 and isinstance(call.args[0], ast.Constant)
        if entry is None or (entry == "importlib.import_module" and (literal or isinstance(node, ast.ImportFrom))):
            continue
        if entry == "numpy.load" and call is not None and tamed(call, *WITH["numpy.load"]):
            continue
        found.setdefault(entry, []).append(getattr(node, "lineno", 0))
    return found


def tamed(call: ast.Call, keyword: str, value: object) -> bool:
    return any(
        given.arg == keyword and isinstance(given.value, ast.Constant) and given.value.value is value
        for given in call.keywords
    )


def test_nothing_in_the_package_runs_the_content_of_a_file() -> None:
    wrong, needed = [], set()
    for path in FILES:
        for entry, lines in findings(tree_of(path)).items():
            key = (name_of(path), entry)
            if key in ALLOWED:
                needed.add(key)
            else:
                wrong.append(f"{name_of(path)}:{lines}: {entry} ({FORBIDDEN[entry]})")
    assert not wrong
    assert needed == set(ALLOWED), "an exception that nothing needs"


def test_the_one_reader_of_pickles_reads_weights_only() -> None:
    tree = tree_of(SOURCE / "weight_files.py")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and dotted(node.func) == "torch.load"]
    uses = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and dotted(node) == "torch.load"]
    assert calls
    assert len(calls) == len(uses), "torch.load under another name"
    assert all(tamed(call, *WITH["torch.load"]) for call in calls)
    assert not any(keyword.arg is None for call in calls for keyword in call.keywords), "**keywords could override it"
