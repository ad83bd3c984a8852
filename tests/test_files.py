import errno
import json
import os
import stat
import threading

import pytest
import torch
from safetensors.torch import save_file

from trajmatch import files
from trajmatch.errors import UserError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.uint8)}
METADATA = {"z": 1, "name": "größe", "list": [1.5, None, True]}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "x.safetensors"
    files.save_tensors(path, TENSORS, METADATA)
    return path


# --- writing


def test_text_bytes_and_json_come_back(tmp_path):
    files.write_bytes(tmp_path / "b", b"\x00\xff")
    files.write_text(tmp_path / "t", "größe\n")
    files.write_json(tmp_path / "j", METADATA)
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"
    assert (tmp_path / "t").read_text(encoding="utf-8") == "größe\n"
    assert files.read_json(tmp_path / "j") == METADATA


def test_equal_objects_give_equal_bytes(tmp_path):
    files.write_json(tmp_path / "1", {"a": 1, "b": {"c": 2, "d": 3}})
    files.write_json(tmp_path / "2", {"b": {"d": 3, "c": 2}, "a": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_equal_tensors_give_equal_bytes(saved, tmp_path):
    backwards = dict(reversed(TENSORS.items()))
    files.save_tensors(tmp_path / "y", backwards, dict(reversed(METADATA.items())))
    assert saved.read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize("write", ["text", "tensors"])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch, write):
    path = tmp_path / "x"
    files.write_text(path, "before")

    def disk_full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(UserError, match=r"cannot write .*x: No space left on device"):
        if write == "text":
            files.write_text(path, "after")
        else:
            files.save_tensors(path, TENSORS, METADATA)
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["x"]


def test_an_interrupted_write_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x"
    files.write_text(path, "before")

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(path, "after")
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["x"]


@pytest.fixture(params=["flush a folder", "open a folder"])
def failing(request, monkeypatch):
    """Makes an operation fail that a file needs not, with an error number of choice."""

    def install(number):
        def fail(*_, **__):
            raise OSError(number, os.strerror(number))

        def flush(descriptor):
            (fail if stat.S_ISDIR(os.fstat(descriptor).st_mode) else fsync)(descriptor)

        def open_to_flush(path, flags, *more, **named):
            flushed = os.path.isdir(path) and not str(path).endswith(".tmp")
            return (fail if flushed else os_open)(path, flags, *more, **named)

        fsync, os_open = os.fsync, os.open
        name, function = {
            "flush a folder": ("fsync", flush),
            "open a folder": ("open", open_to_flush),
        }[request.param]
        monkeypatch.setattr(os, name, function)

    return install


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EACCES])
def test_files_are_written_where_a_file_system_lacks_an_operation(tmp_path, failing, number):
    failing(number)
    files.check_writable(tmp_path)
    files.write_text(tmp_path / "text", "a")
    files.save_tensors(tmp_path / "tensors", TENSORS, METADATA)
    with files.whole_folder(tmp_path / "folder") as folder:
        files.write_text(folder / "text", "a")
    assert sorted(os.listdir(tmp_path)) == ["folder", "tensors", "text"]
    assert os.listdir(tmp_path / "folder") == ["text"]
    assert (tmp_path / "text").read_text() == "a"
    assert files.load_tensors(tmp_path / "tensors")[1] == METADATA


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fails_is_an_error(tmp_path, failing, number):
    failing(number)
    with pytest.raises(UserError, match=f"cannot write .*x: {os.strerror(number)}"):
        files.write_text(tmp_path / "x", "a")


def test_a_file_that_cannot_be_flushed_is_an_error(tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"cannot write .*x: Invalid argument"):
        files.write_text(tmp_path / "x", "a")
    assert os.listdir(tmp_path) == []


