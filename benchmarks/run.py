"""The article's code and ours, in turn, in one run: python benchmarks/run.py [--json] [--photos N] [--quick]

Seconds differ from machine to machine and from minute to minute; the ratios hold. Each figure is the median of several
turns, article and ours alternating. Extraction runs ResNet50 with random weights where there are no others: speed does
not depend on them. The growth is drawn in benchmarks/growth.jpg.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import article  # noqa: E402
import helpers  # noqa: E402


def seconds(function, *args):
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function(*args)
    return time.perf_counter() - start


def in_turn(one, other, turns):
    """Median seconds of each, and the median of their ratios turn by turn."""
    pairs = [(seconds(one), seconds(other)) for _ in range(turns)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


def row(name, theirs, ours, unit, ratio):
    return {
        "name": name,
        "article": round(theirs, 4),
        "ours": round(ours, 4),
        "unit": unit,
        "ratio": round(ratio, 2),
    }


def extraction(count, turns):
    """Files to vectors, photos a second."""
    import torch
    from torchvision.models import resnet50

    with tempfile.TemporaryDirectory() as folder:
        weights = os.environ.get("RESNET50_WEIGHTS") or Path(folder, "random.pth")
        if not os.environ.get("RESNET50_WEIGHTS"):
            torch.save(resnet50().state_dict(), weights)
        backbone = helpers.load_backbone("resnet50", weights)
    model = torch.nn.Sequential(
        backbone.network, backbone.classifier
    ).eval()  # as the article's: with the classifier
    paths = [helpers.photo_path(name, IMAGES) for name in helpers.list_photos(IMAGES)[0][:count]]
    helpers.extract_embeddings(paths[:8], backbone)
    article.extract(paths[:2], model, backbone.preprocess)
    a, b, ratio = in_turn(
        lambda: article.extract(paths, model, backbone.preprocess),
        lambda: helpers.extract_embeddings(paths, backbone),
        turns,
    )
    number_format = str(backbone.fast[2]).removeprefix("torch.")
    yield row(
        f"extraction, ResNet50, {number_format} on {backbone.fast[1].type}",
        count / a,
        count / b,
        "photos/s",
        ratio,
    )
    size = torch.ones(2048, 2048, dtype=backbone.fast[2])
    size @ size
    product = (
        statistics.median(seconds(lambda: [size @ size for _ in range(4)]) for _ in range(5)) / 4
    )
    limit = (
        2 * 2048**3 / product / 8.2e9
    )  # ResNet50 takes 8.2e9 multiplications and additions a photo
    yield row(
        "  for comparison: the machine's own matrix product",
        count / a,
        limit,
        "photos/s",
        limit * a / count,
    )


def queries(vectors, turns, name):
    """A query by number, and another number of factors."""
    import torch

    backbone = helpers.load_backbone("efficientnet_lite0")
    n = len(vectors)
    photo = helpers.photo_path(helpers.list_photos(IMAGES)[0][0], IMAGES)
    catalogue = helpers.Catalogue(
        IMAGES, [f"images/{i}.jpg" for i in range(n)], torch.from_numpy(vectors), [""] * n, {}
    )
    first = seconds(lambda: helpers.nearest(0, 300, catalogue=catalogue))
    numbers = itertools.count()
    a, b, ratio = in_turn(
        lambda: article.search(photo, 300, vectors, backbone.network, backbone.preprocess),
        lambda: helpers.nearest(next(numbers), 300, catalogue=catalogue),
        turns,
    )
    yield row(f"a query by number, {name} vectors", 1000 * a, 1000 * b, "ms", ratio)
    factors = itertools.count(301)
    a, b, ratio = in_turn(
        lambda: article.build_compressed_index(300, vectors),
        lambda: helpers.build_compressed_index(next(factors), catalogue),
        turns,
    )
    yield row(f"another number of factors, {name} vectors", 1000 * a, 1000 * b, "ms", ratio)
    yield row(f"the first query of all, {name} vectors", 1000 * a, 1000 * first, "ms", a / first)


def solvers(vectors, turns):
    """scikit-learn's PCA solvers at 300 components, and ours, which takes all components."""
    from sklearn.decomposition import PCA

    def fit(solver, n):
        return lambda: PCA(n_components=n, svd_solver=solver, random_state=0).fit(vectors)

    for solver in ("auto", "full", "randomized", "arpack"):
        a, b, ratio = in_turn(fit(solver, 300), fit("covariance_eigh", min(vectors.shape)), turns)
        yield row(f"PCA fit: {solver} with 300, covariance_eigh with all", a, b, "s", ratio)


def pickles(turns):
    """Reading the shipped pickle with pickle.load and with load_embeddings."""

    def plain():
        with open(helpers.EMB_FILENAME, "rb") as f:
            pickle.load(f)

    a, b, ratio = in_turn(plain, lambda: helpers.load_embeddings(helpers.EMB_FILENAME), 3 * turns)
    yield row("reading the shipped pickle", 1000 * a, 1000 * b, "ms", ratio)


