"""The house in numbers: python tests/measures.py

Lines of code are lines that hold code: docstrings, comments and blank lines do not count.
"""
import ast
import json
import statistics
import subprocess
import sys
import tokenize
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
NOT_CODE = {getattr(tokenize, name) for name in (
    "COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENCODING", "ENDMARKER")}
ROOMS = [HERE / "helpers.py", *sorted((HERE / "lookalike").glob("*.py"))]
BESIDE = [*sorted((HERE / "workshop").glob("*.py")), HERE / "notebooks" / "way" / "draw.py"]
TESTS = sorted((HERE / "tests").glob("*.py"))


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
            "--config", f"lint.mccabe.max-complexity={most}", *map(str, ROOMS)]
    said = subprocess.run(ruff, capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if "C901" in line]


def code_cells(path, folded=True):
    """The sources of a notebook's code cells, as lists of lines; with the folded ones, or not."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]).splitlines() for cell in cells if cell["cell_type"] == "code"
            and (folded or not cell["metadata"].get("jupyter", {}).get("source_hidden"))]


def main():
    for name, paths in {"helpers.py and its rooms": ROOMS, "beside them": BESIDE,
                        "tests": TESTS}.items():
        total = 0
        for path in paths:
            lines, code = path.read_text(encoding="utf-8").splitlines(), len(code_lines(path))
            total += code * (path.name != "stand_in.py")
            print(f"{path.relative_to(HERE).as_posix():28} {len(lines):5} lines, {code:4} of code, "
                  f"widest {max(map(len, lines))}")
        print(f"{name}, without the drawn catalogue: {total:,} of code\n")
    print("functions above a complexity of 7:", "; ".join(too_complex()) or "none")
    for path in sorted((HERE / "notebooks").glob("*.ipynb")):
        cells = code_cells(path)
        print(f"{path.name:28} {len(cells):5} code cells, median that is not folded "
              f"{statistics.median(map(len, code_cells(path, folded=False)))} lines, longest "
              f"{max(map(len, cells))}, widest {max(len(line) for cell in cells for line in cell)}")


if __name__ == "__main__":
    main()
