"""The page: sections, style, and a policy that lets it load nothing."""

from __future__ import annotations

from importlib import resources

from trajmatch import __version__, files
from trajmatch.report import run as runs
from trajmatch.report import sections
from trajmatch.report.config import ReportConfig
from trajmatch.report.html import Html, element, join
from trajmatch.report.run import Run

#: Nothing is fetched and no script runs, whatever the names in a run hold.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(config: ReportConfig) -> None:
    """Writes the report of a run. Equal runs give equal bytes.

    Args:
        config: Where the run and the report are.

    Raises:
        UserError: Something of the run is missing, damaged or of another run, or the report cannot
            be written.
    """
    content = page(runs.read(config))
    files.check_writable(config.report.parent)
    files.write_text(config.report, content)


def page(run: Run) -> Html:
    """The report of a run.

    Args:
        run: What it left.

    Returns:
        An HTML document that needs no other file.
    """
    images = "1 image" if run.artifact.ipc == 1 else f"{run.artifact.ipc} images"
    title = f"{run.artifact.dataset_name}, {images} per class"
    parts = {
        "Accuracy": sections.accuracy(run),
        "Images": sections.pictures(run),
        "Course of the run": sections.course(run),
        "Time": sections.time(run),
        "Configuration": sections.configuration(run),
    }
    links = [element("li", element("a", name, href=f"#{_anchor(name)}")) for name in parts]
    body = element(
        "main",
        element("p", "Dataset distillation by trajectory matching", class_="kicker"),
        element("h1", title),
        sections.facts(run),
        element("nav", element("ul", *links), aria_label="Sections"),
        *(
            element("section", element("h2", name, id=_anchor(name)), content)
            for name, content in parts.items()
        ),
        element("footer", f"Written by trajmatch {__version__}."),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{title}: distillation report"),
        element("style", _style()),
    )
    document = element("html", head, element("body", body), lang="en")
    return join(Html("<!doctype html>\n"), document, Html("\n"))


def _style() -> Html:
    """The style sheet, which is ours and holds nothing to escape."""
    return Html(resources.files(__package__).joinpath("style.css").read_text(encoding="utf-8"))


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
