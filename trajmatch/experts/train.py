"""Training of the experts that a store lacks."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trajmatch import interruption, networks
from trajmatch.data import DSA, Dataset, load_dataset, zca
from trajmatch.data.sources import absolute_uri
from trajmatch.device import usable_device
from trajmatch.errors import UserError, as_user_error
from trajmatch.experts import config as settings
from trajmatch.experts.checkpoint import Checkpoints
from trajmatch.experts.config import ExpertConfig, kept_epochs
from trajmatch.experts.epoch import Curriculum
from trajmatch.experts.store import Store, exists
from trajmatch.experts.workers import curriculum_of, work, work_together
from trajmatch.lock import locked
from trajmatch.parallel import ALONE, Ranks
from trajmatch.progress import NoProgress, ProgressLike
from trajmatch.schema import expect_config, settings_of


def train_experts(
    config: ExpertConfig,
    progress: ProgressLike | None = None,
    ranks: Ranks = ALONE,
    announce: Callable[[str], None] = lambda space: None,
) -> Store:
    """Train experts on the real images, keep their snapshots, and return the complete store.

    Expert ``i`` depends only on the configuration, the data and ``i``; the number of experts, their
    order, the number trained at a time and interruptions do not change it. On the CPU each expert
    trains on one thread, because the number of threads changes the last bits of a convolution. If
    several experts train at a time, they run in child processes on the CPU, or in lockstep on a
    GPU.

    Args:
        config: Settings of the experts, and the folder of the store.
        progress: Updated after each epoch with the number of epochs completed across all experts,
            ``expert``, its ``loss``, and its latest test ``accuracy`` (for targets ``error``).
        ranks: Processes of the run (:func:`trajmatch.parallel.joined`), which all call this
            function. Rank 0 creates the store, and missing experts are dealt out round-robin.
        announce: Called on rank 0 before training, with a text about the disk space needed.

    Raises:
        UserError: The configuration, data or folder cannot be used, another process is writing the
            store, the disk is too small, or an expert diverged. Finished experts are kept.
        Interrupted: ``config.max_time`` is up, or a signal arrived inside
            :func:`trajmatch.interruption.signals`. Finished experts and checkpoints are kept.
    """
    expect_config("train_experts", config, ExpertConfig)
    config = replace(config, device=usable_device(config.device))
    dataset = load_dataset(config.data)
    training, _, _ = dataset.without_holdout(config.holdout, config.seed)
    curriculum = curriculum_of(config, dataset, training)
    manifest = describe(config, dataset, training, curriculum)

    def prepare() -> list[int]:
        """Create or reopen the store; return the missing experts."""
        if config.resume and exists(config.out):
            store = Store.open(config.out, complete=False)
            store.resume(manifest, config.data)
            space = check_disk_space(config.out, store.manifest, len(store.missing()))
        else:
            Store.check_new(config.out)
            space = check_disk_space(config.out, manifest, config.num_experts)
            transform = zca.fit(training.train_images) if config.zca else None
            store = Store.create(config.out, manifest, transform)
        if missing := store.missing():
            announce(space)
        return missing

    with networks.cuda_blocks(config.cuda_blocks), ExitStack() as stack:
        # Rank 0 holds the lock for all ranks, and broadcasts the missing experts.
        ranks.on_rank_0(lambda: stack.enter_context(locked(config.out, inside=True)))
        missing = ranks.on_rank_0(prepare)
        store = Store.open(config.out, complete=False)
        training = training.whitened(store.zca)
        progress, epochs = progress or NoProgress(), ranks.counter()
        begun = Checkpoints(store, config.checkpoint_seconds)
        done = (store.num_experts - len(missing)) * config.trained_epochs
        # Add the epochs finished before a checkpoint or in a shorter run.
        done += sum(begun.place(expert).epoch for expert in missing)
        progress.update(done)
        latest: dict[int, dict[str, float]] = {}

        def on_epoch(expert: int, numbers: dict[str, float]) -> None:
            # Epochs without a test show the result of the last test.
            latest[expert] = {**latest.get(expert, {}), **numbers}
            progress.update(done + epochs(), expert=expert, **latest[expert])

        shard = ranks.shard(missing)
        at_once = config.workers or automatic_workers(config.device)
        at_once = min(at_once, max(1, len(shard)))
        with interruption.time_limit(config.max_time):
            if at_once > 1 and torch.device(config.device).type == "cpu":
                work_together(config, shard, at_once, on_epoch)
            else:
                work(config, store, training, shard, on_epoch, at_once, curriculum)
            ranks.barrier()
    # No rank returns before rank 0 has released the lock.
    ranks.barrier()
    return Store.open(config.out)


def check_disk_space(path: Path, manifest: dict[str, Any], experts: int) -> str:
    """Describe the needed and the free disk space; raise UserError if too little is free."""
    snapshots, each = expert_size(manifest)
    needed, free = experts * each, shutil.disk_usage(path).free
    space = (
        f"{experts} experts of {snapshots} snapshots: {needed / 1e9:.3g} GB of disk, "
        f"{free / 1e9:.3g} GB free"
    )
    if needed > free:
        raise UserError(
            f"the disk of {path} has too little space for {space}; store fewer epochs (--keep), "
            "use --dtype bfloat16, train fewer experts (--num-experts), or choose another --out"
        )
    return space


def expert_size(manifest: Mapping[str, Any]) -> tuple[int, int]:
    """Return one expert's number of snapshots and its size in bytes."""
    model = networks.build(manifest["network"])
    numbers = networks.num_parameters(model) + networks.num_buffers(model)
    last = manifest.get("trained_epochs", manifest["snapshots"][-1])
    snapshots = sum(epoch <= last for epoch in manifest["snapshots"])
    each: int = snapshots * numbers * getattr(torch, manifest["dtype"]).itemsize
    # The state of an unfinished course: parameters, and one (SGD) or two (Adam) optimiser vectors.
    if last < manifest["snapshots"][-1]:
        each += numbers * 4 * (3 if manifest["recipe"]["optimiser"] == "adam" else 2)
    return snapshots, each


