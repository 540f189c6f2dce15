"""Decoding: every mode looks as a person sees it, every broken file is a BadImage with a reason."""

import io
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps
from source_files import png_header

from mlx_pixword.common.errors import BadImage, PixWordError
from mlx_pixword.pixels import formats
from mlx_pixword.pixels.formats import CUT_SHORT, FORMATS, IMAGE_SUFFIXES
from mlx_pixword.pixels.images import decode, decode_image, fit_rgb

ROOT = Path(__file__).parents[1]
GREY = np.arange(0, 240, dtype=np.uint8).reshape(12, 20)
RGB = np.stack([GREY, GREY[::-1], 255 - GREY], -1)
LOSSLESS = {
    ("RGB", "PNG"): {},
    ("RGB", "WEBP"): {"lossless": True},
    ("RGB", "BMP"): {},
    ("RGB", "TIFF"): {"compression": "tiff_lzw"},
    ("RGB", "PPM"): {},
    ("RGB", "JPEG2000"): {},
    ("RGB", "TGA"): {"compression": "tga_rle"},
    ("RGB", "QOI"): {},
    ("RGB", "ICO"): {"sizes": [(20, 12)]},
    ("L", "PNG"): {},
    ("L", "TIFF"): {},
    ("CMYK", "TIFF"): {},
}


def encode(image, file_format, **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decoded(data, image_size=64):
    return decode_image(io.BytesIO(data), image_size)


def encode_array(array, file_format="PNG", **options):
    return encode(Image.fromarray(array), file_format, **options)


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("mode, file_format", LOSSLESS)
def test_lossless_files_keep_their_pixels(mode, file_format):
    image = Image.fromarray(RGB).convert(mode)
    data = encode(image, file_format, **LOSSLESS[mode, file_format])
    pixels = decoded(data)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "mode, file_format, tolerance",
    [("RGB", "JPEG", 40), ("L", "JPEG", 10), ("CMYK", "JPEG", 60), ("RGB", "AVIF", 60), ("RGB", "MPO", 40)],
)
def test_lossy_files_come_close(mode, file_format, tolerance):
    extra = {"save_all": True, "append_images": [Image.new(mode, (20, 12))]} if file_format == "MPO" else {}
    image = Image.fromarray(RGB).convert(mode)
    pixels = decoded(encode(image, file_format, quality=95, **extra)).astype(int)
    assert np.abs(pixels - np.asarray(image.convert("RGB"))).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA"])
def test_scaling_is_plain_bilinear(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 61, 3), np.uint8)).convert(mode)
    expected = image.convert("RGB").resize((16, 24), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decoded(encode(image, "PNG"), 24), np.asarray(expected))


def test_jpeg_is_not_scaled_by_its_decoder():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8))
    data = encode(image, "JPEG")
    expected = Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decoded(data, 32), np.asarray(expected))


@pytest.mark.parametrize("size, expected", [((12, 20), (12, 20, 3)), ((1, 300), (1, 64, 3)), ((128, 90), (64, 45, 3))])
def test_size(size, expected):
    assert decoded(encode_array(np.zeros(size, np.uint8))).shape == expected


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_exif_orientation(file_format, value):
    data = encode_array(np.kron(RGB, np.ones((4, 4, 1), np.uint8)), file_format, exif=orientation(value))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    np.testing.assert_array_equal(decoded(data, 100), np.asarray(upright))
    assert decoded(data, 40).shape == ((24, 40, 3) if value < 5 else (40, 24, 3))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # as importing the module does for programs
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0", orientation(77)])
def test_broken_orientation_is_ignored(exif):
    assert decoded(encode_array(RGB, "JPEG", exif=exif)).shape == (12, 20, 3)


