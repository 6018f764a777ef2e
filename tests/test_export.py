"""The table and the page to take home, the page in a real browser where one is installed."""
import csv
import html
import json
import os
import re
import shutil
import subprocess

import pytest
from PIL import Image

from lookalike.export import save_recommendations
from lookalike.recommender import nearest, open_catalogue

NAMES = ['"quoted".jpg', "=1+1.jpg", "<b>&amp;.jpg", "50%25 #1?.jpg", "Платье.jpg", "it's.jpg",
         "@home.jpg", "sub/a:b.jpg"]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
PROBE = """<script>
addEventListener("load", async () => {
  const all = words => [...document.querySelectorAll(words)];
  const alts = words => all(words + " img").map(img => img.alt);
  const broken = async () => {
    const images = all("img");
    for (const img of images) img.loading = "eager";
    const waited = img => img.complete || new Promise(done => img.onload = img.onerror = done);
    await Promise.all(images.map(waited));
    return images.filter(img => !img.naturalWidth).map(img => img.alt);
  };
  const seen = {title: document.title, query: alts("#query"), near: alts("#near"),
                all: alts("#all"), broken: await broken(), bold: all("b").length,
                sources: all("img").map(img => img.getAttribute("src").slice(0, 50))};
  const moved = new Promise(done => addEventListener("hashchange", () => setTimeout(done)));
  document.querySelector("#near a").click();
  await moved;
  seen.next = alts("#query").concat(alts("#near"));
  seen.focus = document.activeElement.id;
  seen.weights = all("input[name=weight]").map(button => button.value);
  all("input[name=weight]")[2].click();
  seen.coloured = alts("#near");
  document.getElementById("words").value = "плать";
  document.getElementById("words").dispatchEvent(new Event("input"));
  seen.found = alts("#all");
  const unnamed = all("input").filter(input => !input.labels.length);
  seen.unnamed = unnamed.length + all("img:not([alt])").length;
  document.body.append(Object.assign(document.createElement("pre"),
                                     {id: "seen", textContent: JSON.stringify(seen)}));
});
</script>"""


@pytest.fixture
def odd(known, photos, home):
    """Eight photos with odd names in two folders, and a second copy of the first."""
    if os.name == "nt":
        pytest.skip("Windows allows no such names")
    folder = home / "my 100% photos #1"
    (folder / "sub").mkdir(parents=True)
    for path, name in zip(sorted(photos.glob("*-0*.jpg")), NAMES):
        shutil.copy(path, folder / name)
    shutil.copy(folder / NAMES[0], folder / "-copy.jpg")
    return folder


def rows(table):
    """What a spreadsheet program makes of a table, without its first line."""
    assert table.read_bytes().startswith(b"\xef\xbb\xbf"), "or Excel takes it for Latin letters"
    with open(table, encoding="utf-8-sig", newline="") as file:
        first, *others = csv.reader(file)
    assert first == ["photo", "rank", "neighbour", "squared distance"]
    return others


def in_browser(page, start=""):
    """What a reader sees and clicks in the page; `start` goes behind its address."""
    probed = page.with_name("probed.html")
    probed.write_text(page.read_text(encoding="utf-8") + PROBE, encoding="utf-8")
    profile = page.with_name(".profile")
    dom = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={profile}", "--virtual-time-budget=10000",
         "--dump-dom", probed.as_uri() + start], capture_output=True, timeout=120).stdout.decode()
    shutil.rmtree(profile, ignore_errors=True)
    probed.unlink()
    return json.loads(html.unescape(re.search('<pre id="seen">(.*?)</pre>', dom, re.S)[1]))


# ---- the table -------------------------------------------------------------------------------
def test_the_table_has_a_block_for_each_file(odd):
    mine = open_catalogue(odd)
    table, page = save_recommendations(mine, 5, k=3)
    assert table == odd / "recommendations.csv" and page == odd / "recommendations.html"
    files = {name: name for name in mine.img_names} | mine.copies
    assert len(files) == 9 and len(mine.copies) == 1
    expected = []
    for path, name in sorted(files.items()):
        for rank, one in enumerate(nearest(mine.img_names.index(name), 5, 3, mine), 1):
            expected.append([path, str(rank), one.name, f"{one.distance:.6g}"])
    assert [[row[0].lstrip("'"), row[1], row[2].lstrip("'"), row[3]]
            for row in rows(table)] == expected


