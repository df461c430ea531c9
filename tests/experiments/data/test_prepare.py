"""Preparing data sets, from files in every format to the splits on the device."""

import ast
import dataclasses
import functools
import http.server
import socket
import sys
import threading

import jax.numpy as jnp
import numpy as np
import pytest
from tensorflow_datasets.core.download import checksums

from experiments import data
from experiments.data import downloads, prepare, tfds_store
from experiments.data.image_sets import IMAGE_SETS, LabeledImages
from tests.experiments.image_files import (
    random_images,
    write_cifar_archive,
    write_idx_archives,
    write_npz_part,
)

TRAIN, TEST = 60, 30


def write_files(name, folder, form):
    """Writes an image set and returns its splits."""
    train, test = random_images(name, TRAIN, 0), random_images(name, TEST, 1)
    folder.mkdir()
    if form == "parts":
        for part, rows in enumerate((slice(0, 40), slice(40, TRAIN))):
            write_npz_part(
                folder / f"{name}_train_part{part}of2.npz",
                LabeledImages(train.images[rows], train.labels[rows]),
            )
        write_npz_part(folder / f"{name}_test.npz", test)
    elif "mnist" in name:
        write_idx_archives(folder, train, test)
    else:
        write_cifar_archive(name, folder, train, test)
    return train, test


def in_any_order(split):
    rows = sorted(
        (image.tobytes(), int(label)) for image, label in zip(*split, strict=True)
    )
    assert len(rows) == len(split.labels)
    return rows


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("cifar10", "archive"),
        ("cifar100", "archive"),
        ("cifar100", "parts"),
        ("mnist", "archive"),
        ("fashion_mnist", "parts"),
    ],
)
def test_what_is_prepared_is_what_was_at_hand(name, form, tmp_path, capsys):
    source, data_dir = tmp_path / "files", tmp_path / "prepared"
    train, test = write_files(name, source, form)
    arguments = [name, "--source", str(source), "--data-dir", str(data_dir)]
    prepare.main(arguments)
    assert f"{TRAIN} train, {TEST} test images" in capsys.readouterr().out
    options = data.DataOptions(data_dir, validation_examples=12, split_seed=3)
    dataset = data.load(name, options)
    assert dataset.train.images.dtype == jnp.uint8
    assert dataset.train.labels.dtype == jnp.int32
    assert dataset.num_classes == IMAGE_SETS[name].num_classes
    assert len(dataset.validation.labels) == 12
    together = LabeledImages(
        *(np.concatenate(pair) for pair in zip(dataset.train, dataset.validation))
    )
    assert in_any_order(together) == in_any_order(train)
    assert in_any_order(dataset.test) == in_any_order(test)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """CIFAR-10 in both forms, with its training split."""
    folder = tmp_path_factory.mktemp("cifar10")
    train, _ = write_files("cifar10", folder / "files", "archive")
    arguments = ["cifar10", "--data-dir", str(folder / "data")]
    prepare.main([*arguments, "--source", str(folder / "files")])
    (folder / "arrays").mkdir()
    prepare.main(
        [
            "cifar10",
            f"--source={folder / 'files'}",
            f"--data-dir={folder / 'arrays'}",
            "--form=arrays",
        ]
    )
    return folder, train


def test_the_arrays_hold_the_same_without_the_store(prepared):
    folder, train = prepared
    options = data.DataOptions(folder / "arrays", validation_examples=0)
    assert not (folder / "arrays" / "cifar10").exists()
    dataset = data.load("cifar10", options)
    assert dataset.validation is None
    assert in_any_order(dataset.train) == in_any_order(train)
    stored = tfds_store.read(IMAGE_SETS["cifar10"], folder / "data")
    assert in_any_order(stored["train"]) == in_any_order(train)


