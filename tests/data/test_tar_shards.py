"""Tar shards of WebDataset's layout: what WebDataset itself reads, and what is wrong with them."""

import gzip
import importlib
import io
import tarfile

import numpy as np
import pytest
import torch

from amdim_fast import load_data
from amdim_fast.data.datasets import describe_data
from amdim_fast.data.find import find_images
from amdim_fast.data.tar_shards import EXTENSIONS, read_tars
from tests.data.archives import PNG, png, sample, write_tar
from tests.data.image_files import picture


def rows(listing, split="train"):
    return list(zip(*listing.splits[split], strict=True))


def test_webdataset_reads_the_same(tmp_path):
    """Order, pixels and labels; keys with folders and dots, any case, members of other kinds."""
    webdataset = pytest.importorskip("webdataset")
    for shard, count in (("b", 3), ("a", 4), ("c", 1)):
        with webdataset.TarWriter(str(tmp_path / f"{shard}.tar")) as writer:
            for i in range(count):
                key = f"v1.0/{shard}/{7 * i % 10:03d}"
                content = {"png": png(ord(shard) + i), "cls": i % 3, "json": {"label": 9}}
                writer.write({"__key__": key, **content, "seg.png": PNG, "txt": "a cat"})
    long = f"{'x' * 200}/é/1"
    write_tar(tmp_path / "d.tar", sample(long, " 2\n", extension="PNG"), format=tarfile.GNU_FORMAT)
    write_tar(tmp_path / "e.tar", {"._1.png": b"", "__meta__/1.png": b""} | sample(long, 0))
    data = load_data("folder", tmp_path)
    found = []
    for shard in "abcde":  # stage by stage, as WebDataset leaves its files open
        with open(tmp_path / f"{shard}.tar", "rb") as stream:
            opened = [{"url": shard, "stream": stream}]
            expanded = webdataset.tariterators.tar_file_expander(opened)
            grouped = webdataset.tariterators.group_by_keys(expanded)
            found += map(webdataset.autodecode.Decoder([webdataset.imagehandler("rgb8")]), grouped)
    assert [name.rpartition(".")[0] for name in data.train.names()] == [
        f"{item['__url__']}.tar/{item['__key__']}" for item in found
    ]
    pixels = np.stack([item["png"] for item in found])
    np.testing.assert_array_equal(data.train.batch(torch.arange(10)).numpy(), pixels)
    assert data.train.labels.tolist() == [item["cls"] for item in found]
    assert (data.classes, data.test) == (("0", "1", "2"), None)
    assert data.train.name(0) == f"{tmp_path}/a.tar: v1.0/a/000.png"


@pytest.mark.parametrize(
    ("members", "names", "classes", "labels", "ignored"),
    [
        (sample(0, 10) | sample(1, 9), None, ("9", "10"), [1, 0], ()),
        (sample(0, 2) | sample(1, 0), "cat\nbee\nant\n", ("cat", "ant"), [1, 0], ()),
        (sample(0) | sample(1), "cat\nbee\n", (), [-1, -1], ()),
        (sample(0, -1) | sample(1, -1), None, (), [-1, -1], ()),
        (sample(0, 1), "a\nb\n", (), [-1], ("labels of a single class (b)",)),
        (
            sample(0) | {"0.json": b'{"label": "dog"}'} | sample(1) | {"1.json": b'{"cls": "cat"}'},
            None,
            ("cat", "dog"),
            [1, 0],
            (),
        ),
        (sample(0, 1) | {"0.json": b'{"label": 0}'} | sample(1, 0), "a\nb", ("a", "b"), [1, 0], ()),
        (sample(0) | {"0.json": b'["caption"]'}, None, (), [-1], ()),
        (
            {"7.txt": b""} | sample(0) | {"a\n.json": b"no"},
            None,
            (),
            [-1],
            (r"2 samples without an image (a.tar/7, a.tar/a\n)",),
        ),
    ],
)
def test_labels(tmp_path, members, names, classes, labels, ignored):
    write_tar(tmp_path / "shards" / "a.tar", members)
    for place in (tmp_path, tmp_path / "shards"):
        if names is not None:
            (place / "classnames.txt").write_text(names)
        for path in (tmp_path / "shards", tmp_path / "shards" / "a.tar"):
            listing = find_images(path)
            assert [label for _, label in rows(listing)] == labels
            assert (listing.classes, listing.ignored) == (classes, ignored)
        (place / "classnames.txt").unlink(missing_ok=True)


