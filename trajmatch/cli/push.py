"""`trajmatch push`: uploads a distilled set or an expert store to the Hugging Face hub."""

from __future__ import annotations

from trajmatch.exchange.config import PushConfig


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse

    config = parse(PushConfig, argv, "trajmatch push", "source")

    from trajmatch.exchange.hub import push

    print(push(config))
