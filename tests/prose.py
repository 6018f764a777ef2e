"""How the prose reads, in numbers: python tests/prose.py

Counts over the text cells of the notebooks, README, the glossary and the pages of workshop/ and
benchmarks/: *it* and *its* per 100 words, the longest sentence, semicolons per 150 words. Code,
links and tables do not count.
"""
import json
import re

from measures import HERE

PAGES = [HERE / name for name in ("README.md", "notebooks/GLOSSARY.md", "workshop/README.md",
                                  "workshop/slides.md", "benchmarks/README.md")]
NOTEBOOKS = sorted((HERE / "notebooks").glob("*.ipynb"))
# one word, one meaning: README's section for contributors lists the words that we use instead
REFUSED = re.compile(r"has_kind|\bstand-in\b|drawn photos|\bsticks?\b|made vectors|by heart\b|"
                     r"group to choose with|people drawn|asked? with\b|\d %(?!\w)", re.IGNORECASE)


def text_of(path):
    """The prose of a notebook's text cells, or of a page, in English."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"]
                           if cell["cell_type"] == "markdown")
    for what in (r"```.*?```", r"<[^>]*>", r"^\|.*$", r"^(#|show:).*$", r"!\[[^\]]*\]\([^)]*\)"):
        text = re.sub(what, "", text, flags=re.DOTALL if "```" in what else re.MULTILINE)
    return re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", text))


def sentences(text):
    """The English sentences; a line of a list and a paragraph end one as well."""
    parts = re.split(r"(?<=[.!?:])[)\"*]*\s+|\n\s*\n|\n\s*(?:[-*]|\d+\.)\s+", text)
    return [part for part in parts if not re.search("[а-яА-Я]", part)]


def counts(paths):
    """(Words, *it* and *its* per 100 of them, the longest sentence, semicolons per 150)."""
    found = [one for path in paths for one in sentences(text_of(path))]
    words = [re.findall(r"[\w'’-]+", one) for one in found]
    n, text = sum(map(len, words)), " ".join(found)
    return (n, 100 * len(re.findall(r"\b[Ii]ts?\b", text)) / n, max(words, key=len),
            150 * text.count(";") / n)


def main():
    for path in [*NOTEBOOKS, *PAGES]:
        n, its, longest, semicolons = counts([path])
        print(f"{path.relative_to(HERE).as_posix():42} {n:5,} words, it/its {its:.2f}, longest "
              f"sentence {len(longest)}, semicolons {semicolons:.2f}")
    n, its, longest, semicolons = counts([*NOTEBOOKS, *PAGES])
    print(f"{'all':42} {n:5,} words, it/its {its:.2f}, longest sentence {len(longest)}: "
          f"{' '.join(longest)[:200]}, semicolons {semicolons:.2f}")


if __name__ == "__main__":
    main()