def automatic_workers(device: str) -> int:
    """Choose the number of experts to train at a time on a device."""
    # CPU: two experts on one thread each train 6 % faster than one after the other on two threads
    # (ConvNets of width 32 and 128, batches of 256, two cores).
    # GPU: four ConvNets in lockstep train 1.57 times as fast as one after the other at width 32,
    # 1.29 times at width 64 and 1.23 times at width 128 (batches of 256, H200; measured when each
    # had a stream of its own).
    return torch.get_num_threads() if torch.device(device).type == "cpu" else 4


def describe(
    config: ExpertConfig, dataset: Dataset, training: Dataset, curriculum: Curriculum | None = None
) -> dict[str, Any]:
    """Return the manifest of the store that a configuration asks for.

    ``training`` is the part of ``dataset`` that the experts see. Raises UserError if network, batch
    size, augmentation or loss do not fit the data.
    """
    # The recipe has a `loss` only if it is not cross-entropy.
    loss = {"loss": dataset.loss} if dataset.loss != "cross_entropy" else {}
    dataset.check_loss(config.loss)
    with as_user_error():
        spec = network_spec(config, dataset)
        model = networks.build_student(spec)
        # With a curriculum, epochs differ in size, and no size may leave a batch of one image that
        # batch norm cannot train on.
        counts = {len(training.train_labels)}
        if curriculum is not None:
            counts = {len(curriculum.images(epoch)) for epoch in range(config.epochs)}
        for count in sorted(counts):
            networks.check_batches(model, count, config.batch_size, "--batch-size")
        dsa = DSA(config.dsa)
    trained = config.trained_epochs
    ordered = {} if curriculum is None else {"scores": curriculum.fingerprint}
    return {
        **({"trained_epochs": trained} if trained < config.epochs else {}),
        "data": absolute_uri(config.data),
        "dataset": dataset.description,
        "holdout": {
            "fraction": config.holdout,
            "seed": config.seed,
            "training_fingerprint": training.fingerprint,
        },
        "preprocessing": zca.spec() if config.zca else training.preprocessing.spec(),
        "network": spec,
        "recipe": {**recipe_of(replace(config, loss=None)), "dsa": dsa.spec, **loss, **ordered},
        "seed": config.seed,
        "num_experts": config.num_experts,
        "dtype": config.dtype,
        "snapshots": kept_epochs(config.keep, config.epochs),
    }


def network_spec(config: settings.NetworkSettings, dataset: Dataset) -> dict[str, Any]:
    """Return a network's spec; raise ValueError if images, network and options do not match."""
    sizes = (dataset.channels, dataset.num_outputs, dataset.image_size)
    if config.network == "convnet":
        return networks.ConvNet(*sizes, **settings_of(config, settings.ConvNetSettings)).spec()
    for name in config.chosen(settings.ConvNetSettings):
        raise ValueError(
            f"--{name} {getattr(config, name)} applies only to --network convnet, but --network is "
            f"{config.network}; for other networks, put options after the name, as in "
            "vgg11:batch,width=32"
        )
    spec = networks.specify(config.network, *sizes)
    if networks.is_external(spec["name"]):
        networks.check_student(networks.build_student(spec))
    return spec


def recipe_of(config: settings.TrainingSettings) -> dict[str, Any]:
    """Return the training settings for a manifest, without those that are None."""
    given = settings_of(config, settings.TrainingSettings)
    return {name: value for name, value in given.items() if value is not None}
