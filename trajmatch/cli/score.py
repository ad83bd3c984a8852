"""`trajmatch score`: scores how hard each training image is for the experts of a store."""

from trajmatch.cli.output import json_alone, print_json
from trajmatch.experts.config import ScoreConfig


def run(argv: list[str]) -> None:
    """Run the command with its arguments."""
    from trajmatch.cli.arguments import parse

    config = parse(ScoreConfig, argv, "trajmatch score", "store")

    from trajmatch.cli.device import with_device
    from trajmatch.cli.progress import Progress
    from trajmatch.experts import Store
    from trajmatch.experts.scores import score_images

    config = with_device(config)
    with json_alone(config.json):
        count = config.experts or Store.open(config.store).num_experts
        with Progress(count, "experts scoring", config.quiet) as progress:
            result = score_images(config, progress.update)
    if config.json:
        print_json(result, sort_keys=False)
    else:
        print("{file}: scores of the training images of {dataset}, ".format(**result), end="")
        print("averaged over {experts} experts after epoch {epoch}".format(**result))
