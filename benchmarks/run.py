"""The article's code and ours, in turn, in one run: python benchmarks/run.py [--json] [--quick]

Seconds differ from machine to machine and from minute to minute, the ratios less so. Most figures
are the median of several turns, article and ours alternating. ResNet50 has random weights where
RESNET50_WEIGHTS names none: speed does not depend on them, what is said of neighbours does. The
growth is drawn in benchmarks/growth.jpg.
"""
import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import pickle
import shutil
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
import helpers  # noqa: E402
import lookalike  # noqa: E402
from lookalike import networks, photos  # noqa: E402


# ---- measuring -------------------------------------------------------------------------------
def seconds(function, *args):
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        function(*args)
    return time.perf_counter() - start


def in_turn(one, other, turns):
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
    both = zip(helpers.nearest_of_each(one, k), helpers.nearest_of_each(other, k))
    return np.mean([len(np.intersect1d(a, b)) / k for a, b in both])


# ---- photos to vectors -----------------------------------------------------------------------
def resnet50():
    from torchvision.models import resnet50
    with tempfile.TemporaryDirectory() as folder:
        weights = os.environ.get("RESNET50_WEIGHTS") or Path(folder, "random.pth")
        if not os.environ.get("RESNET50_WEIGHTS"):
            torch.save(resnet50().state_dict(), weights)
        return helpers.load_backbone("resnet50", weights)


def limit(backbone, engine):
    """Photos a second if the network were nothing but this machine's matrix product."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        side = backbone.crop(photos.Image.new("RGB", (300, 300))).width
        backbone.network(torch.zeros(1, 3, side, side))
    size = torch.ones(2048, 2048, dtype=torch.bfloat16 if "bfloat16" in engine else torch.float32)
    size @ size
    product = statistics.median(seconds(lambda: size @ size) for _ in range(9))
    return 2 * 2048 ** 3 / product / counter.get_total_flops()


def extraction(backbone, turns):
    """Files to vectors, photos a second; the share of the limit of both; the neighbours kept."""
    paths = [IMAGES / name for name in helpers.scan(IMAGES).names[:800]]
    few, many = paths[:48], paths[:networks.MANY + 20]
    engine = backbone.compiled.name
    theirs = torch.nn.Sequential(backbone.network, backbone.classifier)
    article.extract(few[:2], theirs, backbone.preprocess)
    a, b, _ = in_turn(lambda: article.extract(few, theirs, backbone.preprocess),
                      lambda: helpers.extract_embeddings(many, backbone), turns)
    a, b, most = len(few) / a, len(many) / b, limit(backbone, engine)
    yield row(f"extraction, {backbone.name}, {engine}", a, b, "photos/s", b / a)
    yield row("  the machine's own matrix product in such numbers", a, most, "photos/s", most / a)
    yield row("  share of that", a / most, b / most, "", b / a)
    fast = helpers.extract_embeddings(paths, backbone)[1]
    ready, backbone.compiled = backbone.compiled, backbone.with_torch
    plain = helpers.extract_embeddings(paths, backbone)[1]
    backbone.compiled = ready
    kept = neighbours_kept(plain.numpy(), fast.numpy())
    yield row(f"  five nearest kept of {len(paths)} photos, against torch", 1, kept, "", None)


def one_way(files, backbone):
    """(vectors, seconds, MB at the most) of an extraction."""
    forget()
    before = memory("VmRSS")
    vectors = helpers.extract_embeddings(files, backbone)[1].numpy()
    most = memory("VmHWM") - before
    return vectors, seconds(helpers.extract_embeddings, files, backbone), most


def large_photos():
    """Photos of 12 megapixels: decoded whole, and as small as the network needs."""
    backbone = helpers.load_backbone("efficientnet_lite1")
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for name in helpers.scan(IMAGES).names[:64]:
            files.append(Path(folder, Path(name).name).with_suffix(".jpg"))
            photo = helpers.pil_loader(IMAGES / name)
            photo.resize((3000, 4000), photos.Image.Resampling.LANCZOS).save(files[-1], quality=90)
        small, took, megabytes = one_way(files, backbone)
        networks.pil_loader = lambda path, small: photos.pil_loader(path)
        whole, whole_took, whole_megabytes = one_way(files, backbone)
        networks.pil_loader = photos.pil_loader
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
    return helpers.Catalogue(IMAGES, names, torch.from_numpy(vectors), [""] * len(names), {})


def queries(vectors, turns, name):
    """A query by number, and another number of factors."""
    backbone = helpers.load_backbone("efficientnet_lite1")
    photo = IMAGES / helpers.scan(IMAGES).names[0]
    catalogue = made_up(vectors)
    first = seconds(lambda: helpers.nearest(0, 300, catalogue=catalogue))
    numbers, factors = itertools.count(), itertools.count(301)
    a, b, ratio = in_turn(
        lambda: article.search(photo, 300, vectors, backbone.network, backbone.preprocess),
        lambda: helpers.nearest(next(numbers), 300, catalogue=catalogue), turns)
    yield row(f"a query by number, {name} vectors", 1000 * a, 1000 * b, "ms", ratio)
    a, b, ratio = in_turn(lambda: article.build_compressed_index(300, vectors),
                          lambda: helpers.build_compressed_index(next(factors), catalogue), turns)
    yield row(f"another number of factors, {name} vectors", 1000 * a, 1000 * b, "ms", ratio)
    yield row(f"the first query of all, {name} vectors", 1000 * a, 1000 * first, "ms", a / first)


def opening(turns):
    """Opening the shipped catalogue; reading its file with pickle.load and with ours."""
    def plain():
        with open(helpers.EMB_FILENAME, "rb") as f:
            pickle.load(f)
    a, b, ratio = in_turn(plain, lambda: helpers.load_embeddings(helpers.EMB_FILENAME), 3 * turns)
    yield row("reading the shipped embeddings, by pickle.load", 1000 * a, 1000 * b, "ms", ratio)
    took = statistics.median(seconds(helpers.open_catalogue) for _ in range(turns))
    yield row("opening the catalogue, with labels and all checks", None, 1000 * took, "ms", None)


def colour(turns, n=400):
    """A folder of photos without colour and with it: opened for the first time, and again."""
    backbone = helpers.load_backbone("efficientnet_lite1")
    backbone.engine(networks.MANY)  # compiled before the clock starts
    backbone.fingerprint = "of it no vectors are shipped"
    at_home = lookalike.home
    with tempfile.TemporaryDirectory() as folder:
        for name in helpers.scan(IMAGES).names[:n]:
            shutil.copy(IMAGES / name, folder)

        def opened_twice(weight):
            with tempfile.TemporaryDirectory() as work:
                lookalike.home = lambda: Path(work)  # an empty store
                return [seconds(helpers.open_catalogue, folder, backbone, weight)
                        for _ in range(2)]
        took = [(opened_twice(0), opened_twice(0.3)) for _ in range(turns)]
    lookalike.home = at_home
    (a, again), (b, b_again) = np.median(took, axis=0)
    yield row(f"{n} new photos: without colour, with colour", n / a, n / b, "photos/s", a / b)
    yield row("  opening them again", 1000 * again, 1000 * b_again, "ms", again / b_again)


def solvers(vectors, turns):
    """scikit-learn's PCA solvers at 300 components, and ours, which takes all components."""
    from sklearn.decomposition import PCA

    def fit(solver, n):
        return lambda: PCA(n_components=n, svd_solver=solver, random_state=0).fit(vectors)
    for solver in ("auto", "full", "randomized", "arpack"):
        a, b, ratio = in_turn(fit(solver, 300), fit("covariance_eigh", min(vectors.shape)), turns)
        yield row(f"PCA fit: {solver} with 300, covariance_eigh with all", a, b, "s", ratio)


