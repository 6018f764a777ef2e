"""The project itself: small, in modules, readable on a laptop's screen, and easy to import."""
import ast
import os
import statistics
import subprocess
import sys

import prose
import pytest
from measures import HERE, NOTEBOOKS, code_cells, code_lines, guards, guards_per_100_lines
from measures import too_complex

import helpers
import lookalike


def test_helpers_is_small_and_no_function_is_complex():
    assert len(code_lines(HERE / "helpers.py")) <= 250
    assert too_complex(7) == []


def test_ruff_is_content():
    """With types and docstrings of all that is public, as pyproject.toml says."""
    ruff = subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=HERE,
                          capture_output=True, text=True)
    assert ruff.returncode == 0, ruff.stdout


@pytest.mark.parametrize("path", sorted((HERE / "lookalike").glob("*.py")),
                         ids=lambda path: path.name)
def test_no_module_of_the_library_draws(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
               if isinstance(node, ast.Import | ast.ImportFrom)]
    names = [getattr(node, "module", None) or one.name for node in imports for one in node.names]
    assert not {name.split(".")[0] for name in names} & {"matplotlib", "IPython", "ipywidgets",
                                                         "helpers"}


def test_all_that_is_public_is_named():
    tree = ast.parse((HERE / "helpers.py").read_text(encoding="utf-8"))
    own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)
           and not node.name.startswith("_")}
    assert {*helpers.__all__} == own | {*lookalike.__all__}
    assert all(callable(getattr(helpers, name)) for name in helpers.__all__)
    assert all(getattr(lookalike, name) is getattr(helpers, name) for name in lookalike.__all__)
    with pytest.raises(AttributeError, match="no attribute 'search'"):
        lookalike.search  # noqa: B018


def python(program, folder, **environment):
    """What a program prints that runs in that folder."""
    ran = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True,
                         text=True, env={**os.environ, **environment})
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_the_library_in_another_project(tmp_path):
    """Next to a foreign helpers.py; nothing that the project has set up is changed."""
    (tmp_path / "helpers.py").write_text("mine = True")
    assert python("""
import sys, warnings
import faiss, joblib, matplotlib.pyplot as plt, pillow_heif, PIL.Image, torch, tqdm
def now():
    return repr((warnings.filters, dict(plt.rcParams), sys.excepthook, sys.displayhook,
                 warnings.showwarning, torch.is_grad_enabled()))
before = now()
import helpers, lookalike
assert "lookalike.recommender" not in sys.modules, "loaded at first use"
from lookalike import open_catalogue, nearest, pil_loader
assert now() == before and not {"IPython", "ipywidgets", "torchvision"} & {*sys.modules}
print(helpers.mine, open_catalogue.__module__, lookalike.__all__)
""", tmp_path, PYTHONPATH=str(HERE)) == f"True lookalike.recommender {lookalike.__all__}\n"


@pytest.mark.slow
def test_importing_helpers_does_not_wait_for_what_may_not_be_needed():
    loaded = python("import helpers, sys; print(*sys.modules)", HERE).split()
    assert "torch" in loaded and not {"torchvision", "openvino", "sklearn"}.intersection(loaded)


# ---- notebooks -------------------------------------------------------------------------------
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_fits_a_laptops_screen(path):
    cells = code_cells(path)
    assert max(len(line) for cell in cells for line in cell) <= 88
    assert max(map(len, cells)) <= 20
    assert statistics.median(map(len, code_cells(path, folded=False))) <= 6


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if "01" <= path.name < "07"],
                         ids=lambda path: path.name)
def test_lessons_have_no_guards(path):
    assert guards_per_100_lines(path) <= 4


@pytest.mark.parametrize("line, expected", [
    ("a = b if c else d", 1), ("n = min(n, 3) or 1", 2), ("for i in x:\n  pass\nelse:\n  pass", 1),
    ("try:\n  a\nexcept E:\n  b", 1), ("while a: b", 1), ("if a: b\nelif c: d", 2),
    ("took = %timeit -o f()", 0), ("m = max(row) and min(rows, key=len)", 0)])
def test_what_counts_as_a_guard(line, expected):
    assert guards(line.splitlines()) == expected


@pytest.mark.parametrize("path", [*prose.NOTEBOOKS, *prose.PAGES], ids=lambda path: path.name)
def test_prose_is_plain(path):
    text = prose.text_of(path)
    assert not prose.REFUSED.findall(text)
    _, its, longest, semicolons = prose.counts([path])
    assert its <= 1.5 and len(longest) <= 35 and semicolons <= 1
