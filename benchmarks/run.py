"""The article's code and ours, alternating, in one run: python benchmarks/run.py [--json] [--quick]

Seconds differ from machine to machine and from minute to minute, the ratios less so. Most figures
are the median of several turns, article and ours alternating. ResNet50 has random weights unless
RESNET50_WEIGHTS names a file: speed does not depend on them, the rows about neighbours do. The
growth is plotted in benchmarks/growth.jpg.
"""
import argparse
import contextlib
import functools
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
import torch
from torch.utils.flop_counter import FlopCounterMode

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import article  # noqa: E402
from lookalike import networks, photos, recommender  # noqa: E402
from lookalike.extraction import extract_embeddings  # noqa: E402
from lookalike.folders import get_images, photo_files  # noqa: E402
from lookalike.shipped import EMB_FILENAME, load_embeddings, shipped_vectors  # noqa: E402
from lookalike.vectors import nearest_of_each  # noqa: E402


# ---- measuring -------------------------------------------------------------------------------
def seconds(function, *args):
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function(*args)
    return time.perf_counter() - start


def alternating(one, other, turns):
    """Median seconds of each, and the median of their ratios turn by turn."""
    pairs = [(seconds(one), seconds(other)) for _ in range(turns)]
    return (*map(statistics.median, zip(*pairs)), statistics.median(a / b for a, b in pairs))


def row(name, theirs, ours, unit, ratio):
    return {"name": name, "article": theirs, "ours": ours, "unit": unit, "ratio": ratio}


def memory(what):
    """MB of this process: "VmRSS" now, "VmHWM" the highest since forget(); only Linux tells."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what)), 0)


def forget():
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def in_a_process_of_its_own(what, n):
    """What one_size(what, n) prints."""
    run = [sys.executable, __file__, "--one-size", what, str(n)]
    out = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


def neighbours_kept(one, other, k=5):
    """Of the k nearest of each by the one vectors, the share that the other vectors keep."""
    both = zip(nearest_of_each(one, k), nearest_of_each(other, k))
    return np.mean([len(np.intersect1d(a, b)) / k for a, b in both])


# ---- photos to vectors -----------------------------------------------------------------------
def resnet50():
    from torchvision.models import resnet50
    with tempfile.TemporaryDirectory() as folder:
        weights = os.environ.get("RESNET50_WEIGHTS") or Path(folder, "random.pth")
        if not os.environ.get("RESNET50_WEIGHTS"):
            torch.save(resnet50().state_dict(), weights)
        return networks.load_backbone("resnet50", weights)


def limit(backbone, engine):
    """Photos a second if the network were nothing but this machine's matrix product."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        backbone.network(torch.zeros(1, 3, backbone.crop.size, backbone.crop.size))
    size = torch.ones(2048, 2048, dtype=torch.bfloat16 if "bfloat16" in engine else torch.float32)
    size @ size
    product = statistics.median(seconds(lambda: size @ size) for _ in range(9))
    return 2 * 2048 ** 3 / product / counter.get_total_flops()


def torchvisions(backbone):
    """The network's preprocessing as the article has it, by torchvision's own steps."""
    from torchvision import transforms as T
    crop = backbone.crop
    return T.Compose([T.Resize(crop.resize, T.InterpolationMode[crop.resample.name]),
                      T.CenterCrop(crop.size), T.ToTensor(),
                      T.Normalize(backbone.mean, backbone.std)])


def extraction(backbone, turns):
    """Files to vectors, photos a second; the share of the limit of both; the neighbours kept."""
    paths = [IMAGES / name for name in photo_files(IMAGES)[:800]]
    few, many = paths[:48], paths[:320]
    engine = backbone.compiled.name
    theirs = torch.nn.Sequential(backbone.network, backbone.classifier)
    preprocess = torchvisions(backbone)
    article.extract(few[:2], theirs, preprocess)
    a, b, _ = alternating(lambda: article.extract(few, theirs, preprocess),
                      lambda: extract_embeddings(many, backbone), turns)
    a, b, most = len(few) / a, len(many) / b, limit(backbone, engine)
    yield row(f"extraction, {backbone.name}, {engine}", a, b, "photos/s", b / a)
    yield row("  the machine's own matrix product in such numbers", a, most, "photos/s", most / a)
    yield row("  share of that", a / most, b / most, "", b / a)
    fast = extract_embeddings(paths, backbone)[1]
    ready, backbone.compiled = backbone.compiled, backbone.with_torch
    plain = extract_embeddings(paths, backbone)[1]
    backbone.compiled = ready
    kept = neighbours_kept(plain.numpy(), fast.numpy())
    yield row(f"  five nearest kept of {len(paths)} photos, against torch", 1, kept, "", None)


