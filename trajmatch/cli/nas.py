"""`trajmatch nas`: ranks ConvNets on a distilled set, beside their ranking on the real data."""

from __future__ import annotations

from typing import Any

from trajmatch.nas.config import NasConfig


def run(argv: list[str]) -> int:
    """Runs the command.

    Args:
        argv: Arguments after the command's name.

    Returns:
        The exit status.
    """
    from trajmatch.cli.arguments import parse

    config = parse(NasConfig, argv, "trajmatch nas", "file")

    from trajmatch.cli.device import with_device
    from trajmatch.cli.output import json_alone, print_json
    from trajmatch.cli.progress import Progress
    from trajmatch.nas.loop import search

    config = with_device(config)
    with json_alone(config.json):
        result = search(config, lambda total, title: Progress(total, title, config.quiet))
    if config.json:
        print_json(result)
    else:
        _print_table(result)
    return 0


def _print_table(result: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{result['dataset']['name']}, {len(result['proxy'])} architectures, "
        f"proxy: {result['description']['proxy']}",
    )
    table.add_column("among the best", no_wrap=True)
    table.add_column("Spearman's correlation", justify="right")
    for k, value in result["spearman"].items():
        table.add_row(k, "not defined" if value is None else f"{value:.2f}")
    table.caption = f"the best by their accuracy on the {_DATA[result['top_by']]}"
    console = Console()
    console.print(table)
    for key, what in (("found", "best on the proxy"), ("best", "best on the real data")):
        each = result[key]
        console.print(
            f"{what}: {each['architecture']}, {each['proxy']:.1f} % trained on the proxy, "
            f"{each['real']:.1f} % on the real data",
            highlight=False,
        )
    for kind, name in _DATA.items():
        seconds, diverged = result["seconds"][kind], result["diverged"][kind]
        if seconds is not None:
            console.print(f"search on the {name}: {seconds / 60:.1f} minutes", highlight=False)
        if diverged:
            console.print(
                f"{len(diverged)} architectures had networks that diverged on the {name}, which "
                "count as getting nothing right",
                highlight=False,
            )


_DATA = {"proxy": "proxy", "real": "real data"}
