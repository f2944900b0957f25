"""The layers of the package: imports point downwards, in no circle, and none hides inside a function."""

import ast
import pathlib

import networkx
import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "maskcl_jax"

# The layers from the ground up. A module may import from its own layer and from those below.
LAYERS = (
    ("errors",),
    ("ops",),
    ("views", "models"),
    ("config",),
    ("methods", "data"),
    ("training", "evaluate", "interchange", "performance"),
    ("verify",),
    ("__main__", "main", "cli", "export", "import_torch", "compile_check", "benchmark", "study", "report"),
    ("__init__", "api"),
)
# Entry points that live in a lower layer, and what they need of the command line.
ENTRY_POINTS = {"evaluate.__main__", "verify.__main__", "benchmark.__main__", "data.to_array"}


def modules():
    """{dotted name without the package: path}."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports_of(path, known):
    """{(imported module, whether inside a function)}."""
    tree = ast.parse(path.read_text())
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    found = set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] != "maskcl_jax":
                continue
            local = name.removeprefix("maskcl_jax").lstrip(".")
            while local and local not in known:
                local = local.rpartition(".")[0]
            if local:
                found.add((local, id(node) in inside))
    return found


@pytest.fixture(scope="module")
def graph():
    known, graph = modules(), networkx.DiGraph()
    for name, path in known.items():
        graph.add_node(name)
        for other, inside in imports_of(path, known):
            graph.add_edge(name, other, inside=inside)
    return graph


def layer_of(name):
    part = name.split(".")[0]
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def test_every_module_has_a_layer(graph):
    parts = {part for layer in LAYERS for part in layer}
    assert {name.split(".")[0] for name in graph} <= parts


def test_no_import_points_up(graph):
    up = [
        f"{name} -> {other}"
        for name, other in graph.edges
        if name not in ENTRY_POINTS and layer_of(other) > layer_of(name)
    ]
    assert not up


def test_no_circle_of_imports(graph):
    assert not [sorted(circle) for circle in networkx.strongly_connected_components(graph) if len(circle) > 1]


def test_imports_inside_functions_are_those_of_the_command_line(graph):
    """There a wrong flag is reported before JAX is imported."""
    hidden = {name for name, other, inside in graph.edges(data="inside") if inside}
    assert hidden <= {"main", "evaluate.__main__"}


def test_the_top_of_the_package_is_short():
    assert len(list(PACKAGE.glob("*.py"))) <= 12


def test_no_file_is_a_drawer():
    assert not [path for path in PACKAGE.rglob("*.py") if path.stem in ("utils", "util", "misc", "common", "helpers")]


def test_no_test_imports_another():
    found = [
        f"{path.name}: {node.module}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("test_")
    ]
    assert not found


def test_no_private_part_of_jax_and_no_tensorflow():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            for name in names:
                assert not name.startswith("jax._src"), f"{path}: {name}"
                assert name.split(".")[0] not in ("tensorflow", "tensorflow_datasets"), f"{path}: {name}"
