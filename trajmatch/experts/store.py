"""The store of experts: one folder, a description in ``store.json`` and one file for each expert.

``store.json`` (the manifest) says what the experts are: network, data set, preprocessing, recipe,
seed. ``preprocessing.safetensors`` is there for ZCA only and holds its mean and matrix.
``expert_0000.safetensors`` and its successors hold ``snapshots [S, P]``, float32 or bfloat16: the
flat parameter vectors theta*_t after the epochs ``t`` that are kept, epoch 0 being the
initialisation. Where the network has buffers (batch norm's running statistics), ``buffers [S, Q]``
are those of the snapshots. Files are replaced as a whole, so an interrupted run leaves whole
experts or none; a reader maps a file and touches only the rows it asks for.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajmatch import files
from trajmatch.data.identity import check_same_data, describe_dataset
from trajmatch.data.zca import KIND, ZCA, from_parts
from trajmatch.errors import UserError
from trajmatch.experts import manifest as manifest_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trajmatch.data import Dataset

PREPROCESSING = "preprocessing.safetensors"

_KIND = {"format": manifest_file.FORMAT, "version": manifest_file.VERSION}
# What may change while a store stays the same one: where its data lies, and how far it has grown.
_NOT_IDENTITY = ("data", "num_experts")


class Store:
    """A folder of expert trajectories.

    Make one with :meth:`create` or :meth:`open`.

    Attributes:
        path: The folder.
        manifest: Content of ``store.json``:

            - ``format``, ``version``: what this folder is;
            - ``data``: the ``--data`` given, or None (no part of any fingerprint);
            - ``dataset``: ``name``, ``fingerprint``, ``class_names`` and ``shape`` (``[C, H, W]``)
              of the whole data set;
            - ``holdout``: ``fraction`` and ``seed`` of the part that the experts did not see, and
              ``training_fingerprint`` of the part that they did see;
            - ``preprocessing``: ``mean`` and ``std`` of each channel, or ``kind`` (``zca``) and
              ``eps``;
            - ``network``: the network's ``spec()``;
            - ``recipe``: optimiser and hyper-parameters, ``dsa`` among them;
            - ``seed``, ``num_experts``, ``dtype``, ``snapshots`` (the epochs kept);
            - ``sources``, only where experts were taken from several stores or left out: the
              ``seed`` and number (``expert``) with which each was trained. Where seeds differ,
              ``seed`` is None.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._row_checksums: dict[int, dict[str, list[int]]] = {}
        self._sound: set[tuple[str, int, int]] = set()  # tensor, expert, row

    def __repr__(self) -> str:
        """Say in one line where the store is and whose experts it holds."""
        data, network = self.manifest["dataset"]["name"], self.manifest["network"]["name"]
        return f"<Store {self.path}: {self.num_experts} experts, {network} on {data}>"

    @classmethod
    def create(
        cls, path: files.PathLike, manifest: dict[str, Any], zca: ZCA | None = None
    ) -> Store:
        """Make an empty store.

        Args:
            path: The folder; it is made with its parents, or is empty.
            manifest: Its description without ``format`` and ``version``.
            zca: The whitening, where ``preprocessing`` in the manifest says that there is one.

        Raises:
            ValueError: ``zca`` and manifest do not fit each other.
            UserError: There is a store already, there are other files, or the folder cannot be
                written.
        """
        if (manifest["preprocessing"].get("kind") == KIND) != (zca is not None):
            raise ValueError("expected zca to be given exactly where the manifest has it")
        path = Path(path)
        cls.check_new(path)
        store = cls(path, {**_KIND, **manifest})
        if zca is not None:
            files.save_tensors(path / PREPROCESSING, zca.tensors(), {"store": store.identity})
        store._write_manifest()  # last: a folder with a manifest is a store
        return store

    @staticmethod
    def check_new(path: files.PathLike) -> None:
        """Make sure that a store can be made in a folder, and makes the folder.

        Args:
            path: The folder.

        Raises:
            UserError: There is a store already, there are other files, or the folder cannot be
                written.
        """
        path = Path(path)
        if exists(path):
            raise UserError(
                f"{path} holds a store of experts already; add --resume to train what it lacks, "
                "or choose another --out"
            )
        files.check_writable(path)
        # The whitening without a manifest is what an interrupted `create` left behind.
        foreign = sorted(
            entry.name
            for entry in path.iterdir()
            if not entry.name.startswith(".") and entry.name != PREPROCESSING
        )
        if foreign:
            raise UserError(
                f"{path} is not empty (it holds {foreign[0]}) and is not a store of experts; "
                "choose a new folder for --out"
            )

    @classmethod
    def open(cls, path: files.PathLike, *, complete: bool = True) -> Store:
        """Opens a store and checks the header of every expert's file.

        Args:
            path: The folder.
            complete: Whether an expert may not be missing.

        Raises:
            UserError: There is no store, it is of another version, a file is damaged or belongs to
                another store, or an expert is missing.
        """
        path = Path(path)
        if not exists(path):
            raise UserError(
                f"{path} is not a store of experts (it has no {manifest_file.NAME}); "
                "`trajmatch expert --out FOLDER` makes one"
            )
        store = cls(path, manifest_file.read(path))
        missing = store.missing()
        if complete and missing:
            raise UserError(
                f"{path} lacks {len(missing)} of {store.num_experts} experts (the first is "
                f"number {missing[0]}); run the same `trajmatch expert` with --resume"
            )
        for expert in range(store.num_experts):
            if expert not in missing:
                store._description(expert)
        return store

    @property
    def num_experts(self) -> int:
        """Experts that the store has when it is complete."""
        return int(self.manifest["num_experts"])

    @property
    def snapshots_kept(self) -> list[int]:
        """Epochs that have a snapshot, ascending; 0 is the initialisation."""
        return list(self.manifest["snapshots"])

    @property
    def identity(self) -> str:
        """Hash of what made every expert: all but their number and the place of the data."""
        made = {k: v for k, v in self.manifest.items() if k not in _NOT_IDENTITY}
        return files.json_checksum(made)

    @property
    def fingerprint(self) -> str:
        """Hash of all that defines the store: :attr:`identity` and the number of experts."""
        return files.json_checksum({k: v for k, v in self.manifest.items() if k != "data"})

    def expert_path(self, expert: int) -> Path:
        """File of one expert."""
        return self.path / f"expert_{expert:04d}.safetensors"

    def checkpoint_path(self, expert: int) -> Path:
        """Where an expert is kept that is still in training (hidden, and gone afterwards)."""
        return self.path / f".expert_{expert:04d}.checkpoint.safetensors"

    def missing(self) -> list[int]:
        """Experts that have no file yet, ascending."""
        there = {path.name for path in self.path.iterdir()}
        return [i for i in range(self.num_experts) if self.expert_path(i).name not in there]

    def origin(self, expert: int) -> dict[str, int]:
        """The ``seed`` and number (``expert``) with which an expert was trained."""
        sources = self.manifest.get("sources")
        if sources is None:
            return {"seed": self.manifest["seed"], "expert": expert}
        return dict(sources[expert])

    def write_expert(
        self,
        expert: int,
        snapshots: Tensor,
        metrics: Mapping[str, Any],
        buffers: Tensor | None = None,
    ) -> None:
        """Writes one expert as a whole, or nothing.

        Args:
            expert: Its number.
            snapshots: Parameters after each epoch kept. ``[S, P]``, float32.
            metrics: Its health, as JSON can hold it; :meth:`metrics` gives it back.
            buffers: Buffers of the network that belong to the snapshots
                (:func:`trajmatch.networks.flat_buffers`). ``[S, Q]``, float32; None or ``[S, 0]``
                where the network has none.

        Raises:
            ValueError: ``snapshots`` or ``buffers`` has another number of rows or another dtype
                than the store.
            UserError: A value is not finite, or the file cannot be written.
        """
        import torch

        rows = len(self.snapshots_kept)
        tensors = {"snapshots": snapshots}
        if buffers is not None:
            tensors["buffers"] = buffers
        for name, each in tensors.items():
            if each.dim() != 2 or each.shape[0] != rows or each.dtype != torch.float32:
                raise ValueError(
                    f"expected {name} to be float32 [{rows}, P] (the epochs this store keeps), "
                    f"but got {each.dtype} {list(each.shape)}"
                )
        tensors["snapshots"] = snapshots.to(_dtype(self.manifest))
        kept = {name: each for name, each in tensors.items() if each.numel() > 0}
        description = {
            "store": self.identity,
            "expert": expert,
            "metrics": dict(metrics),
            "rows": {name: [_checksum(row) for row in each] for name, each in kept.items()},
        }
        files.save_tensors(self.expert_path(expert), kept, description)

    @cached_property
    def zca(self) -> ZCA | None:
        """The whitening of the images; None where each channel is normalised instead.

        Raises:
            UserError: Its file is missing, damaged, or belongs to another store.
        """
        spec = self.manifest["preprocessing"]
        if spec.get("kind") != KIND:
            return None
        path = self.path / PREPROCESSING
        tensors, metadata = files.load_tensors(path)
        if metadata.get("store") != self.identity:
            raise self._misfit(path, "another store")
        try:
            return from_parts(spec, tensors)
        except UserError as error:
            raise UserError(f"{path} is damaged: {error}") from error

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Parameters of one expert after one epoch; only these are read.

        Args:
            expert: Its number.
            epoch: One of :attr:`snapshots_kept`.

        Returns:
            theta*_epoch ``[P]``, float32, on the CPU, in memory of its own.

        Raises:
            UserError: There is no such expert or snapshot, or the file is damaged.
        """
        snapshot = self._row("snapshots", expert, epoch)
        assert snapshot is not None  # every file has them
        return snapshot

    def buffers(self, expert: int, epoch: int) -> Tensor | None:
        """Buffers of one expert after one epoch, as :meth:`snapshot` gives its parameters.

        Args:
            expert: Its number.
            epoch: One of :attr:`snapshots_kept`.

        Returns:
            What :func:`trajmatch.networks.load_flat_buffers` takes: ``[Q]``, float32, on the CPU;
            None for a network without buffers.

        Raises:
            UserError: As for :meth:`snapshot`.
        """
        return self._row("buffers", expert, epoch)

    def load_into(self, model: nn.Module, expert: int, epoch: int) -> None:
        """Copies the parameters and buffers of one expert after one epoch into its network.

        Args:
            model: The network of the store.
            expert: Its number.
            epoch: One of :attr:`snapshots_kept`.

        Raises:
            ValueError: The model is another network.
            UserError: As for :meth:`snapshot`.
        """
        from trajmatch import networks

        networks.load_flat_parameters(model, self.snapshot(expert, epoch))
        buffers = self.buffers(expert, epoch)
        if buffers is not None:
            networks.load_flat_buffers(model, buffers)

    def _row(self, tensor: str, expert: int, epoch: int) -> Tensor | None:
        """The row of a tensor that belongs to an epoch; None where the file has no such tensor."""
        if not 0 <= expert < self.num_experts:
            raise UserError(
                f"{self.path} has experts 0 to {self.num_experts - 1}, but {expert} was asked for"
            )
        if epoch not in self.manifest["snapshots"]:
            kept = self.snapshots_kept
            raise UserError(
                f"{self.path} keeps the snapshots of epochs {kept[0]} to {kept[-1]}, "
                f"but {epoch} was asked for"
            )
        row = self.manifest["snapshots"].index(epoch)
        path, checksums = self.expert_path(expert), self._checksums(expert)
        with files.open_tensors(path) as handle:
            if tensor not in handle.keys():  # noqa: SIM118 (not a mapping)
                if tensor in (checksums or ["snapshots"]):
                    raise UserError(f"{path} is damaged: it has no tensor {tensor!r}")
                return None
            shape = handle.get_slice(tensor).get_shape()
            if len(shape) != 2 or shape[0] != len(self.manifest["snapshots"]):
                raise UserError(f"{path} is damaged: the shape of {tensor!r} is {shape}")
            mapped: Tensor = handle.get_slice(tensor)[row : row + 1]
            found = mapped[0].clone()
        # Once is enough: it costs as much as a few percent of an outer iteration.
        if checksums and (tensor, expert, row) not in self._sound:
            if _checksum(found) != checksums[tensor][row]:
                raise UserError(
                    f"{path} is damaged: the {tensor} of epoch {epoch} do not fit their checksum; "
                    "delete it and run the same `trajmatch expert` with --resume"
                )
            self._sound.add((tensor, expert, row))
        return found.float()

    def _checksums(self, expert: int) -> dict[str, list[int]]:
        """A checksum of each row of an expert's tensors; empty for a file that has none."""
        if expert not in self._row_checksums:
            rows = self._description(expert).get("rows", {})
            kept = len(self.manifest["snapshots"])
            if not isinstance(rows, dict) or any(
                not isinstance(each, list) or len(each) != kept for each in rows.values()
            ):
                path = self.expert_path(expert)
                raise UserError(f"{path} is damaged: its rows are {rows!r:.100}")
            self._row_checksums[expert] = rows
        return self._row_checksums[expert]

    def metrics(self, expert: int) -> dict[str, Any]:
        """Health of one expert, as its training recorded it.

        Returns:
            ``train_loss``, ``displacement`` (``|theta*_{t+1} - theta*_t|``) and ``accuracy`` (on up
            to 4,000 of the test images, in percent; None after an epoch without a test), one value
            an epoch; and ``test_accuracy`` of the last epoch on all of them.

        Raises:
            UserError: The file is missing or damaged.
        """
        metrics: dict[str, Any] = self._description(expert)["metrics"]
        return metrics

    def check_whole(self, expert: int) -> None:
        """Reads all of an expert and checks it.

        Args:
            expert: Its number.

        Raises:
            UserError: The file is damaged, or belongs to another store or expert.
        """
        self._description(expert)
        for tensor in files.load_tensors(self.expert_path(expert))[0]:
            for epoch in self.snapshots_kept:
                row = self._row(tensor, expert, epoch)
                if row is not None and not row.isfinite().all():
                    raise UserError(
                        f"{self.expert_path(expert)} is damaged: the {tensor} of epoch {epoch} are "
                        "not finite"
                    )

    def resume(self, manifest: dict[str, Any], address: str | None = None) -> None:
        """Make this the store that a configuration asks for, if they differ in size at most.

        Args:
            manifest: Description of the store asked for, as for :meth:`create`.
            address: Address of the data set, for the message. Default: its name.

        Raises:
            UserError: A field differs (it is named), the store is larger than asked for, or it
                cannot be written.
        """
        if "sources" in self.manifest:
            raise UserError(
                f"{self.path} was put together by `trajmatch store`, and no expert can be added by "
                "training; train another store and merge the two"
            )
        wanted = {**_KIND, **manifest}
        self._check_data(wanted["dataset"], address)
        for field, have, want in differences(self.manifest, wanted):
            if field not in _NOT_IDENTITY:
                raise UserError(
                    f"{self.path} was made with {field} = {_show(have)}, but {_show(want)} is "
                    "asked for; repeat the flags it was made with, or choose another --out"
                )
        if wanted["num_experts"] < self.num_experts:
            raise UserError(
                f"{self.path} was made with num_experts = {self.num_experts}, but "
                f"{wanted['num_experts']} is asked for; a store can grow but not shrink"
            )
        files.check_writable(self.path)
        self._sweep()
        if wanted != self.manifest:
            self.manifest = wanted
            self._write_manifest()

    def check_dataset(self, dataset: Dataset, address: str | None = None) -> None:
        """Make sure that a data set is the one the experts were trained on.

        Args:
            dataset: The whole data set, before anything is held out.
            address: Where it was read from, for the message. Default: its name.

        Raises:
            UserError: It is another one; the message says in what it differs.
        """
        self._check_data(describe_dataset(dataset), address)

    def training_set(
        self, dataset: Dataset, address: str | None = None
    ) -> tuple[Dataset, Tensor, Tensor]:
        """Split the whole data set into the images that the experts saw and those held out.

        Args:
            dataset: The whole data set.
            address: Where it was read from, for messages. Default: its name.

        Returns:
            The data set without the part held out, preprocessed as the experts saw it; images of
            that part ``[N, C, H, W]``, uint8; their labels ``[N]``, int64. Both are empty for a
            store without ``--holdout``.

        Raises:
            UserError: It is not the data set that the experts were trained on.
        """
        self.check_dataset(dataset, address)
        held_out = self.manifest["holdout"]
        training, images, labels = hold_out(dataset, held_out["fraction"], held_out["seed"])
        if training.fingerprint != held_out["training_fingerprint"]:
            raise UserError(
                f"holding out {held_out['fraction']} of {dataset.name!r} no longer gives the "
                f"images that the experts of {self.path} saw; make the store again with this "
                "release"
            )
        training = training.preprocessed_as(self.manifest["preprocessing"], self.zca)
        return training, images, labels

    def check_network(self, spec: Mapping[str, Any]) -> None:
        """Makes sure that a network is the experts' network.

        Args:
            spec: The network's ``spec()``.

        Raises:
            UserError: It is another one; the field that differs is named.
        """
        for field, have, want in differences(self.manifest["network"], dict(spec)):
            raise UserError(
                f"the experts of {self.path} are networks with {field} = {_show(have)}, but the "
                f"network given has {_show(want)}; use the network of the store"
            )

    def _check_data(self, given: Mapping[str, Any], address: str | None) -> None:
        """Make sure that a data set, by its description, is that of the experts."""
        made = f"the experts of {self.path} were trained on"
        check_same_data(made, self.manifest["dataset"], given, self.manifest["data"], address)

    def _description(self, expert: int) -> dict[str, Any]:
        """The metadata of an expert's file, which is this expert's."""
        path = self.expert_path(expert)
        metadata = files.read_metadata(path)
        if metadata.get("store") != self.identity or metadata.get("expert") != expert:
            raise self._misfit(path, "another store or to another expert")
        if not isinstance(metadata.get("metrics"), dict):
            raise UserError(f"{path} is damaged: its metrics are {metadata.get('metrics')!r:.100}")
        return metadata

    def _misfit(self, path: Path, owner: str) -> UserError:
        """Return the error for a file of the folder that the manifest does not describe."""
        return UserError(
            f"{path} belongs to {owner} than {self.path / manifest_file.NAME} describes; if one of "
            "the two was changed or exchanged by hand, put back what was there"
        )

    def _sweep(self) -> None:
        """Removes what a killed run left: parts of files, and checkpoints of finished experts."""
        files.remove_leftovers(self.path)
        for expert in {*range(self.num_experts)}.difference(self.missing()):
            self.checkpoint_path(expert).unlink(missing_ok=True)

    def _write_manifest(self) -> None:
        manifest_file.write(self.path, self.manifest)


