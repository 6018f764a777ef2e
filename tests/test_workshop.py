"""The workshop: check.py, the offline kit, the slides, the 90 minutes; and README's own lines."""
import ast
import base64
import io
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from PIL import Image

from lookalike.common import HERE
from lookalike.photos import photo_hash

sys.path.insert(0, str(HERE / "workshop"))
import check  # noqa: E402
import offline_kit  # noqa: E402
import slides  # noqa: E402


@pytest.fixture(autouse=True)
def nothing_to_fix(monkeypatch):
    monkeypatch.setattr(check, "to_fix", [])


# ---- run this before you come ----------------------------------------------------------------
def test_the_check_starts_on_an_old_python(monkeypatch, capsys):
    ast.parse((HERE / "workshop" / "check.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    assert not check.check_python()
    assert "FIX     Python                3.10.4" in capsys.readouterr().out
    assert check.to_fix[0].startswith("Python 3.10.4 is too old: install 3.12")
    monkeypatch.setattr(sys, "version_info", (3, 15, 0))
    assert not check.check_python() and "3.15.0 is too new" in check.to_fix[1]


@pytest.mark.parametrize(("system", "built_for", "machine", "macos", "words"), [
    ("win32", "win-amd64", "ARM64", "", ""),  # its own Python for ARM would be win-arm64
    ("win32", "win-arm64", "ARM64", "", r"built for win-arm64, .*installer \(64-bit\)"),
    ("win32", "win32", "AMD64", "", r"built for win32, .*installer \(64-bit\)"),
    ("darwin", "macosx-11.0-universal2", "arm64", "15.1", ""),
    ("darwin", "macosx-11.0-arm64", "arm64", "13.6.1", "torch needs macOS 14, .* 13.6.1:"),
    ("darwin", "macosx-10.13-universal2", "x86_64", "14.5", "Macs with an Intel .*neighbour"),
])
def test_machines_that_torch_is_not_made_for(monkeypatch, system, built_for, machine, macos, words):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(check.sysconfig, "get_platform", lambda: built_for)
    monkeypatch.setattr(check.platform, "machine", lambda: machine)
    monkeypatch.setattr(check.platform, "mac_ver", lambda: (macos, ("", "", ""), machine))
    assert check.check_python() == (not words)
    assert re.search(words, check.to_fix[0]) if words else check.to_fix == []


def test_the_check_needs_nothing_installed():
    """-S: without the site-packages."""
    ran = subprocess.run([sys.executable, "-S", HERE / "workshop" / "check.py"],
                         capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr == ""
    assert ran.stdout.splitlines()[-1].startswith("- Missing: torch, torchvision, faiss-cpu,")


def test_one_package_is_missing_and_one_does_not_fit(monkeypatch, tmp_path):
    (tmp_path / "requirements.txt").write_text("numpy>=1\nfaiss-cpu-of-mars>=1\ntqdm>=99\n")
    monkeypatch.setattr(check, "HERE", tmp_path)
    assert not check.check_packages()
    missing, broken = check.to_fix
    assert missing.startswith("Missing: faiss-cpu-of-mars. ")
    assert re.match(r"Not working: tqdm \(4\.\S+, but the tutorial needs >=99\)\. ", broken)


def test_without_photos_drawn_garments_will_do(home, monkeypatch, capsys):
    monkeypatch.setattr(check, "HERE", home)
    check.check_photos()
    assert check.to_fix == [] and list(home.iterdir()) == [], "downloads and leaves nothing"
    assert "drawing garments works (14 drawn)" in capsys.readouterr().out
    assert f"in {home}: " in check.hints[-1] and "all notebooks run" in check.hints[-1]
    monkeypatch.setenv("FASHION_IMAGES", "/no/such/folder")
    check.check_photos()
    assert check.to_fix[0].startswith("FASHION_IMAGES is /no/such/folder, which is not a folder")


def test_photos_without_their_table_and_other_photos(home, photos, monkeypatch, capsys):
    known = photo_hash(photos / "hat-00.jpg")
    monkeypatch.setattr("lookalike.shipped.shipped_vectors", lambda: {known: b""})
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    check.check_photos()
    assert "than the tutorial's" in check.to_fix[0] and "your_own_photos.ipynb" in check.to_fix[0]
    (home / "images").mkdir()
    monkeypatch.setenv("FASHION_IMAGES", str(home / "images"))
    (home / "images" / "hat-00.jpg").write_bytes((photos / "hat-00.jpg").read_bytes())
    check.check_photos()
    assert check.to_fix.pop() == "images/ came without labels: copy images.csv into this folder."
    (home / "images.csv").write_text("image,label\nhat-00,Hat\n")
    check.check_photos()
    assert len(check.to_fix) == 1 and "1 in images/, 1 with a label" in capsys.readouterr().out
    monkeypatch.setattr("lookalike.shipped.shipped_vectors", lambda: {known: b"", b"gone": b""})
    check.check_photos()
    assert check.to_fix.pop().startswith("1 of the tutorial's 2 photos are not in images/: copy")


def test_all_is_well_but_for_other_embeddings_than_ours(tmp_path, monkeypatch, capsys):
    assert check.check_python() and check.check_packages()
    check.check_machine()
    check.check_search()
    assert check.to_fix == [] and "1352, 1334, 4886, 3334" in capsys.readouterr().out
    (tmp_path / "mine.pickle").write_bytes(b"no embeddings")
    monkeypatch.setattr("lookalike.shipped.EMB_FILENAME", tmp_path / "mine.pickle")
    check.check_search()
    assert check.to_fix[0].startswith("mine.pickle was not loaded")


# ---- the offline kit -------------------------------------------------------------------------
def test_the_offline_kit(home, photos, tmp_path_factory, monkeypatch, capsys):
    target, ran = tmp_path_factory.mktemp("kit"), []
    monkeypatch.setattr(offline_kit.subprocess, "run", lambda command, **_: ran.append(command))
    monkeypatch.setattr(offline_kit.importlib.util, "find_spec", lambda name: name == "uv")
    monkeypatch.setenv("FASHION_IMAGES", str(photos))
    monkeypatch.setattr(sys, "argv", ["offline_kit.py", str(target), "--system", "windows",
                                      "--python", "3.12"])
    with pytest.raises(SystemExit, match="other photos than the tutorial's: unset FASHION_IMAGES"):
        offline_kit.main()
    known = {photo_hash(photo): b"" for photo in photos.glob("*.jpg")}
    monkeypatch.setattr("lookalike.shipped.shipped_vectors", lambda: known)
    offline_kit.main()
    versions, command = ran
    assert versions[1:5] == ["-m", "uv", "pip", "compile"] and "windows" in versions
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"win_amd64", versions[-1], "--no-deps"} <= {*command}
    assert all(one[one.index("--python-version") + 1] == "3.12" for one in ran)
    tutorial = target / "tutorial"
    for file in ("helpers.py", "notebooks/00_the_article.ipynb", "images/images.csv",
                 "lookalike/recommendations.html", "workshop/slides.md"):
        assert (tutorial / file).is_file(), file
    assert not (tutorial / ".git").exists() and not (tutorial / ".venv").exists()
    page = (target / "START-windows.md").read_text(encoding="utf-8")
    assert 'pip install --no-index --find-links "..\\wheels" -r requirements.txt' in page
    assert "py -3.12 -m venv .venv" in page


@pytest.mark.parametrize("arguments, words", [
    ([HERE / "kit"], "name a folder outside"), (["file"], "name an empty or a new folder"),
    (["s", "--system", "windows"], "-m pip install uv"),
    (["s", "--python", "3.9"], "for Python 3.9, name the system as well"),
    (["s"], "could not be downloaded, see above: run this again with an internet")])
def test_kits_that_cannot_be_made(monkeypatch, capsys, tmp_path, arguments, words):
    def fails(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(offline_kit.subprocess, "run", fails)
    monkeypatch.setattr(offline_kit.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(offline_kit, "tutorials_photos", lambda: None)
    monkeypatch.setattr(sys, "argv", ["offline_kit.py", *map(str, arguments)])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as error:
        offline_kit.main()
    assert words in f"{error.value}{capsys.readouterr().err}"
    assert not (HERE / "kit").exists()


def test_the_table_comes_along_and_drawn_garments_are_told(home, tmp_path):
    (home / "mine").mkdir()
    (home / "images.csv").write_text("image,label\na,Hat\n")
    assert offline_kit.copy_photos(home / "mine", tmp_path) == ""
    assert [p.name for p in (tmp_path / "images").iterdir()] == ["images.csv"]
    (tmp_path / "drawn_images").mkdir()
    assert "NOT THE PHOTOS" in offline_kit.copy_photos(tmp_path / "drawn_images",
                                                       tmp_path / "tutorial")
    assert [p.name for p in (tmp_path / "tutorial").iterdir()] == ["drawn_images"]


# ---- slides ----------------------------------------------------------------------------------
def test_slides_of_the_saved_notebooks(tmp_path):
    slides.write_slides(tmp_path / "slides.html")
    page = (tmp_path / "slides.html").read_text(encoding="utf-8")
    shown = [show for show, *_ in slides.deck()]
    assert page.count("<section") == len(shown) and page.count('class="now"') == shown.count("")
    assert page.count("<h1>Now you: ") == shown.count(""), "a slide that shows nothing"
    assert page.count("data:image/svg+xml;base64,") == sum(one[:8] == "roadmap/" for one in shown)
    assert "def search(query, factors):" in page and "[ 1. 32.  1.]" in page
    assert re.findall(r"<td>(the query|distance [\d.]+)", page) == [
        "the query", "distance 58.5", "distance 257.9"]
    assert not re.search(r'(?:src|href)="(?!data:|#)|url\(|@import', page), "no internet"
    assert not re.search(r'<img (?!alt="[^"]{8})', page), "an alternative text is missing"


@pytest.mark.slow
def test_crisp_slides_run_down_to_the_last_one(tmp_path, monkeypatch):
    monkeypatch.setattr(slides, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(slides, "deck", lambda: [("01", "", "")])
    draws = "import matplotlib.pyplot as plt\nplt.figure(figsize=(4, 3)).add_axes([0, 0, 1, 1]);"
    nbformat.write(nbformat.v4.new_notebook(cells=[
        nbformat.v4.new_code_cell(f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport helpers"),
        nbformat.v4.new_code_cell(draws, metadata={"tags": ["slide"]}),
        nbformat.v4.new_code_cell("raise SystemError('no slide comes after this')")]),
        tmp_path / "01_.ipynb")
    (picture,) = slides.tagged(crisp=True)["01"]
    content = base64.b64decode(picture.partition("base64,")[2])
    assert Image.open(io.BytesIO(content)).width > 750


def test_copies_for_a_class(tmp_path):
    slides.write_class(tmp_path / "class")
    copies = sorted((tmp_path / "class").glob("*.ipynb"))
    for path, saved in zip(copies, sorted((HERE / "notebooks").glob("*.ipynb")), strict=True):
        cells, answers = nbformat.read(path, 4).cells, nbformat.read(saved, 4).cells
        assert [one.source for one in cells] == [one.source for one in answers]
        assert not any(one.get("outputs") or one.get("execution_count") for one in cells)
        for link in re.findall(r"\]\((?!http)([\w./]+)", "".join(one.source for one in cells)):
            assert (tmp_path / "class" / link).exists() or link.startswith("../"), link
    nbformat.write(nbformat.v4.new_notebook(), copies[0])  # somebody has worked in it
    slides.write_class(tmp_path / "class")
    assert len(list((tmp_path / "class").glob("*.ipynb"))) == len(copies) + 1
    (before,) = (tmp_path / "class").glob("*-before.ipynb")
    assert nbformat.read(before, 4).cells == []


# ---- the 90 minutes --------------------------------------------------------------------------
SHEET = (HERE / "workshop" / "README.md").read_text(encoding="utf-8")


def test_jump_marks_lead_to_headings():
    marks = re.findall(r"\]\(\.\./notebooks/(\w+\.ipynb)#(\S+)\)", SHEET)
    assert len(marks) > 20
    for name, mark in marks:
        text = "\n".join(cell.source for cell in nbformat.read(HERE / "notebooks" / name, 4).cells
                         if cell.cell_type == "markdown")
        headings = re.findall(r"^#+ (.*)$", text, re.M)
        assert mark in [one.replace("`", "").replace(" ", "-") for one in headings], (name, mark)


def test_the_minutes_add_up():
    blocks = re.findall(r"^### (\d+) to (\d+): .*$((?:\n(?!#).*)*)", SHEET, re.M)
    assert [(int(start), int(end)) for start, end, _ in blocks] == [
        (0, 10), (10, 30), (30, 45), (45, 55), (55, 70), (70, 90)]
    for start, end, text in blocks:
        minutes = sum(map(int, re.findall(r"\((\d+) min\)", text)))
        assert minutes == int(end) - int(start), f"{start} to {end}: {minutes} minutes are planned"
        assert len(re.findall(r"- \*\*(Show|Ask|Common|Run|Exercise|If late)", text)) == 6, start


@pytest.mark.slow
def test_all_notebooks_as_html(tmp_path):
    slides.write_html(tmp_path / "html")
    pages = {path.name: path.read_text(encoding="utf-8")
             for path in (tmp_path / "html").glob("*.html")}
    assert len(pages) == len(list((HERE / "notebooks").glob("*.ipynb")))
    first = pages["01_feature_extraction.html"]
    assert 'href="02_pca_compression.html"' in first and '<script src="http' not in first
    assert "data:image/svg+xml;base64" in first, "the road map is inside"
    assert not any(slides.NO_ALT in page for page in pages.values())


# ---- README ----------------------------------------------------------------------------------
def test_readmes_lines_run(known, photos, tmp_path, monkeypatch):
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    lines = re.search(r"## In your own code.*?```python\n(.*?)```", readme, re.S)[1]
    folder = shutil.copytree(photos, tmp_path / "my photos")
    monkeypatch.chdir(tmp_path)
    exec(lines.replace("jacket", "my photos/new-00"), {})
    assert (folder / "recommendations.csv").is_file()