def test_a_reader_never_sees_a_part(tmp_path):
    path = tmp_path / "x"
    contents = {letter * 300_000 for letter in "abc"}
    files.write_text(path, "a" * 300_000)
    seen = set()
    done = threading.Event()

    def read():
        while not done.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for content in sorted(contents) * 10:
        files.write_text(path, content)
    done.set()
    reader.join()
    assert seen <= contents


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_are_as_readable_as_the_user_wants(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.write_text(tmp_path / "t", "text")
        files.save_tensors(tmp_path / "s", TENSORS, METADATA)
    finally:
        os.umask(before)
    for name in "ts":
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "caf\udce9"])
def test_json_has_no_word_for_what_is_not_finite_or_not_utf8(tmp_path, value):
    with pytest.raises(UserError, match=r"cannot write .*x: "):
        files.write_json(tmp_path / "x", {"loss": [value]})
    with pytest.raises(UserError, match=r"cannot write .*x: "):
        files.save_tensors(tmp_path / "x", TENSORS, {"loss": value})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_tensors_that_are_not_finite_are_refused_by_name(tmp_path, value):
    tensors = TENSORS | {"images": torch.tensor([1.0, value])}
    with pytest.raises(UserError, match="tensor 'images' holds values that are not finite"):
        files.save_tensors(tmp_path / "x", tensors, {})
    assert os.listdir(tmp_path) == []
    files.save_tensors(tmp_path / "x", tensors, {}, allow_nonfinite=True)
    assert not files.load_tensors(tmp_path / "x")[0]["images"].isfinite().all()


def test_writing_below_a_file_names_path_and_cause(tmp_path):
    (tmp_path / "file").touch()
    for write in (
        lambda path: files.write_text(path, ""),
        lambda path: files.save_tensors(path, TENSORS, {}),
    ):
        with pytest.raises(UserError, match=r"cannot write .*file/x: Not a directory"):
            write(tmp_path / "file" / "x")


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path):
    old, young, file = (tmp_path / f".trajmatch-{digit * 16}.tmp" for digit in "013")
    file.touch()
    foreign = tmp_path / ".trajmatch-notes.tmp"
    for folder in (old, young, foreign):
        folder.mkdir()
        (folder / "content").touch()
    for path in (old / "content", old, foreign / "content", foreign, file):
        os.utime(path, (0, 0))
    (tmp_path / ".trajmatch-2222222222222222.tmp").symlink_to(foreign)
    files.remove_leftovers(tmp_path)
    left = {".trajmatch-notes.tmp", ".trajmatch-2222222222222222.tmp", young.name}
    assert set(os.listdir(tmp_path)) == left
    assert os.listdir(foreign) == ["content"]
    files.remove_leftovers(tmp_path / "nothing")


def test_a_description_that_could_not_be_read_again_is_not_written(tmp_path):
    large = {"text": "x" * files.MOST_JSON}
    for write in (
        lambda: files.write_json(tmp_path / "x", large),
        lambda: files.save_tensors(tmp_path / "x", TENSORS, large),
    ):
        with pytest.raises(UserError, match=r"cannot write .*x: its description would have more"):
            write()
    assert os.listdir(tmp_path) == []


def test_check_writable_makes_the_folder(tmp_path):
    files.check_writable(tmp_path / "a" / "b")
    files.check_writable(tmp_path / "a" / "b")
    assert os.listdir(tmp_path / "a" / "b") == []


def test_check_writable_refuses_what_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write in the folder .*file: File exists; choose"):
        files.check_writable(tmp_path / "file")
    with pytest.raises(UserError, match=r"cannot write in the folder .*x: Not a directory"):
        files.check_writable(tmp_path / "file" / "x")


# --- reading


def test_tensors_and_metadata_come_back(saved):
    tensors, metadata = files.load_tensors(saved)
    assert metadata == METADATA == files.read_metadata(saved)
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)


def test_views_that_share_memory_and_graphs_are_written_by_value(tmp_path):
    base = torch.arange(6.0, requires_grad=True).reshape(2, 3)
    shared = {"base": base, "row": base[1], "same": base, "transposed": base.T}
    files.save_tensors(tmp_path / "x", shared, {})
    tensors, _ = files.load_tensors(tmp_path / "x")
    for name, tensor in shared.items():
        assert torch.equal(tensors[name], tensor)


def test_a_part_of_a_tensor_can_be_read(saved):
    with files.open_tensors(saved) as handle:
        assert torch.equal(handle.get_slice("a")[1:2], TENSORS["a"][1:2])


@pytest.mark.parametrize(
    "read", [files.load_tensors, files.read_metadata, files.read_json], ids=lambda f: f.__name__
)
def test_missing_files_and_folders_are_named(tmp_path, read):
    with pytest.raises(UserError, match=r"cannot read .*nothing: No such file or directory"):
        read(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        read(tmp_path)


def test_a_file_that_is_cut_off_anywhere_is_refused(saved, tmp_path):
    content = saved.read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut (is damaged, cut off|is cut off)"):
            files.load_tensors(cut)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 64, (2**62).to_bytes(8, "little") + b"{}", b"PK\x03\x04" + bytes(60)],
    ids=["empty", "noise", "claims too much", "pickle in a zip"],
)
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=r"x is damaged, cut off or not a safetensors file"):
        files.load_tensors(tmp_path / "x")


