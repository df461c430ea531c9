"""Archives like those of ImageNet, of a few images."""

import io
import tarfile

import numpy as np
from PIL import Image

# The classes of the first validation images, by the official list.
SYNSETS = ("n01751748", "n09193705", "n02105855")
TRAINING_IMAGES, VALIDATION_IMAGES = 16, 6  # of each class; in all


def encoded(seed, kind="JPEG", mode="RGB"):
    """A photograph, so to speak: smooth, in the color of its class."""
    rng = np.random.default_rng(seed)
    width, height = rng.integers(70, 130, 2)
    ramp = np.linspace(0, 80, width)[None, :, None]
    pixels = (
        ramp + rng.uniform(0, 40) + 100 * np.eye(3)[seed % 3] + np.zeros([height, 1, 1])
    )
    image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_archives(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as train:
        for number, synset in enumerate(SYNSETS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for row in range(TRAINING_IMAGES):
                    # The real set has a few of other colors and formats too.
                    odd = {0: {"mode": "CMYK"}, 1: {"kind": "PNG"}}.get(row, {})
                    content = encoded(3 * row + number, **odd)
                    add(archive, f"{synset}_{row}.JPEG", content)
            add(train, f"{synset}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for row in reversed(range(VALIDATION_IMAGES)):
            content = encoded(100 + 3 * row + (2 + row) % 3)
            add(archive, f"ILSVRC2012_val_{row + 1:08}.JPEG", content)
    return folder
