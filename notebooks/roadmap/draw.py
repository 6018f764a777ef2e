"""The way from a photo to a grid, at the head of each notebook: python notebooks/way/draw.py"""
from pathlib import Path

STATIONS = ["photo", "network", "vector", "PCA", "index", "grid"]
HERE = {"01": (0, 1, 2), "01b": (0, 1, 2), "02": (3,), "03": (4,), "04": (5,), "05": (3,),
        "06": (1, 2), "07": (4,)}
WIDE, HIGH, GAP = 96, 40, 30


def station(number, name, here):
    x, fill = 2 + number * (WIDE + GAP), "#c2185b" if number in here else "#eceff1"
    ink = "white" if number in here else "#37474f"
    yield f'<rect x="{x}" y="24" width="{WIDE}" height="{HIGH}" rx="7" fill="{fill}"/>'
    yield f'<text x="{x + WIDE / 2}" y="50" fill="{ink}" text-anchor="middle">{name}</text>'
    if number < len(STATIONS) - 1:
        yield f'<path d="M{x + WIDE + 4} 44h{GAP - 14}" stroke="#90a4ae" stroke-width="2"/>'
        yield f'<path d="M{x + WIDE + GAP - 11} 38l8 6l-8 6z" fill="#90a4ae"/>'


def drawing(here):
    middle = 2 + (here[0] + here[-1]) / 2 * (WIDE + GAP) + WIDE / 2
    width = 4 + len(STATIONS) * (WIDE + GAP) - GAP
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="68" '
             f'viewBox="0 0 {width} 68" font-family="sans-serif" font-size="15">',
             f'<text x="{middle}" y="15" fill="#c2185b" font-size="12" text-anchor="middle">'
             "you are here</text>"]
    for number, name in enumerate(STATIONS):
        lines += station(number, name, here)
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    for notebook, here in HERE.items():
        Path(__file__).with_name(f"{notebook}.svg").write_text(drawing(here), encoding="utf-8")