def test_importing_silences_pillow():
    code = """
import io, mlx_pixword.pixels.images as images
from PIL import Image
file = io.BytesIO()
Image.new("RGB", (4, 4)).save(file, "JPEG", exif=b"Exif\\0\\0MM\\0*\\0\\0\\xff\\xff")
assert images.decode_image(file, 4).shape == (4, 4, 3)
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (run.returncode, run.stderr) == (0, "")


def test_alpha_is_laid_over_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[..., 3] = [[0, 255], [51, 128]]
    np.testing.assert_array_equal(decoded(encode_array(pixels))[..., 0], [[255, 0], [204, 127]])


def test_grey_with_alpha_is_laid_over_white():
    image = Image.merge("LA", [Image.new("L", (2, 1), 0), Image.fromarray(np.uint8([[0, 255]]))])
    assert decoded(encode(image, "PNG"))[0].tolist() == [[255] * 3, [0] * 3]


@pytest.mark.parametrize("transparency, expected", [(1, [0, 255, 100]), (bytes([255, 255, 0]), [0, 50, 255])])
@pytest.mark.parametrize("file_format", ["PNG", "GIF"])
def test_palette_transparency(transparency, expected, file_format):
    if file_format == "GIF" and isinstance(transparency, bytes):
        transparency, expected = 2, [0, 50, 255]
    image = Image.fromarray(np.uint8([[0, 1, 2]])).convert("P")
    image.putpalette([0, 0, 0, 50, 50, 50, 100, 100, 100])
    data = encode(image, file_format, transparency=transparency)
    assert decoded(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode, key, white", [("L", 7, 255), ("RGB", (7, 7, 7), 255), ("1", 0, 255)])
def test_transparent_colour(mode, key, white):
    image = Image.new(mode, (1, 1), key)
    assert decoded(encode(image, "PNG", transparency=key))[0, 0].tolist() == [white] * 3


@pytest.mark.parametrize("file_format, dtype", [("PNG", "<u2"), ("TIFF", "<u2"), ("TIFF", ">u2"), ("JPEG2000", "<u2")])
def test_sixteen_bit_grey_is_scaled_down(file_format, dtype):
    data = encode_array((GREY.astype(np.uint16) * 257).astype(dtype), file_format)
    np.testing.assert_array_equal(decoded(data)[..., 1], GREY)


def test_sixteen_bit_transparent_colour():
    assert decoded(encode_array(np.uint16([[256, 512]]), transparency=256))[0, :, 0].tolist() == [255, 2]


@pytest.mark.parametrize("bright", [1, 200])
def test_sixteen_bit_pnm(bright):
    assert decoded(b"P5 2 1 65535\n" + struct.pack(">2H", 0, bright * 257))[0, :, 2].tolist() == [0, bright]


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.float32([0, 0.5, 1]), [0, 128, 255]),
        (np.float32([-3, 100, 255]), [0, 100, 255]),
        (np.float32([0, 5e5, 1e6]), [0, 128, 255]),
        (np.float32([np.nan, np.inf, 1]), [0, 0, 255]),
        (np.int32([0, 100, 200]), [0, 100, 200]),
        (np.int32([-5, 257, 65535]), [0, 1, 255]),
        (np.int32([0, 2**30, 2**31 - 1]), [0, 128, 255]),
    ],
)
def test_32_bit_grey(values, expected):
    assert decoded(encode_array(values[None], "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_animation_shows_its_first_frame(file_format):
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "lime", "blue")]
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(decoded(data).astype(int) - (255, 0, 0)).max() <= 4


@pytest.mark.parametrize("width, height", [(50_000, 50_000), (10_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bomb_is_refused_by_its_header(width, height):
    with pytest.raises(BadImage, match="too large, the limit is 89,478,485 pixels"):
        decoded(png_header(width, height))


def test_pixel_limit(monkeypatch):
    monkeypatch.setattr(formats, "MAX_PIXELS", 239)
    with pytest.raises(BadImage, match="20x12 is too large, the limit is 239 pixels"):
        decoded(encode_array(RGB))


@pytest.mark.parametrize("file_format", [f for f in FORMATS if f != "ICO"])
@pytest.mark.parametrize("share", [0.2, 0.6])
def test_truncated_file(file_format, share):
    data = encode_array(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8), file_format)
    with pytest.raises(BadImage):
        decoded(data[: int(share * len(data))])


@pytest.mark.parametrize(
    "data", [b"", b"hello, this is text\n" * 9, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_foreign_file(data):
    with pytest.raises(BadImage, match="not an image of a known format"):
        decoded(data)


@pytest.mark.parametrize(
    "data, what",
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS; run git lfs pull"),
        (b"\n<!DOCTYPE html><html>404", "a web page"),
    ],
)
def test_what_stands_in_the_place_of_an_image(data, what):
    with pytest.raises(BadImage, match=f"not an image of a known format: {what}"):
        decoded(data)


def test_format_off_the_list():
    with pytest.raises(BadImage, match="known format"):
        decoded(encode_array(RGB, "PCX"))


def test_damaged_pixels():
    data = bytearray(encode_array(RGB))
    data[data.index(b"IDAT") + 10] ^= 0xFF
    with pytest.raises(BadImage, match=r"^damaged image: .+"):
        decoded(bytes(data))


def test_reason_is_one_line_without_a_name(tmp_path):
    path = tmp_path / "some-name.png"
    path.write_bytes(b"no image")
    with path.open("rb") as file, pytest.raises(BadImage) as caught:
        decode_image(file, 8)
    assert "some-name" not in str(caught.value) and "\n" not in str(caught.value)


def test_file_is_left_open(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode_array(RGB))
    with path.open("rb") as file:
        decode_image(file, 8)
        decode_image(file, 8)
        assert not file.closed


def test_threads_agree():
    files = [encode_array(np.roll(RGB, i, 1), f) for i in range(8) for f in ("PNG", "JPEG", "GIF", "TIFF")]
    with ThreadPoolExecutor(8) as pool:
        for serial, parallel in zip(map(decoded, files), pool.map(decoded, files), strict=True):
            np.testing.assert_array_equal(serial, parallel)


def test_suffixes_match_the_formats():
    Image.init()
    formats = {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES - {".jpf", ".heic", ".heif", ".hif"}}
    assert formats == {*FORMATS, "MPO"}


# --- images as people have them ---------------------------------------------------------------------------------------


def swapped_profile():
    """An sRGB profile whose red and green primaries have changed places."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", profile[128:132])[0]
    place = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 136 + 12 * n for n in range(count)}
    a, b = place[b"rXYZ"], place[b"gXYZ"]
    profile[a : a + 8], profile[b : b + 8] = profile[b : b + 8], profile[a : a + 8]
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("image_size", [64, 4])
def test_colour_profiles_are_applied(mode, image_size):
    image = Image.new("RGB", (8, 8), (250, 30, 60))
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    pixel = decoded(encode(image, "PNG", icc_profile=swapped_profile()), image_size)[1, 1].astype(int)
    assert np.abs(pixel - (30, 250, 60)).max() <= 3  # exact primaries would give (30, 250, 60)
    with Image.open(io.BytesIO(encode(image, "PNG", icc_profile=swapped_profile()))) as opened:
        np.testing.assert_array_equal(fit_rgb(opened, image_size)[1, 1], pixel)


