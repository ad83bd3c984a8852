"""The store of experts: one folder, a description in ``store.json`` and one file for each expert.

``store.json`` (the manifest) says what the experts are: network, data set, preprocessing, recipe,
seed. ``preprocessing.safetensors`` is there for ZCA only and holds its mean and matrix.
``expert_0000.safetensors`` and its successors hold ``snapshots [S, P]``, float32 or bfloat16: the
flat parameter vectors theta*_t after the epochs ``t`` that are kept, epoch 0 being the
initialisation. Where the network has buffers (batch norm's running statistics), ``buffers [S, Q]``
are those of the snapshots. Convexified experts have ``snapshots [W, P]`` of their waypoints alone,
and ``shares [S, L]``: how far each parameter tensor is on the line between two. Files are replaced
as a whole, so an interrupted run leaves whole experts or none; a reader maps a file and touches
only the rows it asks for.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from trajmatch import files, networks
from trajmatch.data import Dataset, load_dataset
from trajmatch.data.dataset import check_same_data
from trajmatch.data.sources import moved_uri
from trajmatch.data.zca import KIND, ZCA, from_parts
from trajmatch.errors import UserError, as_user_error
from trajmatch.experts import manifest as manifest_file
from trajmatch.experts.waypoints import between, line_to
from trajmatch.schema import PositiveInt, convert

PREPROCESSING = "preprocessing.safetensors"

# Entries that may change while a store stays the same: the place of its data, and its size.
_NOT_IDENTITY = ("data", "num_experts", "trained_epochs")


class ExpertDescription(msgspec.Struct, omit_defaults=True):
    """Metadata of an expert's file.

    Attributes:
        store: Identity of its store.
        expert: Its number.
        metrics: See :meth:`Store.metrics`.
        rows: A checksum of each row of its tensors; old files have none.
        epochs: Epochs that it is trained for; None: its whole course.
    """

    store: str
    expert: int
    metrics: dict[str, Any]
    rows: dict[str, list[int]] = {}
    epochs: PositiveInt | None = None


class Store:
    """A folder of expert trajectories.

    Make one with :meth:`create` or :meth:`open`.

    Attributes:
        path: The folder.
        manifest: Content of ``store.json``:

            - ``format``, ``version``: kind and version of the folder;
            - ``data``: the ``--data`` given, or None (no part of any fingerprint);
            - ``dataset``: ``name``, ``fingerprint``, ``class_names`` and ``shape`` (``[C, H, W]``)
              of the whole data set;
            - ``holdout``: ``fraction`` and ``seed`` of the part that the experts did not see, and
              ``training_fingerprint`` of the part that they did see;
            - ``preprocessing``: ``mean`` and ``std`` of each channel, or ``kind`` (``zca``) and
              ``eps``;
            - ``network``: the network's ``spec()``;
            - ``recipe``: optimiser and hyper-parameters, ``dsa`` among them;
            - ``seed``, ``num_experts``, ``dtype``, ``snapshots`` (the epochs kept of the whole
              course);
            - ``trained_epochs``, only where experts are trained for the first epochs of the course
              alone: their number (no part of any fingerprint);
            - ``sources``, only where experts were taken from several stores or left out: the
              ``seed`` and number (``expert``) with which each was trained. Where seeds differ,
              ``seed`` is None;
            - ``waypoints``, only where the experts are lines between a few points: their
              ``epochs``, and the sizes of the parameter tensors (``layers``).
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._descriptions: dict[int, ExpertDescription] = {}
        self._sound: set[tuple[str, int, int]] = set()  # tensor, expert, row

    def __repr__(self) -> str:
        """Return the place of the store and the experts in it, in one line."""
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
            UserError: There is a store already, there are other files, or the folder cannot be
                written.
        """
        cls.check_new(path)
        store = cls(Path(path), manifest_file.complete(manifest))
        if zca is not None:
            files.save_tensors(store.path / PREPROCESSING, zca.tensors(), {"store": store.identity})
        # Last: a folder with a manifest is a store.
        manifest_file.write(store.path, store.manifest)
        return store

    @staticmethod
    def check_new(path: files.PathLike) -> None:
        """Make a folder, and make sure that a store can be made in it.

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
        visible = {each.name for each in path.iterdir() if not each.name.startswith(".")}
        if foreign := sorted(visible - {PREPROCESSING}):
            raise UserError(
                f"{path} is not empty (it holds {foreign[0]}) and is not a store of experts; "
                "choose a new folder for --out"
            )

    @classmethod
    def open(cls, path: files.PathLike, *, complete: bool = True) -> Store:
        """Open a store and check the header of every expert's file.

        Args:
            path: The folder.
            complete: True if no expert may be missing.

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
        return store

    @property
    def num_experts(self) -> int:
        """Experts that the store has when it is complete."""
        return int(self.manifest["num_experts"])

    @property
    def loss(self) -> str:
        """Loss that the experts trained with, as for :func:`trajmatch.ops.gradient`."""
        return str(self.manifest["recipe"].get("loss", "cross_entropy"))

    @property
    def course(self) -> int:
        """Last epoch of the whole course that the experts' schedules are made for."""
        return int(self.manifest["snapshots"][-1])

    @property
    def trained_epochs(self) -> int:
        """Epochs that every expert is trained for when the store is complete."""
        return int(self.manifest.get("trained_epochs", self.course))

    @property
    def reached(self) -> str:
        """The last epoch trained, in words."""
        part = f" of {self.course}" if self.trained_epochs < self.course else ""
        return f"epoch {self.trained_epochs}{part}"

    @property
    def snapshots_kept(self) -> list[int]:
        """Epochs that have a snapshot, ascending; 0 is the initialisation."""
        return self._kept(self.trained_epochs)

    @property
    def identity(self) -> str:
        """Hash of the manifest without the entries that may change: it decides every expert."""
        return self._hash(_NOT_IDENTITY)

    @property
    def fingerprint(self) -> str:
        """Hash of :attr:`identity` and the number of experts."""
        return self._hash(("data", "trained_epochs"))

    def _hash(self, without: Collection[str]) -> str:
        return files.json_checksum({k: v for k, v in self.manifest.items() if k not in without})

    def expert_path(self, expert: int) -> Path:
        """File of one expert."""
        return self.path / f"expert_{expert:04d}.safetensors"

    def checkpoint_path(self, expert: int) -> Path:
        """Hidden file of an expert in training."""
        return self.path / f".expert_{expert:04d}.checkpoint.safetensors"

    def epochs_of(self, expert: int) -> int:
        """Return the epochs that an expert is trained for; 0 if it has no file.

        Raises:
            UserError: The file is damaged, or belongs to another store or expert.
        """
        if not self.expert_path(expert).exists():
            return 0
        return self._description(expert).epochs or self.course

    def missing(self) -> list[int]:
        """Experts without a file, or trained for fewer epochs than the store says, ascending.

        Raises:
            UserError: A file is damaged, or belongs to another store or expert.
        """
        experts = range(self.num_experts)
        return [each for each in experts if self.epochs_of(each) < self.trained_epochs]

    def finished(self) -> list[int]:
        """Experts that are not :meth:`missing`, ascending."""
        return sorted({*range(self.num_experts)}.difference(self.missing()))

    def origin(self, expert: int) -> dict[str, int]:
        """The ``seed`` and number (``expert``) with which an expert was trained."""
        sources = self.manifest.get("sources")
        if sources is None:
            return {"seed": self.manifest["seed"], "expert": expert}
        return dict(sources[expert])

    def check_trained(self, epoch: int, purpose: str) -> None:
        """Make sure that the experts are trained up to an epoch of their course.

        Args:
            epoch: The epoch.
            purpose: The flags that ask for it, for the message.

        Raises:
            UserError: They are not; the message says how to extend the store.
        """
        if self.trained_epochs < epoch <= self.course:
            raise UserError(
                f"{purpose} needs the experts after epoch {epoch}, but those of {self.path} are "
                f"trained for the first {self.trained_epochs} of {self.course} epochs; to go on, "
                f"repeat the `trajmatch expert` that made them with --until-epoch {epoch} --resume,"
                " or the `trajmatch run` with --full-experts --resume"
            )

    def write_expert(
        self,
        expert: int,
        snapshots: Tensor,
        metrics: Mapping[str, Any],
        buffers: Tensor | None = None,
        state: Mapping[str, Tensor] | None = None,
        shares: Tensor | None = None,
    ) -> None:
        """Write one expert as a whole, or nothing.

        Args:
            expert: Its number.
            snapshots: Parameters after each epoch kept, ``[S, P]``, or at each waypoint,
                ``[W, P]``; float32.
            metrics: Its health, as JSON can hold it; :meth:`metrics` gives it back.
            buffers: Buffers of the network that belong to the snapshots
                (:func:`trajmatch.networks.flat_buffers`). ``[S, Q]``, float32; None or ``[S, 0]``
                where the network has none.
            state: State of the training after the last of :attr:`trained_epochs`, from which it can
                go on; None after the whole course.
            shares: For an expert of waypoints: how far each parameter tensor is on its line after
                each epoch kept. ``[S, L]``, float32.

        Raises:
            UserError: A value is not finite, or the file cannot be written.
        """
        rows = {"snapshots": snapshots.to(getattr(torch, self.manifest["dtype"]))}
        if buffers is not None and buffers.numel():
            rows["buffers"] = buffers
        if shares is not None:
            rows["shares"] = shares
        checksums = {name: [_checksum(row) for row in each] for name, each in rows.items()}
        epochs = None if state is None else self.trained_epochs
        found = ExpertDescription(self.identity, expert, dict(metrics), checksums, epochs)
        tensors, description = {**rows, **(state or {})}, msgspec.to_builtins(found)
        files.save_tensors(self.expert_path(expert), tensors, description)

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
        with as_user_error(f"{path} is damaged: "):
            return from_parts(spec, tensors)

    def snapshot(self, expert: int, epoch: int) -> Tensor:
        """Return the parameters of one expert after one epoch; only these are read.

        Args:
            expert: Its number.
            epoch: One of :attr:`snapshots_kept`.

        Returns:
            theta*_epoch ``[P]``, float32, on the CPU, in memory of its own; of convexified experts
            the point of their lines.

        Raises:
            UserError: There is no such expert or snapshot, or the file is damaged.
        """
        waypoints = self.manifest.get("waypoints")
        if waypoints is None:
            snapshot = self._row("snapshots", expert, epoch)
            assert snapshot is not None  # every file has them
            return snapshot
        shares, ends = self._row("shares", expert, epoch), line_to(epoch, waypoints["epochs"])
        first, last = (self._row("snapshots", expert, end) for end in ends)
        assert shares is not None and first is not None and last is not None
        return between(first, last, shares, waypoints["layers"])

    def buffers(self, expert: int, epoch: int) -> Tensor | None:
        """Return the buffers of one expert after one epoch; None for a network without buffers.

        Args and errors are those of :meth:`snapshot`; :func:`trajmatch.networks.load_flat_buffers`
        takes the result: ``[Q]``, float32, on the CPU.
        """
        return self._row("buffers", expert, epoch)

    def load_into(self, model: nn.Module, expert: int, epoch: int) -> None:
        """Copy the parameters and buffers of one expert after one epoch into its network.

        Args:
            model: The network of the store.
            expert: Its number.
            epoch: One of :attr:`snapshots_kept`.

        Raises:
            ValueError: The model is another network.
            UserError: As for :meth:`snapshot`.
        """
        networks.load_flat_parameters(model, self.snapshot(expert, epoch))
        buffers = self.buffers(expert, epoch)
        if buffers is not None:
            networks.load_flat_buffers(model, buffers)

    def _row(self, tensor: str, expert: int, epoch: int) -> Tensor | None:
        """Return the row of a tensor for an epoch; None where the file has no such tensor."""
        # Read once: it costs as much as a few percent of an outer iteration.
        if not 0 <= expert < self.num_experts:
            raise UserError(
                f"{self.path} has experts 0 to {self.num_experts - 1}, but {expert} was asked for"
            )
        if expert not in self._descriptions:
            self._descriptions[expert] = self._description(expert)
        path, description = self.expert_path(expert), self._descriptions[expert]
        kept, checksums = self._rows_of(tensor, description.epochs), description.rows
        if epoch not in kept:
            raise UserError(
                f"{self.path} keeps the snapshots of epochs {kept[0]} to {kept[-1]}, "
                f"but {epoch} was asked for"
            )
        row = kept.index(epoch)
        with files.open_tensors(path) as handle:
            if tensor not in handle.keys():  # noqa: SIM118 (not a mapping)
                if tensor in (checksums or ["snapshots"]):
                    raise UserError(f"{path} is damaged: it has no tensor {tensor!r}")
                return None
            rows = handle.get_slice(tensor)
            shape = rows.get_shape()
            if len(shape) != 2 or shape[0] < len(kept):  # more: it has been extended meanwhile
                raise UserError(f"{path} is damaged: the shape of {tensor!r} is {shape}")
            found: Tensor = rows[row : row + 1][0].clone()
        if checksums and (tensor, expert, row) not in self._sound:  # once is enough, too
            if _checksum(found) != checksums[tensor][row]:
                raise UserError(
                    f"{path} is damaged: the {tensor} of epoch {epoch} do not fit their checksum; "
                    "delete it and run the same `trajmatch expert` with --resume"
                )
            self._sound.add((tensor, expert, row))
        return found.float()

    def _rows_of(self, tensor: str, epochs: int | None) -> list[int]:
        """Return the epochs of the rows of a tensor, for an expert trained for so many epochs."""
        if tensor == "snapshots" and "waypoints" in self.manifest:
            return [*self.manifest["waypoints"]["epochs"]]
        return self._kept(epochs or self.course)

    def _kept(self, epochs: int) -> list[int]:
        """Return the epochs kept of those that are trained."""
        return [epoch for epoch in self.manifest["snapshots"] if epoch <= epochs]

    def metrics(self, expert: int) -> dict[str, Any]:
        """Return the health of one expert, as its training recorded it.

        Returns:
            ``train_loss``, ``displacement`` (``|theta*_{t+1} - theta*_t|``) and ``accuracy`` (on up
            to 4,000 of the test images, in percent; None after an epoch without a test), one value
            an epoch; and ``test_accuracy`` of the last epoch trained, on all of them. For targets
            ``error`` and ``test_error``, the mean squared error, and ``guessing``, that of the mean
            target for every training image.

        Raises:
            UserError: The file is missing or damaged.
        """
        return self._description(expert).metrics

    def check_whole(self, expert: int) -> None:
        """Read all of an expert and check it.

        Args:
            expert: Its number.

        Raises:
            UserError: The file is damaged, or belongs to another store or expert.
        """
        tensors, _ = files.load_tensors(self.expert_path(expert))
        for tensor in {"snapshots", "buffers", "shares"} & tensors.keys():
            for epoch in self._rows_of(tensor, self.epochs_of(expert)):
                self._row(tensor, expert, epoch)

    def resume(self, manifest: dict[str, Any], address: str | None = None) -> None:
        """Make this the store that a configuration asks for, if only its size has to grow.

        Args:
            manifest: Description of the store asked for, as for :meth:`create`. If it asks for
                fewer epochs of the course than the store has, these stay.
            address: Address of the data set, for the message. Default: its name.

        Raises:
            UserError: A field differs (it is named), the store has more experts than asked for, or
                it cannot be written.
        """
        if {"sources", "waypoints"} & self.manifest.keys():
            raise UserError(
                f"{self.path} was put together by `trajmatch store`, and no expert can be added by "
                "training; train another store and merge the two"
            )
        wanted = manifest_file.complete(manifest)
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
        epochs = max(self.trained_epochs, wanted.pop("trained_epochs", self.course))
        if epochs < self.course:
            wanted["trained_epochs"] = epochs
        files.check_writable(self.path)
        files.remove_leftovers(self.path)
        if wanted != self.manifest:
            self.manifest = wanted
            manifest_file.write(self.path, wanted)
        for expert in self.finished():
            self.checkpoint_path(expert).unlink(missing_ok=True)  # its run was killed

    def load_data(self, given: str | None = None) -> tuple[Dataset, str | None]:
        """Load the whole data set that the experts were trained on.

        Args:
            given: Its address, if it is not where the manifest says.

        Returns:
            The data set, not yet compared with the manifest, and its address.

        Raises:
            UserError: It is not there, or cannot be read.
        """
        if given:
            return load_dataset(given), given
        address = moved_uri(self.manifest["data"], self.path)
        told = f"the experts of {self.path} were trained on {address}: "
        advice = "; if it is elsewhere now, say where with --data"
        with as_user_error(told, UserError, advice=advice):
            return load_dataset(address), address

    def training_set(
        self, dataset: Dataset, address: str | None = None
    ) -> tuple[Dataset, Tensor, Tensor]:
        """Split the whole data set into the images that the experts saw and those held out.

        Args:
            dataset: The whole data set.
            address: Where it was read from, for messages. Default: its name.

        Returns:
            The data set without the part held out, preprocessed as the experts saw it; images of
            that part ``[N, C, H, W]``, uint8; their labels ``[N]``, int64, or targets. Both are
            empty for a store without ``--holdout``.

        Raises:
            UserError: It is not the data set that the experts were trained on; the message says in
                what it differs.
        """
        self._check_data(dataset.description, address)
        held_out = self.manifest["holdout"]
        training, images, labels = dataset.without_holdout(held_out["fraction"], held_out["seed"])
        if training.fingerprint != held_out["training_fingerprint"]:
            raise UserError(
                f"holding out {held_out['fraction']} of {dataset.name!r} no longer gives the "
                f"images that the experts of {self.path} saw; make the store again with this "
                "release"
            )
        training = training.preprocessed_as(self.manifest["preprocessing"], self.zca)
        return training, images, labels

    def _check_data(self, given: Mapping[str, Any], address: str | None) -> None:
        """Make sure that a data set, by its description, is that of the experts."""
        made = f"the experts of {self.path} were trained on"
        check_same_data(made, self.manifest["dataset"], given, self.manifest["data"], address)

    def _description(self, expert: int) -> ExpertDescription:
        """Read the metadata of an expert's file and make sure that it is this expert's."""
        path = self.expert_path(expert)
        found = convert(files.read_metadata(path), ExpertDescription, f"{path} is damaged")
        if (found.store, found.expert) != (self.identity, expert):
            raise self._misfit(path, "another store or to another expert")
        if any(
            len(found.rows[each]) != len(self._rows_of(each, found.epochs)) for each in found.rows
        ):
            raise UserError(f"{path} is damaged: its rows are {found.rows!r:.100}")
        return found

    def _misfit(self, path: Path, owner: str) -> UserError:
        """Return the error for a file of the folder that the manifest does not describe."""
        return UserError(
            f"{path} belongs to {owner} than {self.path / manifest_file.NAME} describes; if one of "
            "the two was changed or exchanged by hand, put back what was there"
        )


def exists(path: files.PathLike) -> bool:
    """True if a folder holds a store of experts."""
    return (Path(path) / manifest_file.NAME).exists()


def _checksum(row: Tensor) -> int:
    """CRC-32 of a row as it is in the file."""
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
