"""One photo: a file to an upright RGB image, or a sentence that says why not."""
import errno
import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from lookalike.photos import BadPhoto, photo_bytes, photo_hash, pil_loader, read_photo
from lookalike.query import find


@pytest.fixture
def gradient():
    """200x100: dark on the left, light on the right; red at the top, blue below."""
    ramp = np.tile(np.linspace(0, 255, 200, dtype=np.uint8), (100, 1))
    return Image.merge("RGB", [Image.fromarray(a) for a in (ramp, ramp // 2, np.flipud(ramp))])


def loaded(image, path, **options):
    image.save(path, **options)
    result = pil_loader(path)
    assert result.mode == "RGB" and result.filename == str(path)
    return np.asarray(result, int)


def near(pixel, colour, most=4):
    return np.abs(np.subtract(pixel, colour)).max() <= most


# ---- what files there are --------------------------------------------------------------------
@pytest.mark.parametrize("name, mode, kind", [
    ("a.jpg", "RGB", None), ("a.png", "RGB", None), ("a.webp", "RGB", None), ("a.gif", "RGB", None),
    ("a.bmp", "RGB", None), ("a.tiff", "RGB", None), ("a.heic", "RGB", "HEIF"),
    ("a.avif", "RGB", None), ("a.jfif", "RGB", None), ("рубашка в полоску.jpg", "RGB", None),
    ("a.jpg", "CMYK", None), ("a.png", "L", None), ("a.tiff", "L", None)])
def test_all_that_cameras_phones_and_browsers_save(gradient, tmp_path, name, mode, kind):
    expected = np.asarray(gradient.convert("L" if mode == "L" else "RGB").convert("RGB"), int)
    assert abs(loaded(gradient.convert(mode), tmp_path / name, format=kind) - expected).mean() < 12


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bits_become_the_upper_8(tmp_path, name):
    values = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
    assert (loaded(Image.fromarray(values), tmp_path / name) == (values >> 8)[..., None]).all()


def test_transparent_ground_becomes_white(tmp_path):
    assert (loaded(Image.new("RGBA", (20, 20), (10, 20, 30, 0)), tmp_path / "a.png") == 255).all()
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 200, 10, 10])
    assert (loaded(image, tmp_path / "b.png", transparency=0) == 255).all()


def test_16_bit_grey_with_a_transparent_colour_becomes_white(tmp_path):
    """Only that grey: one that shares its upper 8 bits stays."""
    values = np.full((20, 20), 0x1234, np.uint16)
    values[:, 10:15], values[:, 15:] = 0x1235, 0xC000
    pixels = loaded(Image.fromarray(values), tmp_path / "a.png", transparency=0x1234)
    assert pixels[0, [0, 12, 19], 0].tolist() == [255, 0x12, 0xC0]


def test_bmp_whose_alpha_is_all_0(tmp_path):
    """32 bits, the last 8 of them unused: with them the photo would be all white."""
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 10, 10, 1, 32, 3, 400, 0, 0, 0, 0) + masks
    (tmp_path / "a.bmp").write_bytes(
        b"BM" + struct.pack("<IHHI", 14 + 108 + 400, 0, 0, 14 + 108) + header + b"BGRs" + bytes(48)
        + bytes([20, 40, 200, 0]) * 100)
    assert Image.open(tmp_path / "a.bmp").mode == "RGBA"
    assert pil_loader(tmp_path / "a.bmp").getpixel((5, 5)) == (200, 40, 20)


def test_exif_says_which_way_is_up(gradient, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # 'turn by 90 degrees clockwise'
    pixels = loaded(gradient, tmp_path / "a.jpg", exif=exif)
    assert pixels.shape == (200, 100, 3) and pixels[0].mean() < pixels[-1].mean()


def test_unreadable_exif_does_not_lose_the_photo(gradient, tmp_path):
    pixels = loaded(gradient, tmp_path / "a.png", exif=b"Exif\0\0no such block")
    assert (pixels == np.asarray(gradient)).all()


def test_the_first_of_several_pictures(gradient, tmp_path):
    """An animation, what phones with two lenses save, and a photo with a film behind it."""
    blue = Image.new("RGB", gradient.size, "blue")
    for name, kind in (("a.gif", "GIF"), ("a.jpg", "MPO")):
        pixels = loaded(gradient, tmp_path / name, format=kind, save_all=True, append_images=[blue])
        assert abs(pixels - np.asarray(gradient, int)).mean() < 12
    with open(tmp_path / "a.jpg", "ab") as f:
        f.write(b"\0\0\0\x18ftypmp42" + b"\xff\xda\x00\x02film" * 5_000)
    assert pil_loader(tmp_path / "a.jpg").size == gradient.size


@pytest.mark.parametrize("size, small", [((4000, 3000), (1000, 750)), ((1500, 2200), (750, 1100)),
                                         ((1000, 750), (1000, 750))])
def test_large_jpegs_are_decoded_small(tmp_path, size, small):
    Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / "a.jpg")
    assert pil_loader(tmp_path / "a.jpg").size == small


