"""A file to an upright RGB image, or a sentence that says why not; a folder; its download."""

import os
import struct
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from lookalike.photos import BadPhoto, pil_loader


@pytest.fixture
def gradient():
    """200x100: dark on the left, light on the right; red at the top, blue below."""
    ramp = np.tile(np.linspace(0, 255, 200, dtype=np.uint8), (100, 1))
    return Image.merge("RGB", [Image.fromarray(a) for a in (ramp, ramp // 2, np.flipud(ramp))])


def loaded(image, path, **options):
    image.save(path, **options)
    result = pil_loader(path)
    assert result.mode == "RGB"
    return np.asarray(result, int)


@pytest.mark.parametrize(
    "name", ["a.jpg", "a.png", "a.webp", "a.gif", "a.bmp", "a.tiff", "рубашка в полоску.jpg"]
)
def test_common_formats(gradient, tmp_path, name):
    assert abs(loaded(gradient, tmp_path / name) - np.asarray(gradient, int)).mean() < 12


def test_grayscale_stays_gray(gradient, tmp_path):
    pixels = loaded(gradient.convert("L"), tmp_path / "a.png")
    assert (pixels[..., 0] == pixels[..., 1]).all() and (
        pixels[..., 0] == np.asarray(gradient.convert("L"))
    ).all()


def test_transparent_ground_becomes_white(tmp_path):
    pixels = loaded(Image.new("RGBA", (20, 20), (10, 20, 30, 0)), tmp_path / "a.png")
    assert (pixels == 255).all()


def test_transparent_palette_becomes_white(tmp_path):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 200, 10, 10])
    assert (loaded(image, tmp_path / "a.png", transparency=0) == 255).all()


def test_cmyk(gradient, tmp_path):
    pixels = loaded(gradient.convert("CMYK"), tmp_path / "a.jpg")
    assert abs(pixels - np.asarray(gradient, int)).mean() < 12


def test_16_bit_is_not_all_white(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 200).astype(np.uint16), (50, 1))
    pixels = loaded(Image.fromarray(ramp), tmp_path / "a.png")
    assert (
        pixels[:, 0].max() == 0 and pixels[:, -1].min() == 255 and 120 < pixels[:, 100].mean() < 136
    )


@pytest.mark.parametrize("scale", [1.0, 255.0])
def test_float_tiff_is_not_all_black(tmp_path, scale):
    ramp = np.tile(np.linspace(0, scale, 200, dtype=np.float32), (50, 1))
    pixels = loaded(Image.fromarray(ramp), tmp_path / "a.tiff")
    assert pixels[:, 0].max() == 0 and pixels[:, -1].min() == 255


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_tiff_of_fewer_bits_than_it_could_hold(gradient, tmp_path, bits):
    """Scanners and microscopes write 8 or 12 bits into 16."""
    values = np.linspace(0, 2**bits - 1, 40 * 60).astype(np.uint16).reshape(40, 60)
    Image.fromarray(values).save(tmp_path / "a.tif")
    img = pil_loader(tmp_path / "a.tif")
    assert img.getpixel((0, 0)) == (0, 0, 0) and min(img.getpixel((59, 39))) >= 254
    assert 120 < img.getpixel((30, 20))[0] < 136, "the middle of the range is gray"


@pytest.mark.parametrize("top", [1.0, 255.0])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_float_rgb_tiff(tmp_path, top, planar):
    import tifffile
    values = np.zeros((40, 60, 3), np.float32)
    values[:, 30:], values[0, 0] = [top, top / 2, 0], [np.nan, top, top]
    given = values if planar == "contig" else np.moveaxis(values, -1, 0).copy()
    tifffile.imwrite(tmp_path / "a.tif", given, photometric="rgb", planarconfig=planar)
    img = pil_loader(tmp_path / "a.tif")
    assert img.size == (60, 40) and img.getpixel((59, 39)) == (255, 127, 0)
    assert img.getpixel((0, 39)) == (0, 0, 0)
    (tmp_path / "b.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:300])
    refused(tmp_path / "b.tif", "damaged")


def test_bmp_whose_alpha_is_all_0(tmp_path):
    """32 bits, the last 8 of them unused: with them the photo would be all white."""
    pixels = bytes([20, 40, 200, 0]) * 100
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 10, 10, 1, 32, 3, 400, 0, 0, 0, 0) + masks
    header += b"BGRs" + bytes(48)
    (tmp_path / "a.bmp").write_bytes(
        b"BM" + struct.pack("<IHHI", 14 + 108 + 400, 0, 0, 14 + 108) + header + pixels)
    assert Image.open(tmp_path / "a.bmp").mode == "RGBA"
    assert pil_loader(tmp_path / "a.bmp").getpixel((5, 5)) == (200, 40, 20)


