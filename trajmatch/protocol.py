"""Hyper-parameters for training networks on a small set of images. Does not import torch.

A protocol trains a fresh network with DSA, by SGD or Adam. As in MTT's ``evaluate_synset``, the
loop runs ``epochs + 1`` epochs. The step size drops once, after the epoch of index
``epochs // 2 + 1``, and the momentum of SGD starts from zero again.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from trajmatch.schema import Count, PositiveInt, Settings

#: MTT's augmentation: all six groups.
MTT_DSA = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Protocol(Settings):
    """Hyper-parameters of one training; the defaults are those of MTT."""

    lr: float = 0.01  # replaced by the learned step size of a distilled set
    dsa: str = MTT_DSA
    epochs: Count = 1000  # epochs + 1 are run
    batch_size: PositiveInt = 256  # a smaller set is one batch
    momentum: float = 0.9
    weight_decay: float = 5e-4  # L2 factor, added to the gradient
    lr_drop: float = 0.1  # factor of the step size at the drop
    momentum_after: float = 0.9  # momentum after the drop
    test_every: Count = 0  # rounds from test to test, the first after round 0; 0: only at the end
    steps: PositiveInt | None = None  # number of training steps, in place of epochs
    name: str = "mtt"  # in tables and files
    optimiser: Literal["sgd", "adam"] = "sgd"  # Adam: default betas of torch.optim.Adam

    @property
    def num_epochs(self) -> int:
        """Number of epochs to run, unless ``steps`` is set."""
        return self.epochs + 1

    @property
    def num_rounds(self) -> int:
        """Number of rounds: epochs or, with ``steps``, single steps."""
        return self.num_epochs if self.steps is None else self.steps

    @property
    def drop_round(self) -> int:
        """Index of the round after which the step size drops and the momentum starts from zero."""
        return (self.num_rounds - 1) // 2 + 1

    @property
    def test_interval(self) -> int:
        """Number of rounds from one test to the next; 0 for one test at the end."""
        if self.steps is None or self.test_every == 0:
            return self.test_every
        # Convert epochs to steps so that the number of tests stays the same.
        return max(1, round(self.steps * self.test_every / self.num_epochs))

    def tests_after(self, index: int) -> bool:
        """Return True if the network is tested after the round ``index``."""
        last = index == self.num_rounds - 1
        return last or (self.test_interval > 0 and index % self.test_interval == 0)

    def describe(self) -> dict[str, Any]:
        """Return everything needed to repeat the training, as JSON values."""
        described = asdict(self)
        # Before Adam was added, files had no optimiser; SGD still writes the same bytes.
        if self.optimiser == "sgd":
            del described["optimiser"]
        if self.steps is None:
            described |= {"num_epochs": self.num_epochs, "drop_epoch": self.drop_round}
            last, unit = "after the last epoch", "epochs"
        else:
            del described["epochs"]
            described["drop_step"] = self.drop_round
            last, unit = "after the last step", "steps"
        tested = f"once, {last}"
        if self.test_interval:
            tested = (
                f"every {self.test_interval} {unit} and {last}; the score is the last, and the "
                "maximum, chosen on the test set, is told beside it"
            )
        return {**described, "tested": tested}


#: Protocols of the papers' code. AST's code reports the maximum over its tests; here the score is
#: always the last test. A distilled set's own step size and augmentation replace those given here.
PROTOCOLS = {
    "mtt": Protocol(),
    "datm": Protocol(name="datm", batch_size=128),
    "rat": Protocol(name="rat", optimiser="adam", weight_decay=0.0, lr_drop=1.0),
    "ast": Protocol(name="ast", weight_decay=1e-3, lr_drop=0.5, momentum_after=0.8, test_every=20),
}