def one_way(files, backbone):
    """(vectors, seconds, MB at the most) of an extraction."""
    forget()
    before = memory("VmRSS")
    vectors = extract_embeddings(files, backbone)[1].numpy()
    most = memory("VmHWM") - before
    return vectors, seconds(extract_embeddings, files, backbone), most


def large_photos():
    """Photos of 12 megapixels: decoded whole, and as small as the network needs."""
    backbone = networks.load_backbone("efficientnet_lite1")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name in photo_files(IMAGES)[:64]:
            files.append(Path(folder, Path(name).name).with_suffix(".jpg"))
            photo = photos.pil_loader(IMAGES / name)
            photo.resize((3000, 4000), photos.Image.Resampling.LANCZOS).save(files[-1], quality=90)
        small, took, megabytes = one_way(files, backbone)
        least, photos.SMALL = photos.SMALL, 10**6  # so that nothing is decoded small
        whole, whole_took, whole_megabytes = one_way(files, backbone)
        photos.SMALL = least
    n = len(files)
    yield row("12 megapixels: decoded whole, decoded small", n / whole_took, n / took, "photos/s",
              whole_took / took)
    yield row("12 megapixels: memory, decoded small", None, megabytes, "MB", None)
    yield row("12 megapixels: more of it, decoded whole", None, whole_megabytes, "MB", None)
    yield row(f"12 megapixels: five nearest kept of {n} photos", 1, neighbours_kept(whole, small),
              "", None)


# ---- queries ---------------------------------------------------------------------------------
def made_up(vectors):
    names = [f"images/{i}.jpg" for i in range(len(vectors))]
    nothing = [""] * len(names)
    return recommender.Catalogue(IMAGES, names, torch.from_numpy(vectors), nothing, nothing, {}, [])


def queries(vectors, turns, name):
    """A query by number, and another number of factors."""
    backbone = networks.load_backbone("efficientnet_lite1")
    photo = IMAGES / photo_files(IMAGES)[0]
    catalogue = made_up(vectors)
    first = seconds(lambda: recommender.nearest(0, 300, catalogue=catalogue))
    numbers, factors = itertools.count(), itertools.count(301)
    a, b, ratio = alternating(
        lambda: article.search(photo, 300, vectors, backbone.network, backbone.preprocess),
        lambda: recommender.nearest(next(numbers), 300, catalogue=catalogue), turns)
    yield row(f"a query by number, {name} vectors", 1000 * a, 1000 * b, "ms", ratio)
    a, b, ratio = alternating(
        lambda: article.build_compressed_index(300, vectors),
        lambda: recommender.build_compressed_index(next(factors), catalogue), turns)
    yield row(f"another number of factors, {name} vectors", 1000 * a, 1000 * b, "ms", ratio)
    yield row(f"the first query of all, {name} vectors", 1000 * a, 1000 * first, "ms", a / first)


def opening(turns):
    """Opening the shipped catalogue; reading its file with pickle.load and with ours."""
    def plain():
        with open(EMB_FILENAME, "rb") as f:
            pickle.load(f)

    def opened():
        shipped_vectors.cache_clear()
        recommender.open_catalogue()
    a, b, ratio = alternating(plain, load_embeddings, 3 * turns)
    yield row("reading the shipped embeddings, by pickle.load", 1000 * a, 1000 * b, "ms", ratio)
    took = statistics.median(seconds(opened) for _ in range(turns))
    yield row("opening the catalogue again, with labels and all checks", None, 1000 * took, "ms",
              None)


def colour(turns):
    """A query by the factors alone, and with colour; another weight of colour."""
    catalogue = recommender.open_catalogue()
    catalogue.nearest(0, 300, colour=0.5)  # the colours are read or made before the clock starts
    numbers, weights = itertools.count(), itertools.count(1)
    a, b, ratio = alternating(lambda: catalogue.nearest(next(numbers), 300),
                              lambda: catalogue.nearest(next(numbers), 300, colour=0.5), turns)
    yield row("a query right after another setting: by factors, with colour", 1000 * a, 1000 * b,
              "ms", ratio)
    took = statistics.median(seconds(lambda: catalogue.nearest(0, 300, colour=next(weights) / 100))
                             for _ in range(3 * turns))
    yield row("another weight of colour", None, 1000 * took, "ms", None)


