"""The road map at the head of each notebook, from a photo to a grid of photos.

    python notebooks/roadmap/draw.py

It writes one SVG file per notebook, and prints the alternative text that belongs to each.
"""
from pathlib import Path

STATIONS = ["photo", "network", "vector", "PCA", "index", "grid"]
HERE = {"00": (0, 1, 2, 3, 4, 5), "01": (0, 1, 2), "01b": (0, 1, 2), "02": (3,), "03": (4,),
        "04": (5,), "05": (3,), "06": (1, 2), "07": (4,)}
WIDE, HIGH, GAP = 96, 40, 30


def alternative_text(here):
    names = [STATIONS[number] for number in here]
    places = " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
    if len(here) == len(STATIONS):
        places = "the whole road"
    return f"Road map: {', '.join(STATIONS)}. You are here: {places}."


def station(number, name, here):
    """A box; where the reader is, bold letters and a line above it say so, not colour alone."""
    x, fill, ink, look = 2 + number * (WIDE + GAP), "#eceff1", "#37474f", ""
    if number in here:
        fill, ink, look = "#c2185b", "white", ' font-weight="bold"'
        yield f'<path d="M{x} 20h{WIDE}" stroke="#c2185b" stroke-width="3"/>'
    yield f'<rect x="{x}" y="24" width="{WIDE}" height="{HIGH}" rx="7" fill="{fill}"/>'
    yield f'<text x="{x + WIDE / 2}" y="50" fill="{ink}"{look} text-anchor="middle">{name}</text>'
    if number < len(STATIONS) - 1:
        yield f'<path d="M{x + WIDE + 4} 44h{GAP - 14}" stroke="#90a4ae" stroke-width="2"/>'
        yield f'<path d="M{x + WIDE + GAP - 11} 38l8 6l-8 6z" fill="#90a4ae"/>'


def drawing(here):
    middle = 2 + (here[0] + here[-1]) / 2 * (WIDE + GAP) + WIDE / 2
    width = 4 + len(STATIONS) * (WIDE + GAP) - GAP
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="68" '
             f'viewBox="0 0 {width} 68" font-family="sans-serif" font-size="15" role="img">',
             f"<title>{alternative_text(here)}</title>",
             f'<text x="{middle}" y="14" fill="#c2185b" font-size="12" text-anchor="middle">'
             "you are here</text>"]
    for number, name in enumerate(STATIONS):
        lines += station(number, name, here)
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    for notebook, here in HERE.items():
        Path(__file__).with_name(f"{notebook}.svg").write_text(drawing(here), encoding="utf-8")
        print(f"{notebook}: {alternative_text(here)}")
