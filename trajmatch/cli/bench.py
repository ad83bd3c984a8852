"""`trajmatch bench`: the speed of this machine, beside baselines in PyTorch."""

from __future__ import annotations


def run(argv: list[str]) -> int:
    """Runs the command; the status is 1 when results that should agree do not.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.bench.config import BenchConfig
    from trajmatch.cli.arguments import parse

    config = parse(BenchConfig, argv, "trajmatch bench")

    from rich.console import Console

    from trajmatch.bench.report import OTHER_PARTS, as_tables, run_bench
    from trajmatch.cli.device import with_device
    from trajmatch.cli.output import json_alone, print_json
    from trajmatch.cli.progress import Progress

    config = with_device(config)
    progress = Progress(len(config.sizes) + OTHER_PARTS, "bench", config.quiet)
    with json_alone(config.json), progress:
        record = run_bench(config, progress)
    if config.json:
        print_json(record)
    else:
        Console().print(as_tables(record))
    agreements = [cell["agreement"] for cell in record["cells"]] + record["experts"]
    return 0 if all(each["agree"] for each in agreements) else 1