def test_the_split_is_chosen_by_its_seed(prepared):
    folder, _ = prepared

    def load(seed):
        options = data.DataOptions(
            folder / "arrays",
            validation_examples=10,
            train_examples=20,
            split_seed=seed,
        )
        return data.load("cifar10", options)

    first, again, other = load(0), load(0), load(1)
    assert len(first.train.labels) == 20
    np.testing.assert_array_equal(first.train.images, again.train.images)
    np.testing.assert_array_equal(first.validation.images, again.validation.images)
    assert in_any_order(first.validation) != in_any_order(other.validation)
    assert not set(in_any_order(first.train)) & set(in_any_order(first.validation))


@pytest.mark.parametrize(("held_out", "used"), [(60, None), (50, 11), (0, 0)])
def test_a_split_that_leaves_nothing_is_refused(held_out, used, prepared):
    options = data.DataOptions(
        prepared[0] / "arrays", validation_examples=held_out, train_examples=used
    )
    with pytest.raises(ValueError, match=f"train_examples={used} and .* the 60 of"):
        data.load("cifar10", options)


@pytest.mark.parametrize("damage", ["missing", "no_shard", "half_shard", "half_arrays"])
def test_a_broken_data_set_says_what_to_run_which_mends_it(damage, tmp_path):
    source, data_dir = tmp_path / "files", tmp_path / "data"
    write_files("cifar10", source, "archive")
    form = "arrays" if damage == "half_arrays" else "tfds"
    arguments = ["cifar10", f"--source={source}", f"--data-dir={data_dir}"]
    arguments.append(f"--form={form}")
    if damage != "missing":
        prepare.main(arguments)
        pattern = "*.npz" if form == "arrays" else "*train.array_record*"
        (victim,) = data_dir.rglob(pattern)
        if damage == "no_shard":
            victim.unlink()
        else:
            victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    command = f"python -m experiments.data.prepare cifar10 --data-dir {data_dir}"
    options = data.DataOptions(data_dir, validation_examples=0)
    with pytest.raises(data.NotPreparedError, match=command) as caught:
        data.load("cifar10", options)
    assert ("--form arrays\n" in str(caught.value)) == (form == "arrays")
    prepare.main(arguments)
    assert len(data.load("cifar10", options).train.labels) == TRAIN


def test_files_that_are_missing_or_broken_are_refused(tmp_path):
    folder = tmp_path / "files"

    def refuses(message):
        arguments = ["cifar100", f"--source={folder}", f"--data-dir={tmp_path}"]
        with pytest.raises(SystemExit, match=message):
            prepare.main(arguments)
        assert not (tmp_path / "cifar100" / "3.0.2").exists()

    refuses("error: source=.* must be a directory that holds either the official")
    write_files("cifar100", folder, "parts")
    (folder / "cifar100_train_part0of2.npz").rename(folder / "elsewhere.npz")
    refuses("all of cifar100_train_part")
    wrong = random_images("cifar100", 40, 5)
    part = folder / "cifar100_train_part0of2.npz"
    write_npz_part(part, wrong, raw_sha256=np.array("0"))
    refuses("part0of2.npz is not a part of cifar100, or is corrupt: .* checksum")
    write_npz_part(part, wrong, labels=np.arange(39))
    refuses("40 images have 39 labels")
    write_npz_part(part, LabeledImages(wrong.images, wrong.labels + 100))
    refuses("labels from .* allowed are 0 to 99")
    part.write_bytes(part.read_bytes()[:1000])
    refuses("is not a part of cifar100, or is corrupt")
    (folder / "cifar-100-binary.tar.gz").write_bytes(b"no archive")
    refuses("is not the official archive of cifar100, or is corrupt")
    write_cifar_archive(
        "cifar100",
        folder,
        random_images("cifar100", 9, 0),
        random_images("cifar100", 9, 1),
    )
    archive = folder / "cifar-100-binary.tar.gz"
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1  # a pixel, which is random and so stored as it is
    archive.write_bytes(content)
    refuses("cifar100, or is corrupt: CRC check failed")


