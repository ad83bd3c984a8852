"""SVHN from MATLAB files."""

import numpy as np
import pytest
from scipy.io import savemat

from trajmatch.data import load_dataset
from trajmatch.errors import UserError


def write(path, count, seed):
    """A file as the official ones are: X [32, 32, 3, N], y [N, 1] with 10 for the digit 0."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (32, 32, 3, count), np.uint8)
    labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"X": pixels, "y": labels}, do_compression=True)
    return pixels


@pytest.mark.parametrize("place", [".", "svhn", "SVHN"])
def test_images_and_labels(tmp_path, place):
    pixels = write(tmp_path / place / "train_32x32.mat", 20, 0)
    write(tmp_path / place / "test_32x32.mat", 12, 1)
    dataset = load_dataset(f"svhn:{tmp_path}")
    assert dataset.name == "svhn"
    assert dataset.class_names == tuple("0123456789")
    assert dataset.train_labels.tolist() == [*range(1, 10), 0] * 2
    assert dataset.test_labels[:10].tolist() == [*range(1, 10), 0]
    assert np.array_equal(dataset.train_images.numpy(), pixels.transpose(3, 2, 0, 1))


def refusal(tmp_path):
    with pytest.raises(UserError) as caught:
        load_dataset(f"svhn:{tmp_path}")
    return str(caught.value)


def test_missing_files_are_named(tmp_path):
    assert "holds neither train_32x32.mat nor svhn/train_32x32.mat" in refusal(tmp_path)
    write(tmp_path / "train_32x32.mat", 20, 0)
    assert f"{tmp_path / 'test_32x32.mat'} is missing; put both official files" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_files_of_another_kind_are_named(tmp_path):
    write(tmp_path / "train_32x32.mat", 20, 0)
    path = tmp_path / "test_32x32.mat"
    savemat(path, {"X": np.zeros((32, 32, 3, 4), np.uint8), "z": np.zeros(4)})
    assert (
        f"{path} should hold X [32, 32, 3, N] of uint8 and y [N, 1], but holds X [32, 32, 3, 4]"
        in (refusal(tmp_path))
    )
    savemat(path, {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.zeros((3, 1), np.uint8)})
    assert "y [3, 1] of uint8; download the official file" in refusal(tmp_path)
    for content in (b"", b"no MATLAB file at all" * 20, b"\x89HDF\r\n" * 100):
        path.write_bytes(content)
        assert f"{path} is cut off or not a MATLAB file" in refusal(tmp_path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99])
def test_a_file_that_is_cut_off_is_named(tmp_path, part):
    write(tmp_path / "train_32x32.mat", 20, 0)
    path = tmp_path / "test_32x32.mat"
    write(path, 20, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    message = refusal(tmp_path)
    assert str(path) in message and "download" in message
