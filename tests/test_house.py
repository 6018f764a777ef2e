"""The house itself: small, in rooms, and readable on a laptop's screen."""
import ast
import statistics
import subprocess
import sys

import pytest
from measures import HERE, ROOMS, code_cells, code_lines

NOTEBOOKS = sorted((HERE / "notebooks").glob("*.ipynb"))


def tree(path):
    return ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def test_helpers_is_small():
    assert len((HERE / "helpers.py").read_text(encoding="utf-8").splitlines()) <= 400
    assert len(code_lines(HERE / "helpers.py")) <= 215


def test_ruff_is_content():
    """With no function above a complexity of 7, as pyproject.toml says."""
    ruff = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=HERE,
                          capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout


@pytest.mark.parametrize("path", ROOMS[1:], ids=lambda path: path.name)
def test_no_room_imports_helpers(path):
    imported = [name for node in tree(path) if isinstance(node, ast.Import | ast.ImportFrom)
                for name in (getattr(node, "module", None), *(one.name for one in node.names))]
    assert "helpers" not in imported


@pytest.mark.parametrize("path", [path for path in ROOMS if path.name != "stand_in.py"],
                         ids=lambda path: path.name)
def test_public_functions_have_types_and_a_docstring(path):
    inner = ("embed", "compute", "forward")  # two closures; torch's own name
    for node in tree(path):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and \
                node.name not in inner:
            untyped = {arg.arg for arg in node.args.args if not arg.annotation} - {"self"}
            assert node.returns and not untyped, f"{node.name}: {untyped} has no type"
            assert ast.get_docstring(node), f"{node.name} has no docstring"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_fits_a_laptops_screen(path):
    cells = code_cells(path)
    assert max(len(line) for cell in cells for line in cell) <= 88
    assert max(map(len, cells)) <= 20
    assert statistics.median(map(len, code_cells(path, folded=False))) <= 6


@pytest.mark.slow
def test_importing_helpers_does_not_wait_for_what_may_not_be_needed():
    heavy = {"torchvision", "openvino", "pymilvus", "ray"}
    loaded = subprocess.run([sys.executable, "-c", "import helpers, sys; print(*sys.modules)"],
                            cwd=HERE, capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded and not heavy.intersection(loaded)
