"""Ten slides, and all notebooks as HTML, for the room whose Wi-Fi died: python workshop/slides.py

Both are made of the notebooks as they are saved, with their figures; nothing is run again. Needs
no network to make or to show: workshop/slides.html is one file, the others lie in workshop/html/.
"""
import re
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

HERE = Path(__file__).resolve().parent
NOTEBOOKS = HERE.parent / "notebooks"
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Recommend things that look
alike</title><style>
body {{ margin: 0; font: 26px/1.4 sans-serif; color: #263238; background: #fff }}
section {{ display: none; height: 100vh; box-sizing: border-box; padding: 3vh 5vw;
  text-align: center }}
section:target, section:first-of-type {{ display: block }}
body:has(section:target:not(:first-of-type)) section:first-of-type {{ display: none }}
h1 {{ font-size: 40px; margin: 0 0 1vh }} img {{ max-width: 88vw; max-height: 62vh }}
p {{ max-width: 60em; margin: 1vh auto }} nav {{ position: fixed; bottom: 1vh; right: 2vw }}
nav a {{ color: #90a4ae; text-decoration: none; font-size: 20px }}
</style><body>{slides}<script>
const go = step => {{ const now = +(location.hash.slice(1) || 1);
  location.hash = Math.min({number}, Math.max(1, now + step)) }};
addEventListener("keydown", e => {{ if (["ArrowRight", " ", "PageDown"].includes(e.key)) go(1);
  if (["ArrowLeft", "PageUp"].includes(e.key)) go(-1) }});
</script></body></html>
"""


# which cell's figure it is (notebook, words in its source), the title, what to say
SLIDES = [
    ("01_", "search(query, factors)", "Recommend things that look alike",
     "You point at a photo, and get the four that look most like it. From photos alone."),
    ("01_", "plt.title(kind", "What people send",
     "On a bed, on a hanger, on the floor, seldom straight. Nobody described them."),
    ("01_", 'steps = {"the file"', "What the network sees",
     "Resized, cropped, scaled, as its training photos were. What the crop cuts off is lost."),
    ("01_", "plt.plot(vector", "A photo as 1,280 numbers",
     "Photos that look alike get vectors that lie close together. That is the whole idea."),
    ("02", "row[0].set_ylabel(f\"factor", "What a factor means",
     "PCA finds the directions in which the photos differ most. Nobody told it about clothes."),
    ("02", "plt.plot(range(1, len(explained)", "How much is in how many",
     "A hundred of 1,280 factors hold most of the variance."),
    ("03", "query (new)", "A photo that nobody has indexed",
     "It goes the same way: network, PCA, index. Its first hit is a real one."),
    ("04", "compare(other", "Two factors are too few",
     "Photos that differ in what was dropped look alike to the index."),
    ("05", "P@5 and mAP by chance", "How many are enough?",
     "Fifty. The article's 300 is safe, and its 500 buys nothing."),
    ("06", 'f"weight {w}"', "Kind and look",
     "Trained on these photos it finds the kind; side by side with the old vectors, both."),
]


def slides():
    """(Title, sentence, figure) of each slide."""
    cells = {path.name: nbformat.read(path, 4).cells for path in NOTEBOOKS.glob("0*.ipynb")}
    found = []
    for start, words, title, sentence in SLIDES:
        (name,) = [name for name in cells if name.startswith(start)]
        cell = next((one for one in cells[name] if one.cell_type == "code"
                     and words in one.source), None)
        if cell is None:
            raise ValueError(f"no cell of {name} holds {words!r}: mend SLIDES")
        found.append((title, sentence, figure(cell, name)))
    return found


def figure(cell, name):
    """The cell's last picture, as text that stands in the page."""
    for output in reversed(cell.outputs):
        for kind in ("image/jpeg", "image/png"):
            if kind in output.get("data", {}):
                return f"data:{kind};base64,{output['data'][kind].strip()}"
    raise ValueError(f"{name}: the cell of a slide shows no figure: run the notebook and save it")


def write_slides(path):
    parts = slides()
    body = "".join(
        f'<section id="{number}"><h1>{title}</h1><img src="{picture}"><p>{sentence}</p>'
        f'<nav><a href="#{max(1, number - 1)}">&larr;</a> {number} '
        f'<a href="#{min(len(parts), number + 1)}">&rarr;</a></nav></section>'
        for number, (title, sentence, picture) in enumerate(parts, start=1))
    path.write_text(PAGE.format(slides=body, number=len(parts)), encoding="utf-8")
    print(f"{len(parts)} slides: {path.name} (arrow keys)")


def write_html(folder):
    """Each notebook as one file, its pictures and the way at its head inside."""
    folder.mkdir(exist_ok=True)
    exporter = HTMLExporter(embed_images=True)
    for path in sorted(NOTEBOOKS.glob("0*.ipynb")):
        page, _ = exporter.from_filename(str(path))
        page = re.sub(r'href="(0[^"]*)\.ipynb', r'href="\1.html', page)
        page = re.sub(r'<script src="https?://[^"]*"[^>]*>\s*</script>', "", page)  # it needs none
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        print(f"html/{path.stem}.html")


if __name__ == "__main__":
    write_slides(HERE / "slides.html")
    write_html(HERE / "html")
