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
NOT_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
BESIDE = [*sorted((HERE / "workshop").glob("*.py")), HERE / "notebooks" / "way" / "draw.py"]
ROOMS = [HERE / "helpers.py", *sorted((HERE / "lookalike").glob("*.py"))]


def code_lines(path):
    """The numbers of the lines that hold code."""
    with tokenize.open(path) as f:
        lines = {
            n
            for token in tokenize.generate_tokens(f.readline)
            if token.type not in NOT_CODE
            for n in range(token.start[0], token.end[0] + 1)
        }
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        if (
            isinstance(body, list)
            and body
            and isinstance(node, ast.AST)
            and isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
        ):
            lines -= set(range(body[0].lineno, body[0].end_lineno + 1))
    return lines


def too_complex(most=7):
    """What ruff says of functions above that complexity."""
    ruff = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--select",
        "C901",
        "--output-format",
        "concise",
        "--config",
        f"lint.mccabe.max-complexity={most}",
    ]
    said = subprocess.run([*ruff, *map(str, ROOMS)], capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if "C901" in line]


def code_cells(path):
    """The sources of a notebook's code cells, as lists of lines."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]).splitlines() for cell in cells if cell["cell_type"] == "code"]


def main():
    total = 0
    for path in ROOMS + BESIDE:
        lines, code = path.read_text(encoding="utf-8").splitlines(), len(code_lines(path))
        total += 0 if path.name == "stand_in.py" else code
        print(
            f"{path.relative_to(HERE).as_posix():28} {len(lines):5} lines, {code:4} of code, "
            f"widest {max(map(len, lines))}"
        )
    print(f"{'without the drawn catalogue':28} {'':13}{total:4} of code")
    print("functions above a complexity of 7:", "; ".join(too_complex()) or "none")
    for path in sorted((HERE / "notebooks").glob("*.ipynb")):
        cells = code_cells(path)
        wide = max(len(line) for cell in cells for line in cell)
        middle, longest = statistics.median(map(len, cells)), max(map(len, cells))
        print(
            f"{path.name:28} {len(cells):5} code cells, median {middle} lines, longest {longest}, "
            f"widest {wide}"
        )


if __name__ == "__main__":
    main()
