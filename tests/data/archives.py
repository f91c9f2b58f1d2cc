"""Tar shards and saved data sets for tests, of the pictures of ``write_folder``."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from tests.data.image_files import picture


def png(seed, **options):
    """The PNG file of ``picture``."""
    encoded = io.BytesIO()
    Image.fromarray(picture(seed, **options)).save(encoded, "PNG")
    return encoded.getvalue()


PNG = png(0)


def sample(key, label=None, content=PNG, extension="png"):
    """{name: bytes} of a sample of WebDataset's layout."""
    members = {f"{key}.{extension}": content}
    return members if label is None else members | {f"{key}.cls": str(label).encode()}


def write_tar(path, members, **options):
    """A tar file of {name: bytes}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def images_of(root, split):
    """(name, content, class) of the files that ``write_folder`` wrote, in their order."""
    return [
        (path.stem, path.read_bytes(), path.parent.name)
        for path in sorted((Path(root) / split).glob("*/*.png"))
    ]


def write_shards(source, target, *, shard=3):
    """Shards train-N.tar and val-N.tar of that many images, with names of the classes."""
    classes = sorted(path.name for path in (source / "train").iterdir())
    for split in ("train", "val"):
        found = images_of(source, split)
        for start in range(0, len(found), shard):
            members = {}
            for name, content, label in found[start : start + shard]:
                members[f"{label}{name}.png"] = content
                members[f"{label}{name}.cls"] = str(classes.index(label)).encode()
            write_tar(target / f"{split}-{start // shard:05d}.tar", members)
    (target / "classnames.txt").write_text("\n".join(classes) + "\n")


def data_set(datasets, images, classes):
    """A data set of Hugging Face of ``images_of``."""
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    rows = {
        "image": [{"bytes": content, "path": f"{name}.png"} for name, content, _ in images],
        "label": [label if label is None else classes.index(label) for *_, label in images],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))


def write_saved(datasets, source, target):
    """The folder that ``save_to_disk`` makes of ``write_folder``'s, with a split more."""
    classes = sorted(path.name for path in (source / "train").iterdir())
    train, test = (data_set(datasets, images_of(source, s), classes) for s in ("train", "val"))
    splits = {"test": train, "validation": test, "train": train}
    datasets.DatasetDict(splits).save_to_disk(target)
