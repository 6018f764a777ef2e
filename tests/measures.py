"""The project in numbers: python tests/measures.py

Lines of code are lines that hold code: docstrings, comments and blank lines do not count.
"""
import ast
import json
import statistics
import subprocess
import sys
import tokenize
from pathlib import Path

from IPython.core.inputtransformer2 import TransformerManager

HERE = Path(__file__).resolve().parent.parent
NOT_CODE = {getattr(tokenize, name) for name in (
    "COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER")}
# the placeholder holds the drawings of garments: more data than code
MODULES = [HERE / "helpers.py", *(path for path in sorted((HERE / "lookalike").glob("*.py"))
                                  if path.name != "placeholder.py")]
OTHERS = [*sorted((HERE / "workshop").glob("*.py")), HERE / "notebooks" / "roadmap" / "draw.py",
          HERE / "lookalike" / "placeholder.py"]
TESTS = sorted((HERE / "tests").glob("*.py"))
NOTEBOOKS = sorted((HERE / "notebooks").glob("*.ipynb"))
NOT_COUNTED = "branches"  # the tag of a cell whose branches are what the lesson is about


def code_lines(path):
    """The numbers of the lines that hold code."""
    with tokenize.open(path) as f:
        lines = {n for token in tokenize.generate_tokens(f.readline) if token.type not in NOT_CODE
                 for n in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr) and isinstance(
                body[0].value, ast.Constant):
            lines -= {*range(body[0].lineno, body[0].end_lineno + 1)}
    return lines


def too_complex(most=7):
    """What ruff says of functions above that complexity."""
    ruff = [sys.executable, "-m", "ruff", "check", "--select", "C901", "--output-format", "concise",
            "--config", f"lint.mccabe.max-complexity={most}", *map(str, MODULES)]
    said = subprocess.run(ruff, capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if "C901" in line]


def code_cells(path, folded=True, without=None):
    """The sources of a notebook's code cells, as lists of lines.

    With the folded ones or not, and without those that have a tag.
    """
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]).splitlines() for cell in cells if cell["cell_type"] == "code"
            and (folded or not cell["metadata"].get("jupyter", {}).get("source_hidden"))
            and without not in cell["metadata"].get("tags", [])]


def guards(lines):
    """How many branches and guards there are: if, try, while, `or`, and a cut by min() or max()."""
    code = TransformerManager().transform_cell("\n".join(lines))  # %timeit is no Python
    return sum(isinstance(node, ast.If | ast.IfExp | ast.Try | ast.While)
               or (isinstance(node, ast.For) and bool(node.orelse))
               or (isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or))
               or (isinstance(node, ast.Call) and len(node.args) > 1
                   and getattr(node.func, "id", "") in ("min", "max"))
               for node in ast.walk(ast.parse(code)))


def guards_per_100_lines(path):
    """Of a notebook's open code cells; cells about branches are not counted."""
    cells = code_cells(path, folded=False, without=NOT_COUNTED)
    return 100 * sum(map(guards, cells)) / sum(sum(map(bool, map(str.strip, cell)))
                                               for cell in cells)


def main():
    for name, paths in {"helpers.py and lookalike/": MODULES, "others": OTHERS,
                        "tests": TESTS}.items():
        total = 0
        for path in paths:
            lines, code = path.read_text(encoding="utf-8").splitlines(), len(code_lines(path))
            total += code
            print(f"{path.relative_to(HERE).as_posix():28} {len(lines):5} lines, {code:4} of code, "
                  f"widest {max(map(len, lines))}")
        print(f"{name}: {total:,} lines of code\n")
    print("functions above a complexity of 7:", "; ".join(too_complex()) or "none")
    for path in NOTEBOOKS:
        cells = code_cells(path)
        print(f"{path.name:30} {len(cells):5} code cells, median of the open ones "
              f"{statistics.median(map(len, code_cells(path, folded=False)))} lines, longest "
              f"{max(map(len, cells))}, widest {max(len(line) for cell in cells for line in cell)};"
              f" {guards_per_100_lines(path):.0f} branches and guards per 100 lines")


if __name__ == "__main__":
    main()