def test_no_name_is_a_formula(odd):
    cells = [cell for row in rows(save_recommendations(open_catalogue(odd))[0]) for cell in row]
    assert {"'=1+1.jpg", "'@home.jpg", "'-copy.jpg"} & {*cells} and "it's.jpg" in cells
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))]


def test_neighbours_are_of_other_groups(odd):
    mine = open_catalogue(odd, groups=lambda name: "AB"[name.startswith("sub/") or "'" in name])
    table = rows(save_recommendations(mine)[0])
    pairs = [(row[0].lstrip("'"), row[2].lstrip("'")) for row in table]
    group = dict(zip(mine.img_names, mine.groups)) | {"-copy.jpg": "A"}
    assert len(pairs) == 9 and all(group[one] != group[other] for one, other in pairs)


# ---- whole or not at all ---------------------------------------------------------------------
def test_a_call_that_fails_leaves_both_files_as_they_were(odd):
    mine = open_catalogue(odd)
    before = [path.read_bytes() for path in save_recommendations(mine, 5)]
    files = sorted(os.listdir(odd))
    with pytest.raises(ValueError):
        save_recommendations(mine, 5, k=0)
    with pytest.raises(ValueError):
        save_recommendations(mine, 5, colour="red")
    assert sorted(os.listdir(odd)) == files
    assert [(odd / f"recommendations.{end}").read_bytes() for end in ("csv", "html")] == before


@pytest.mark.parametrize("taken", ["a file", "a file/in it", "locked"])
def test_where_nothing_may_be_written_another_place_is_asked_for(odd, taken):
    mine, place = open_catalogue(odd), odd.parent / taken
    (odd.parent / "a file").touch()
    (odd.parent / "locked" / "recommendations.csv").mkdir(parents=True)  # cannot be replaced
    with pytest.raises(OSError, match=r"cannot be written to .*another place.*folder="):
        save_recommendations(mine, folder=place)
    assert os.listdir(odd.parent / "locked") == ["recommendations.csv"]


# ---- the page --------------------------------------------------------------------------------
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_the_page_in_a_browser(odd):
    mine = open_catalogue(odd, labels={name: "</script><b>$5" for name in NAMES[:2]})
    page = save_recommendations(mine, 5, 0.2, k=3)[1]
    seen = in_browser(page, "#2")

    def alts(numbers):
        return [", ".join(filter(None, (mine.labels[i], mine.img_names[i]))) for i in numbers]

    def near(i, weight):
        return [one.index for one in nearest(i, 5, 3, mine, colour=weight)]

    first = near(2, 0.2)
    assert seen["title"] == f"Photos that look alike: {odd.name}" and seen["bold"] == 0
    assert seen["broken"] == [] and seen["unnamed"] == 0
    assert (seen["query"], seen["near"], seen["all"]) == (alts([2]), alts(first), alts(range(8)))
    assert seen["next"] == alts([first[0], *near(first[0], 0.2)]) and seen["focus"] == "title"
    assert seen["weights"] == ["0", "0.2", "0.5", "1"]
    assert seen["coloured"] == alts(near(first[0], 0.5))
    assert seen["found"] == alts([mine.img_names.index("Платье.jpg")])
    assert "http" not in page.read_text(encoding="utf-8"), "the page asks no server"


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_a_page_in_another_folder_finds_the_photos(odd):
    Image.open(odd / NAMES[3]).save(odd / "iphone.heic")
    Image.open(odd / NAMES[4]).save(odd / "scan.jpg", "TIFF")
    page = save_recommendations(open_catalogue(odd), folder=odd.parent / "new" / "place")[1]
    seen = in_browser(page)
    assert len(seen["all"]) == 10 and seen["broken"] == []
    small = [source for source in seen["sources"] if source.startswith("data:image/jpeg;base64,")]
    assert len(small) >= 2
    assert all(source.startswith("../../my%20100%25%20photos%20%231/")
               for source in seen["sources"] if source not in small)
