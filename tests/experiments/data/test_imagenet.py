"""ImageNet from its archives to training, on a few images."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorflow_datasets.core import shuffle

from experiments import data
from experiments.data import prepare
from experiments.data.imagenet_store import class_names, open_split
from experiments.data.photo_stream import PhotoStream
from experiments.data.stream import PADDING_LABEL
from experiments.records.files import read_record
from tests.experiments.fake_imagenet import (
    SYNSETS,
    TRAINING_IMAGES,
    VALIDATION_IMAGES,
    encoded,
    write_archives,
)

EXAMPLES = len(SYNSETS) * TRAINING_IMAGES
OPTIONS = {"validation_examples": 8, "image_size": 24}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    source = write_archives(folder / "source")
    arguments = ["imagenet2012", f"--source={source}", f"--data-dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        # TensorFlow Datasets needs TensorFlow to shuffle what is larger than this.
        patch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 1)
        prepare.main(arguments)
    return folder


@pytest.fixture(scope="module")
def dataset(prepared):
    return data.load_or_open("imagenet2012", data.DataOptions(prepared, **OPTIONS))


def plain_stream(count):
    """Images whose label is their number."""
    source = [
        {"image": encoded(row), "label": row, "file_name": f"{row}"}
        for row in range(count)
    ]
    return PhotoStream(source, 16)


def training_batches(stream, first, number, rows=range(8), batch_size=8):
    batches = stream.training_batches(
        seed=7, first=first, batch_size=batch_size, rows=rows
    )
    return list(itertools.islice(batches, number))


def test_the_archives_become_what_tfds_stores(prepared):
    names = class_names()
    labels = [names.index(synset) for synset in SYNSETS]
    assert (len(names), names[0]) == (1000, "n01440764")
    train = open_split(prepared, "train")
    found = sorted((e["file_name"].decode(), e["label"]) for e in train)
    assert found == sorted(
        (f"{synset}_{row}.JPEG", label)
        for synset, label in zip(SYNSETS, labels)
        for row in range(TRAINING_IMAGES)
    )
    # The original bytes, whatever their format.
    by_name = {e["file_name"].decode(): e["image"] for e in train}
    assert by_name[f"{SYNSETS[2]}_5.JPEG"] == encoded(17)
    # The labels of the official list, by the names in order.
    validation = sorted(
        open_split(prepared, "validation"), key=lambda e: e["file_name"]
    )
    assert [e["label"] for e in validation][:3] == labels
    assert len(validation) == VALIDATION_IMAGES


def test_splits_are_disjoint_and_complete(dataset):
    def names(stream):
        return {stream.source[row]["file_name"] for row in range(stream.examples)}

    assert dataset.num_classes == 1000
    assert (dataset.train.examples, dataset.validation.examples) == (EXAMPLES - 8, 8)
    assert len(names(dataset.train) | names(dataset.validation)) == EXAMPLES
    assert dataset.test.examples == VALIDATION_IMAGES
    (batch,) = training_batches(dataset.train, 0, 1)
    assert (batch.images.shape, batch.images.dtype) == ((8, 24, 24, 3), np.uint8)


def test_an_epoch_meets_every_image_once_in_an_order_of_its_own():
    stream = plain_stream(12)  # three batches are two epochs
    labels = np.concatenate([b.labels for b in training_batches(stream, 0, 3)])
    first, second = labels[:12], labels[12:]
    assert sorted(first) == sorted(second) == list(range(12))
    assert list(first) != list(second)


def test_a_stream_goes_on_where_it_was_and_processes_share_a_batch():
    stream = plain_stream(12)
    whole = training_batches(stream, 0, 5)
    for mine, other in zip(training_batches(stream, 3, 2), whole[3:]):
        np.testing.assert_array_equal(mine.images, other.images)
        np.testing.assert_array_equal(mine.labels, other.labels)
    for rows in ([0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 4, 5], [2, 3, 6, 7]):
        for mine, batch in zip(training_batches(stream, 3, 2, rows), whole[3:]):
            np.testing.assert_array_equal(mine.images, batch.images[rows])
            np.testing.assert_array_equal(mine.labels, batch.labels[rows])
    # Not the same augmentation for the same image again.
    row = [np.flatnonzero(b.labels == 5) for b in whole]
    seen = [b.images[r[0]] for b, r in zip(whole, row) if len(r)]
    assert len(seen) >= 2
    assert not np.array_equal(seen[0], seen[1])


def test_an_evaluation_meets_every_image_once_and_pads_the_last_batch():
    stream = plain_stream(11)
    for count in (1, 2):
        found = [
            list(stream.evaluation_batches(batch_size=8, rows=range(8)[p::count]))
            for p in range(count)
        ]
        assert {len(batches) for batches in found} == {2}
        labels = np.concatenate([b.labels for batches in found for b in batches])
        assert sorted(labels) == [PADDING_LABEL] * 5 + list(range(11))


def test_a_broken_image_is_named():
    source = [{"image": b"nothing", "label": 0, "file_name": "a.JPEG"}] * 8
    with pytest.raises(ValueError, match=r"'a\.JPEG' cannot be decoded"):
        training_batches(PhotoStream(source, 8), 0, 1)


def test_what_is_missing_or_half_written_says_what_to_run(prepared, tmp_path):
    with pytest.raises(data.NotPreparedError, match=r"prepare imagenet2012 .*--source"):
        data.load_or_open("imagenet2012", data.DataOptions(tmp_path))
    with pytest.raises(
        SystemExit, match=r"error: source=None must be .*ILSVRC2012_img"
    ):
        prepare.main(["imagenet2012", f"--data-dir={tmp_path}"])
    with pytest.raises(SystemExit, match="error: form='arrays' must be 'tfds'"):
        prepare.main(["imagenet2012", "--form=arrays"])
    source = write_archives(tmp_path / "source")
    archive = source / "ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:30_000])
    with pytest.raises(SystemExit, match="error: an archive in .* is corrupt"):
        prepare.main(["imagenet2012", f"--source={source}", f"--data-dir={tmp_path}"])
    with pytest.raises(data.NotPreparedError, match="is missing or incomplete"):
        data.load_or_open("imagenet2012", data.DataOptions(tmp_path))
    options = data.DataOptions(prepared, validation_examples=EXAMPLES)
    with pytest.raises(ValueError, match="add up to at most the 48 of 'imagenet2012'"):
        data.load_or_open("imagenet2012", options)


@pytest.mark.parametrize("shard", [0, 1])
@pytest.mark.parametrize("damage", ["missing", "half", "most"])
def test_a_broken_shard_says_what_to_run(damage, shard, prepared, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(prepared, folder)
    options = data.DataOptions(folder, **OPTIONS)
    whole = data.load_or_open("imagenet2012", options)
    assert whole.train.examples == EXAMPLES - 8
    victim = sorted(folder.rglob("*train.array_record*"))[shard]
    if damage == "missing":
        victim.unlink()
    else:
        content = victim.read_bytes()
        share = {"half": 0.5, "most": 0.9}[damage]  # at the end of a block, and in one
        victim.write_bytes(content[: int(share * len(content))])
    command = (
        f"run\n  python -m experiments.data.prepare imagenet2012 --data-dir {folder} "
    )
    with pytest.raises(data.NotPreparedError, match=f"incomplete .*{command}"):
        data.load_or_open("imagenet2012", options)


def test_preparing_again_mends_a_broken_shard(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    next((tmp_path / "data").rglob("*train.array_record*")).unlink()
    prepare.main(
        [
            "imagenet2012",
            f"--source={prepared / 'source'}",
            f"--data-dir={tmp_path / 'data'}",
        ]
    )
    options = data.DataOptions(tmp_path / "data", **OPTIONS)
    assert data.load_or_open("imagenet2012", options).train.examples == EXAMPLES - 8


IN_WORKERS = """
import itertools, sys
import numpy as np
from pathlib import Path
from experiments import data

