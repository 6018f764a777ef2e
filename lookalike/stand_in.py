"""Draws the stand-in catalogue: garments to recommend when no photos can be had.

`draw_catalogue(folder)` fills a folder with 660 pictures of 14 kinds of garments, always the same
ones in the same order, and an `images.csv` in the layout of the real data set (image, sender_id,
label, kids). The last 16 pictures are the 'new photos': they have no row there, so they stay out
of the index.

A garment is drawn in four steps: its outline, its cloth (colour, pattern, folds), its details
(collar, buttons, seams), and the picture around it (backdrop, shadow, tilt, light). Lengths are in
halves of the picture's width: x runs from -1 to 1, y from -1.33 at the top to 1.33.
"""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

WIDTH, HEIGHT = 300, 400
COLOURS = {
    "white": (238, 236, 230),
    "black": (42, 42, 46),
    "grey": (138, 140, 144),
    "navy": (38, 52, 92),
    "blue": (66, 116, 184),
    "sky": (150, 190, 220),
    "red": (186, 46, 50),
    "pink": (226, 150, 170),
    "green": (66, 120, 82),
    "olive": (112, 110, 66),
    "yellow": (224, 186, 74),
    "brown": (122, 84, 58),
    "beige": (208, 186, 150),
    "purple": (112, 76, 138),
}
PATTERNS = ["plain", "plain", "plain", "stripes", "stripes", "checks", "dots"]
BACKDROPS = [
    (226, 224, 220),
    (212, 218, 224),
    (232, 226, 212),
    (198, 196, 192),
    (216, 204, 188),
    (204, 214, 206),
]
SENDERS = 24  # each 'person' has a backdrop and a light of their own, as in photos that people send


# ---- outlines: the right half, from the neck or waist down; mirrored() adds the left half ----
def mirrored(right):
    return right + [(-x, y) for x, y in reversed(right) if x > 0]


def upper(rng, sleeve, length=0.85, width=0.52, neck=0.15):
    """A garment with sleeves: `sleeve` is 0 for a strap, 0.4 for short, 1 for long."""
    w, n = width * rng.uniform(0.92, 1.1), rng.uniform(0.19, 0.26)
    if sleeve == 0:
        return mirrored(
            [
                (0, -0.85 + neck + 0.25),
                (0.2, -0.62),
                (0.24, -0.98),
                (0.36, -0.98),
                (0.38, -0.6),
                (w, -0.38),
                (w * 1.02, length),
                (0, length + 0.02),
            ]
        )
    reach = sleeve * rng.uniform(0.95, 1.05)
    cuff = (0.6 + 0.36 * min(1, reach + 0.35), -0.72 + 1.35 * reach)
    return mirrored(
        [
            (0, -0.88 + neck),
            (n, -0.9),
            (0.56, -0.76),
            cuff,
            (cuff[0] - 0.22, cuff[1] + 0.07),
            (w, -0.36),
            (w * rng.uniform(0.97, 1.06), length),
            (0, length + 0.02),
        ]
    )


