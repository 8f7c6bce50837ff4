"""Pictures as samples: decoding with limits, and the recipe's preprocessing."""

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qcompile.errors import DataError
from qcompile.progress import Progress
from qcompile.recipe import Preprocess
from qcompile.samples import Array, Port

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
LABELS_FILE = "labels.csv"

MOST_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: some hundred bytes can claim gigabytes."""

_FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16B", "I;16L", "I;16N"})


def read_picture(path: Path, preprocess: Preprocess, port: Port, progress: Progress) -> Array:
    """Read one picture and make the model's input of it.

    Args:
        path: JPEG, PNG, BMP or WebP with 8 bits a channel.
        preprocess: The recipe's steps, in its order.
        port: The input: rank 4 gets a leading dimension of 1, rank 3 none.
        progress: Hears of alpha channels that are dropped.

    Returns:
        ``(1, C, H, W)`` or ``(1, H, W, C)`` by the layout, in the input's element type.

    Raises:
        DataError: The file is no such picture, is damaged or too large (``resize`` included), is
            smaller than the crop, or does not come out in the input's type.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path, formats=_FORMATS) as picture:
            _check_readable(picture, path)
            if picture.has_transparency_data:
                progress.notice("pictures have an alpha channel: it is dropped")
            ImageOps.exif_transpose(picture, in_place=True)
            pixels = _pixels(picture, preprocess, path)
    except DataError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path}: has too many pixels") from error
    except Exception as error:  # what a damaged file leads to differs by its format
        raise DataError(f"{path}: cannot be read as a picture ({error})") from error
    array = _normalized(pixels, preprocess)
    if preprocess.layout == "nchw":
        array = np.moveaxis(array, -1, 0)
    if port.shape is None or len(port.shape) == 4:
        array = array[None]
    return _typed(np.ascontiguousarray(array), port, path)


def labels_beside(folder: Path) -> dict[Path, int]:
    """Return the labels that ``labels.csv`` in the folder gives: lines of ``file,class``.

    A first line whose class is no integer is taken as a heading.

    Raises:
        DataError: A line is malformed or names a file that is not there.
    """
    path = folder / LABELS_FILE
    if not path.exists():
        return {}
    labels = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        if len(line) != 2 or not line[1].strip().isdecimal():
            if number == 1 and len(line) == 2:
                continue
            raise DataError(f"{path}: line {number} is not 'file,class'")
        named = folder / line[0].strip()
        if not named.is_file():
            raise DataError(f"{path}: line {number} names {line[0]!r}, which is not there")
        labels[named] = int(line[1])
    return labels


def _check_readable(picture: "Image", path: Path) -> None:
    if picture.width * picture.height > MOST_PIXELS:
        raise DataError(f"{path}: {picture.width}x{picture.height} pixels are too many")
    if picture.mode in _DEEP_MODES:
        raise DataError(f"{path}: more than 8 bits a channel; convert it first")


def _pixels(picture: "Image", preprocess: Preprocess, path: Path) -> npt.NDArray[np.uint8]:
    plain = picture.convert("L" if preprocess.channels == "gray" else "RGB")
    resized = _resized(plain, preprocess, path)
    array = np.asarray(_cropped(resized, preprocess, path))
    if preprocess.channels == "gray":
        return array[..., None]
    return array[..., ::-1] if preprocess.channels == "bgr" else array


def _resized(picture: "Image", preprocess: Preprocess, path: Path) -> "Image":
    from PIL.Image import Resampling

    if preprocess.resize is None:
        return picture
    if isinstance(preprocess.resize, int):
        factor = preprocess.resize / min(picture.size)
        width, height = (max(1, round(side * factor)) for side in picture.size)
    else:
        height, width = preprocess.resize
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{path}: {picture.width}x{picture.height} pixels; resize makes {width}x{height} of "
            "them, which are too many"
        )
    return picture.resize((width, height), Resampling[preprocess.interpolation.upper()])


def _cropped(picture: "Image", preprocess: Preprocess, path: Path) -> "Image":
    if preprocess.crop is None:
        return picture
    crop = preprocess.crop
    height, width = (crop, crop) if isinstance(crop, int) else crop
    if height > picture.height or width > picture.width:
        found = f"{picture.height}x{picture.width}"
        raise DataError(
            f"{path}: is {found} after resizing, smaller than the crop {height}x{width}"
        )
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return picture.crop((left, top, left + width, top + height))


def _normalized(pixels: npt.NDArray[np.uint8], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    mean = np.asarray(preprocess.mean, np.float32)
    std = np.asarray(preprocess.std, np.float32)
    return (pixels.astype(np.float32) * np.float32(preprocess.scale) - mean) / std


def _typed(array: npt.NDArray[np.float32], port: Port, path: Path) -> Array:
    if port.dtype.kind == "f":
        return array.astype(port.dtype)
    whole = array.astype(port.dtype) if port.dtype.kind in "iu" else None
    if whole is None or not np.array_equal(whole, array):
        raise DataError(
            f"{path}: input {port.name!r} is {port.dtype}, which preprocessing does not give; "
            "set scale = 1, mean = [0], std = [1]"
        )
    return whole