def test_suffixes_are_those_of_folders(tmp_path):
    folder = importlib.import_module("torchvision.datasets.folder")
    assert {f".{extension}" for extension in EXTENSIONS} == {*folder.IMG_EXTENSIONS, ".gif"}


def test_links(tmp_path):
    """Hard links are the members that they lead to; others are said, or stop if they are labels."""
    write_tar(tmp_path / "a.tar", sample("a", 1) | sample("b", content=png(1)))

    def link(kind, name, target):
        with tarfile.open(tmp_path / "a.tar", "a") as tar:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            tar.addfile(info)

    link(tarfile.LNKTYPE, "b.cls", "a.cls")
    link(tarfile.LNKTYPE, "c.png", "b.png")
    link(tarfile.LNKTYPE, "c.cls", "b.cls")  # a link to a link
    link(tarfile.SYMTYPE, "d.png", "a.png")
    link(tarfile.LNKTYPE, "e.png", "later.png")
    write_tar(tmp_path / "b.tar", sample("z", 0) | {".z.png": PNG})
    data = load_data("folder", tmp_path)
    assert data.train.names() == ["a.tar/a.png", "a.tar/b.png", "a.tar/c.png", "b.tar/z.png"]
    assert data.train.labels.tolist() == [1, 1, 1, 0]
    pixels = np.stack([picture(seed) for seed in (0, 1, 1, 0)])
    np.testing.assert_array_equal(data.train.batch(torch.arange(4)).numpy(), pixels)
    assert data.ignored == (
        "2 members that are no regular files (a.tar/d.png, a.tar/e.png)",
        "1 members hidden or of the system (b.tar/.z.png)",
    )
    write_tar(tmp_path / "c.tar", {"0.cls": b"1"})
    with tarfile.open(tmp_path / "c.tar", "a") as tar:
        info = tarfile.TarInfo("0.png")
        info.type = tarfile.SYMTYPE
        tar.addfile(info)
    with pytest.raises(ValueError, match=r"0.cls has no image .*; 0.png is no regular file$"):
        find_images(tmp_path)
    link(tarfile.SYMTYPE, "f.cls", "a.cls")
    with pytest.raises(ValueError, match=r"a\.tar: f\.cls is no regular file but a link to a\.c"):
        find_images(tmp_path)