def dress(rng):
    flare, length = rng.uniform(0.5, 0.95), rng.uniform(0.75, 1.2)
    top = upper(rng, rng.choice([0, 0.35]), width=0.4)
    half = [p for p in top[: len(top) // 2 + 1] if p[0] >= 0 and p[1] < 0.2]
    return mirrored(half + [(0.3, 0.0), (flare, length), (0, length + 0.04)])


def skirt(rng):
    flare, length = rng.uniform(0.45, 0.95), rng.uniform(0.2, 0.95)
    return mirrored([(0, -0.72), (0.38, -0.74), (0.5, -0.3), (flare, length), (0, length + 0.05)])


def legs(rng, length):
    wide, hip = rng.uniform(0.2, 0.34), rng.uniform(0.44, 0.54)
    wide = wide + 0.12 if length < 0.5 else wide
    return mirrored(
        [
            (0, -1.0),
            (0.38, -1.0),
            (hip, -0.5),
            (0.18 + wide, length),
            (0.14, length + 0.02),
            (0.03, -0.36),
            (0, -0.36),
        ]
    )


def hat(rng):
    if rng.random() < 0.5:  # a cap, its peak to the right
        return [
            (-0.6, 0.2),
            (-0.56, -0.2),
            (-0.3, -0.52),
            (0.1, -0.55),
            (0.42, -0.3),
            (0.5, 0.02),
            (0.98, 0.16),
            (0.95, 0.28),
            (0.4, 0.24),
        ]
    brim = rng.uniform(0.7, 0.95)
    return mirrored(
        [
            (0, -0.52),
            (0.3, -0.55),
            (0.42, -0.35),
            (0.46, 0.12),
            (brim, 0.22),
            (brim - 0.1, 0.36),
            (0, 0.42),
        ]
    )


def shoe(rng):
    collar = rng.choice([-0.1, -0.45], p=[0.6, 0.4])
    return [
        (-0.85, 0.42),
        (-0.82, 0.0),
        (-0.74, collar - 0.1),
        (-0.3, collar),
        (-0.1, -0.02),
        (0.4, 0.08),
        (0.84, 0.2),
        (0.9, 0.42),
    ]


def bag(rng):
    w, h = rng.uniform(0.5, 0.8), rng.uniform(0.4, 0.75)
    return mirrored([(0, -0.3), (w * 0.85, -0.3), (w, h), (0, h + 0.02)])


# ---- details: drawn over the cloth in a darker or lighter shade ------------------------------
def buttons(pen, top, bottom, count=6):
    pen.line((0, top), (0, bottom))
    for y in np.linspace(top + 0.08, bottom - 0.08, count):
        pen.dot(0.0, y, 0.025)


def collar(pen):
    pen.shape([(0, -0.68), (0.1, -0.6), (0.28, -0.78), (0.2, -0.93)])
    pen.shape([(0, -0.68), (-0.1, -0.6), (-0.28, -0.78), (-0.2, -0.93)])


def round_neck(pen, rng):
    pen.curve([(-0.24, -0.88), (-0.12, -0.7), (0.12, -0.7), (0.24, -0.88)])


def shirt_details(pen, rng):
    collar(pen)
    buttons(pen, -0.62, 0.85)
    if rng.random() < 0.6:
        pen.shape([(0.14, -0.3), (0.38, -0.3), (0.38, -0.02), (0.26, 0.04), (0.14, -0.02)])


def polo_details(pen, rng):
    collar(pen)
    buttons(pen, -0.62, -0.25, 3)


def hoodie_details(pen, rng):
    pen.shape([(-0.3, -0.74), (-0.22, -1.08), (0, -1.16), (0.22, -1.08), (0.3, -0.74), (0, -0.56)])
    pen.line((-0.1, -0.62), (-0.1, -0.25))
    pen.line((0.1, -0.62), (0.1, -0.3))
    pen.shape([(-0.3, 0.25), (0.3, 0.25), (0.4, 0.6), (-0.4, 0.6)])


def coat_details(pen, rng):
    pen.line((0, -0.5), (0, 1.12), 3)
    for side in (-1, 1):
        pen.shape([(0, -0.3), (side * 0.14, -0.62), (side * 0.3, -0.7), (side * 0.2, -0.92)])
        pen.line((side * 0.2, 0.4), (side * 0.42, 0.34), 3)


def waistband(pen, rng):
    pen.line((-0.5, -0.62), (0.5, -0.62))
    for x in rng.uniform(-0.35, 0.35, 3):
        pen.line((x, -0.6), (x * 1.7, 0.9))


def trouser_details(pen, rng):
    pen.line((-0.5, -0.9), (0.5, -0.9))
    pen.line((0, -0.9), (0, -0.4))
    for side in (-1, 1):
        pen.curve([(side * 0.24, -0.88), (side * 0.3, -0.72), (side * 0.48, -0.68)])


def dress_details(pen, rng):
    pen.line((-0.33, 0.0), (0.33, 0.0), 3)
    for x in rng.uniform(-0.25, 0.25, 3):
        pen.line((x, 0.04), (x * 2.4, 1.1))


def hat_details(pen, rng):
    pen.curve([(-0.58, 0.08), (0, 0.16), (0.5, 0.06)], 4)


def shoe_details(pen, rng):
    pen.shape([(-0.86, 0.32), (0.9, 0.32), (0.92, 0.46), (-0.86, 0.46)], light=True)
    for x in (-0.16, 0.0, 0.16):
        pen.line((x, -0.0), (x + 0.14, 0.1), 3)


def bag_details(pen, rng):
    pen.curve([(-0.7, -0.02), (0, 0.08), (0.7, -0.02)])
    pen.dot(0.0, 0.06, 0.05)
    pen.curve([(-0.35, -0.3), (-0.3, -0.85), (0.3, -0.85), (0.35, -0.3)], 9)


KINDS = {  # label: (outline, details)
    "T-Shirt": (lambda r: upper(r, 0.38), round_neck),
    "Longsleeve": (lambda r: upper(r, 1), round_neck),
    "Shirt": (lambda r: upper(r, r.choice([0.4, 1.0], p=[0.2, 0.8]), neck=0.1), shirt_details),
    "Polo": (lambda r: upper(r, 0.4, neck=0.1), polo_details),
    "Hoodie": (lambda r: upper(r, 1, width=0.6), hoodie_details),
    "Outwear": (lambda r: upper(r, 1.05, length=1.15, width=0.58), coat_details),
    "Undershirt": (lambda r: upper(r, 0, width=0.46), lambda pen, rng: None),
    "Dress": (dress, dress_details),
    "Skirt": (skirt, waistband),
    "Pants": (lambda r: legs(r, 1.15), trouser_details),
    "Shorts": (lambda r: legs(r, r.uniform(0.05, 0.35)), trouser_details),
    "Hat": (hat, hat_details),
    "Shoes": (shoe, shoe_details),
    "Bag": (bag, bag_details),
}


class Pen:
    """Draws in garment units on a picture twice the final size; halving it afterwards smooths
    the edges.
    """

    def __init__(self, image, colour, place):
        self.draw, self.place, dark = ImageDraw.Draw(image), place, sum(colour) < 240
        self.ink = tuple(int(c * 0.72) if not dark else min(255, c + 46) for c in colour)
        self.cloth = tuple(min(255, int(c * 1.04)) for c in colour)

    def at(self, points):
        """Garment units to pixels; `place` is the tilt (radians), the scale and the middle of
        the garment.
        """
        tilt, scale, middle = self.place
        turn = scale * np.array([[np.cos(tilt), np.sin(tilt)], [-np.sin(tilt), np.cos(tilt)]])
        return [
            tuple(p)
            for p in (
                (np.asarray(points, float) @ turn + middle + [1, HEIGHT / WIDTH]) * WIDTH
            ).tolist()
        ]

    def line(self, a, b, width=2):
        self.draw.line(self.at([a, b]), fill=self.ink, width=width)

    def curve(self, points, width=3):
        self.draw.line(
            self.at(rounded(points, closed=False)), fill=self.ink, width=width, joint="curve"
        )

    def shape(self, points, light=False):
        fill = (236, 234, 228) if light else self.cloth
        self.draw.polygon(self.at(points), fill=fill, outline=self.ink, width=2)

    def dot(self, x, y, radius):
        (x, y), r = self.at([(x, y)])[0], radius * WIDTH
        self.draw.ellipse((x - r, y - r, x + r, y + r), fill=self.ink)


def rounded(points, closed=True, times=2):
    """Chaikin's corner cutting: each pass replaces a corner by two points on its sides (CGIP 3,
    1974, 346-349).
    """
    p = np.asarray(points, float)
    for _ in range(times):
        q = np.roll(p, -1, axis=0) if closed else p[1:]
        p = np.stack(
            [0.84 * p[: len(q)] + 0.16 * q, 0.16 * p[: len(q)] + 0.84 * q], axis=1
        ).reshape(-1, 2)
    return [tuple(xy) for xy in p]


ROW, COLUMN = (
    np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32) - [[[HEIGHT / 2]], [[WIDTH / 2]]]
).astype(np.float32)


def cloth(rng, colour, pattern, tilt):
    """A picture full of that colour and pattern, turned by `tilt`, with soft folds."""
    x, y = COLUMN * np.cos(tilt) - ROW * np.sin(tilt), COLUMN * np.sin(tilt) + ROW * np.cos(tilt)
    second = np.asarray(list(COLOURS.values())[rng.integers(len(COLOURS))], np.float32)
    step = rng.uniform(13, 35)
    if pattern == "stripes":
        on = ((y if rng.random() < 0.7 else x) % step) < step * rng.uniform(0.25, 0.5)
    elif pattern == "checks":
        on = (x % step < step * 0.4) * 0.5 + (y % step < step * 0.4) * 0.5
    elif pattern == "dots":
        on = (x % step - step / 2) ** 2 + (y % step - step / 2) ** 2 < (step * 0.22) ** 2
    else:
        on = np.zeros_like(x)
    folds = np.sin(x / rng.uniform(14, 30) + y / rng.uniform(45, 200)) + np.sin(
        x / rng.uniform(30, 60) + rng.uniform(0, 6)
    )
    on, light = (
        np.float32(0.85) * on.astype(np.float32),
        np.float32(1) + np.float32(0.045) * folds.astype(np.float32),
    )
    bands = [
        np.clip((c + on * (s - c)) * light, 0, 255).astype(np.uint8)
        for c, s in zip(map(np.float32, colour), second)
    ]
    return Image.merge("RGB", [Image.fromarray(band) for band in bands])


def backdrop(rng, sender):
    """What the garment lies on: one colour a sender, with a soft gradient and a little grain."""
    person = np.random.default_rng(1000 + sender)
    colour = np.asarray(BACKDROPS[sender % len(BACKDROPS)], np.float32) + person.uniform(-12, 12, 3)
    x, y = COLUMN / WIDTH, ROW / HEIGHT
    light = (
        1
        + person.uniform(-0.12, 0.12) * x
        + person.uniform(-0.12, 0.12) * y
        + rng.standard_normal(x.shape, np.float32) * 0.012
    )
    if sender % 4 == 3:
        light = light * (0.93 + 0.07 * (ROW % 80 > 2))  # floorboards
    return Image.merge(
        "RGB", [Image.fromarray(np.clip(c * light, 0, 255).astype(np.uint8)) for c in colour]
    )


def draw_garment(kind, sender, rng):
    """One picture (RGB, 300x400) of a garment of that kind, as that sender would have
    photographed it.
    """
    outline, details = KINDS[kind]
    colour = tuple(
        int(np.clip(c + rng.normal(0, 10), 0, 255))
        for c in list(COLOURS.values())[rng.integers(len(COLOURS))]
    )
    pattern = (
        PATTERNS[rng.integers(len(PATTERNS))] if kind not in ("Shoes", "Hat", "Bag") else "plain"
    )
    tilt, points = np.radians(rng.normal(0, 5)), np.array(rounded(outline(rng)))
    middle = -(points.min(axis=0) + points.max(axis=0)) / 2 * [1, 0.7] + rng.uniform(-0.04, 0.04, 2)
    place = tilt, rng.uniform(0.86, 1.0), middle

    size = (2 * WIDTH, 2 * HEIGHT)
    garment, mask = (
        cloth(rng, colour, pattern, tilt).resize(size, Image.BILINEAR),
        Image.new("L", size),
    )
    pen, stencil = Pen(garment, colour, place), Pen(mask, (255, 255, 255), place)
    stencil.ink = stencil.cloth = 255
    edge = stencil.at(points)
    stencil.draw.polygon(edge, fill=255)
    for p in (
        (stencil, pen) if kind in ("Hoodie", "Bag") else (pen,)
    ):  # a hood and a handle reach past the outline
        details(p, rng)
    pen.draw.line(edge + edge[:2], fill=pen.ink, width=4, joint="curve")
    garment, mask = garment.reduce(2), mask.reduce(2)

    picture = backdrop(rng, sender)
    shadow = (
        ImageChops.offset(mask, 5, 7)
        .filter(ImageFilter.BoxBlur(5))
        .point([int(v * 0.4) for v in range(256)])
    )
    picture.paste((60, 56, 52), mask=shadow)
    picture.paste(garment, mask=mask)
    light = rng.uniform(0.86, 1.06)
    return picture.point([min(255, int(v * light)) for v in range(256)] * 3)


def draw_catalogue(folder, a_kind=46, new=16, progress=iter):
    """Draw `14 * a_kind` labelled pictures and `new` unlabelled ones into `folder`; return it.

    `images.csv` is written last and in one piece: a folder without it is one whose drawing was
    interrupted. `progress` wraps the list of pictures to draw (`tqdm`, say).
    """
    folder, kinds = Path(folder), list(KINDS)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "images.csv").unlink(missing_ok=True)
    labelled = [kinds[i % len(kinds)] for i in range(len(kinds) * a_kind)]
    rows = []
    unlabelled = [
        kinds[(i + 6) % len(kinds)] for i in range(new)
    ]  # the ninth is a T-shirt, as among the real new photos
    for i, kind in enumerate(progress(labelled + unlabelled)):
        rng, sender = np.random.default_rng(i), int(np.random.default_rng([i, 7]).integers(SENDERS))
        picture = draw_garment(kind, sender, rng)
        is_new = i >= len(labelled)
        name = f"new-{i - len(labelled):02d}" if is_new else f"{kind.lower()}-{i // len(kinds):02d}"
        if i % 29 == 5:
            picture = picture.convert("L")  # the article: 'some images are not in RGB format'
        picture.save(folder / f"{name}.jpg", quality=88)
        if not is_new:
            rows.append([name, sender, kind, False])
    unfinished = folder / "images.csv.tmp"
    with open(unfinished, "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["image", "sender_id", "label", "kids"], *rows])
    unfinished.replace(folder / "images.csv")
    return folder