def exists(path: files.PathLike) -> bool:
    """True if a folder holds a store of experts."""
    return (Path(path) / manifest_file.NAME).exists()


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Tensor, Tensor]:
    """The data set without a class-balanced part, and that part (empty for a fraction of 0)."""
    if fraction == 0:
        return dataset, dataset.train_images[:0], dataset.train_labels[:0]
    return dataset.without_holdout(fraction, seed)


def _dtype(manifest: Mapping[str, Any]) -> torch.dtype:
    """The dtype that snapshots are kept in."""
    import torch

    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[manifest["dtype"]]


def _checksum(row: Tensor) -> int:
    """CRC-32 of a row as it is in the file."""
    import torch

    return zlib.crc32(row.contiguous().view(torch.uint8).numpy().data)


def differences(have: Any, want: Any, field: str = "") -> list[tuple[str, Any, Any]]:
    """Leaves at which two nested dictionaries differ: dotted name, left value, right value.

    Dictionaries without a common key (two kinds of preprocessing) are leaves.
    """
    nested = isinstance(have, dict) and isinstance(want, dict)
    if not nested or have.keys().isdisjoint(want):
        return [] if have == want else [(field, have, want)]
    found = []
    for key in sorted(have.keys() | want.keys()):
        name = f"{field}.{key}" if field else key
        found.extend(differences(have.get(key), want.get(key), name))
    return found


def _show(value: Any) -> str:
    """A value as one reads it in a message; hashes and long lists are cut."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
