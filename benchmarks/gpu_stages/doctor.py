"""``trajmatch doctor``: what was built, which operator has which kernel, and the self-test."""

from __future__ import annotations

from gpu_stages.settings import Record, Settings


def run(settings: Settings, record: Record) -> None:
    """Examine the installation, without the command, and record the report."""
    from trajmatch.cli.doctor import as_text, examine

    report = examine()
    print(as_text(report))
    record.put("report", report)
    if not report["passed"]:
        record.fault("the self-test failed")
    if settings.device == "cuda":
        if report["build"]["cuda"] is None:
            record.fault(f"built without CUDA: {report['build']['left_out']}")
        lacking = [name for name, keys in report["operators"].items() if "CUDA" not in keys]
        if lacking:
            record.fault(f"operators without a CUDA kernel: {', '.join(lacking)}")
