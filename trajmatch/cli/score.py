"""`trajmatch score`: how hard each training image is for the experts of a store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trajmatch.cli.output import aligned, json_alone, print_json
from trajmatch.schema import Count, PositiveInt, Settings


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(Settings):
    """Score every training image by its difficulty for experts: EL2N, higher is harder."""

    store: Path
    """Store of experts, as `trajmatch expert` writes it."""
    out: Path | None = None
    """File of the scores. Default: beside the store, ending in .scores.safetensors, where
    `trajmatch distill` looks for it."""
    epoch: Count | None = None
    """t: epoch of the experts that are asked. Default: the epoch kept that is nearest to a tenth of
    their course."""
    experts: PositiveInt | None = None
    """Number of experts whose mean is taken, the first ones of the store. Default: all."""
    data: str | None = None
    """Real images, if they are not where the store says."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:N, or auto, which is a GPU where one can be used, else the CPU."""
    json: bool = False
    """Print the result as JSON."""
    quiet: bool = False
    """Print no progress."""


def run(argv: list[str]) -> int:
    """Run the command with its arguments, and return the exit status."""
    from trajmatch.cli.arguments import parse

    config = parse(ScoreConfig, argv, "trajmatch score", "store")

    from trajmatch.cli.device import with_device
    from trajmatch.cli.progress import Progress
    from trajmatch.experts import Store
    from trajmatch.experts.scores import score_images

    config = with_device(config)
    with json_alone(config.json):
        store = Store.open(config.store)
        count = config.experts or store.num_experts
        with Progress(count, "experts scoring", config.quiet) as progress:
            result = score_images(
                store,
                config.out,
                epoch=config.epoch,
                experts=config.experts,
                data=config.data,
                device=config.device,
                on_expert=progress.update,
            )
    if config.json:
        print_json(result, sort_keys=False)
        return 0
    rows = [("class", "images", "easiest", "median", "hardest")]
    for each in result["classes"]:
        name, images, *ends = each.values()
        rows.append((name, str(images), *(f"{end:.3f}" for end in ends)))
    experts, epoch = result["experts"], result["epoch"]
    print(
        f"{result['file']}: EL2N of the training images of {result['dataset']}, mean of {experts} "
        f"expert{'s' * (experts > 1)} after epoch {epoch}\n"
    )
    print(aligned(*rows, rule=True))
    return 0
