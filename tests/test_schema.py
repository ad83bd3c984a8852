"""Settings and files by their types: conversions, ranges, and one clear message each."""

from __future__ import annotations

import importlib
import inspect
import math
import pickle
from pathlib import Path
from typing import Any, NotRequired, TypedDict, get_type_hints

import msgspec
import numpy as np
import pytest

import trajmatch
from trajmatch import artifact, snapshots
from trajmatch.cli.main import main
from trajmatch.distill import DistillConfig
from trajmatch.errors import UserError
from trajmatch.evaluate import EvalConfig
from trajmatch.exchange.config import ConvertConfig, ExportConfig
from trajmatch.experts import ExpertConfig, Store, store_maintenance
from trajmatch.recipes import load_recipe
from trajmatch.report.config import ReportConfig
from trajmatch.schema import Count, Fraction, convert

#: Every configuration of the library, with the fields that it cannot do without.
REQUIRED: dict[type[Any], dict[str, Any]] = {
    ExpertConfig: {"out": "store"},
    DistillConfig: {"experts": "store", "out": "d.safetensors"},
    EvalConfig: {"file": "d.safetensors"},
    ConvertConfig: {"source": "pt", "out": "store"},
    ExportConfig: {"file": "d.safetensors", "to": "npz", "out": "d.npz"},
    ReportConfig: {"run": "result"},
}
FIELDS = [
    (config, name, hint) for config in REQUIRED for name, hint in get_type_hints(config).items()
]


@pytest.mark.parametrize("config", REQUIRED)
def test_paths_are_given_as_texts(config: type[Any]) -> None:
    text = config(**REQUIRED[config])
    as_paths = {
        name: Path(value) if name in ("out", "experts", "file", "source", "run") else value
        for name, value in REQUIRED[config].items()
    }
    assert text == config(**as_paths)
    assert pickle.loads(pickle.dumps(text)) == text
    for name, hint in get_type_hints(config).items():
        if "Path" in str(hint) and getattr(text, name):
            assert isinstance(getattr(text, name), Path)


@pytest.mark.parametrize(("config", "name", "hint"), FIELDS)
def test_a_value_of_another_type_is_one_message(config: type[Any], name: str, hint: Any) -> None:
    flag = "--" + name.replace("_", "-")
    for wrong in (object(), {"a": 1}):
        with pytest.raises(UserError) as error:
            config(**{**REQUIRED[config], name: wrong})
        assert str(error.value).startswith(f"{flag} should be ")
        assert str(error.value).endswith(f", but is {wrong!r}")


def test_numbers_of_numpy_and_lists_are_taken() -> None:
    config = DistillConfig(
        experts="s", out="d", ipc=np.int64(3), lr_img=np.float32(0.5), terms=["final"]
    )
    assert (type(config.ipc), type(config.lr_img)) == (int, float)
    assert config.terms == ("final",)
    assert type(DistillConfig(experts="s", out="d", lr_img=10).lr_img) is int  # bytes of files


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ipc": "5"}, "--ipc should be a whole number of at least 1, but is '5'"),
        ({"ipc": True}, "--ipc should be a whole number of at least 1, but is True"),
        ({"lr_img": "10"}, "--lr-img should be a finite number of at least 0, but is '10'"),
        ({"labels": "sof"}, r"one of hard, soft, but is 'sof' \(did you mean soft\?\)"),
        (
            {"terms": "final"},
            "a list of one or more, each a text, but is 'final'",
        ),
        ({"batch_syn": 2.5}, "--batch-syn should be a whole number of at least 1, but is 2.5"),
    ],
)
def test_mistakes_are_told_in_words(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DistillConfig(experts="s", out="d", **values)


class Entry(TypedDict):
    name: str
    counts: NotRequired[list[Count]]


class Content(msgspec.Struct):
    entry: Entry
    by_name: dict[str, Entry] = {}
    share: Fraction | None = None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"f is damaged: its content is \[\] \(Expected `object`, got `array`\); delete it"),
        ({}, "f is damaged: it lacks entry; delete it"),
        ({"entry": {"counts": [1]}}, "it lacks entry.name;"),
        ({"entry": {"name": "a", "counts": [1, -1]}}, r"its entry.counts\[1\] is -1 \(.* >= 0\)"),
        ({"entry": {"name": "a"}, "share": math.nan}, r"its share is nan \("),
        ({"entry": {"name": "a"}, "by_name": {"b": {"name": 3}}}, r"its by_name\[...\].name is"),
    ],
)
def test_what_a_file_lacks_is_named(content: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        convert(content, Content, "f is damaged", "; delete it")


def test_a_file_is_read_by_its_type() -> None:
    read = convert({"entry": {"name": "a", "more": 1}, "share": 0, "later": 1}, Content, "f")
    assert read == Content({"name": "a"}, share=0.0)


def test_no_public_function_insists_on_a_path_object() -> None:
    modules = [importlib.import_module(f"trajmatch.{name}") for name in trajmatch._MODULES]
    modules += [
        artifact,
        snapshots,
        store_maintenance,
        importlib.import_module("trajmatch.recipes"),
    ]
    public = [vars(module)[name] for module in modules for name in _names(module)]
    classes = [each for each in public if inspect.isclass(each)]
    functions = [each for each in public if inspect.isfunction(each)]
    for each in classes:
        methods = inspect.getmembers(each, inspect.isroutine)
        functions += [method for name, method in methods if not name.startswith("_")]
    ours = [each for each in functions if "trajmatch" in str(getattr(each, "__module__", ""))]
    assert len(ours) > 60
    for function in ours:
        for parameter in inspect.signature(function).parameters.values():
            assert parameter.annotation not in (Path, Path | None, "Path", "Path | None"), function


def _names(module: Any) -> list[str]:
    for name in getattr(module, "__all__", ()):
        getattr(module, name)  # loads what is loaded on first use
    own = [
        name
        for name, each in vars(module).items()
        if str(getattr(each, "__module__", "")).startswith(module.__name__) and name[0] != "_"
    ]
    return [name for name in getattr(module, "__all__", own) if name in vars(module)]


def test_functions_take_texts(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('title = "mine"')
    assert load_recipe(str(path), "mine").title == "mine"
    with pytest.raises(UserError, match="is not a store of experts"):
        Store.open(str(tmp_path))
    assert [each.status for each in store_maintenance.verify(str(tmp_path))] == ["damaged"]
    Store.check_new(str(tmp_path / "new"))
    with pytest.raises(UserError, match="not a store"):
        store_maintenance.trim(str(tmp_path), str(tmp_path / "out"))
    with pytest.raises(UserError, match="not a store"):
        store_maintenance.merge([str(tmp_path)], str(tmp_path / "out"))


def test_messages_name_arguments_in_python_and_flags_on_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"^lr_init should be a finite number above 0, but is -1$"):
        DistillConfig(experts="s", out="d", lr_init=-1)
    error = UserError("--lr-img 3 is large; `trajmatch run --lr-img 1` -- or a--b -x /--y_z")
    assert str(error) == "lr_img 3 is large; `trajmatch run --lr-img 1` -- or a--b -x /y_z"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert main(["distill", "--experts=s", "--out=d", "--lr-init=-1"]) == 2
    assert "--lr-init should be a finite number above 0, but is -1" in capsys.readouterr().err
    assert f"{error}" == error.in_flags == error.args[0]
