"""Small image sets as files, in the formats that `experiments.data.prepare` reads."""

import gzip
import hashlib
import io
import tarfile

import numpy as np
from PIL import Image

from experiments.data.image_sets import IMAGE_SETS, LabeledImages

COLUMN = 24  # images in a WebP file


def random_images(name, examples, seed):
    image_set = IMAGE_SETS[name]
    rng = np.random.default_rng(seed)
    return LabeledImages(
        rng.integers(0, 256, (examples, *image_set.shape), dtype=np.uint8),
        rng.permutation(np.arange(examples) % image_set.num_classes).astype(np.int32),
    )


def write_cifar_archive(name, folder, train, test):
    stem = {"cifar10": "cifar-10", "cifar100": "cifar-100"}[name]

    def records(split, rows):
        pixels = split.images[rows].transpose(0, 3, 1, 2).reshape(len(rows), -1)
        labels = split.labels[rows, None]
        columns = (
            [labels, pixels] if name == "cifar10" else [0 * labels, labels, pixels]
        )
        return np.concatenate(columns, axis=1).astype(np.uint8).tobytes()

    def add(member, split, rows):
        info = tarfile.TarInfo(member)
        raw = records(split, rows)
        info.size = len(raw)
        archive.addfile(info, io.BytesIO(raw))

    with tarfile.open(folder / f"{stem}-binary.tar.gz", "w:gz") as archive:
        every_train, every_test = np.arange(len(train.labels)), np.arange(len(test[1]))
        if name == "cifar10":
            for part, rows in enumerate(np.array_split(every_train, 5), start=1):
                add(f"cifar-10-batches-bin/data_batch_{part}.bin", train, rows)
            add("cifar-10-batches-bin/test_batch.bin", test, every_test)
        else:
            add("cifar-100-binary/train.bin", train, every_train)
            add("cifar-100-binary/test.bin", test, every_test)


def write_idx_archives(folder, train, test):
    for prefix, split in (("train", train), ("t10k", test)):
        for kind, array in (
            ("images-idx3", split.images[..., 0]),
            ("labels-idx1", split.labels.astype(np.uint8)),
        ):
            header = bytes([0, 0, 8, array.ndim])
            sizes = np.array(array.shape, ">u4").tobytes()
            raw = gzip.compress(header + sizes + array.tobytes())
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(raw)


def write_npz_part(path, split, **changes):
    files = []
    width, channels = split.images.shape[2:]
    for start in range(0, len(split.labels), COLUMN):
        column = split.images[start : start + COLUMN]
        shape = (-1, width) if channels == 1 else (-1, width, channels)
        file = io.BytesIO()
        Image.fromarray(column.reshape(shape)).save(file, "webp", lossless=True)
        files.append(file.getvalue())
    arrays = {
        "webp": np.frombuffer(b"".join(files), np.uint8),
        "offsets": np.cumsum([0, *map(len, files)]),
        "shape": np.array(split.images.shape[1:]),
        "labels": split.labels.astype(np.uint8),
        "raw_sha256": np.array(hashlib.sha256(split.images.tobytes()).hexdigest()),
    }
    np.savez(path, **{**arrays, **changes})
