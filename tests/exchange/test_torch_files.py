"""Files from strangers: the answer is a message, or the numbers of a sound file."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from mutants import archive, mutations, pickle_in

from trajmatch.errors import UserError
from trajmatch.exchange import torch_files

FUZZED = 150
LONG_FUZZED = 10_000


class Call:
    """Something whose pickle calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def sound() -> list[list[list[torch.Tensor]]]:
    torch.manual_seed(0)
    return [[[torch.randn(4, 3), torch.randn(4)] for _ in range(3)] for _ in range(2)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(sound(), tmp_path / "file.pt")
    return tmp_path / "file.pt"


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    return len(first) == len(second) and all(map(equal, first, second))


def test_lists_of_tensors_are_read(path: Path) -> None:
    assert equal(torch_files.load(path), sound())


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(3, dtype=dtype)]
        for dtype in (torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    ],
)
def test_dtypes_are_read(tmp_path: Path, content: Any) -> None:
    torch_files.save(tmp_path / "a.pt", content)
    assert equal(torch_files.load(tmp_path / "a.pt"), content)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*No such file"):
        torch_files.save(tmp_path / "missing" / "a.pt", torch.zeros(1))
    with pytest.raises(UserError, match="cannot write /dev/full"):
        torch_files.save(Path("/dev/full"), torch.zeros(10**6))


# --- pickles that do something


@pytest.mark.parametrize(
    "content",
    [
        Call(os.system, "touch PATH"),
        Call(eval, "open('PATH', 'w')"),
        Call(torch.UntypedStorage, 10**12),
        torch.nn.Linear(2, 2),
        Path("x"),
    ],
)
def test_a_pickle_that_holds_anything_but_tensors_is_refused(tmp_path, content) -> None:
    made = tmp_path / "made"
    if isinstance(content, Call):
        function, arguments = content.__reduce__()
        texts = [a.replace("PATH", str(made)) if isinstance(a, str) else a for a in arguments]
        content = Call(function, *texts)
    torch.save([content], tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"holds something other than tensors.*can run code"):
        torch_files.load(tmp_path / "a.pt")
    assert not made.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_a_pickle_that_asks_for_memory_is_refused(tmp_path: Path, protocol: int) -> None:
    archive(tmp_path / "a.pt", pickle.dumps([Call(bytearray, 10**12)], protocol))
    with pytest.raises(UserError, match="holds a bytearray"):
        torch_files.load(tmp_path / "a.pt")


# --- what is not sound


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "a.pt", bytes(10**7), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="more than its"):
        torch_files.load(tmp_path / "a.pt")


def test_an_archive_whose_entries_overlap_is_refused(tmp_path: Path) -> None:
    archive(tmp_path / "a.pt", pickle.dumps([], 2))
    with zipfile.ZipFile(tmp_path / "a.pt", "a") as file:
        twin = file.getinfo("file/data/0")
        for _ in range(100):
            file.filelist.append(twin)
        file.filelist[0].file_size += 10**6
        file._didModify = True
    with pytest.raises(UserError, match="more than its"):
        torch_files.load(tmp_path / "a.pt")


def test_the_form_before_release_1_6_is_refused_with_what_to_do(tmp_path: Path) -> None:
    torch.save(sound(), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match=r"before 1.6 .*torch.save\(torch.load"):
        torch_files.load(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x05\x06" + bytes(18), bytes(1000)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"a.pt is (truncated, )?damaged"):
        torch_files.load(tmp_path / "a.pt")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.pt", tmp_path):
        with pytest.raises(UserError, match="cannot read"):
            torch_files.load(path)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(path: Path, part: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    with pytest.raises(UserError, match="is truncated"):
        torch_files.load(path)


def test_a_changed_number_is_found(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = content.find(sound()[0][0][0].numpy().tobytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="does not match its checksum"):
        torch_files.load(path)


@pytest.mark.parametrize("count", [FUZZED, pytest.param(LONG_FUZZED, marks=pytest.mark.slow)])
def test_fuzzed_files_give_a_message_or_the_numbers_of_the_sound_file(path, count) -> None:
    refused = 0
    for content in mutations(path.read_bytes(), count):
        path.write_bytes(content)
        try:
            assert equal(torch_files.load(path), sound())
        except UserError:
            refused += 1
    assert refused > count // 2


@pytest.mark.parametrize("count", [FUZZED, pytest.param(LONG_FUZZED, marks=pytest.mark.slow)])
def test_fuzzed_pickles_in_a_sound_archive_give_a_message_or_plain_content(path, count) -> None:
    """The checksums do not protect from somebody who writes them."""
    content = pickle_in(path)
    for changed in mutations(content, count):
        archive(path, changed)
        try:
            numbers = sum(tensor.numel() for tensor in tensors_in(torch_files.load(path)))
        except UserError:
            continue
        assert numbers <= 10**6


def tensors_in(content: Any, depth: int = 0) -> list[torch.Tensor]:
    if isinstance(content, torch.Tensor):
        return [content]
    if depth > 5 or not isinstance(content, list | tuple | dict):
        return []
    values = content.values() if isinstance(content, dict) else content
    return [tensor for value in values for tensor in tensors_in(value, depth + 1)]


BOMBS = """
import sys
from pathlib import Path
import torch
from trajmatch.errors import UserError
from trajmatch.exchange import torch_files

def address_space():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmPeak")) // 1024

torch_files.load(Path(sys.argv[1]))
before = address_space()
for name in sys.argv[2:]:
    try:
        torch_files.load(Path(name))
    except UserError:
        continue
    if not name.endswith("view"):
        raise SystemExit(f"{name} was read")
print(address_space() - before)
"""


def test_files_that_ask_for_memory_get_none(tmp_path: Path, path: Path) -> None:
    large = 10**11
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    )
    claim = storage + pickle.dumps(large, 2)[2:-1] + b"tQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    ordered = b"ccollections\nOrderedDict\n)R"
    shape = b"K\x00" + pickle.dumps((large,), 2)[2:-1] + pickle.dumps((1,), 2)[2:-1] + b"\x89"
    bombs = {
        "tensor": b"\x80\x02" + rebuild + claim + shape + ordered + b"tR.",
        "call": b"\x80\x02ctorch\nFloatStorage\n" + pickle.dumps(large, 2)[2:-1] + b"\x85R.",
        "bytearray": pickle.dumps(Call(bytearray, large), 2),
        "text": b"\x80\x02X" + (2**31).to_bytes(4, "little") + b"abc.",
        "long": b"\x80\x02\x8b" + (2**30).to_bytes(4, "little") + b"\x01.",
    }
    for name, content in bombs.items():
        archive(tmp_path / name, content)
    archive(tmp_path / "view", b"\x80\x02" + claim + b".")  # of the bytes that there are
    archive(tmp_path / "zip", bytes(10**8), compression=zipfile.ZIP_DEFLATED)
    names = [str(tmp_path / name) for name in (*bombs, "zip", "view")]
    command = [sys.executable, "-c", BOMBS, str(path), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    assert int(done.stdout) < 64
