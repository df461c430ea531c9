"""Reading an image set from local files in a directory that the user names."""

from pathlib import Path

from experiments.data.archives import read_archives
from experiments.data.image_sets import ImageSet, LabeledImages
from experiments.data.npz_parts import find_parts, read_parts

SPLITS = ("train", "test")


def read_files(image_set: ImageSet, folder: Path) -> dict[str, LabeledImages]:
    """Reads ``train`` and ``test`` from the official archives or else from npz parts.

    Raises:
      FileNotFoundError: if the folder has a complete set of neither.
      ValueError: if a file is corrupt, or labels and images do not match.
    """
    parts = {}
    if folder.is_dir():
        archives = {name: folder / name for name in image_set.archives}
        if all(path.exists() for path in archives.values()):
            return _checked(image_set, read_archives(image_set, archives), folder)
        parts = {split: find_parts(image_set, split, folder) for split in SPLITS}
    if not all(parts.get(split) for split in SPLITS):
        name = image_set.name
        raise FileNotFoundError(
            f"source={str(folder)!r} must be a directory that holds either the "
            f"official {list(image_set.archives)} or npz parts ({name}_train.npz or "
            f"all of {name}_train_part*of*.npz, and likewise {name}_test)"
        )
    read = {split: read_parts(image_set, paths) for split, paths in parts.items()}
    return _checked(image_set, read, folder)


def _checked(
    image_set: ImageSet, splits: dict[str, LabeledImages], folder: Path
) -> dict[str, LabeledImages]:
    for name, (images, labels) in splits.items():
        if len(images) != len(labels) or not len(labels):
            raise ValueError(
                f"source={str(folder)!r}: the {name} split of {image_set.name} has "
                f"{len(images)} images and {len(labels)} labels; the numbers must be "
                "equal, and at least one"
            )
        if labels.min() < 0 or labels.max() >= image_set.num_classes:
            raise ValueError(
                f"source={str(folder)!r}: the {name} split of {image_set.name} has "
                f"labels from {labels.min()} to {labels.max()}; allowed are 0 to "
                f"{image_set.num_classes - 1}"
            )
    return splits
