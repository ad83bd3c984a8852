"""`trajmatch pull`: downloads a distilled set or an expert store from the Hugging Face hub."""

from __future__ import annotations

from trajmatch.exchange.config import PullConfig


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse

    config = parse(PullConfig, argv, "trajmatch pull", "source")

    from trajmatch.exchange.hub import pull

    print(pull(config))
