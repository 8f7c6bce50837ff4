"""Reads ``.npy`` and ``.npz`` files that nobody vouches for.

Headers are read first: what they claim is compared with what the file holds and with free memory
before anything is allocated, and arrays of Python objects are refused, never unpickled. Format:
numpy NEP 1; versions 1.0 and 2.0.
"""

import os
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from qcompile.errors import DataError
from qcompile.samples import Array

_Header = tuple[tuple[int, ...], bool, np.dtype[np.generic], int]

_PARSERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}

_CHUNK_BYTES = 1 << 24
"""Read at once; what is smaller never needs a look at free memory."""

_DEFLATE_MOST = 1032
"""Deflate cannot shrink data further than 1032 to 1; a claim beyond that is a lie."""

_UNREADABLE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,  # encrypted members
    NotImplementedError,  # unknown compression
    zipfile.BadZipFile,
    zlib.error,
)


def read_npy(path: Path) -> Array:
    """Read one array.

    Raises:
        DataError: The file is missing, damaged, pickled, or too large for memory.
    """
    try:
        with path.open("rb") as file:
            return _read_array(file, path.stat().st_size, str(path))
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({_line(error)})") from error


def npy_shape(path: Path) -> tuple[int, ...]:
    """Return the shape of an array without reading it; raises as ``read_npy``."""
    try:
        with path.open("rb") as file:
            return _read_header(file, path.stat().st_size, str(path))[0]
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({_line(error)})") from error


def npz_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of an archive's arrays without reading them; raises as ``read_npz``."""
    shapes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for info in _members(archive, path):
                with archive.open(info) as member:
                    where = f"{path}: {info.filename}"
                    shapes[_array_name(info, path)] = _read_header(member, info.file_size, where)[0]
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({_line(error)})") from error
    return shapes


def read_npz(path: Path, only: str | None = None) -> dict[str, Array]:
    """Read all arrays of an archive, by name, or one of them if it is there.

    Raises:
        DataError: The file is missing, damaged, holds something else than arrays or pickled ones,
            or claims more data than it has or memory can take.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                _array_name(info, path): _read_member(archive, info, path)
                for info in _members(archive, path)
                if only in {None, _array_name(info, path)}
            }
    except _UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({_line(error)})") from error


def free_memory() -> int:
    """Return the bytes of memory that can be taken without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux: all physical memory is the best guess there is
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _members(archive: zipfile.ZipFile, path: Path) -> list[zipfile.ZipInfo]:
    infos = [info for info in archive.infolist() if not info.is_dir()]
    size = path.stat().st_size
    for info in infos:
        most = info.compress_size * (
            1 if info.compress_type == zipfile.ZIP_STORED else _DEFLATE_MOST
        )
        if info.compress_size > size or info.file_size > most + 64:
            raise DataError(f"{path}: {info.filename} claims more data than the file has")
    _check_memory(sum(info.file_size for info in infos), str(path))
    return infos


def _array_name(info: zipfile.ZipInfo, path: Path) -> str:
    if not info.filename.endswith(".npy"):
        raise DataError(f"{path}: {info.filename} is not an array; save with numpy.savez")
    return info.filename.removesuffix(".npy")


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> Array:
    with archive.open(info) as member:
        array = _read_array(member, info.file_size, f"{path}: {info.filename}")
        member.read()  # to the end, where the checksum is compared
    return array


def _read_header(file: IO[bytes], size: int, where: str) -> _Header:
    version = np.lib.format.read_magic(file)
    if version not in _PARSERS:
        raise DataError(f"{where}: is a .npy of version {version}; only 1.0 and 2.0 are read")
    try:
        shape, fortran, dtype = _PARSERS[version](file)
    except Exception as error:  # the header is Python text, and fails in as many ways
        raise DataError(f"{where}: its header is damaged ({_line(error)})") from error
    if dtype.hasobject:
        raise DataError(f"{where}: holds Python objects (pickled), which are never loaded")
    if dtype.fields or dtype.subdtype or not dtype.itemsize:
        raise DataError(f"{where}: holds {dtype}, not plain numbers")
    nbytes = dtype.itemsize
    for dimension in shape:
        nbytes *= dimension
    if any(dimension < 0 for dimension in shape) or nbytes > size - file.tell():
        raise DataError(f"{where}: claims {nbytes} bytes of data, the file is shorter")
    return tuple(map(int, shape)), fortran, dtype, nbytes  # True is an int to numpy's check


def _read_array(file: IO[bytes], size: int, where: str) -> Array:
    shape, fortran, dtype, nbytes = _read_header(file, size, where)
    _check_memory(nbytes, where)
    return _read_data(file, nbytes).view(dtype).reshape(shape, order="F" if fortran else "C")


def _read_data(file: IO[bytes], nbytes: int) -> npt.NDArray[np.uint8]:
    data, filled = np.empty(nbytes, np.uint8), 0
    while filled < nbytes:
        part = file.read(min(_CHUNK_BYTES, nbytes - filled))
        if not part:
            raise EOFError(f"ends after {filled} of {nbytes} bytes")
        data[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
        filled += len(part)
    return data


def _check_memory(nbytes: int, where: str) -> None:
    if nbytes > _CHUNK_BYTES and nbytes > free_memory() // 2:
        raise DataError(
            f"{where}: holds {nbytes / 1e9:.1f} GB, more than half of the free memory; "
            "split it into several files"
        )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