def solvers(vectors, turns):
    """scikit-learn's PCA solvers at 300 components, and ours, which takes all components."""
    from sklearn.decomposition import PCA

    def fit(solver, n):
        return lambda: PCA(n_components=n, svd_solver=solver, random_state=0).fit(vectors)
    for solver in ("auto", "full", "randomized", "arpack"):
        a, b, ratio = alternating(fit(solver, 300), fit("covariance_eigh", min(vectors.shape)),
                                  turns)
        yield row(f"PCA fit: {solver} with 300, covariance_eigh with all", a, b, "s", ratio)


# ---- growth ----------------------------------------------------------------------------------
def grown(n):
    """n vectors made of the shipped ones: each again and again, with a little noise of its own."""
    vectors = load_embeddings()[1].numpy()
    rng = np.random.default_rng(0)
    many = [vectors + rng.normal(0, 0.05, vectors.shape).astype(np.float32)
            for _ in range(-(-n // len(vectors)))]
    return np.concatenate(many)[:n]


def one_size(what, n):
    """Run in a process of its own, so that its highest memory is its own: prints ms and MB."""
    backbone = networks.load_backbone("efficientnet_lite1")
    photo = IMAGES / photo_files(IMAGES)[0]
    vectors = grown(n)
    catalogue = made_up(vectors) if what == "ours" else None
    forget()
    before = memory("VmRSS")
    if what == "article":
        search = functools.partial(article.search, photo, 300, vectors, backbone.network,
                                   backbone.preprocess)
        took = [seconds(search) for _ in range(2)]
    else:
        recommender.nearest(0, 300, catalogue=catalogue)
        took = [seconds(functools.partial(recommender.nearest, i, 300, 4, catalogue))
                for i in range(20)]
    print(json.dumps([1000 * statistics.median(took), memory("VmHWM") - before]))


def growth(sizes):
    """Time and memory at several sizes; plots benchmarks/growth.jpg."""
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    theirs, ours = ([in_a_process_of_its_own(who, n) for n in sizes] for who in ("article", "ours"))
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    labels = ["a query by number, ms", "memory besides the vectors, MB"]
    for part, (ax, label) in enumerate(zip(axes, labels)):
        ax.loglog(sizes, [t[part] for t in theirs], "o-", label="article")
        ax.loglog(sizes, [t[part] for t in ours], "o-", label="ours")
        ax.set(xlabel="vectors", ylabel=label)
        ax.legend()
    fig.tight_layout()
    fig.savefig(HERE / "growth.jpg", dpi=80)
    for n, t, o in zip(sizes, theirs, ours):
        yield row(f"growth: a query by number at {n:,}", t[0], o[0], "ms", t[0] / o[0])
        yield row(f"growth: memory besides {n:,} vectors", t[1], o[1], "MB", t[1] / max(o[1], 0.1))


# ---- the table -------------------------------------------------------------------------------
def parts(quick):
    turns = 1 if quick else 5
    vectors = load_embeddings()[1].numpy()
    yield from extraction(resnet50(), turns)
    yield from extraction(networks.load_backbone("efficientnet_lite1"), turns)
    yield from large_photos()
    yield from queries(vectors, turns, f"{len(vectors):,}")
    yield from opening(turns)
    yield from colour(turns)
    yield from solvers(vectors, turns)
    if not quick:
        yield from growth([1_000, 5_000, 44_000])


def cell(value, digits=2):
    return "-" if value is None else f"{value:,.{digits}f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line, not a table")
    parser.add_argument("--quick", action="store_true", help="one turn of each, and no growth")
    parser.add_argument("--one-size", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_size:
        return one_size(options.one_size[0], int(options.one_size[1]))
    if not options.json:
        print(f"{'':62} {'article':>10} {'ours':>10}  {'':8} {'ratio':>7}")
    rows, said = parts(options.quick), io.StringIO()
    while True:
        with contextlib.redirect_stdout(said):  # progress bars
            line = next(rows, None)
        if line is None:
            return None
        if options.json:
            print(json.dumps(line), flush=True)
        else:
            print(f"{line['name']:62} {cell(line['article']):>10} {cell(line['ours']):>10}  "
                  f"{line['unit']:8} {cell(line['ratio'], 1):>7}", flush=True)


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        IMAGES = get_images()
    main()