def test_a_photo_is_its_bytes(gradient, tmp_path):
    for name, quality in (("a.jpg", 80), ("b.jpg", 80), ("c.jpg", 70)):
        gradient.save(tmp_path / name, quality=quality)
    a, b, c = (photo_hash(tmp_path / name) for name in ("a.jpg", "b.jpg", "c.jpg"))
    assert a == b != c and len(a) == 32


# ---- colours ---------------------------------------------------------------------------------
# primaries as XYZ (D50)
P3 = [(0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189), (0.1571, 0.06657, 0.78407)]
SRGB = [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141)]
# the curve of sRGB, whose numbers a profile rounds
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04)
RED_IN_P3, RED = (201, 56, 54), (220, 29, 40)  # the same red, in a P3 file and on every screen


def fixed(*values):
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def profile(name, primaries=(), gamma=2.2, space=b"RGB ", ground=b"XYZ ", **more):
    """A profile as cameras write it: primaries, a white point, a gamma or sRGB's curve."""
    curve = b"curv" + struct.pack(">IIHH", 0, 1, round(gamma * 256), 0) if gamma else \
        b"para" + struct.pack(">IHH", 0, 3, 0) + fixed(*SRGB_CURVE)
    parts = {b"desc": b"desc" + struct.pack(">II", 0, len(name) + 1) + name.encode() + bytes(80),
             b"cprt": b"text" + bytes(8), b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    parts |= {b"kTRC": curve} if space == b"GRAY" else {}
    parts |= {tag.encode(): part for tag, part in more.items()}
    for colour, primary in zip("rgb", primaries):
        parts[f"{colour}XYZ".encode()] = b"XYZ " + bytes(4) + fixed(*primary)
        parts[f"{colour}TRC".encode()] = curve
    table, data, at = b"", b"", 128 + 4 + 12 * len(parts)
    for tag, part in parts.items():
        table += tag + struct.pack(">II", at + len(data), len(part))
        data += part + bytes(-len(part) % 4)
    head = struct.pack(">I4sI4s4s4s", at + len(data), b"lcms", 0x02400000, b"mntr", space, ground)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + data


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("name, primaries, gamma, colour", [
    ("Display P3", P3, 2.2, RED), ("sRGB IEC61966-2.1", P3, 2.2, RED),
    ("Linear sRGB", SRGB, 1.0, (228, 129, 127))])
def test_colours_by_what_the_photos_profile_does(tmp_path, mode, name, primaries, gamma, colour):
    given = Image.new(mode, (40, 60), (*RED_IN_P3, 255)[:len(mode)])
    pixels = loaded(given, tmp_path / "a.png", icc_profile=profile(name, primaries, gamma))
    assert near(pixels[5, 5], colour)


@pytest.mark.parametrize("given", [
    profile("Display P3", SRGB, gamma=None), b"no profile at all",
    ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
    ids=["in effect sRGB", "none", "sRGB"])
def test_profiles_that_change_nothing(tmp_path, given):
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    assert (loaded(Image.fromarray(noise), tmp_path / "a.png", icc_profile=given) == noise).all()


def test_palette_and_colour_key_with_a_profile(tmp_path):
    p3 = Image.new("P", (40, 60), 1)
    p3.putpalette([0, 0, 0, *RED_IN_P3])
    p3.paste(0, (0, 0, 40, 30))
    for picture, key in ((p3, 0), (p3.convert("RGB"), (0, 0, 0))):
        pixels = loaded(picture, tmp_path / "a.png", icc_profile=profile("Display P3", P3),
                        transparency=key)
        assert near(pixels[50, 5], RED) and near(pixels[5, 5], (255, 255, 255), 0)


def test_grey_by_the_photos_profile(tmp_path):
    """A middle grey of a linear scale, 127, is 187 on every screen."""
    grey = profile("grey", gamma=1.0, space=b"GRAY")
    pixels = loaded(Image.new("L", (40, 60), 127), tmp_path / "a.png", icc_profile=grey)
    assert near(pixels[5, 5], 187, 2)


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_by_the_photos_profile(tmp_path, name):
    """Of a printer whose cyan, magenta and yellow leave no trace."""
    ramp = bytes(range(256))
    lab = b"".join(b"\0\x80\x80" if corner % 2 else b"\xff\x80\x80" for corner in range(16))
    to_lab = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    printer = profile("ink", space=b"CMYK", ground=b"Lab ", A2B0=to_lab + ramp * 4 + lab + ramp * 3)
    photo = Image.new("CMYK", (40, 60), (200, 90, 0, 0))
    photo.paste((200, 90, 0, 255), (0, 0, 40, 30))
    pixels = loaded(photo, tmp_path / name, icc_profile=printer)
    assert pixels[55, 5].min() > 245 and pixels[5, 5].max() < 10


# ---- what is refused -------------------------------------------------------------------------
def refused(path, *words):
    with warnings.catch_warnings(), pytest.raises(BadPhoto) as error:
        warnings.simplefilter("ignore")
        pil_loader(path)
    said = str(error.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    assert all(word in error.value.args[1] for word in words), said


def tiff(data, more, bits=8):
    """64x64, RGB, compressed with Deflate; `more` are tags of one whole number each."""
    tags = {256: 64, 257: 64, 258: 0, 259: 8, 262: 2, 277: 3} | more
    at = 8 + 2 + 12 * len(tags) + 4
    where = {258: at, 273: at + 6, 324: at + 6}  # BitsPerSample, StripOffsets, TileOffsets
    entries = [struct.pack("<HHII", tag, 3 if tag == 258 else 4, 3 if tag == 258 else 1,
                           where.get(tag, value)) for tag, value in sorted(tags.items())]
    return (b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4)
            + struct.pack("<3H", bits, bits, bits) + data)


def tiled(side):
    data = zlib.compress(bytes(3 * 128 * 128))
    return tiff(data, {322: side, 323: side, 324: 0, 325: len(data)})


def float_rgb():
    data = zlib.compress(bytes(4 * 3 * 64 * 64))
    return tiff(data, {273: 0, 278: 64, 279: len(data), 339: 3}, bits=32)


def png(side):
    """A square that claims to be that wide, of a few bytes."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + zlib.crc32(kind + data).to_bytes(4)
    parts = [chunk(b"IHDR", struct.pack(">II5B", side, side, 8, 0, 0, 0, 0)),
             chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("content, words", [
    (b"", "empty"), (b"milk, bread", "not a readable photo.*JPEG"),
    (saved(Image.new("RGB", (20, 20)), "PPM"), "not a readable photo"),
    (saved(Image.effect_noise((300, 300), 90), "JPEG")[:9000], "damaged.*truncated"),
    (saved(Image.new("L", (1, 8000)), "PNG"), "1x8000 is over 20 times.*crop it"),
    (png(9_000), "9000x9000 is over 64 million pixels: scale it down"),
    (png(40_000), "million pixels: scale it down"),
    (saved(Image.new("I", (20, 20)), "TIFF"), "32 bits.*save it with 8 or 16"),
    (saved(Image.new("F", (20, 20)), "TIFF"), "32 bits.*save it with 8 or 16"),
    (float_rgb(), "not a readable photo"),
    (tiled(26_000), "26000x26000 is over 64 million pixels"),
], ids=["empty", "text", "PPM", "truncated", "1x8000", "9000x9000", "40000x40000", "integers",
        "floats", "float RGB", "giant tiles"])
def test_files_that_are_no_usable_photos(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    refused(tmp_path / "a.jpg", *words.split(".*"))


def test_tiles_as_large_as_they_may_be_are_read(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiled(128))
    assert pil_loader(tmp_path / "a.tif").size == (64, 64)


@pytest.mark.parametrize("place, words", [(0.1, "not a readable photo"), (0.5, "damaged"),
                                          (0.9, "damaged")])
def test_damaged_png(gradient, tmp_path, place, words):
    content = bytearray(saved(gradient, "PNG"))
    start = int(len(content) * place)
    content[start:start + 4] = bytes(255 - b for b in content[start:start + 4])
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", words)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)],
                         ids=["folder", "pipe", "link to itself"])
def test_what_is_not_a_file_and_does_not_hang(tmp_path, make):
    make(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", "not a file (a folder, a pipe, or a broken link")


def test_over_a_billion_bytes_are_not_read(tmp_path):
    with open(tmp_path / "a.jpg", "wb") as f:
        f.truncate(40 * 10**9)  # takes no space; reading it would take a minute
    for read in (photo_hash, photo_bytes, pil_loader):
        with pytest.raises(BadPhoto, match="a.jpg: over 1,000,000,000 bytes: scale it down"):
            read(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(0, 0), (0, 20)])
def test_a_picture_without_pixels(size):
    with pytest.raises(BadPhoto, match="your image: it has no pixels"):
        find(Image.new("RGB", size), None)


def test_control_characters_in_a_name_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "a\x1b[2J\nb.jpg").write_text("no photo")
    with pytest.raises(BadPhoto) as error:
        pil_loader(tmp_path / "a\x1b[2J\nb.jpg")
    assert "a?[2J?b.jpg: not a readable photo" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="jacket.jpg.*check its name"):
        pil_loader(tmp_path / "jacket.jpg")


@pytest.mark.parametrize("fault", [OSError(errno.EIO, "Input/output error"), MemoryError()],
                         ids=["disk", "memory"])
def test_a_fault_of_the_machine_is_not_the_photos(fault):
    class File(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 5000:
                raise fault
            return super().read(size)

    with pytest.raises(type(fault)) as error:
        read_photo(File(saved(Image.effect_noise((900, 900), 90), "JPEG")), "a.jpg")
    assert error.value is fault
