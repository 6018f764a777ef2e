"""Draws garments to recommend where no photos can be downloaded.

`draw_catalogue(folder)` fills a folder with 660 images of 14 categories of garments, always the
same ones in the same order, and an `images.csv` in the layout of the real data set (image,
sender_id, label, kids). The last 16 images are the 'new photos': they have no row in the table.

CATEGORIES holds the right half of each garment, its outline and its seams; the left half is drawn
mirrored. A line is a string of points, "x,y x,y", in pixels from the image's middle, y downwards,
as in SVG.
"""
import csv
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from lookalike.common import AnyPath

WIDTH, HEIGHT = 300, 400
Y, X = np.mgrid[-HEIGHT // 2:HEIGHT // 2, -WIDTH // 2:WIDTH // 2].astype(np.float32)
COLOURS = np.float32([  # from white, black and grey over navy and red to beige and purple
    (238, 236, 230), (42, 42, 46), (138, 140, 144), (38, 52, 92), (66, 116, 184),
    (150, 190, 220), (186, 46, 50), (226, 150, 170), (66, 120, 82), (112, 110, 66),
    (224, 186, 74), (122, 84, 58), (208, 186, 150), (112, 76, 138)])
BACKDROPS = np.float32([(226, 224, 220), (212, 218, 224), (232, 226, 212), (198, 196, 192),
                        (216, 204, 188), (204, 214, 206)])
SENDERS = 24  # each 'person' has a backdrop and a light of their own, as in photos that people send
# Where the second colour shows, given a wave along x and one along y. Half of all cloth is plain.
PATTERNS = [lambda u, v: 0 * u] * 4 + [
    lambda u, v: v > 0.3,  # stripes
    lambda u, v: u > 0.3,  # upright stripes
    lambda u, v: (u > 0.3) / 2 + (v > 0.3) / 2,  # checks
    lambda u, v: u * v > 0.5]  # dots

TOP = 0.07, 0.05, 0.05
SHORT = "0,-108 32,-135 84,-114 128,-32 94,-20 78,-54 80,126 0,129"
LONG = "0,-108 32,-135 84,-114 138,94 106,104 77,-54 80,126 0,129"
NECKBAND, COLLAR = "0,-97 22,-104 42,-131", "0,-108 14,-88 44,-116 32,-135 0,-108"
CATEGORIES = {  # label: how much the width, the length and the flare vary; the outline; the seams
    "T-Shirt": (TOP, SHORT, NECKBAND),
    "Longsleeve": (TOP, LONG, NECKBAND),
    "Shirt": (TOP, LONG, COLLAR, "0,-90 0,128", *(f"0,{y} 5,{y}" for y in range(-75, 99, 30)),
              "22,-48 56,-48 56,-6 22,-6 22,-48"),
    "Polo": (TOP, SHORT, COLLAR, "9,-90 9,-38 0,-38", "0,-75 4,-75", "0,-55 4,-55"),
    "Hoodie": (TOP, "0,-168 34,-156 46,-112 86,-98 138,100 106,110 88,-38 90,130 0,133",
               "46,-112 28,-90 0,-78 22,-118 0,-150", "14,-84 15,-30", "0,42 42,42 60,94 0,94"),
    "Outwear": (TOP, "0,-120 32,-152 88,-132 138,94 104,106 86,-60 92,168 0,170",
                "0,170 0,-30 24,-84 48,-96 34,-145", "30,62 66,54"),
    "Undershirt": (TOP, "0,-72 28,-92 34,-146 54,-146 56,-92 70,-58 71,128 0,131"),
    "Dress": ((0.1, 0.12, 0.2), "0,-92 28,-100 34,-150 50,-150 54,-104 60,-84 42,-16 100,150 0,156",
              "0,-16 42,-16", "10,-8 24,140", "26,-8 62,136"),
    "Skirt": ((0.1, 0.3, 0.2), "0,-88 56,-90 72,-40 100,88 0,96",
              "0,-72 62,-74", "14,-68 28,84", "36,-68 66,80"),
    "Pants": ((0.12, 0.06, 0.1), "0,-155 57,-155 74,-80 70,168 24,170 5,-58 0,-58",
              "58,-138 0,-138 0,-58", "57,-133 54,-112 68,-98"),
    "Shorts": ((0.1, 0.15, 0.1), "0,-80 57,-80 74,-10 86,68 18,72 5,14 0,14",
               "60,-64 0,-64 0,14", "54,-62 55,-44 65,-32"),
    "Hat": ((0.12, 0.12, 0.1), "0,-72 46,-76 63,-45 69,25 122,42 108,62 0,70",
            "0,30 40,26 70,16", "0,4 40,0 67,-10"),
    "Shoes": ((0.08, 0.12, 0.05), "60,-110 88,-100 96,-60 86,0 100,60 90,108 62,120 34,108 22,60 "
              "32,0 24,-60 34,-100 60,-110", "60,-98 80,-88 84,-50 60,-30 36,-50 40,-88 60,-98",
              "44,-22 76,-12 44,-2 76,8 44,18 76,28", "24,72 60,54 98,72"),
    "Bag": ((0.2, 0.2, 0.1), "0,-45 85,-45 100,85 0,88", "0,12 60,6 89,-6", "0,4 8,4 8,20 0,20",
            "50,-45 46,-128 0,-128", "48,-45 44,-126 0,-126")}


def _rounded(line):
    """Cut corners twice, as Chaikin does: a corner becomes two points, the ends stay.

    (Computer Graphics and Image Processing 3, 1974, 346-349).
    """
    p = np.array([point.split(",") for point in line.split()], float)
    for _ in range(2):
        cut = np.stack([0.84 * p[:-1] + 0.16 * p[1:], 0.16 * p[:-1] + 0.84 * p[1:]], axis=1)
        p = np.concatenate([p[:1], cut.reshape(-1, 2)[1:-1], p[-1:]])
    return p


def _picture_of(bands):
    """An RGB picture of three bands of numbers; those outside 0 to 255 are cut off."""
    return Image.merge("RGB", [Image.fromarray(b) for b in bands.clip(0, 255).astype(np.uint8)])


def _cloth(rng, colour, pattern, tilt):
    """A picture full of that colour and pattern, turned by `tilt`, with soft folds."""
    x, y = X * math.cos(tilt) + Y * math.sin(tilt), Y * math.cos(tilt) - X * math.sin(tilt)
    second, step = rng.choice(COLOURS)[:, None, None], rng.uniform(2, 5.5)
    shows = np.float32(0.85) * pattern(np.sin(x / step), np.sin(y / step))
    folds = (np.sin(x / rng.uniform(14, 30) + y / rng.uniform(45, 200))
             + np.sin(x / rng.uniform(30, 60) + rng.uniform(0, 6)))
    return _picture_of((colour + shows * (second - colour)) * (1 + 0.045 * folds))


def _backdrop(rng, sender):
    """What the garment lies on: one colour per sender, with a soft gradient and a little grain."""
    person = np.random.default_rng(1000 + sender)
    colour = BACKDROPS[sender % len(BACKDROPS)] + person.uniform(-12, 12, 3)
    across, down = person.uniform(-0.12, 0.12, 2).tolist()
    light = 1 + across * X / WIDTH + down * Y / HEIGHT
    light += 0.012 * rng.standard_normal(X.shape, np.float32)
    if sender % 4 == 3:
        light *= 0.93 + 0.07 * (Y % 80 > 2)  # floorboards
    return _picture_of(np.float32(colour)[:, None, None] * light)


def _draw_garment(category, sender, rng):
    """One image of a garment of that category, as that sender would have photographed it.

    Its lines are drawn at twice the size; halving it afterwards smooths them.
    """
    vary, outline, *seams = CATEGORIES[category]
    wide, long, flare = rng.uniform(-1, 1, 3) * vary
    tilt, middle = math.radians(rng.normal(0, 4)), rng.uniform(-6, 6, 2) + [WIDTH / 2, HEIGHT / 2]
    turn = np.array([[math.cos(tilt), math.sin(tilt)], [-math.sin(tilt), math.cos(tilt)]])
    turn *= rng.uniform(0.84, 0.98)
    body, lines = (Image.new("L", (2 * WIDTH, 2 * HEIGHT)) for _ in range(2))
    for line in [outline, *seams]:
        x, y = _rounded(line).T
        for side in (1, -1):
            points = np.stack([side * x * (1 + wide + flare * y / 100), y * (1 + long)], axis=1)
            points = (2 * (points @ turn + middle)).ravel().tolist()
            if line is outline:
                ImageDraw.Draw(body).polygon(points, fill=255)
            ImageDraw.Draw(lines).line(points, fill=255, width=4, joint="curve")
    body = ImageChops.lighter(body, lines).reduce(2)  # the handle of a bag is lines alone
    lines = lines.reduce(2)

    colour = (rng.choice(COLOURS) + rng.normal(0, 7, 3)).clip(0, 255)
    shade = colour + 46 if colour.sum() < 240 else colour * 0.72
    pattern = PATTERNS[0 if category in ("Hat", "Shoes", "Bag") else rng.integers(len(PATTERNS))]
    shadow = ImageChops.offset(body, 5, 7).filter(ImageFilter.BoxBlur(5)).point(lambda v: v * 0.4)
    picture, light = _backdrop(rng, sender), rng.uniform(0.86, 1.06)
    picture.paste((60, 56, 52), mask=shadow)
    picture.paste(_cloth(rng, np.float32(colour)[:, None, None], pattern, tilt), mask=body)
    picture.paste(tuple(shade.astype(int).tolist()), mask=lines)
    return picture.point(lambda v: v * light)


def draw_catalogue(folder: AnyPath, per_category: int = 46, new: int = 16,
                   progress: Callable = iter) -> Path:
    """Draw `14 * per_category` labelled images and `new` unlabelled ones into `folder`; return it.

    `images.csv` is written last. `progress` wraps the list of images to draw, for example `tqdm`.
    """
    folder, categories, rows = Path(folder), list(CATEGORIES), []
    folder.mkdir(parents=True, exist_ok=True)
    labelled = categories * per_category
    # the ninth is a T-shirt, as among the real new photos
    unlabelled = [categories[(i + 6) % len(categories)] for i in range(new)]
    for i, category in enumerate(progress(labelled + unlabelled)):
        sender = int(np.random.default_rng([i, 7]).integers(SENDERS))
        picture = _draw_garment(category, sender, np.random.default_rng(i))
        if i % 29 == 5:
            picture = picture.convert("L")  # the article: 'some images are not in RGB format'
        is_new = i >= len(labelled)
        number = i - len(labelled) if is_new else i // len(categories)
        name = f"{'new' if is_new else category.lower()}-{number:02d}"
        picture.save(folder / f"{name}.jpg", quality=88)
        if not is_new:
            rows.append([name, sender, category, False])
    with open(folder / "images.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["image", "sender_id", "label", "kids"], *rows])
    return folder