@pytest.mark.parametrize("name", ["a.heic", "a.avif", "a.jfif", "a.jpe"])
def test_what_phones_and_browsers_save(gradient, tmp_path, name):
    gradient.save(tmp_path / name, {"heic": "HEIF", "avif": "AVIF"}.get(name[2:], "JPEG"))
    img = pil_loader(tmp_path / name)
    assert img.mode == "RGB" and img.size == gradient.size
    assert np.abs(np.asarray(img, int) - np.asarray(gradient, int)).mean() < 6


# a profile as Display P3 and Adobe RGB have it: primaries as XYZ (D50), a white point, a gamma
PRIMARIES = {"Display P3": [(0.51512, 0.2412, -0.00105), (0.29198, 0.69225, 0.04189),
                            (0.1571, 0.06657, 0.78407)],
             "sRGB": [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708),
                      (0.14307, 0.06061, 0.7141)]}


def fixed(*values):
    return b"".join(struct.pack(">i", round(v * 65536)) for v in values)


def profile(name, gamma=2.2, space=b"RGB ", ground=b"XYZ ", **more):
    def text(words):
        return b"desc" + struct.pack(">II", 0, len(words) + 1) + words.encode() + bytes(80)

    curve = b"curv" + struct.pack(">IIHH", 0, 1, round(gamma * 256), 0)
    parts = {b"desc": text(name), b"cprt": b"text" + bytes(8),
             b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249)}
    if space == b"GRAY":
        parts[b"kTRC"] = curve
    parts |= {tag.encode(): part for tag, part in more.items()}
    for colour, primary in zip(b"rgb", PRIMARIES.get(name, [])):
        parts[bytes([colour]) + b"XYZ"] = b"XYZ " + bytes(4) + fixed(*primary)
        parts[bytes([colour]) + b"TRC"] = curve
    table, data, at = b"", b"", 128 + 4 + 12 * len(parts)
    for tag, part in parts.items():
        part += bytes(-len(part) % 4)
        table += tag + struct.pack(">II", at + len(data), len(part))
        data += part
    size = at + len(data)
    head = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", space, ground)
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += fixed(0.9642, 1, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + data


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_by_the_photos_profile(tmp_path, mode):
    """Of this red, (220, 29, 40) on every screen, a P3 file holds (201, 56, 54)."""
    p3 = Image.new(mode, (40, 60), (201, 56, 54, 255)[:len(mode)])
    p3.save(tmp_path / "a.png", icc_profile=profile("Display P3"))
    assert np.abs(np.subtract(pil_loader(tmp_path / "a.png").getpixel((5, 5)), (220, 29, 40))
                  ).max() <= 4
    p3.save(tmp_path / "b.png", icc_profile=profile("sRGB"))
    assert pil_loader(tmp_path / "b.png").getpixel((5, 5)) == (201, 56, 54), "not touched"
    p3.save(tmp_path / "c.png", icc_profile=b"no profile at all")
    assert pil_loader(tmp_path / "c.png").getpixel((5, 5)) == (201, 56, 54)


def test_palette_and_colour_key_with_a_profile(tmp_path):
    """Red as above on a transparent ground: both stay what they are."""
    p3 = Image.new("P", (40, 60), 1)
    p3.putpalette([0, 0, 0, 201, 56, 54])
    p3.paste(0, (0, 0, 40, 30))
    for name, picture, key in (("a.png", p3, 0), ("b.png", p3.convert("RGB"), (0, 0, 0))):
        picture.save(tmp_path / name, icc_profile=profile("Display P3"), transparency=key)
        photo = pil_loader(tmp_path / name)
        assert np.abs(np.subtract(photo.getpixel((5, 50)), (220, 29, 40))).max() <= 4
        assert photo.getpixel((5, 5)) == (255, 255, 255)


def test_gray_by_the_photos_profile(tmp_path):
    """A middle gray of a linear scale, 127, is 187 on every screen."""
    gray = profile("gray", 1.0, b"GRAY")
    Image.new("L", (40, 60), 127).save(tmp_path / "a.png", icc_profile=gray)
    assert np.abs(np.subtract(pil_loader(tmp_path / "a.png").getpixel((5, 5)), 187)).max() <= 2


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_by_the_photos_profile(tmp_path, name):
    """Of a printer whose cyan, magenta and yellow leave no trace."""
    ramp = bytes(range(256))
    lab = b"".join(b"\0\x80\x80" if corner % 2 else b"\xff\x80\x80" for corner in range(16))
    to_lab = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    printer = profile("ink", space=b"CMYK", ground=b"Lab ", A2B0=to_lab + ramp * 4 + lab + ramp * 3)
    photo = Image.new("CMYK", (40, 60), (200, 90, 0, 0))
    photo.paste((200, 90, 0, 255), (0, 0, 40, 30))
    photo.save(tmp_path / name, icc_profile=printer)
    assert min(pil_loader(tmp_path / name).getpixel((5, 55))) > 245
    assert max(pil_loader(tmp_path / name).getpixel((5, 5))) < 10


def test_exif_turn(gradient, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # 'turn by 90 degrees clockwise'
    pixels = loaded(gradient, tmp_path / "a.jpg", exif=exif)
    assert pixels.shape == (200, 100, 3) and pixels[0].mean() < pixels[-1].mean()


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    pixels = loaded(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels[..., 0].min() > 200 and pixels[..., 2].max() < 50


def test_one_pixel(tmp_path, backbone):
    loaded(Image.new("RGB", (1, 1), "red"), tmp_path / "a.png")
    assert np.isfinite(backbone.embed([pil_loader(tmp_path / "a.png")]).numpy()).all()


def refused(path, *words):
    start = time.perf_counter()
    with pytest.raises(BadPhoto) as error:
        pil_loader(path)
    assert time.perf_counter() - start < 5
    assert str(error.value).startswith(f"{path}: ") and all(
        word in error.value.args[1] for word in words
    ), error.value


def test_truncated(gradient, tmp_path):
    gradient.resize((800, 400)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "a.jpg", "damaged", "truncated")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_damaged_png(gradient, tmp_path, place):
    gradient.save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    start = int(len(content) * place)
    content[start : start + 4] = bytes(255 - b for b in content[start : start + 4])
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", "not a photo" if place == 0.1 else "damaged")


def test_empty_file(tmp_path):
    (tmp_path / "a.jpg").touch()
    refused(tmp_path / "a.jpg", "empty")


def test_text_renamed_to_jpg(tmp_path):
    (tmp_path / "a.jpg").write_text("milk, bread")
    refused(tmp_path / "a.jpg", "not a photo", "JPEG")


def test_format_that_is_not_listed(gradient, tmp_path):
    gradient.save(tmp_path / "a.jpg", format="PPM")
    refused(tmp_path / "a.jpg", "not a photo")


def test_1x8000_would_fill_the_memory_when_resized(tmp_path):
    Image.new("L", (1, 8000)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "1x8000", "crop it")


@pytest.mark.parametrize("side", [9_000, 40_000])
def test_decompression_bomb(tmp_path, side):
    row = zlib.compress(bytes((side + 1) * 8), 9) * 2

    def chunk(kind, data):
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    header = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(tmp_path / "a.png", "million pixels", "scale it down")


def test_jpeg_of_thousands_of_scans(gradient, tmp_path):
    gradient.save(tmp_path / "a.jpg", progressive=True)
    pil_loader(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    last_scan = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(content[:-2] + last_scan * 2000 + b"\xff\xd9")
    refused(tmp_path / "a.jpg", "scans")


def test_baseline_jpeg_of_thousands_of_scans(gradient, tmp_path):
    gradient.save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    scan = content[content.index(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(content[:-2] + scan * 2000 + b"\xff\xd9")
    refused(tmp_path / "a.jpg", "scans")


def test_photo_of_two_pictures_with_thousands_of_scans(gradient, tmp_path):
    """As phones with two lenses save them: to Pillow another format, read by the same decoder."""
    gradient.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[gradient])
    assert Image.open(tmp_path / "a.jpg").format == "MPO"
    assert pil_loader(tmp_path / "a.jpg").size == (200, 100)
    content = (tmp_path / "a.jpg").read_bytes()
    end = content.index(b"\xff\xd9", content.index(b"\xff\xda"))
    scan = content[content.index(b"\xff\xda"):end]
    (tmp_path / "a.jpg").write_bytes(content[:end] + scan * 2000 + content[end:])
    refused(tmp_path / "a.jpg", "scans")


def test_motion_photo(gradient, tmp_path):
    """A film behind the picture, full of bytes that look like scans, is not the picture."""
    gradient.save(tmp_path / "a.jpg", progressive=True)
    with open(tmp_path / "a.jpg", "ab") as f:
        f.write(b"\0\0\0\x18ftypmp42" + b"\xff\xda\x00\x02film" * 50_000)
    assert pil_loader(tmp_path / "a.jpg").size == (200, 100)


def test_thumbnail_inside_a_photo(gradient, tmp_path):
    """A whole JPEG in the EXIF block has an end of its own, which is not the photo's."""
    exif = Image.Exif()
    exif[0x010E] = "\xff\xd9"
    gradient.save(tmp_path / "a.jpg", exif=exif)
    assert pil_loader(tmp_path / "a.jpg").size == (200, 100)


@pytest.mark.parametrize("size, small", [((4000, 3000), (1000, 750)), ((3000, 4400), (750, 1100)),
                                         ((1000, 750), (1000, 750)), ((400, 533), (400, 533))])
def test_large_jpegs_may_be_decoded_small(tmp_path, size, small):
    Image.linear_gradient("L").resize(size).convert("RGB").save(tmp_path / "a.jpg")
    assert pil_loader(tmp_path / "a.jpg").size == size
    assert pil_loader(tmp_path / "a.jpg", small=True).size == small


def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", "not a file")


def test_link_to_itself(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", "not a file", "link")


def test_folder(tmp_path):
    (tmp_path / "a.jpg").mkdir()
    refused(tmp_path / "a.jpg", "not a file", "folder")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="jacket.jpg.*check its name"):
        pil_loader(tmp_path / "jacket.jpg")