def grown(n):
    """n vectors made of the shipped ones: each of them again and again, with a little noise of
    its own.
    """
    vectors = helpers.load_embeddings(helpers.EMB_FILENAME)[1].numpy()
    rng = np.random.default_rng(0)
    return np.concatenate(
        [
            vectors + rng.normal(0, 0.05, vectors.shape).astype(np.float32)
            for _ in range(-(-n // len(vectors)))
        ]
    )[:n]


def memory(what):
    """MB of this process: "VmRSS" now, "VmHWM" the highest since forget(); 0 where the system
    does not tell (it is Linux that does).
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what)), 0)


def forget():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def one_size(what, n):
    """Run in a process of its own, so that its highest memory is its own: prints milliseconds
    and MB as JSON.
    """
    import torch

    backbone = helpers.load_backbone("efficientnet_lite0")
    names = helpers.list_photos(IMAGES)[0]
    photo = helpers.photo_path(names[0], IMAGES)
    if what == "extraction":
        paths = list(
            itertools.islice(itertools.cycle(helpers.photo_path(name, IMAGES) for name in names), n)
        )
        helpers.extract_embeddings(paths[:16], backbone)
    else:
        vectors = grown(n)
    forget()
    before = memory("VmRSS")
    if what == "extraction":
        took = [seconds(lambda: helpers.extract_embeddings(paths, backbone))]
    elif what == "article":
        took = [
            seconds(
                lambda: article.search(photo, 300, vectors, backbone.network, backbone.preprocess)
            )
            for _ in range(2)
        ]
    else:
        catalogue = helpers.Catalogue(
            IMAGES, [f"images/{i}.jpg" for i in range(n)], torch.from_numpy(vectors), [""] * n, {}
        )
        helpers.nearest(0, 300, catalogue=catalogue)
        took = [seconds(lambda: helpers.nearest(i, 300, catalogue=catalogue)) for i in range(20)]
    print(json.dumps([1000 * statistics.median(took), memory("VmHWM") - before]))


def growth(sizes, photos):
    """Time and memory at several sizes, each in a process of its own; draws
    benchmarks/growth.jpg.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    def measure(what, n):
        out = subprocess.run(
            [sys.executable, __file__, "--one-size", what, str(n)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return json.loads(out.splitlines()[-1])

    theirs, ours, extracted = (
        [measure(what, n) for n in ns]
        for what, ns in [("article", sizes), ("ours", sizes), ("extraction", photos)]
    )
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.2))
    for part, ax, unit in zip((0, 1), axes, ("ms", "MB")):
        ax.loglog(sizes, [t[part] for t in theirs], "o-", label="article")
        ax.loglog(sizes, [t[part] for t in ours], "o-", label="ours")
        ax.set_ylabel(["a query by number, ms", "memory beside the vectors, MB"][part])
        ax.set_xlabel("vectors")
        ax.legend()
    beside = [mb - n * 1280 * 4 / 2**20 for (_, mb), n in zip(extracted, photos)]
    axes[2].plot(photos, beside, "o-")
    axes[2].set_ylim(0, 1.3 * max(*beside, 1))
    axes[2].set_xlabel("photos")
    axes[2].set_ylabel("extraction: memory\nbeside the vectors, MB")
    fig.tight_layout()
    fig.savefig(HERE / "growth.jpg", dpi=80)
    for n, t, o in zip(sizes, theirs, ours):
        yield row(f"growth: a query by number at {n:,}", t[0], o[0], "ms", t[0] / o[0])
        yield row(f"growth: memory beside {n:,} vectors", t[1], o[1], "MB", t[1] / max(o[1], 0.1))
    for n, mb in zip(photos, beside):
        yield {
            "name": f"growth: extraction of {n:,} photos, memory beside the vectors",
            "article": None,
            "ours": round(mb, 1),
            "unit": "MB",
            "ratio": None,
        }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a line instead of a table"
    )
    parser.add_argument(
        "--photos", type=int, default=64, help="how many photos to extract in each turn"
    )
    parser.add_argument("--quick", action="store_true", help="one turn of each, and no growth")
    parser.add_argument("--one-size", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_size:
        return one_size(options.one_size[0], int(options.one_size[1]))
    turns = 1 if options.quick else 5
    vectors = helpers.load_embeddings(helpers.EMB_FILENAME)[1].numpy()
    parts = [
        extraction(options.photos, turns),
        queries(vectors, turns, f"{len(vectors):,}"),
        solvers(vectors, turns),
        pickles(turns),
    ]
    if not options.quick:
        parts.append(growth([1_000, 5_000, 44_000], [200, 1_600]))
    if not options.json:
        print(f"{'':62} {'article':>10} {'ours':>10}  {'':8} {'ratio':>7}")
    for line in itertools.chain(*parts):
        if options.json:
            print(json.dumps(line), flush=True)
        else:
            theirs, ratio = (
                ("-", "-")
                if line["article"] is None
                else (f"{line['article']:,.2f}", f"{line['ratio']:,.1f}")
            )
            print(
                f"{line['name']:62} {theirs:>10} {line['ours']:>10,.2f}  {line['unit']:8} {ratio:>7}",
                flush=True,
            )


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        IMAGES = helpers.get_images()
    main()
