"""Make a kit for machines without internet: python workshop/offline_kit.py /media/usb-drive

The kit holds wheels for one system and Python, this repository, the photos with their table, and a
page with the two commands to run. Run this with an internet connection: it downloads what is
missing.
"""
import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE))
CPU_TORCH = "https://download.pytorch.org/whl/cpu"  # PyPI's for Linux needs 5 GB, with CUDA
SYSTEMS = {  # uv's name for each, and the names that pip gives its wheels
    "this": None,
    "linux": ("x86_64-manylinux_2_28", ["manylinux_2_28_x86_64", "manylinux_2_27_x86_64",
                                        "manylinux_2_17_x86_64", "manylinux2014_x86_64"]),
    "windows": ("windows", ["win_amd64"]),
    "macos-arm": ("aarch64-apple-darwin", ["macosx_14_0_arm64", "macosx_12_0_arm64",
                                           "macosx_11_0_arm64"]),
}
LEAVE_OUT = shutil.ignore_patterns(".git", ".venv", "venv", "env", ".env", "embeddings", "images",
                                   "drawn_images", "t-shirt.jpg", "recommendations", "__pycache__",
                                   ".*_cache", ".ipynb_checkpoints", "html", "slides.html",
                                   "[0-9]*.html", "your_own_photos.html")
PAGE = """# Without internet

Copy the folders `tutorial` and `wheels` next to each other on your machine. Open a terminal in the
copy of `tutorial`, and run two commands. (To leave `wheels` on the drive, write its path in the
second command.) The wheels are for {system}, Python {version}: `{python} --version` must
print {version}.

    {python} -m venv .venv
    {pip} install --no-index --find-links "{wheels}" -r requirements.txt

Then `{check}` checks the machine, and this opens JupyterLab:

    {lab}
"""


def wheels(target, system, version, torch_index):
    """Download all packages for that system as wheels, so that nothing has to be built.

    pip applies "only on Windows" to the machine that pip runs on, so uv lists what another system
    needs. Source: docs.astral.sh/uv/pip/compile.
    """
    needed = str(HERE / "requirements.txt")
    index = ["--extra-index-url", torch_index] if torch_index else []
    download = [sys.executable, "-m", "pip", "download", "--dest", str(target), *index]
    if system == "this":
        subprocess.run([*download, "--requirement", needed], check=True)
        return
    platform, names = SYSTEMS[system]
    target.mkdir(exist_ok=True)
    versions = str(target / "versions.txt")
    subprocess.run([sys.executable, "-m", "uv", "pip", "compile", "--quiet", needed, *index,
                    "--python-platform", platform, "--python-version", version,
                    "--index-strategy", "unsafe-best-match", "--output-file", versions],
                   check=True, env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"})  # torch's
    subprocess.run([*download, "--requirement", versions, "--no-deps", "--only-binary=:all:",
                    "--python-version", version, "--implementation", "cp",
                    *[word for name in names for word in ("--platform", name)]], check=True)


def tutorials_photos():
    """Find the tutorial's photos or the drawn garments; end for a folder of other photos."""
    from lookalike import folders, photos, shipped
    try:
        images = folders.get_images()
        files = folders.photo_files(images)
    except OSError as error:
        sys.exit(str(error))
    some = [photos.photo_hash(images / one) for one in files[::50]]
    if images.name != "drawn_images" and not shipped.of_the_tutorial(some):
        sys.exit(f"{images.name}/ holds other photos than the tutorial's: unset FASHION_IMAGES")
    return images


def copy_photos(images, tutorial):
    """Copy the photos, with their table inside, or else the drawn garments, under their name."""
    from lookalike import folders
    drawn = images.name == "drawn_images"
    target = tutorial / ("drawn_images" if drawn else "images")
    shutil.copytree(images, target, dirs_exist_ok=True)
    for name in folders.TABLES:
        if (images.parent / name).is_file() and not (target / name).exists():
            shutil.copy(images.parent / name, target)
    return "It holds drawn garments, NOT THE PHOTOS: run this again with an internet connection. " \
        if drawn else ""


def page(target, system, version):
    """Write the page with the two commands, one for each system; return its name."""
    windows = system == "windows" or system == "this" and sys.platform == "win32"
    bin_ = ".venv\\Scripts\\" if windows else ".venv/bin/"
    python = f"py -{version}" if windows else f"python{version}"
    start = target / ("START.md" if system == "this" else f"START-{system}.md")
    start.write_text(PAGE.format(
        system=sys.platform if system == "this" else system, version=version, python=python,
        pip=f"{bin_}python -m pip", wheels="..\\wheels" if windows else "../wheels",
        check=f"{bin_}python workshop/check.py", lab=f"{bin_}jupyter lab --LabApp.default_url="
        f"/lab/tree/{'class' if (HERE / 'class').is_dir() else 'notebooks'}/"
        "01_feature_extraction.ipynb"), encoding="utf-8")
    return start.name


def main():
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    ask = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    ask.add_argument("folder", type=Path)
    ask.add_argument("--system", choices=SYSTEMS, default="this")
    ask.add_argument("--python", default=here, metavar="3.12", help="the Python on those machines")
    ask.add_argument("--torch-index", default=None, metavar="URL",
                     help=f"where torch without CUDA is: for Linux {CPU_TORCH}; '' for PyPI's")
    given = ask.parse_args()
    if given.system == "this" and given.python != here:
        ask.error(f"for Python {given.python}, name the system as well: --system linux")
    if given.system != "this" and importlib.util.find_spec("uv") is None:
        ask.error(f"a kit for another system needs uv: run {sys.executable} -m pip install uv")
    if given.folder.resolve().is_relative_to(HERE):
        ask.error(f"{given.folder} is inside the tutorial, which would be copied into itself: name "
                  "a folder outside")
    if given.folder.exists() and not given.folder.is_dir() or \
            (given.folder / "tutorial").resolve() == HERE:
        ask.error(f"{given.folder} cannot hold the kit: name an empty or a new folder")
    images = tutorials_photos()
    linux = given.system == "linux" or given.system == "this" and sys.platform == "linux"
    index = given.torch_index if given.torch_index is not None else CPU_TORCH if linux else ""
    given.folder.mkdir(parents=True, exist_ok=True)
    try:
        wheels(given.folder / "wheels", given.system, given.python, index)
    except subprocess.CalledProcessError:  # pip or uv has printed why
        sys.exit("The packages could not be downloaded, see above: run this again with an internet "
                 "connection, for a Python from 3.11 to 3.14")
    shutil.copytree(HERE, given.folder / "tutorial", ignore=LEAVE_OUT, dirs_exist_ok=True)
    instead = copy_photos(images, given.folder / "tutorial")
    start = page(given.folder, given.system, given.python)
    size = sum(file.stat().st_size for file in given.folder.rglob("*") if file.is_file())
    print(f"{given.folder}: {size / 1e9:.1f} GB. {instead}Read its {start}, and "
          "install from it once yourself")


if __name__ == "__main__":
    main()