def rewrite_header(path, change):
    """Changes the header of a file of tensors, and keeps its data."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + length]))
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[8 + length :])


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 24]},
        {"dtype": "F64", "shape": [2, 3], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [24, 0]},
        {"dtype": "F32", "shape": [2, 3], "data_offsets": [1000, 1024]},
        {"dtype": "F32", "shape": [2, True], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": 6, "data_offsets": [0, 24]},
        {"dtype": [], "shape": [2, 3], "data_offsets": [0, 24]},
        {"dtype": "F32", "shape": [1] * 17, "data_offsets": [0, 4]},
        [],
        None,
    ],
)
def test_a_header_that_does_not_fit_is_refused_before_anything_is_read(saved, entry):
    rewrite_header(saved, lambda header: {**header, "a": entry})
    for read in (files.load_tensors, files.read_metadata):
        with pytest.raises(UserError, match=r"is damaged, cut off or not a safetensors file"):
            read(saved)


def test_a_size_beyond_64_bits_is_refused(tmp_path):
    save_file({"a": torch.ones(0, 1)}, tmp_path / "x", metadata={files.METADATA_KEY: "{}"})
    entry = {"dtype": "F32", "shape": [2**63, 0], "data_offsets": [0, 0]}
    rewrite_header(tmp_path / "x", lambda header: {**header, "a": entry})
    with pytest.raises(UserError, match=r"is damaged, cut off or not a safetensors file"):
        files.load_tensors(tmp_path / "x")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": 1e999}', '{"a": ' + "9" * 5000 + "}"])
def test_text_that_asks_too_much_is_refused(saved, tmp_path, text):
    rewrite_header(saved, lambda header: {**header, "__metadata__": {files.METADATA_KEY: text}})
    (tmp_path / "j").write_text(text)
    for read, path in ((files.read_metadata, saved), (files.read_json, tmp_path / "j")):
        with pytest.raises(UserError, match="is cut off or does not hold a JSON object"):
            read(path)
    (tmp_path / "j").write_text(" " * (files.MOST_JSON + 1))
    with pytest.raises(UserError, match="more than 2097152 bytes"):
        files.read_json(tmp_path / "j")


def test_what_does_not_fit_its_checksum_is_refused(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(UserError, match="its content does not match its checksum"):
        files.load_tensors(saved)
    content[-1] ^= 1
    saved.write_bytes(content.replace(b"1.5", b"2.5"))
    for read in (files.load_tensors, files.read_metadata, files.has_checksum):
        with pytest.raises(UserError, match="its description does not match its checksum"):
            read(saved)


def test_a_file_without_checksum_is_read(tmp_path):
    text = json.dumps(METADATA)
    save_file(TENSORS, tmp_path / "x", metadata={files.METADATA_KEY: text})
    assert files.load_tensors(tmp_path / "x")[1] == METADATA
    assert not files.has_checksum(tmp_path / "x")
    files.save_tensors(tmp_path / "y", TENSORS, METADATA)
    assert files.has_checksum(tmp_path / "y")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_safetensors_of_others_are_refused(tmp_path, metadata):
    save_file({"a": torch.ones(2)}, tmp_path / "x", metadata=metadata)
    for read in (files.load_tensors, files.read_metadata):
        with pytest.raises(UserError, match="not one that trajmatch wrote"):
            read(tmp_path / "x")


@pytest.mark.parametrize("text", ["", "{", '{"a": 1', '{"a": NaN}'])
def test_json_that_is_cut_off_is_refused(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(UserError, match=r"x is cut off"):
        files.read_json(tmp_path / "x")


@pytest.mark.parametrize("text", ["[1, 2]", '"text"', "1", "null", "true"])
def test_json_that_is_no_object_is_refused(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(UserError, match=r"x is cut off or does not hold a JSON object: .*object"):
        files.read_json(tmp_path / "x")


@pytest.mark.parametrize(
    "content", [b"{\xff\xfe", b'{"a": "\xff"}', b'{"a":' * 100_000], ids=["key", "text", "deep"]
)
def test_json_that_is_no_text_or_too_deep_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=r"x is cut off or does not hold a JSON object: "):
        files.read_json(tmp_path / "x")