# ---- growth ----------------------------------------------------------------------------------
def grown(n):
    """n vectors made of the shipped ones: each again and again, with a little noise of its own."""
    vectors = helpers.load_embeddings(helpers.EMB_FILENAME)[1].numpy()
    rng = np.random.default_rng(0)
    many = [vectors + rng.normal(0, 0.05, vectors.shape).astype(np.float32)
            for _ in range(-(-n // len(vectors)))]
    return np.concatenate(many)[:n]


def one_size(what, n):
    """Run in a process of its own, so that its highest memory is its own: prints ms and MB."""
    backbone = helpers.load_backbone("efficientnet_lite1")
    photo = IMAGES / helpers.scan(IMAGES).names[0]
    vectors = grown(n)
    catalogue = made_up(vectors) if what == "ours" else None
    forget()
    before = memory("VmRSS")
    if what == "article":
        search = functools.partial(article.search, photo, 300, vectors, backbone.network,
                                   backbone.preprocess)
        took = [seconds(search) for _ in range(2)]
    else:
        helpers.nearest(0, 300, catalogue=catalogue)
        took = [seconds(functools.partial(helpers.nearest, i, 300, 4, catalogue))
                for i in range(20)]
    print(json.dumps([1000 * statistics.median(took), memory("VmHWM") - before]))


def growth(sizes):
    """Time and memory at several sizes; draws benchmarks/growth.jpg."""
    import matplotlib
    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    theirs, ours = ([in_a_process_of_its_own(who, n) for n in sizes] for who in ("article", "ours"))
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.2))
    labels = ["a query by number, ms", "memory beside the vectors, MB"]
    for part, (ax, label) in enumerate(zip(axes, labels)):
        ax.loglog(sizes, [t[part] for t in theirs], "o-", label="article")
        ax.loglog(sizes, [t[part] for t in ours], "o-", label="ours")
        ax.set(xlabel="vectors", ylabel=label)
        ax.legend()
    fig.tight_layout()
    fig.savefig(HERE / "growth.jpg", dpi=80)
    for n, t, o in zip(sizes, theirs, ours):
        yield row(f"growth: a query by number at {n:,}", t[0], o[0], "ms", t[0] / o[0])
        yield row(f"growth: memory beside {n:,} vectors", t[1], o[1], "MB", t[1] / max(o[1], 0.1))


# ---- the table -------------------------------------------------------------------------------
def parts(quick):
    turns = 1 if quick else 5
    vectors = helpers.load_embeddings(helpers.EMB_FILENAME)[1].numpy()
    yield from extraction(resnet50(), turns)
    yield from extraction(helpers.load_backbone("efficientnet_lite1"), turns)
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
        IMAGES = helpers.get_images()
    main()
