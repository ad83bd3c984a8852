"""benchmarks/small_sets.py: the sets that it makes, and the page with its result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_sets as program

from trajmatch import files
from trajmatch.data import load_dataset

pytestmark = pytest.mark.harness


def test_a_set_has_the_classes_and_images_that_it_names(tmp_path: Path) -> None:
    labels = np.arange(40) % 4
    images = np.full((40, 8, 8, 3), 10, np.uint8) * labels[:, None, None, None].astype(np.uint8)
    np.savez(tmp_path / "all.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    own = program.OwnSet("cifar10", (1, 3), 2, 6)
    address = program.write_set(own, f"npz:{tmp_path / 'all.npz'}", tmp_path / "own.npz")
    made = load_dataset(address)
    assert made.train_labels.tolist() == [0, 0, 1, 1]
    assert made.test_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert made.train_images[:, 0, 0, 0].tolist() == [10, 10, 30, 30]


def test_test_images_of_digits_are_no_training_images(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    own = program.OwnSet("digits", (0, 1), 60, 200)
    made = load_dataset(program.write_set(own, "", tmp_path / "digits.npz"))
    assert made.train_images.shape == (120, 1, 32, 32) and len(made.test_images) == 200
    trained = {each.numpy().tobytes() for each in made.train_images}
    assert not any(each.numpy().tobytes() in trained for each in made.test_images)


def test_the_page_is_what_the_record_says() -> None:
    record = files.read_json(program.PAGE.parent.parent / "benchmarks/results/small_sets_cpu.json")
    assert program.as_table(record) in program.PAGE.read_text()


def test_a_set_without_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--only=Fashion-MNIST"]) == 2
    assert "made from --fashion; give it" in capsys.readouterr().err
