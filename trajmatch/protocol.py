"""Hyper-parameters for training networks on a small set of images; importing costs no torch.

A protocol is a fresh network, SGD with the learned step size, momentum and weight decay, DSA on,
and a step size that drops once, when the momentum starts anew. The loop runs one epoch more than
the number says, as MTT's (``evaluate_synset``) does, and the drop is after epoch index
``epochs // 2 + 1``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from trajmatch.schema import Count, PositiveInt, Settings

#: MTT's augmentation: all six groups.
MTT_DSA = "color_crop_cutout_flip_scale_rotate"


@dataclass(frozen=True)
class Protocol(Settings):
    """Hyper-parameters of one training; the defaults are MTT's.

    Attributes:
        lr: Step size; for a distilled set the learned one.
        dsa: Augmentation.
        epochs: Number that the schedule is made from; ``epochs + 1`` are run.
        batch_size: Images per step; a smaller set is one batch.
        momentum: Momentum of SGD.
        weight_decay: Added to the gradient, times the parameters.
        lr_drop: Factor of the step size's one drop.
        momentum_after: Momentum from the drop on.
        test_every: Rounds from one test to the next, the first after index 0; 0 tests once, after
            the last.
        steps: SGD steps to train for, whatever the number of images, in place of ``epochs``.
        name: Name of the protocol in tables and files.
        optimiser: SGD, or Adam with the betas of ``torch.optim.Adam`` instead of the momentum.
    """

    lr: float = 0.01
    dsa: str = MTT_DSA
    epochs: Count = 1000
    batch_size: PositiveInt = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    lr_drop: float = 0.1
    momentum_after: float = 0.9
    test_every: Count = 0
    steps: PositiveInt | None = None
    name: str = "mtt"
    optimiser: Literal["sgd", "adam"] = "sgd"

    @property
    def num_epochs(self) -> int:
        """Epochs that are run, where ``steps`` does not say how long to train."""
        return self.epochs + 1

    @property
    def num_rounds(self) -> int:
        """Rounds of the schedule: epochs or, with ``steps``, single steps."""
        return self.num_epochs if self.steps is None else self.steps

    @property
    def drop_round(self) -> int:
        """Index of the round after which the step size drops and the momentum starts anew.

        Of ``steps`` as of as many epochs of one batch each.
        """
        return (self.num_rounds - 1) // 2 + 1

    @property
    def test_interval(self) -> int:
        """Rounds from one test to the next; with ``steps`` chosen for the same number of tests."""
        if self.steps is None or self.test_every == 0:
            return self.test_every
        return max(1, round(self.steps * self.test_every / self.num_epochs))

    def tests_after(self, index: int) -> bool:
        """True if the network is tested after the round of this index."""
        last = index == self.num_rounds - 1
        return last or (self.test_interval > 0 and index % self.test_interval == 0)

    def describe(self) -> dict[str, Any]:
        """Return all that a reader of a score needs to train in the same way, as JSON holds it."""
        described = asdict(self)
        if self.optimiser == "sgd":  # as it was before there was another
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


#: The protocols of the papers' code, by name. AST returns the maximum over its tests as the
#: accuracy; here the score is the last test of every protocol. Step size and augmentation are to be
#: replaced by those of a set.
PROTOCOLS = {
    "mtt": Protocol(),
    "datm": Protocol(name="datm", batch_size=128),
    "rat": Protocol(name="rat", optimiser="adam", weight_decay=0.0, lr_drop=1.0),
    "ast": Protocol(name="ast", weight_decay=1e-3, lr_drop=0.5, momentum_after=0.8, test_every=20),
}
