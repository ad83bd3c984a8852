"""Fill the template ``page.html`` with the values of a run."""

import json
import re
from pathlib import Path

import jinja2
import msgspec

from trajmatch import __version__, files
from trajmatch.evaluate.scores import difference_error, sampling_error
from trajmatch.report import images, losses, sections
from trajmatch.report import run as runs
from trajmatch.report.config import ReportConfig
from trajmatch.report.run import Run

#: Characters invalid in HTML that JSON may contain: control characters and lone surrogates.
_NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def write_report(config: ReportConfig) -> Path:
    """Write the report of a run and return its path; equal runs give equal bytes.

    Raises UserError if a file is missing, damaged or from another run, or cannot be written.
    """
    content = page(runs.read(config))
    files.check_writable(config.report.parent)
    files.write_text(config.report, content)
    return config.report


def page(run: Run) -> str:
    """Return the report of a run as a self-contained HTML document."""
    distilled, told = run.artifact, run.history.iterations
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    # StrictUndefined: a misspelt name in the template is an error instead of empty text.
    template = jinja2.Template(
        text, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    settings = sections.settings(distilled)
    content = template.render(
        artifact=distilled,
        results=run.results,
        scores=sections.score_tables(run.results),
        accuracies=sections.by_network(run.results.networks),
        sampling_error=sampling_error,
        difference_error=lambda n, *of: difference_error(n, *map(msgspec.structs.asdict, of)),
        accuracy_chart=sections.accuracy_chart(run),
        on_the_way=run.snapshots and images.over_iterations(run.snapshots, distilled.class_names),
        distilled=images.of_classes(distilled),
        verdict=losses.verdict([each.loss for each in told], distilled.recipe) if told else "",
        course_charts=[*sections.course_charts(told)],
        updates=sections.updates(told),
        times=sections.times(run),
        recipe=distilled.recipe.get("recipe"),
        deviations=run.recipe and sections.deviation_rows(run.recipe, distilled),
        settings=[*sections.flat(settings)],
        settings_json=json.dumps(settings, indent=2, sort_keys=True),
        version=__version__,
    )
    # Names and settings in the files of a run may hold any character.
    return _NOT_TEXT.sub("\ufffd", content)
