"""The shape of the code: which package may import which (ADR 2), and how long things may get."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

SOURCES = {
    "sana_client": ROOT / "client",
    "sana_runtime": ROOT / "model_repository",
    "sana_kernels": ROOT / "kernels",
    "sana_gpu": ROOT / "kernels",
    "sana_quant": ROOT / "quant",
    "sana_export": ROOT / "export",
    "sana_build": ROOT / "build",
}

MAY_IMPORT = {
    "sana_client": set(),
    "sana_runtime": set(),
    "sana_kernels": set(),
    "sana_gpu": {"sana_runtime", "sana_kernels"},
    "sana_quant": {"sana_runtime"},
    "sana_export": {"sana_runtime", "sana_kernels", "sana_quant"},
    "sana_build": {"sana_client", "sana_runtime", "sana_kernels", "sana_gpu", "sana_quant", "sana_export"},
}

FILES = [(name, path) for name, root in SOURCES.items() for path in sorted((root / name).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Top-level names of every import in the file, also those inside functions."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain} | {
        (node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    }


@pytest.mark.parametrize(("package", "path"), FILES, ids=lambda value: getattr(value, "name", value))
def test_imports_go_one_way(package: str, path: Path) -> None:
    forbidden = SOURCES.keys() - MAY_IMPORT[package] - {package}
    assert not imported(path) & forbidden


@pytest.mark.parametrize("path", [path for _, path in FILES], ids=lambda path: path.name)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = {
        node.name: node.end_lineno - node.lineno + 1 for node in functions if node.end_lineno - node.lineno >= 50
    }
    assert not too_long
    assert text.count("\n") <= 320


@pytest.mark.parametrize("folder", sorted(set(SOURCES.values())), ids=lambda path: path.name)
def test_source_roots_are_not_packages(folder: Path) -> None:
    assert not (folder / "__init__.py").exists()