def test_unknown_data_sets_are_refused_with_all_that_can_be_prepared(tmp_path):
    with pytest.raises(SystemExit) as ended:
        prepare.main(["imagenet", f"--data-dir={tmp_path}"])
    allowed = str(ended.value).removeprefix(
        "error: dataset='imagenet' is unknown; allowed are "
    )
    assert ast.literal_eval(allowed) == [
        "cifar10",
        "cifar100",
        "fashion_mnist",
        "imagenet2012",
        "mnist",
        "speech_commands",
        "speech_commands_test",
    ]


def test_a_broken_idx_file_is_refused(tmp_path):
    write_files("mnist", tmp_path / "files", "archive")
    (tmp_path / "files" / "t10k-labels-idx1-ubyte.gz").write_bytes(b"no archive")
    with pytest.raises(SystemExit, match="t10k-labels.* is not an idx file of bytes"):
        prepare.main(
            ["mnist", f"--source={tmp_path / 'files'}", f"--data-dir={tmp_path}"]
        )


def test_an_archive_is_downloaded_and_its_checksum_verified(tmp_path, monkeypatch):
    files = tmp_path / "files"
    write_files("cifar10", files, "archive")
    handler = functools.partial(QuietHandler, directory=files)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        image_set = IMAGE_SETS["cifar10"]
        (archive,) = image_set.archives
        changed = dataclasses.replace(image_set, url=here)
        monkeypatch.setitem(IMAGE_SETS, "cifar10", changed)
        arguments = ["cifar10", f"--data-dir={tmp_path / 'data'}"]
        with pytest.raises(SystemExit, match="error: .*checksum"):
            prepare.main(arguments)
        known = {here + archive: checksums.compute_url_info(files / archive)}
        monkeypatch.setattr(tfds_store.ImageSetBuilder, "url_infos", known)
        prepare.main(arguments)
        # Where there is nothing, the arrays begin with the download, too.
        other = tmp_path / "other"
        prepare.main(["cifar10", f"--data-dir={other}", "--form=arrays"])
        server.shutdown()
    assert (other / "cifar10.npz").exists()
    for folder in (tmp_path / "data", other):
        options = data.DataOptions(folder, validation_examples=0)
        assert len(data.load("cifar10", options).train.labels) == TRAIN


@pytest.mark.parametrize("silent", [True, False])
def test_a_host_that_does_not_answer_is_given_up_at_once(silent, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts, never answers
        here = f"http://127.0.0.1:{server.getsockname()[1]}/"
        if not silent:
            server.close()
        image_set = dataclasses.replace(IMAGE_SETS["cifar10"], url=here)
        monkeypatch.setitem(IMAGE_SETS, "cifar10", image_set)
        message = f"error: {here}.* cannot be reached .*; .* --source DIRECTORY"
        for form in ("tfds", "arrays"):
            with pytest.raises(SystemExit, match=message):
                prepare.main(["cifar10", f"--data-dir={tmp_path}", f"--form={form}"])


def test_arrays_without_files_or_tensorflow_datasets_say_what_to_run(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "experiments.data.tfds_store", None)
    with pytest.raises(SystemExit, match=r"(?s)run\n.* --source .*--form arr"):
        prepare.main(["cifar10", f"--data-dir={tmp_path}", "--form=arrays"])


@pytest.mark.parametrize(
    ("name", "store", "otherwise"),
    [
        ("cifar10", "tfds_store", ", or give --form arrays"),
        ("imagenet2012", "imagenet_store", ""),
        ("speech_commands", "speech_store", ""),
    ],
)
def test_without_tensorflow_datasets_the_command_says_what_to_install(
    name, store, otherwise, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, f"experiments.data.{store}", None)
    with pytest.raises(SystemExit) as ended:
        prepare.main([name, f"--data-dir={tmp_path}"])
    advice = f"; install it with pip install -e '.[experiments]'{otherwise}"
    assert str(ended.value).startswith("error: import of experiments.data.")
    assert str(ended.value).endswith(advice)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass
