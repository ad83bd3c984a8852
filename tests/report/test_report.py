"""`trajmatch report`: one page that holds everything and loads nothing."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import trajmatch
from trajmatch import artifact
from trajmatch.cli.main import main
from trajmatch.report.config import ReportConfig
from trajmatch.report.page import write_report

from .conftest import CLASSES

#: Elements without an end.
VOID = {"img", "meta"}


class Page(HTMLParser):
    """The elements of a page, each with its attributes and the text in it."""

    def __init__(self, content: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(content)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.append((self._open[-1], data))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def within(self, tag: str) -> list[str]:
        return [data for name, data in self.texts if name == tag]


def report(run: Path, tmp_path: Path, **settings: object) -> str:
    config = ReportConfig(run=run, out=tmp_path / "report.html", **settings)
    write_report(config)
    return config.report.read_text(encoding="utf-8")


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The message of a command that ends with status 2, on one line."""
    try:
        status = main(["report", *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return " ".join(error.replace("\u2502", " ").split())


@pytest.fixture(scope="module")
def content(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(folder, tmp_path_factory.mktemp("report"))


@pytest.fixture
def full(artifact_path: Path, evaluation: dict[str, object], tmp_path: Path) -> str:
    (tmp_path / "eval.json").write_text(json.dumps(evaluation))
    return report(artifact_path, tmp_path, evaluation=(tmp_path / "eval.json",))


def test_it_loads_nothing(content: str, full: str) -> None:
    for each in (content, full):
        page = Page(each)
        assert {tag for tag, _ in page.elements}.isdisjoint(
            {"script", "link", "iframe", "object", "embed", "form", "base"}
        )
        for tag, attributes in page.elements:
            for name, value in attributes.items():
                assert not name.startswith("on"), (tag, name)
                if name in ("href", "src"):
                    assert value.startswith(
                        ("#", "data:image/png;base64,", "data:image/svg+xml;base64,")
                    )
                assert name not in ("srcset", "style", "action", "background")
        assert "url(" not in each and "@import" not in each
        (policy,) = [m for m in page.of("meta") if m.get("http-equiv")]
        assert policy["content"].startswith("default-src 'none';")


def test_names_stay_names(content: str, folder: Path) -> None:
    page = Page(content)
    shown = page.within("th")
    for name in CLASSES:
        assert shown.count(name) == 2  # over the iterations, and as they are
    assert page.within("h1") == ["squares & <i>, 2 images per class"]
    alternatives = [image["alt"] for image in page.of("img")]
    assert f"distilled images of {CLASSES[2]}" in alternatives
    assert f"{CLASSES[1]} after 12 iterations" in alternatives


def test_every_picture_has_a_text_and_every_link_a_target(content: str, full: str) -> None:
    for each in (content, full):
        page = Page(each)
        assert page.of("img")
        assert all(image["alt"] for image in page.of("img"))
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))
        assert {link["href"][1:] for link in page.of("a")} <= set(ids)
        assert page.of("html") == [{"lang": "en"}]
        assert len(page.within("h1")) == 1 == len(page.of("h1"))
        assert page.within("title")[0].endswith("distillation report")
        assert any(meta.get("name") == "viewport" for meta in page.of("meta"))


def test_what_is_in_it(content: str, folder: Path) -> None:
    distilled = artifact.load(folder / "distilled.safetensors")
    summary = json.loads((folder / "summary.json").read_text())
    page = Page(content)
    cells = page.within("td")
    for key in ("distilled", "random_real"):
        assert f"{summary[key]['mean']:.1f} ± {summary[key]['std']:.1f}" in cells
    assert f"{distilled.lr:.6g}" in page.within("dd")
    for value in (distilled.fingerprint, distilled.dataset_fingerprint, distilled.recipe["store"]):
        assert value in cells
    assert distilled.versions["torch"] in cells
    (whole,) = page.within("pre")
    made = json.loads(whole)
    assert made["recipe"] == distilled.recipe and made["seed"] == distilled.seed
    descriptions = page.within("figcaption")
    assert len(descriptions) == 4 and "12 draws of 0 to 1" in " ".join(descriptions)
    assert {"experts", "distillation", "evaluation"} <= set(page.within("th"))
    # a picture of each class at each of nine iterations, and a row of each class
    assert len(page.of("img")) == 3 * 9 + 3 + 4


def test_accuracy_over_the_iterations_beside_the_baselines(full: str) -> None:
    page = Page(full)
    (description,) = (each for each in page.within("figcaption") if "Accuracy" in each)
    assert "at iteration 9, over 2 networks" in description
    heads = page.within("th")
    assert "ConvNet" in heads and "<resnet18>" in heads
    assert "real images by k-center" not in heads
    assert {"60.0 ± 1.0", "41.0 ± 1.0", "81.0 ± 1.0"} <= set(page.within("td"))
    assert "6 of the networks diverged and count as 0 % accuracy." in page.within("p")


def test_refused_and_skipped_updates_are_counted(artifact_path: Path, tmp_path: Path) -> None:
    lines = artifact_path.with_suffix(".jsonl").read_text().splitlines()
    told = [json.loads(line) for line in lines]
    for line in told:
        if line["iteration"] in (2, 3) and "loss" in line:
            line |= {"refused": "<i>cause</i>", "loss": None, "skipped": False}
        elif line["iteration"] == 5 and "loss" in line:
            line["skipped"] = True
    skipped = sum(line.get("skipped") is True for line in told)
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in told))
    content = report(artifact_path, tmp_path, log=log)
    counts = dict(re.findall(r"<th scope=\"row\">([^<]*)</th><td>(\d+)</td>", content))
    assert counts["refused: &lt;i&gt;cause&lt;/i&gt;"] == counts["refused"] == "2"
    assert counts["skipped because of their loss (--skip-above)"] == str(skipped) != "0"
    assert counts["applied"] == str(9 - 2 - skipped)


def test_equal_runs_equal_bytes_and_no_path(content: str, folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert report(moved, tmp_path) == content
    assert str(folder.parent) not in content


def test_a_file_by_itself(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "distilled.safetensors", tmp_path / "d.safetensors")
    assert main(["report", str(tmp_path / "d.safetensors")]) == 0
    page = Page((tmp_path / "d.html").read_text())
    told = " ".join(page.within("p"))
    for sentence in (
        "There is no log of this run",
        "There is no file with the images of earlier iterations.",
        "The images were not evaluated during this run;",
        "There is no comparison with real images;",
    ):
        assert sentence in told
    assert len(page.of("img")) == 3


def test_the_command_writes_into_the_folder(folder: Path, tmp_path: Path, capsys) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    assert main(["report", str(moved)]) == 0
    assert capsys.readouterr().out.strip() == str(moved / "report.html")
    assert main(["report", str(moved), "--out", str(tmp_path / "new" / "x.html")]) == 0
    assert (tmp_path / "new" / "x.html").read_bytes() == (moved / "report.html").read_bytes()


def test_a_large_set_gives_a_small_page(folder: Path, tmp_path: Path) -> None:
    """A hundred images of 32 x 32 pixels in colour are all shown; of more, a part is."""
    small = artifact.load(folder / "distilled.safetensors")
    for classes, per_class, shown in ((10, 10, 100), (200, 4, 600)):
        draw = torch.Generator().manual_seed(0)
        large = dataclasses.replace(
            small,
            images=torch.randn(classes * per_class, 3, 32, 32, generator=draw),
            labels=torch.arange(classes).repeat_interleave(per_class),
            class_names=tuple(f"class {k}" for k in range(classes)),
            network={**small.network, "image_size": 32, "num_classes": classes, "depth": 1},
            ipc=per_class,
        )
        artifact.save(tmp_path / "large.safetensors", large)
        content = report(tmp_path / "large.safetensors", tmp_path)
        assert len(content) < 5 * 2**20
        widths = [int(image["width"]) for image in Page(content).of("img")]
        assert sum((width // 2 + 1) // 33 for width in widths) == shown
        assert ("the first 3 of each class" in content) == (per_class * classes > shown)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "report.txt"], "--out should be named *.html"),
        (["--log", "/nowhere/at/all"], "cannot read the log /nowhere/at/all"),
        (["--snapshots", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--evaluation", "/nowhere/at/all"], "cannot read /nowhere/at/all"),
    ],
)
def test_mistakes(folder: Path, capsys, arguments: list[str], message: str) -> None:
    assert message in fails(capsys, str(folder), *arguments)


def test_an_unfinished_run_is_named(tmp_path: Path, capsys) -> None:
    assert "in which `trajmatch run` has finished" in fails(capsys, str(tmp_path))
    assert "there is no" in fails(capsys, str(tmp_path / "d.safetensors"))


def test_what_is_of_another_run_is_refused(
    folder: Path, artifact_path: Path, tmp_path: Path, capsys
) -> None:
    out = ["--out", str(tmp_path / "x.html")]
    log = tmp_path / "log.jsonl"
    text = (folder / "distilled.jsonl").read_text().splitlines()
    last = {**json.loads(text[-1]), "step_size": 0.5}
    log.write_text("\n".join([*text[:-1], json.dumps(last)]) + "\n")
    assert "is the log of another run" in fails(capsys, str(folder), "--log", str(log), *out)
    log.write_text("\n".join([*text, json.dumps({**last, "iteration": 13})]) + "\n")
    message = fails(capsys, str(folder), "--log", str(log), *out)
    assert "is the log of another run: it ends with iteration 13" in message
    images = artifact_path.with_suffix(".snapshots.safetensors")
    message = fails(capsys, str(folder), "--snapshots", str(images), *out)
    assert "holds snapshots of another run" in message
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"networks": []},
        {"networks": [{"network": 3}]},
        {"networks": [{"network": "x"}]},
        {"networks": [{"network": "x", "distilled": {"mean": "high", "std": 0, "seeds": 1}}]},
        {"networks": [{"network": "x", "distilled": {"mean": 1.0, "std": 0, "diverged": -1}}]},
    ],
)
def test_a_foreign_evaluation_is_refused(
    folder: Path, evaluation: dict[str, object], tmp_path: Path, capsys, change
) -> None:
    path = tmp_path / "eval.json"
    path.write_text(json.dumps({**evaluation, **change}))
    assert f"{path} is not what" in fails(capsys, str(folder), "--evaluation", str(path))


@pytest.mark.parametrize("content", ["", "[]", "nul", '{"a":' * 50_000, "{" + " " * 2**24 + "}"])
def test_a_damaged_evaluation_is_refused(folder: Path, tmp_path: Path, capsys, content) -> None:
    path = tmp_path / "eval.json"
    path.write_text(content)
    assert str(path) in fails(capsys, str(folder), "--evaluation", str(path))


def browser() -> str:
    """The path of Chromium; without it the test says that it was left out."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("NO BROWSER to open the report in")


@pytest.mark.parametrize("size", ["1200,900", "390,800"], ids=["desk", "phone"])
def test_it_opens_in_a_browser(full: str, content: str, tmp_path: Path, size: str) -> None:
    chromium = browser()
    for name, each in (("full", full), ("plain", content)):
        (tmp_path / f"{name}.html").write_text(each)
        command = [
            *(chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={size}"),
            *("--enable-logging=stderr", "--v=0", "--hide-scrollbars", "--dump-dom"),
            *(f"--user-data-dir={tmp_path / 'profile'}", f"file://{tmp_path / name}.html"),
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        assert "CONSOLE" not in result.stderr, result.stderr  # where a refused load would be told
        seen, meant = Page(result.stdout[result.stdout.index("<html") :]), Page(each)
        assert [tag for tag, _ in seen.elements] == [tag for tag, _ in meant.elements]
        assert seen.within("th") == meant.within("th")


def test_the_report_of_the_package_names_its_version(content: str) -> None:
    assert f"Written by trajmatch {trajmatch.__version__}." in content