def test_transparency_is_laid_over_white_after_the_profile():
    image = Image.new("RGBA", (2, 1), (250, 30, 60, 0))
    assert decoded(encode(image, "PNG", icc_profile=swapped_profile()))[0, 0].tolist() == [255] * 3


@pytest.mark.parametrize("profile", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), b"x" * 200])
def test_srgb_itself_and_broken_profiles_change_nothing(profile):
    np.testing.assert_array_equal(decoded(encode_array(RGB, icc_profile=profile)), RGB)


def test_a_profile_for_other_channels_changes_nothing():
    np.testing.assert_array_equal(decoded(encode_array(GREY, icc_profile=swapped_profile()))[..., 0], GREY)


def tiff(photometric, bits, data, sample_format=1):
    tags = [(256, 4), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags += [(279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize(
    ("bits", "kind", "top", "sample_format"), [(8, "u1", 255, 1), (16, "<u2", 65535, 1), (32, "<f4", 1.0, 3)]
)
def test_white_is_zero_is_turned_over_at_every_depth(bits, kind, top, sample_format):
    values = (np.array([0, 51, 102, 255]) / 255 * top).astype(kind).tobytes()
    assert decoded(tiff(1, bits, values, sample_format))[0, :, 0].tolist() == [0, 51, 102, 255]
    assert decoded(tiff(0, bits, values, sample_format))[0, :, 0].tolist() == [255, 204, 153, 0]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("cut", [1, 2, 3, 40])
def test_a_jpeg_that_lacks_its_last_bytes_is_shown_and_noted(progressive, cut):
    noise = np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8)
    data = encode_array(noise, "JPEG", progressive=progressive)
    whole, short = decode(io.BytesIO(data), 200), decode(io.BytesIO(data[:-cut]), 200)
    assert (whole.note, short.note) == ("", CUT_SHORT)
    np.testing.assert_array_equal(short.rgb[:100], whole.rgb[:100]) if not progressive else None
    assert np.abs(short.rgb.astype(int) - whole.rgb).mean() < 6


def test_a_jpeg_that_lacks_half_is_refused():
    data = encode_array(np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8), "JPEG")
    with pytest.raises(BadImage, match=r"cut short, [45]\d% of its rows are missing"):
        decoded(data[: len(data) // 2])


def test_heic_is_read(tmp_path):
    import pillow_heif

    smooth = np.asarray(Image.fromarray(RGB).resize((80, 48), Image.Resampling.BICUBIC))
    path = tmp_path / "a.heic"
    pillow_heif.from_pillow(Image.fromarray(smooth)).save(path, quality=95)
    got = decode(io.BytesIO(path.read_bytes()), 80)
    assert got.size == (80, 48) and np.abs(got.rgb.astype(int) - smooth).mean() < 6
    for data in (path.read_bytes()[:200], b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300)):
        with pytest.raises(BadImage, match=r"^damaged HEIC image"):
            decoded(data)


def test_heic_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(BadImage, match="pip install pillow-heif"):
        decoded(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(300))


def test_large_jpegs_are_decoded_at_half_size_and_others_refused(monkeypatch):
    picture = Image.fromarray(RGB).resize((60, 36), Image.Resampling.BICUBIC)
    small = picture.resize((20, 12), Image.Resampling.BILINEAR)
    monkeypatch.setattr(formats, "MAX_PIXELS", 60 * 36 - 1)
    got = decode(io.BytesIO(encode(picture, "JPEG", quality=95, exif=orientation(6))), 20)
    assert got.size == (36, 60)
    assert np.abs(np.rot90(got.rgb).astype(int) - np.asarray(small)).mean() < 8
    with pytest.raises(BadImage, match="60x36 is too large, the limit is 2,159 pixels; scale it down"):
        decoded(encode(picture, "PNG"))
    monkeypatch.setattr(formats, "MAX_JPEG_PIXELS", 60 * 36 - 1)
    with pytest.raises(BadImage, match="60x36 is too large"):
        decoded(encode(picture, "JPEG"))


@pytest.mark.parametrize("value", [1, 6])
def test_a_box_shows_a_part_at_its_own_size(value):
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    upright = np.asarray(
        ImageOps.exif_transpose(Image.open(io.BytesIO(encode_array(picture, exif=orientation(value)))))
    )
    got = decode(io.BytesIO(encode_array(picture, exif=orientation(value))), 32, (5, 7, 60, 50))
    np.testing.assert_array_equal(got.rgb, upright[7:57, 5:65])
    assert got.size == upright.shape[1::-1]


@pytest.mark.parametrize("box", [(-1, 0, 2, 2), (0, 0, 21, 1), (0, 0, 0, 1), (19, 11, 1, 2), (20, 0, 1, 1)])
def test_a_box_outside_the_image_is_refused(box):
    with pytest.raises(PixWordError, match="does not lie inside the image of 20x12 pixels"):
        decode(io.BytesIO(encode_array(RGB)), 64, box)
