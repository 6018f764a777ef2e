"""The house itself: small, in rooms, and readable on a laptop's screen."""
import ast
import statistics
import subprocess
import sys

import pytest
from measures import HERE, ROOMS, code_cells, code_lines, too_complex

NOTEBOOKS = sorted((HERE / "notebooks").glob("*.ipynb"))


def test_helpers_is_small():
    assert len((HERE / "helpers.py").read_text(encoding="utf-8").splitlines()) <= 400
    assert len(code_lines(HERE / "helpers.py")) <= 250


def test_no_function_is_too_complex():
    assert too_complex() == []


def test_ruff_is_content():
    ruff = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=HERE,
                          capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout


@pytest.mark.parametrize("path", ROOMS[1:], ids=lambda path: path.name)
def test_no_room_imports_helpers(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert "helpers" not in [name.name for name in node.names]
        if isinstance(node, ast.ImportFrom):
            assert node.module != "helpers"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_fits_a_laptops_screen(path):
    cells = code_cells(path)
    assert max(len(line) for cell in cells for line in cell) <= 88
    assert max(map(len, cells)) <= 20


@pytest.mark.parametrize("path", NOTEBOOKS[-2:], ids=lambda path: path.name)
def test_half_of_the_cells_are_short(path):
    assert statistics.median(map(len, code_cells(path))) <= 6


@pytest.mark.parametrize("path", ROOMS, ids=lambda path: path.name)
def test_public_functions_have_types_and_a_docstring(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            if path.name == "stand_in.py":
                continue
            inner = node.name in ("embed", "compute", "forward")  # two closures; torch's own name
            assert inner or ast.get_docstring(node), f"{node.name} has no docstring"
            untyped = [arg.arg for arg in node.args.args
                       if arg.annotation is None and arg.arg != "self"]
            assert inner or (node.returns and not untyped), f"{node.name}: {untyped} has no type"


@pytest.mark.slow
def test_importing_helpers_does_not_wait_for_what_may_not_be_needed():
    heavy = {"torchvision", "openvino", "pymilvus", "ray"}
    loaded = subprocess.run([sys.executable, "-c", "import helpers, sys; print(*sys.modules)"],
                            cwd=HERE, capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded and not heavy.intersection(loaded)