def images(workers):
    options = data.DataOptions(
        Path(sys.argv[1]),
        validation_examples=8,
        image_size=24,
        decode_workers=workers,
    )
    train = data.load_or_open("imagenet2012", options).train
    batches = train.training_batches(seed=7, first=2, batch_size=8, rows=range(8))
    found = np.stack([batch.images for batch in itertools.islice(batches, 5)])
    batches.close()
    return found

if __name__ == "__main__":
    for workers in (0, 2):
        np.save(f"{sys.argv[2]}/{workers}.npy", images(workers))
"""


@pytest.mark.slow
def test_processes_decode_what_threads_do(prepared, tmp_path):
    script = tmp_path / "in_workers.py"  # which the workers import
    script.write_text(IN_WORKERS, encoding="utf-8")
    subprocess.run(
        [sys.executable, str(script), str(prepared), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        check=True,
    )
    threads, processes = (np.load(tmp_path / f"{n}.npy") for n in (0, 2))
    np.testing.assert_array_equal(processes, threads)


COMMAND = (
    "--config.dataset=imagenet2012",
    "--config.model=resnet8_narrow",
    "--config.optimizer=large_batch_nlcg",
    "--config.learning-rate=0.02",
    "--config.batch-size=16",
    "--config.label-smoothing=0.1",
    "--config.standardization=imagenet",
    "--config.image-size=32",
    "--config.validation-examples=8",
    "--config.epochs=3",
)

KILLED_AFTER_A_CHECKPOINT = """
import os, signal, sys
from experiments import run
from experiments.training.checkpoints import Checkpoints

save = Checkpoints.save

def save_and_die(self, step, *rest):
    save(self, step, *rest)
    self._manager.wait_until_finished()
    os.kill(os.getpid(), signal.SIGKILL)

Checkpoints.save = save_and_die
run.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_network_trains_on_the_stream_and_resumes_bit_for_bit(prepared, tmp_path):
    environment = {
        **os.environ,
        # The network is compiled once for the three processes.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
    }

    def go(name, *program):
        record = tmp_path / f"{name}.jsonl"
        options = [f"--data-dir={prepared}", f"--record={record}"]
        folder = f"--checkpoint-dir={tmp_path / name}"
        code = subprocess.run(
            [sys.executable, *program, *COMMAND, *options, folder],
            env=environment,
            check=False,
        ).returncode
        return code, record

    code, record = go("whole", "-m", "experiments.run")
    assert code == 0
    whole = read_record(record)
    losses = whole.series("loss")
    assert len(losses) == 6
    # A head of small weights: every class is about as likely.
    assert losses[0] == pytest.approx(np.log(1000), rel=0.05)
    assert losses[-1] < losses[0] - 1
    assert {"test_loss", "validation_accuracy"} <= set(whole.summary)

    assert go("killed", "-c", KILLED_AFTER_A_CHECKPOINT)[0] == -signal.SIGKILL
    code, record = go("killed", "-m", "experiments.run")
    assert code == 0
    resumed = read_record(record)
    assert resumed.series("loss") == losses
    assert resumed.summary["test_loss"] == whole.summary["test_loss"]