def test_a_test_split_without_labels_is_left_out(tmp_path):
    write_tar(tmp_path / "train.tar", sample(0, 0) | sample(1, 1))
    write_tar(tmp_path / "test.tar", sample(0) | sample(1, -1))
    assert describe_data(load_data("folder", tmp_path)) == (
        "data: 2 training images of 2 classes; no test images; left out: 2 test images without"
        " labels"
    )


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (sample(0, "cat"), "a.tar: 0.cls holds b'cat'; it must be a whole number, the class"),
        (sample(0, ""), "a.tar: 0.cls holds b''; it must be a whole"),
        (sample(0, "9" * 19), "a.tar: 0.cls holds b'9999.*'; it must be a whole"),
        (sample(0, "1" * 101), "a.tar: 0.cls has 101 bytes; it may have 100$"),
        (sample(0, -2), r"a.tar: 0.cls has the label -2; it must be -1, or 0 or more$"),
        (sample(0, 0) | sample(1), "a.tar: 1.png has no label, but the first image has one; give"),
        (sample(0) | sample(1, 0), "a.tar: 1.png has a label, but the first image has none; give"),
        (
            {"0.png": PNG, "0.jpg": PNG},
            "a.tar has 0.png and 0.jpg in one sample, which may have one image$",
        ),
        (
            sample(0, 1) | {"0.CLS": b"1"},
            "a.tar has 0.cls and 0.CLS in one sample, which may have one .cls$",
        ),
        (
            sample(0) | {"1.txt": b"", "0.png.cls": b""} | {"2.txt": b"", "0.cls": b"1"},
            r"a.tar: 0.cls has no image beside it \(.jpg, .*, .tiff\); the members of a sample ",
        ),
        (sample(0) | {"0.json": b"{"}, r"a.tar: 0.json is not JSON \(Expecting"),
        (sample(0) | {"0.json": b"[" * 10**5}, r"a.tar: 0.json is not JSON \(nested too deeply\)"),
        (sample(0) | {"0.json": b"\xff"}, "a.tar: 0.json is not JSON"),
        (sample(0) | {"0.json": b'{"label": 1.5}'}, "0.json has the label 1.5; it must be a whole"),
        (sample(0) | {"0.json": b'{"cls": true}'}, "0.json has the label True; it must be a whole"),
        ({"a.txt": b"", "b.npy": b""}, "a.tar holds no image; members must end in .jpg, "),
        ({"img_0.1.png": PNG}, r"a.tar holds .*/img_0: img_0.1.png has the extension .1.png"),
        (
            {"0.left.PNG": PNG, "0.cls": b"1"},
            "0.cls has no image beside it .*; 0.left.PNG has the extension .left.png, as ext",
        ),
        (
            {"apple.cls": b"1", "apple.npy": b""},
            "apple.cls has no image beside it .*; apple.npy is an image only with --channels$",
        ),
        ({}, "a.tar holds no image; members must end in .jpg, "),
        ({f"{'x' * 4100}.png": PNG}, "a.tar is no tar file, or damaged .*a name of 4,104 bytes"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path, members, message):
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ValueError, match=message) as caught:
        find_images(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_names_that_are_there_twice(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("0.png", "1.png", "0.png"):
            info = tarfile.TarInfo(name)
            info.size = len(PNG)
            tar.addfile(info, io.BytesIO(PNG))
    with pytest.raises(ValueError, match=r"a\.tar has 0\.png twice; names must differ"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cat\n", "a.tar: 1.cls has the label 1; .* below 1, as classnames.txt has so many lines"),
        ("cat\ndog\ncat", "line 3 of .*classnames.txt has 'cat' again; classes must differ"),
        ("cat\n\ndog\n", "line 2 of .*classnames.txt is empty; classes must differ"),
        (b"\xff\xfe", "classnames.txt is not UTF-8 text; save it as such"),
    ],
)
def test_class_names_that_do_not_fit(tmp_path, names, message):
    write_tar(tmp_path / "a.tar", sample(0, 0) | sample(1, 1))
    (tmp_path / "classnames.txt").write_bytes(names if isinstance(names, bytes) else names.encode())
    with pytest.raises(ValueError, match=message):
        find_images(tmp_path)


def damaged(tmp_path, content):
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path} ") as caught:
        read_tars(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def header(name, size=None, kind=tarfile.REGTYPE):
    """A header by itself, whose size field is 12 bytes or base 256 of a negative number."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    if size is not None:
        block[124:136] = (
            size if isinstance(size, bytes) else b"\xff" + size.to_bytes(11, "big", signed=True)
        )
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block[:512])


def test_damage_is_found(tmp_path):
    """tarfile ends without a word at a damaged header, and may go round at a negative size."""
    write_tar(tmp_path / "whole.tar", sample("0", content=bytes(512)) | sample("1"))
    whole = (tmp_path / "whole.tar").read_bytes()
    torn = bytearray(whole)
    torn[1024 + 150] ^= 0x40
    assert damaged(tmp_path, torn).endswith("a.tar is damaged or truncated at byte 1,024")
    for cut in (100, 512, 700, 1024 + 100, 1024 + 512 + len(PNG) // 2):
        assert "truncated" in damaged(tmp_path, whole[:cut])
    assert damaged(tmp_path, b"").endswith("(empty file)")
    assert "damaged" in damaged(tmp_path, PNG)
    end = header("0.png", -1024) + bytes(1024)
    assert damaged(tmp_path, end).endswith("(a negative size)")
    assert "bytes)" in damaged(tmp_path, header("x", -1024, tarfile.GNUTYPE_LONGNAME) + bytes(1024))
    assert "damaged" in damaged(tmp_path, header("0.png", b"\x80" + b"\x7f" * 11) + bytes(1024))
    assert damaged(tmp_path, whole + whole).endswith(
        "; if tar files were joined, join them with tar --concatenate"
    )
    assert "(gzip)" in damaged(tmp_path, gzip.compress(whole))
    (tmp_path / "a.tar").write_bytes(whole[: 1024 + 512 + 512 * -(-len(PNG) // 512)])  # no end
    assert len(rows(read_tars(tmp_path / "a.tar"))) == 2


def test_large_headers_are_not_read(tmp_path):
    """A table of attributes that is said to have a TiB, in a file that has."""
    size = b"\x80" + (2**40).to_bytes(11, "big")
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(header("x", size, tarfile.XHDTYPE))
        file.truncate(2**41)
    with pytest.raises(ValueError, match=r"a header of 1,099,511,627,776 bytes"):
        read_tars(tmp_path / "a.tar")


def test_compressed_tars(tmp_path):
    for name in ("a.tgz", "a.tar.gz"):
        with tarfile.open(tmp_path / name, "w:gz"):
            pass
        with pytest.raises(
            ValueError, match=r"is compressed \(gzip\).*; unpack it to a plain .tar"
        ):
            find_images(tmp_path / name)


def test_a_hostile_tar_leads_nowhere(tmp_path):
    """Names that climb, links, devices and pipes, sparse members."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(1))
    path = tmp_path / "in" / "a.tar"
    write_tar(path, sample("../../up") | sample("/etc/abs"))
    with tarfile.open(path, "a") as tar:
        for number, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
        ):
            info = tarfile.TarInfo(f"z{number}.png")
            info.type, info.linkname = kind, str(secret)
            tar.addfile(info)
    before = sorted(tmp_path.rglob("*"))
    data = load_data("folder", path, skip_bad=True, workers=0, progress=False)
    assert data.train.names() == ["a.tar/../../up.png", "a.tar//etc/abs.png"]
    np.testing.assert_array_equal(data.train.batch(torch.tensor([0]))[0].numpy(), picture(0))
    assert sorted(tmp_path.rglob("*")) == before
    sparse = bytearray(header("0.png", b"00000000000\0", tarfile.GNUTYPE_SPARSE))
    sparse[257:265] = b"ustar  \0"
    sparse[483:495] = b"00000001000\0"
    sparse[148:156] = b" " * 8
    sparse[148:156] = b"%06o\0 " % sum(sparse)
    assert damaged(tmp_path, bytes(sparse) + bytes(1024)).endswith(
        "(0.png is sparse; it must not be)"
    )


