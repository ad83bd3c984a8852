"""Expert store: one folder with a manifest, ``store.json``, and one file per expert.

- ``store.json`` describes the experts: network, data set, preprocessing, recipe, seed.
- ``preprocessing.safetensors`` has the mean and matrix of ZCA whitening, if it is used.
- ``expert_0000.safetensors`` and so on have ``snapshots [S, P]``, float32 or bfloat16: the flat
  parameters theta*_t after each kept epoch ``t``, where epoch 0 is the initialisation. If the
  network has buffers (running statistics of batch norm), ``buffers [S, Q]`` are added.
- For convexified experts, the snapshots ``[W, P]`` are waypoints, and ``shares [S, L]`` are the
  positions of the parameter tensors on the lines between waypoints.

Files are written atomically, so an interrupted run leaves no partial expert. Files are
memory-mapped, and reading a snapshot touches only the rows that it needs.
"""

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
from trajmatch.experts.config import spans
from trajmatch.experts.waypoints import between, line_to
from trajmatch.schema import PositiveInt, convert

PREPROCESSING = "preprocessing.safetensors"

# Entries that may change while the experts stay the same: data address and size of the store.
_NOT_IDENTITY = ("data", "num_experts", "trained_epochs")


class ExpertDescription(msgspec.Struct, omit_defaults=True):
    """Metadata of an expert's file."""

    store: str
    expert: int
    metrics: dict[str, Any]
    rows: dict[str, list[int]] = {}  # checksum of each row of each tensor; old files have none
    epochs: PositiveInt | None = None  # epochs trained; None: the whole course


