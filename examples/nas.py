"""Architecture search: rank ConvNets on a distilled set, and compare with the ranking on real data.

    python examples/nas.py FILE --out search --depths 2 3 --widths 32 64 --count 20

The program trains the ConvNets of FTD's search space on the distilled images (or on as many real
ones) and on the whole real training set, and correlates the two rankings. Each finished network
has a record in the folder. After an interruption, the same command therefore continues with the
next network. A larger search, or another --proxy, adds networks to the folder.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from scipy.stats import spearmanr

from trajmatch import UserError, files
from trajmatch.cli.progress import Progress
from trajmatch.evaluate import EvalConfig, evaluate_artifact

# FTD's search space: 4 x 4 x 3 x 5 x 3 = 720 ConvNets. The keys are options of the ConvNet.
SPACE: dict[str, tuple[int, ...] | tuple[str, ...]] = {
    "depth": (1, 2, 3, 4),
    "width": (32, 64, 128, 256),
    "activation": ("sigmoid", "relu", "leaky_relu"),
    "norm": ("none", "batch", "layer", "instance", "group"),
    "pooling": ("none", "max", "average"),
}
# For each proxy: its key in the scores of an evaluation, and the option that requests the scores.
PROXIES = {
    "distilled": ("distilled", {}),
    "random-real": ("random_real", {"random_baseline": True}),
    "k-center": ("k_center", {"k_center": True}),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments."""
    first, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=first, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the distilled set")
    parser.add_argument("--out", type=Path, required=True, help="folder of the search")
    parser.add_argument(
        "--data", help="the data set that was distilled (default: found by the name in the file)"
    )
    parser.add_argument(
        "--proxy", choices=PROXIES, default="distilled", help="set on which the networks are ranked"
    )
    for axis, values in SPACE.items():
        parser.add_argument(
            f"--{axis}s",
            dest=axis,
            nargs="+",
            type=type(values[0]),
            choices=values,
            default=values,
            help=f"choices of {axis} (default: all)",
        )
    parser.add_argument(
        "--k-center-store", type=Path, help="experts whose logits k-center compares"
    )
    parser.add_argument(
        "--count", type=int, help="number of architectures to draw at random (default: all)"
    )
    parser.add_argument("--protocol", default="mtt", help="mtt, datm or ast: how networks train")
    parser.add_argument(
        "--epochs", type=int, default=200, help="epochs on the proxy (default: 200, as in FTD)"
    )
    parser.add_argument(
        "--real-epochs",
        type=int,
        default=200,
        help="epochs on the real data (default: 200, as in FTD)",
    )
    parser.add_argument(
        "--top",
        type=int,
        nargs="*",
        default=[5, 10, 20],
        help="for each N given, correlate the ranks of the best N networks",
    )
    parser.add_argument("--seeds", type=int, default=1, help="networks of each architecture")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random draws")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N or auto")
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    return parser.parse_args(argv)


def architectures(asked: argparse.Namespace) -> list[str]:
    """Return the networks to rank by name, e.g. ``convnet:depth=3,width=128,...``."""
    choices = [[f"{axis}={value}" for value in getattr(asked, axis)] for axis in SPACE]
    space = ["convnet:" + ",".join(each) for each in itertools.product(*choices)]
    # Shuffle all, then take the first: a larger --count keeps the networks of a smaller one.
    order = random.Random(asked.seed).sample(space, len(space))
    chosen = {*order[: asked.count]}
    if len(chosen) < 2:
        raise UserError(
            "a ranking needs at least 2 architectures; give more values, or a larger --count"
        )
    return [each for each in space if each in chosen]


def accuracies(
    asked: argparse.Namespace, names: Sequence[str], kind: str, scores: str, **options: object
) -> dict[str, float]:
    """Train every architecture that has no record in the folder, and return all test accuracies."""
    config = EvalConfig(
        file=asked.file,
        data=asked.data,
        network=tuple(names),
        out=asked.out / kind,
        protocol=asked.protocol,
        epochs=asked.real_epochs if kind == "real" else asked.epochs,
        seeds=asked.seeds,
        seed=asked.seed,
        device=asked.device,
        resume=True,
        **{"random_baseline": False, "distilled_hard": False, **options},
    )
    with Progress(config.total_rounds(False), f"{kind} epochs", asked.quiet) as progress:
        result = evaluate_artifact(config, progress)
    return {each["network"]: each[scores]["mean"] for each in result["networks"]}


def correlations(
    real: Mapping[str, float], proxy: Mapping[str, float], top: Sequence[int]
) -> dict[str, float | None]:
    """Correlate the ranks of all networks, and of those that are best on the real data.

    FTD reports the best 5, 10 and 20, but not by which of the two rankings they are the best. A
    correlation is None if there are too few networks, or if all have the same accuracy.
    """
    best = sorted(real, key=lambda name: -real[name])
    found: dict[str, float | None] = {}
    for key, size in [*((str(k), k) for k in top), ("all", len(best))]:
        ours, theirs = ([of[name] for name in best[:size]] for of in (proxy, real))
        defined = 2 <= size <= len(best) and len({*ours}) > 1 and len({*theirs}) > 1
        found[key] = float(spearmanr(ours, theirs).statistic) if defined else None
    return found


def search(argv: Sequence[str] | None = None) -> None:
    """Rank the architectures, print the correlations and write ``result.json``."""
    asked = parse(argv)
    names = architectures(asked)
    scores, options = PROXIES[asked.proxy]
    if asked.k_center_store is not None:
        options = {**options, "k_center_store": asked.k_center_store}
    proxy = accuracies(asked, names, "proxy", scores, **options)
    real = accuracies(asked, names, "real", "whole_real", whole_real=True)
    found = correlations(real, proxy, asked.top)
    print(f"Spearman's correlation of {len(names)} architectures, proxy: {asked.proxy}")
    for key, value in found.items():
        among = "all" if key == "all" else f"best {key} on the real data"
        print(f"  {among}: {'not defined' if value is None else f'{value:.2f}'}")
    for what, of in (("proxy", proxy), ("real data", real)):
        name = max(of, key=lambda each: of[each])
        print(f"best on the {what}: {name}, {proxy[name]:.1f} % trained on the proxy,")
        print(f"  {real[name]:.1f} % trained on the real data")
    result = {"proxy": proxy, "real": real, "spearman": found, "proxy_of": asked.proxy}
    files.write_json(asked.out / "result.json", result)


if __name__ == "__main__":
    try:
        search()
    except UserError as error:
        sys.exit(f"nas.py: error: {error}")