def test_random_damage_gives_images_or_a_sentence(tmp_path):
    write_tar(
        tmp_path / "whole.tar", sample("é" * 80, 0) | sample("1", 1), format=tarfile.PAX_FORMAT
    )
    whole = (tmp_path / "whole.tar").read_bytes()
    rng = np.random.default_rng(0)
    path, ends = tmp_path / "a.tar", set()
    for _ in range(300):
        torn = bytearray(whole)
        place = int(rng.choice(np.flatnonzero(np.frombuffer(whole, np.uint8))))
        torn[place] = rng.integers(256)
        if rng.random() < 0.5 and place % 512 not in range(148, 156):  # with a fitting checksum
            start = place // 512 * 512
            torn[start + 148 : start + 156] = b" " * 8
            torn[start + 148 : start + 156] = b"%06o\0 " % sum(torn[start : start + 512])
        path.write_bytes(torn)
        try:
            ends.add(len(rows(read_tars(path))))
        except ValueError as error:
            ends.add("named" if str(path) in str(error) else str(error))
    assert {2, "named"} <= ends <= {0, 1, 2, "named"}


def test_a_tar_that_changes_is_not_read(tmp_path):
    path = tmp_path / "a.tar"
    write_tar(path, sample("0"))
    data = load_data("folder", path)
    write_tar(path, sample("1") | sample("0"))
    with pytest.raises(OSError, match=r"a\.tar: 0\.png cannot be read: the tar file has changed"):
        data.train.batch(torch.tensor([0]))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.tar: 0\.png cannot be read \(No such file"):
        data.train.batch(torch.tensor([0]))
