"""Sizes that only a file or an option claims: refused before anything of that size is made."""

import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from trajmatch import memory, networks
from trajmatch.data import decode, load_dataset
from trajmatch.data.options import ImageOptions
from trajmatch.distill.initialise import from_noise
from trajmatch.errors import UserError


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_file_of_cifar_beyond_the_memory(tmp_path, monkeypatch, name):
    for file in (*(f"data_batch_{i}.bin" for i in range(1, 6)), "train.bin"):
        with (tmp_path / file).open("wb") as sparse:
            sparse.truncate(3073 * 3074 * 1000)  # of five files, or of one
    monkeypatch.setattr(memory, "available_memory", lambda: 10**9)
    with pytest.raises(UserError, match=r"take (47\.2|9\.4) GB of memory"):
        load_dataset(f"{name}:{tmp_path}")


def test_a_label_far_above_the_number_of_classes(tmp_path):
    for label in (10**9, 2**62):
        labels = np.array([0, 1, 0, label])
        images = np.zeros((4, 4, 4), np.uint8)
        np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
        with pytest.raises(UserError, match=rf"from 0 to 2 .*image 3 has label {label}"):
            load_dataset(f"npz:{tmp_path / 'a.npz'}")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("size=3000000000", "of memory"),  # its square is more than 63 bits hold
        ("size=" + "9" * 18, "of memory"),
        ("size=" + "9" * 30, "size should be a whole number of at least 1"),
        ("size=" + "9" * 5000, "size should be a whole number of at least 1"),
        ("size=8&classes=" + "9" * 5000, "has no class"),
        ("size=1000000&classes=0,1", r"2 images of 1000000 x 1000000 pixels take"),
    ],
)
def test_options(tmp_path, options, message):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / split / name / "0.png")
    with pytest.raises(UserError, match=message):
        load_dataset(f"imagefolder:{tmp_path}?{options}")


def test_an_image_that_is_a_line():
    with pytest.raises(UserError, match=r"a\.png is 1 x 60000 pixels, .* ratio is too large to"):
        decode.to_array("a.png", Image.new("L", (1, 60_000)), (1, 512, 512), ImageOptions(), [])


@pytest.mark.parametrize("text", ["convnet", "alexnet", "vgg11", "resnet18", "mlp"])
@pytest.mark.parametrize("width", [10**6, 10**9, 10**18, 10**40])
def test_widths_of_networks(text, width):
    with pytest.raises(ValueError, match=r"of memory, but .* GB are free|exceed 64-bit sizes"):
        networks.specify(f"{text}:width={width}", 3, 10, 32)
    sound = networks.specify(text, 3, 10, 32)
    with pytest.raises(ValueError, match=r"of memory, but .* GB are free|exceed 64-bit sizes"):
        networks.build({**sound, "width": width})  # as a damaged file may say


def test_building_a_network_draws_no_other_random_numbers():
    spec = networks.specify("convnet:width=8", 3, 10, 32)
    torch.manual_seed(0)
    built = networks.flat_parameters(networks.build(spec))
    torch.manual_seed(0)
    spec.pop("name")
    assert torch.equal(built, networks.flat_parameters(networks.ConvNet(**spec)))


def test_images_of_noise():
    with pytest.raises(UserError, match=r"10000000000 images take .* lower --ipc"):
        from_noise(load_dataset(), 10**9, torch.Generator())


@pytest.mark.slow
def test_the_program_says_it_without_the_memory_for_it(tmp_path):
    labels = np.array([0, 1, 0, 10**9])
    images = np.zeros((4, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    command = [sys.executable, "-m", "trajmatch", "expert", "--data", f"npz:{tmp_path}/a.npz"]
    found = subprocess.run(
        [*command, "--out", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 * 10**9, 8 * 10**9)),
        timeout=60,
    )
    assert found.returncode == 2 and "image 3 has label 1000000000" in found.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="what is free is known on Linux only")
def test_free_memory_is_plausible():
    assert 10**7 < memory.available_memory() < 10**14