class Store:
    """Folder of expert trajectories; made by :meth:`create`, opened by :meth:`open`.

    Attributes:
        path: The folder.
        manifest: Content of ``store.json``. No fingerprint covers ``data`` or ``trained_epochs``.

            - ``format``, ``version``: kind and version of the folder;
            - ``data``: the given ``--data``, or None;
            - ``dataset``: ``name``, ``fingerprint``, ``class_names`` and ``shape`` (``[C, H, W]``)
              of the whole data set;
            - ``holdout``: ``fraction`` and ``seed`` of the held-out part, and
              ``training_fingerprint`` of the remaining images;
            - ``preprocessing``: ``mean`` and ``std`` per channel, or ``kind`` (``zca``) and
              ``eps``;
            - ``network``: ``spec()`` of the network;
            - ``recipe``: optimiser and hyper-parameters, including ``dsa``;
            - ``seed``, ``num_experts``, ``dtype``;
            - ``snapshots``: kept epochs of the whole course;
            - ``trained_epochs``: number of trained epochs, only if below the whole course;
            - ``sources``: ``seed`` and number (``expert``) that each expert was trained with, only
              if a merge or trim changed them. If they have several seeds, ``seed`` is None;
            - ``waypoints``: waypoint ``epochs`` and sizes of the parameter tensors (``layers``),
              only for convexified experts.
    """

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest
        self._descriptions: dict[int, ExpertDescription] = {}
        self._sound: set[tuple[str, int, int]] = set()  # verified rows: tensor, expert, row

    def __repr__(self) -> str:
        data, network = self.manifest["dataset"]["name"], self.manifest["network"]["name"]
        return f"<Store {self.path}: {self.num_experts} experts, {network} on {data}>"

    @classmethod
    def create(
        cls, path: files.PathLike, manifest: dict[str, Any], zca: ZCA | None = None
    ) -> "Store":
        """Create an empty store; ``format`` and ``version`` are added to the manifest."""
        cls.check_new(path)
        store = cls(Path(path), manifest_file.complete(manifest))
        if zca is not None:
            files.save_tensors(store.path / PREPROCESSING, zca.tensors(), {"store": store.identity})
        # Written last, because the manifest makes the folder a store.
        manifest_file.write(store.path, store.manifest)
        return store

    @staticmethod
    def check_new(path: files.PathLike) -> None:
        """Create a folder if needed; raise UserError unless a new store can be made in it."""
        path = Path(path)
        if exists(path):
            raise UserError(
                f"{path} already contains an expert store; add --resume to train the missing "
                "experts, or choose another --out"
            )
        files.check_writable(path)
        # An interrupted `create` leaves the whitening file without a manifest.
        visible = {each.name for each in path.iterdir() if not each.name.startswith(".")}
        if foreign := sorted(visible - {PREPROCESSING}):
            raise UserError(
                f"{path} is not empty (it holds {foreign[0]}) and is not a store of experts; "
                "choose a new folder for --out"
            )

    @classmethod
    def open(cls, path: files.PathLike, *, complete: bool = True) -> "Store":
        """Open a store and check the header of every expert's file.

        Raises UserError if there is no store, a file is damaged or belongs to another store or
        version, or, with ``complete``, an expert is missing.
        """
        path = Path(path)
        if not exists(path):
            raise UserError(
                f"{path} is not a store of experts (it has no {manifest_file.NAME}); "
                "`trajmatch expert --out FOLDER` makes one"
            )
        store = cls(path, manifest_file.read(path))
        if (missing := store.missing()) and complete:
            raise UserError(
                f"{path} lacks {len(missing)} of {store.num_experts} experts (the first is "
                f"number {missing[0]}); run the same `trajmatch expert` with --resume"
            )
        return store

    @property
    def num_experts(self) -> int:
        """Number of experts in the complete store."""
        return int(self.manifest["num_experts"])

    @property
    def loss(self) -> str:
        """Name of the experts' training loss, as :func:`trajmatch.ops.gradient` takes it."""
        return str(self.manifest["recipe"].get("loss", "cross_entropy"))

    @property
    def course(self) -> int:
        """Number of epochs of the whole course, over which the learning-rate schedule runs."""
        return int(self.manifest["snapshots"][-1])

    @property
    def trained_epochs(self) -> int:
        """Number of epochs for which each expert of the complete store is trained."""
        return int(self.manifest.get("trained_epochs", self.course))

    @property
    def reached(self) -> str:
        """Last trained epoch as text, e.g. ``epoch 20 of 50``."""
        part = f" of {self.course}" if self.trained_epochs < self.course else ""
        return f"epoch {self.trained_epochs}{part}"

    @property
    def snapshots_kept(self) -> list[int]:
        """Epochs that have a snapshot, ascending; 0 is the initialisation."""
        return self._kept(self.trained_epochs)

    @property
    def identity(self) -> str:
        """Hash of the manifest entries that determine each expert."""
        return self._hash(_NOT_IDENTITY)

    @property
    def fingerprint(self) -> str:
        """Hash of the number of experts and of the entries that :attr:`identity` covers."""
        return self._hash(("data", "trained_epochs"))

    def _hash(self, without: Collection[str]) -> str:
        return files.json_checksum({k: v for k, v in self.manifest.items() if k not in without})

    @property
    def files(self) -> list[str]:
        """Names of the files of the complete store."""
        whitened = self.manifest["preprocessing"].get("kind") == KIND
        experts = [self.expert_path(each).name for each in range(self.num_experts)]
        return [manifest_file.NAME, *([PREPROCESSING] if whitened else []), *experts]

    def expert_path(self, expert: int) -> Path:
        """Return the path of an expert's file."""
        return self.path / f"expert_{expert:04d}.safetensors"

    def checkpoint_path(self, expert: int) -> Path:
        """Return the path of an expert's hidden checkpoint file."""
        return self.path / f".expert_{expert:04d}.checkpoint.safetensors"

    def epochs_of(self, expert: int) -> int:
        """Return the number of epochs for which an expert is trained; 0 if it has no file."""
        if not self.expert_path(expert).exists():
            return 0
        return self._description(expert).epochs or self.course

    def missing(self) -> list[int]:
        """Return the experts that have no file or too few trained epochs, ascending."""
        experts = range(self.num_experts)
        return [each for each in experts if self.epochs_of(each) < self.trained_epochs]

    def finished(self) -> list[int]:
        """Return the experts that are not :meth:`missing`, ascending."""
        return sorted({*range(self.num_experts)}.difference(self.missing()))

    def origin(self, expert: int) -> dict[str, int]:
        """Return the ``seed`` and number (``expert``) that an expert was trained with."""
        if "sources" in self.manifest:
            return dict(self.manifest["sources"][expert])
        return {"seed": self.manifest["seed"], "expert": expert}

    def check_trained(self, epoch: int, purpose: str) -> None:
        """Raise UserError, which begins with ``purpose``, if experts have not reached an epoch."""
        if self.trained_epochs < epoch <= self.course:
            raise UserError(
                f"{purpose} needs the experts after epoch {epoch}, but those of {self.path} are "
                f"trained for the first {self.trained_epochs} of {self.course} epochs; repeat "
                f"the command that trained them: `trajmatch expert` with --until-epoch {epoch} "
                "--resume, or `trajmatch run` with --full-experts --resume"
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
        """Write one expert's file atomically; raise UserError if a value is not finite.

        ``snapshots`` are ``[S, P]`` at kept epochs or ``[W, P]`` at waypoints; ``buffers [S, Q]``
        and ``shares [S, L]`` have a row for each kept epoch. All are float32. ``metrics`` are JSON
        values. ``state`` is the training state of an unfinished course.
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
        """ZCA whitening of the images, or None if each channel is normalised instead."""
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
        """Return a copy of an expert's parameters after a kept epoch. ``[P]``, float32, on the CPU.

        Reads only these parameters. Convexified experts are interpolated between two waypoints.
        Raises UserError if there is no such expert or snapshot, or the file is damaged.
        """
        if (waypoints := self.manifest.get("waypoints")) is None:
            return self._row("snapshots", expert, epoch)
        shares, ends = self._row("shares", expert, epoch), line_to(epoch, waypoints["epochs"])
        first, last = (self._row("snapshots", expert, end) for end in ends)
        return between(first, last, shares, waypoints["layers"])

    def buffers(self, expert: int, epoch: int) -> Tensor | None:
        """Return an expert's buffers after a kept epoch, or None. ``[Q]``, float32, on the CPU."""
        found = self._row("buffers", expert, epoch)
        return found if len(found) else None

    def load_into(self, model: nn.Module, expert: int, epoch: int) -> None:
        """Copy an expert's parameters and buffers after a kept epoch into a model of its network.

        Raises ValueError if the model has another network, and UserError as :meth:`snapshot` does.
        """
        networks.load_flat_parameters(model, self.snapshot(expert, epoch))
        if (buffers := self.buffers(expert, epoch)) is not None:
            networks.load_flat_buffers(model, buffers)

    def _row(self, tensor: str, expert: int, epoch: int) -> Tensor:
        """Return a tensor's row for an epoch, float32; empty if the file has no such tensor."""
        if not 0 <= expert < self.num_experts:
            raise UserError(
                f"{self.path} has experts 0 to {self.num_experts - 1}, but {expert} was asked for"
            )
        # Cached: reading the metadata takes a few percent of an outer iteration.
        if expert not in self._descriptions:
            self._descriptions[expert] = self._description(expert)
        path, description = self.expert_path(expert), self._descriptions[expert]
        kept, checksums = self._rows_of(tensor, description.epochs), description.rows
        if epoch not in kept:
            raise UserError(
                f"{self.path} keeps the snapshots of epochs {spans(kept)}, "
                f"but {epoch} was asked for"
            )
        row = kept.index(epoch)
        with files.open_tensors(path) as handle:
            if tensor not in handle.keys():  # noqa: SIM118 (not a mapping)
                # The file is damaged if its metadata list the tensor. Old files list none, but
                # always have `snapshots`.
                if tensor in (checksums or ["snapshots"]):
                    raise UserError(f"{path} is damaged: it has no tensor {tensor!r}")
                return torch.empty(0)
            rows = handle.get_slice(tensor)
            shape = rows.get_shape()
            # More rows are fine: another process may have continued this expert meanwhile.
            if len(shape) != 2 or shape[0] < len(kept):
                raise UserError(f"{path} is damaged: the shape of {tensor!r} is {shape}")
            found: Tensor = rows[row : row + 1][0].clone()
        # Verify each row once; old files have no checksums.
        if checksums and (tensor, expert, row) not in self._sound:
            if _checksum(found) != checksums[tensor][row]:
                raise UserError(
                    f"{path} is damaged: the {tensor} of epoch {epoch} do not match their "
                    "checksum; delete the file and run the same `trajmatch expert` with --resume"
                )
            self._sound.add((tensor, expert, row))
        return found.float()

    def _rows_of(self, tensor: str, epochs: int | None) -> list[int]:
        """Return the epochs of a tensor's rows; ``epochs`` is the number trained, None for all."""
        if tensor == "snapshots" and "waypoints" in self.manifest:
            return [*self.manifest["waypoints"]["epochs"]]
        return self._kept(epochs or self.course)

    def _kept(self, epochs: int) -> list[int]:
        """Return the kept epochs among the first ``epochs``."""
        return [epoch for epoch in self.manifest["snapshots"] if epoch <= epochs]

    def metrics(self, expert: int) -> dict[str, Any]:
        """Return the health of one expert, as recorded during training.

        ``train_loss``, ``displacement`` (``|theta*_{t+1} - theta*_t|``) and ``accuracy`` have one
        value per epoch. ``accuracy`` is in percent, on fewer than 4,000 test images, and None for
        an epoch without a test; ``test_accuracy`` is on all test images after the last trained
        epoch. With targets, ``error`` and ``test_error`` (mean squared) replace the accuracies, and
        ``guessing`` is the error of predicting the mean target on the training images.
        """
        return self._description(expert).metrics

    def check_whole(self, expert: int) -> None:
        """Read an expert's whole file; raise UserError if it is damaged or of another store."""
        # Reading checks the checksum of the file, and the loop the checksum of each row.
        tensors, _ = files.load_tensors(self.expert_path(expert))
        for tensor in {"snapshots", "buffers", "shares"} & tensors.keys():
            for epoch in self._rows_of(tensor, self.epochs_of(expert)):
                self._row(tensor, expert, epoch)

    def resume(self, manifest: dict[str, Any], address: str | None = None) -> None:
        """Extend this store to the experts and epochs of a requested manifest.

        The number of trained epochs never shrinks. Raises UserError if the manifest asks for fewer
        experts, or if other entries differ.
        """
        if {"sources", "waypoints"} & self.manifest.keys():
            raise UserError(
                f"{self.path} was made by `trajmatch store` and cannot be extended by training; "
                "train a second store and merge the two"
            )
        wanted = manifest_file.complete(manifest)
        self._check_data(wanted["dataset"], address)
        for field, have, want in differences(self.manifest, wanted):
            if field not in _NOT_IDENTITY:
                raise UserError(
                    f"{self.path} was made with {field} = {have!r:.60}, but this run has "
                    f"{want!r:.60}; repeat the flags it was made with, or choose another --out"
                )
        if wanted["num_experts"] < self.num_experts:
            raise UserError(
                f"{self.path} was made with num_experts = {self.num_experts}, but "
                f"this run has {wanted['num_experts']}; a store can grow but not shrink"
            )
        # Only manifests of unfinished courses have the entry `trained_epochs`.
        epochs = max(self.trained_epochs, wanted.pop("trained_epochs", self.course))
        if epochs < self.course:
            wanted["trained_epochs"] = epochs
        files.check_writable(self.path)
        files.remove_leftovers(self.path)
        if wanted != self.manifest:
            self.manifest = wanted
            manifest_file.write(self.path, wanted)
        for expert in self.finished():
            self.checkpoint_path(expert).unlink(missing_ok=True)  # left by a killed run

    def load_data(self, given: str | None = None) -> tuple[Dataset, str | None]:
        """Return the data set, not yet checked, and its address: ``given``, or the recorded one."""
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
        """Split the whole data set into training images and held-out images.

        Returns the training set, preprocessed as for the experts; the held-out images
        ``[N, C, H, W]``, uint8; and their labels ``[N]``, int64, or targets. N is 0 without
        ``--holdout``. Raises UserError if ``dataset`` is not the experts' data set.
        """
        self._check_data(dataset.description, address)
        held_out = self.manifest["holdout"]
        training, images, labels = dataset.without_holdout(held_out["fraction"], held_out["seed"])
        if training.fingerprint != held_out["training_fingerprint"]:
            raise UserError(
                f"holding out {held_out['fraction']} of {dataset.name!r} no longer gives the "
                f"images that the experts of {self.path} saw; train the experts again with this "
                "release"
            )
        return training.preprocessed_as(self.manifest["preprocessing"], self.zca), images, labels

    def _check_data(self, given: Mapping[str, Any], address: str | None) -> None:
        """Raise UserError unless ``given`` describes the experts' data set."""
        made = f"the experts of {self.path} were trained on"
        check_same_data(made, self.manifest["dataset"], given, self.manifest["data"], address)

    def _description(self, expert: int) -> ExpertDescription:
        """Read and validate the metadata of an expert's file."""
        path = self.expert_path(expert)
        found = convert(files.read_metadata(path), ExpertDescription, f"{path} is damaged")
        if (found.store, found.expert) != (self.identity, expert):
            raise self._misfit(path, "another store or to another expert")
        # Each tensor must have one checksum per row; the trained epochs determine its rows.
        lengths = {name: len(self._rows_of(name, found.epochs)) for name in found.rows}
        if lengths != {name: len(checksums) for name, checksums in found.rows.items()}:
            raise UserError(
                f"{path} is damaged: it should have one checksum per row, but has "
                f"{found.rows!r:.100}"
            )
        return found

    def _misfit(self, path: Path, owner: str) -> UserError:
        """Return the error for a file that does not belong to this store or expert."""
        return UserError(
            f"{path} belongs to {owner} than {self.path / manifest_file.NAME} describes; if one of "
            "the two was edited or replaced by hand, restore the original"
        )


def exists(path: files.PathLike) -> bool:
    """Return True if a folder holds an expert store."""
    return (Path(path) / manifest_file.NAME).exists()


def _checksum(row: Tensor) -> int:
    """Return the CRC-32 of a row in its stored dtype."""
    return zlib.crc32(row.contiguous().view(torch.uint8).numpy().data)


def differences(have: Any, want: Any, field: str = "") -> list[tuple[str, Any, Any]]:
    """Return dotted name and both values of each leaf that differs between nested dictionaries."""
    # Dictionaries without a common key (two kinds of preprocessing) count as one leaf.
    nested = isinstance(have, dict) and isinstance(want, dict)
    if not nested or have.keys().isdisjoint(want):
        return [] if have == want else [(field, have, want)]
    found = []
    for key in sorted(have.keys() | want.keys()):
        name = f"{field}.{key}" if field else key
        found.extend(differences(have.get(key), want.get(key), name))
    return found
