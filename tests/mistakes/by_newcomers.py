"""Mistakes that users make, as data; ``run.py`` makes them and judges the answers.

Each is made in a folder that holds good inputs: ``d.npz``, ``photos/cat`` and ``photos/dog``, the
store ``experts`` (one expert, two epochs, 3 classes of 16x16 pixels), the distilled set
``d.safetensors`` of it, and two runs that were interrupted, ``half`` and ``i.safetensors``.
"""

from __future__ import annotations

import numpy as np
from mistakes.kinds import Call, Command, Mistake
from mistakes.setups import (
    arrays,
    both,
    copy,
    edit,
    flip,
    folder,
    link,
    mode,
    photos,
    pickled,
    pictures,
    remove,
    replace,
    torch_file,
    truncate,
    write,
    zipped,
)

HERE = {"PYTHONPATH": "."}
"""Surroundings in which modules of the current folder are found."""
SMALL = "--num-experts 1 --epochs 1 --width 16 --depth 2 --batch-size 8 --workers 1"
EXPERT = f"trajmatch expert {SMALL} --out x"
"""Experts, without their data."""
TRAIN = f"{EXPERT} --data npz:d.npz"
"""The same with good data."""
LONG = TRAIN.replace("--epochs 1", "--epochs 99999 --keep 0")
"""The same for minutes."""
AWAITED = "while [ ! -e x/store.json ]; do sleep 0.1; done; sleep 1;"
"""A wait until that has begun."""
BAD = f"{EXPERT} --data npz:bad.npz"
"""The same with data that is not good."""
ANY = TRAIN.replace(" --width 16 --depth 2", "")
"""The same without the flags of the ConvNet."""
STUDENT = "--iterations 1 --student-steps 2 --expert-epochs 1 --max-start-epoch 1"
DISTILL = f"trajmatch distill --experts experts --out x.safetensors {STUDENT}"
"""A good distillation."""
EVAL = "trajmatch eval --data npz:d.npz --seeds 1 --epochs 1 --no-random-baseline"
"""An evaluation, without its file."""

RECIPE = """
[expert]
num_experts = 1
epochs = 1
"""


def _huge_label(labels: np.ndarray) -> np.ndarray:
    changed = labels.copy()
    changed[0] = 10**12
    return changed


def _not_a_number(images: np.ndarray) -> np.ndarray:
    changed = images.astype(np.float32) / 255
    changed[3, 2, 1, 0] = np.nan
    return changed


def _plain_array() -> None:
    with open("bad.npz", "wb") as file:
        np.save(file, np.ones(3))


def _other_names() -> None:
    np.savez("bad.npz", X=np.ones(3), y=np.ones(3))


COMMANDS: list[Mistake] = [
    Command("no-command", "trajmatch", outcome="either"),
    Command("unknown-command", "trajmatch train --data npz:d.npz", expects=("train", "--help")),
    Command("misspelt-command", "trajmatch distil --experts experts", expects=("distill",)),
    Command("command-in-capitals", "trajmatch EVAL d.safetensors", expects=("eval",)),
    Command("flag-before-command", "trajmatch --quiet expert --out x", expects=("--quiet",)),
    Command("help-of-nothing", "trajmatch help", outcome="either", expects=("--help",)),
    Command("misspelt-flag", f"{TRAIN} --num-expert 1", expects=("--num-expert", "--num-experts")),
    Command("flag-of-mtt", f"{TRAIN} --train_epochs 1", expects=("--train_epochs", "--epochs")),
    Command("flag-with-underscore", f"{TRAIN} --weight_decay 0.1", outcome="either"),
    Command("flag-with-one-dash", f"{TRAIN} -epochs 1", expects=("-epochs",)),
    Command("flag-of-another-command", f"{TRAIN} --ipc 1", expects=("--ipc",)),
    Command("american-optimizer", f"{TRAIN} --optimizer adam", expects=("--optimiser",)),
    Command("no-value", f"{TRAIN} --lr", expects=("--lr",)),
    Command("no-value-but-a-flag", f"{TRAIN} --lr --zca", expects=("--lr",)),
    Command("extra-word", f"{TRAIN} photos", expects=("photos",)),
    Command("switch-with-a-value", f"{TRAIN} --zca true", expects=("true",)),
    Command("no-out", "trajmatch expert --data npz:d.npz", expects=("--out",)),
    Command("nothing-given", "trajmatch distill", expects=("--out",)),
    Command("flag-twice", f"{TRAIN} --epochs 1 --epochs 0", expects=("epochs",)),
    # numbers
    Command("epochs-a-word", f"{TRAIN} --epochs two", expects=("--epochs", "two")),
    Command("epochs-a-fraction", f"{TRAIN} --epochs 1.5", expects=("--epochs", "1.5")),
    Command("epochs-with-exponent", f"{TRAIN} --epochs 1e2", outcome="either"),
    Command("epochs-zero", f"{TRAIN} --epochs 0", expects=("--epochs", "0")),
    Command("epochs-negative", f"{TRAIN} --epochs -3", expects=("--epochs", "-3")),
    Command("epochs-empty", f"{TRAIN} --epochs ''", expects=("--epochs",)),
    Command("epochs-astronomical", f"{TRAIN} --epochs 100000000000"),
    Command("experts-zero", f"{TRAIN} --num-experts 0", expects=("--num-experts",)),
    Command("batch-zero", f"{TRAIN} --batch-size 0", expects=("--batch-size",)),
    Command("batch-astronomical", f"{TRAIN} --batch-size 99999999999999999999", outcome="either"),
    Command("lr-negative", f"{TRAIN} --lr -0.1", expects=("--lr", "-0.1")),
    Command("lr-nan", f"{TRAIN} --lr nan", expects=("--lr", "nan")),
    Command("lr-inf", f"{TRAIN} --lr inf", expects=("--lr", "inf")),
    Command("lr-zero", f"{TRAIN} --lr 0", expects=("--lr",)),
    Command("lr-with-comma", f"{TRAIN} --lr 0,01", expects=("--lr", "0,01")),
    Command("lr-enormous", f"{TRAIN} --lr 1e20 --epochs 3", expects=("--lr",)),
    Command("momentum-above-1", f"{TRAIN} --momentum 1.5", expects=("--momentum",)),
    Command("weight-decay-negative", f"{TRAIN} --weight-decay -1", expects=("--weight-decay",)),
    Command("unknown-optimiser", f"{TRAIN} --optimiser adamw", expects=("--optimiser", "adam")),
    Command(
        "adam-with-momentum", f"{TRAIN} --optimiser adam --momentum 0.9", expects=("momentum",)
    ),
    Command("rho-negative", f"{TRAIN} --rho -1", expects=("--rho",)),
    Command("alpha-without-rho", f"{TRAIN} --alpha 0.3", expects=("--rho",)),
    Command("penalty-nan", f"{TRAIN} --penalty nan", expects=("--penalty",)),
    Command("lr-decay-negative", f"{TRAIN} --lr-decay -1", expects=("--lr-decay",)),
    Command("holdout-in-percent", f"{TRAIN} --holdout 10", expects=("--holdout",)),
    Command("holdout-of-all", f"{TRAIN} --holdout 1", expects=("--holdout",)),
    Command("holdout-of-nearly-all", f"{TRAIN} --holdout 0.99", expects=("--holdout",)),
    Command("seed-negative", f"{TRAIN} --seed -1", outcome="either"),
    Command("seed-astronomical", f"{TRAIN} --seed 1{'0' * 40}", expects=("--seed",)),
    Command("workers-negative", f"{TRAIN} --workers -1", expects=("--workers",)),
    Command(
        "checkpoint-nan", f"{TRAIN} --checkpoint-seconds nan", expects=("--checkpoint-seconds",)
    ),
    Command("time-a-word", f"{TRAIN} --max-time soon", expects=("--max-time", "soon")),
    Command("time-negative", f"{TRAIN} --max-time -5m", expects=("--max-time",)),
    Command("time-in-words", f"{TRAIN} --max-time '5 minutes'", expects=("--max-time",)),
    # names
    Command("misspelt-dsa", f"{TRAIN} --dsa color_cutuot", expects=("cutuot", "cutout")),
    Command("dsa-with-commas", f"{TRAIN} --dsa flip,scale", expects=("flip,scale",)),
    Command("dsa-empty", f"{TRAIN} --dsa ''", outcome="either"),
    Command("width-zero", f"{TRAIN} --width 0", expects=("width",)),
    Command("depth-too-large", f"{TRAIN} --depth 9", expects=("depth",)),
    Command("depth-negative", f"{TRAIN} --depth -1", expects=("depth",)),
    Command("misspelt-network", f"{ANY} --network convnett", expects=("convnett", "convnet")),
    Command("unknown-network", f"{ANY} --network vgg12", expects=("vgg12", "vgg11")),
    Command("network-option-unknown", f"{ANY} --network convnet:foo=3", expects=("foo",)),
    Command("network-option-a-word", f"{ANY} --network resnet18:width=big", expects=("width",)),
    Command("network-with-flags", f"{TRAIN} --network resnet18", expects=("--width",)),
    Command("torchvision-unknown", f"{ANY} --network torchvision:resnet19", expects=("resnet19",)),
    Command("network-no-module", f"{ANY} --network nomod:fn", expects=("nomod",)),
    Command("network-no-function", f"{ANY} --network mine:fn", write("mine.py"), expects=("fn",)),
    Command("keep-beyond", f"{TRAIN} --keep 0-999", expects=("--keep",)),
    Command("keep-a-word", f"{TRAIN} --keep last", expects=("--keep", "last")),
    Command("keep-backwards", f"{TRAIN} --keep 1-0", expects=("--keep",)),
    Command("until-zero", f"{TRAIN} --until-epoch 0", expects=("--until-epoch",)),
    Command("until-beyond", f"{TRAIN} --until-epoch 99", expects=("--until-epoch", "--epochs")),
    Command("device-cuda", f"{TRAIN} --device cuda", expects=("cuda",)),
    Command("device-gpu", f"{TRAIN} --device gpu", expects=("gpu",)),
    Command("device-cuda-99", f"{TRAIN} --device cuda:99", expects=("cuda:99",)),
    Command("device-cuda-x", f"{TRAIN} --device cuda:x", expects=("cuda:x",)),
    Command("device-mps", f"{TRAIN} --device mps", expects=("mps",)),
    Command("device-meta", f"{TRAIN} --device meta", expects=("meta",)),
    # where it is written
    Command("out-is-a-store", f"{TRAIN} --out experts", expects=("experts", "--resume")),
    Command("out-is-a-file", f"{TRAIN} --out d.npz", expects=("d.npz",)),
    Command("out-below-a-file", f"{TRAIN} --out d.npz/x", expects=("d.npz",)),
    Command("out-is-the-data", f"{TRAIN} --out photos", expects=("photos",)),
    Command("out-empty", f"{TRAIN} --out ''", expects=("--out",)),
    Command("out-in-missing-folder", f"{TRAIN} --out a/b/c", outcome="works"),
    Command(
        "out-not-writable",
        f"{TRAIN} --out closed/x",
        both(folder("closed"), mode("closed", 0o555)),
        expects=("closed",),
    ),
    Command("out-a-dangling-link", TRAIN, link("x", "nowhere/at/all"), outcome="either"),
    Command("out-a-long-name", f"{TRAIN} --out {'x' * 300}", expects=("name",)),
    # going on with something else
    Command(
        "resume-other-lr", f"{TRAIN} --out experts --epochs 2 --lr 0.5 --resume", expects=("lr",)
    ),
    Command(
        "resume-other-width",
        f"{TRAIN} --out experts --epochs 2 --width 8 --resume",
        expects=("width",),
    ),
    Command(
        "resume-other-data",
        f"{BAD} --out experts --epochs 2 --resume",
        arrays(x_train=lambda x: 255 - x),
        expects=("bad.npz",),
    ),
    Command("resume-a-photo-folder", f"{TRAIN} --out photos --resume", expects=("photos",)),
    Command("resume-a-file", f"{TRAIN} --out d.npz --resume", expects=("d.npz",)),
    Command(
        "resume-edited-json",
        f"{TRAIN} --out experts --epochs 2 --resume",
        edit("experts/store.json", lambda s: s.update(seed=7)),
        expects=("store.json",),
    ),
    Command(
        "resume-half-other-lr",
        f"{TRAIN} --out half --epochs 20000 --keep 0-1 --lr 0.5 --resume",
        expects=("lr",),
    ),
    Command("half-again", f"{TRAIN} --out half --epochs 20000 --keep 0-1", expects=("--resume",)),
    Command("distil-the-half", f"{DISTILL} --experts half", expects=("half",)),
    # distillation
    Command("experts-missing", f"{DISTILL} --experts expert", expects=("expert",)),
    Command("experts-a-file", f"{DISTILL} --experts d.safetensors", expects=("d.safetensors",)),
    Command("experts-photos", f"{DISTILL} --experts photos", expects=("photos", "store.json")),
    Command("experts-one-file", f"{DISTILL} --experts experts/expert_0000.safetensors"),
    Command("experts-json", f"{DISTILL} --experts experts/store.json", expects=("store.json",)),
    Command("experts-empty-folder", f"{DISTILL} --experts e", folder("e"), expects=("store.json",)),
    Command(
        "start-epoch-beyond", f"{DISTILL} --max-start-epoch 20", expects=("--max-start-epoch", "2")
    ),
    Command("start-epochs-none", f"{DISTILL} --min-start-epoch 1", expects=("start-epoch",)),
    Command(
        "start-epoch-negative", f"{DISTILL} --min-start-epoch -1", expects=("--min-start-epoch",)
    ),
    Command("expert-epochs-beyond", f"{DISTILL} --expert-epochs 5", expects=("--expert-epochs",)),
    Command("expert-epochs-zero", f"{DISTILL} --expert-epochs 0", expects=("--expert-epochs",)),
    Command("student-steps-zero", f"{DISTILL} --student-steps 0", expects=("--student-steps",)),
    Command("ipc-zero", f"{DISTILL} --ipc 0", expects=("--ipc",)),
    Command("ipc-too-large", f"{DISTILL} --ipc 100", expects=("--ipc",)),
    Command("iterations-zero", f"{DISTILL} --iterations 0", expects=("--iterations",)),
    Command("batch-syn-zero", f"{DISTILL} --batch-syn 0", expects=("--batch-syn",)),
    Command("batch-syn-too-large", f"{DISTILL} --batch-syn 100", outcome="either"),
    Command("matches-zero", f"{DISTILL} --matches 0", expects=("--matches",)),
    Command("lr-img-negative", f"{DISTILL} --lr-img -1", expects=("--lr-img",)),
    Command("lr-img-nan", f"{DISTILL} --lr-img nan", expects=("--lr-img",)),
    Command("lr-img-enormous", f"{DISTILL} --lr-img 1e30 --iterations 30", expects=("--lr-img",)),
    Command("lr-init-zero", f"{DISTILL} --lr-init 0", expects=("--lr-init",)),
    Command(
        "lr-init-enormous", f"{DISTILL} --lr-init 1e10 --iterations 30", expects=("--lr-init",)
    ),
    Command("lr-lr-negative", f"{DISTILL} --lr-lr -1", expects=("--lr-lr",)),
    Command("lr-lr-enormous", f"{DISTILL} --lr-lr 1e9 --iterations 30", expects=("--lr-lr",)),
    Command("momentum-img-1", f"{DISTILL} --momentum-img 1", expects=("--momentum-img",)),
    Command("ema-1", f"{DISTILL} --ema 1", expects=("--ema",)),
    Command("perturb-negative", f"{DISTILL} --perturb -1", expects=("--perturb",)),
    Command("skip-above-negative", f"{DISTILL} --skip-above -1", expects=("--skip-above",)),
    Command("skip-everything", f"{DISTILL} --skip-above 1e-9 --iterations 200"),
    Command("unknown-term", f"{DISTILL} --terms fianl", expects=("fianl", "final")),
    Command("no-terms", f"{DISTILL} --terms", expects=("--terms",)),
    Command("term-twice", f"{DISTILL} --terms final final", outcome="either"),
    Command("misspelt-init", f"{DISTILL} --init reel", expects=("--init", "real")),
    Command("init-clusters-alone", f"{DISTILL} --init-clusters 2", expects=("representative",)),
    Command(
        "init-from-missing", f"{DISTILL} --init-from y.safetensors", expects=("y.safetensors",)
    ),
    Command("init-from-the-data", f"{DISTILL} --init-from d.npz", expects=("d.npz",)),
    Command(
        "init-from-smaller-set", f"{DISTILL} --init-from d.safetensors --ipc 2", outcome="works"
    ),
    Command("unknown-labels", f"{DISTILL} --labels softt", expects=("--labels", "soft")),
    Command(
        "select-no-holdout", f"{DISTILL} --select holdout --eval-every 1", expects=("holdout",)
    ),
    Command("select-no-evaluation", f"{DISTILL} --select test-max", expects=("--eval-every",)),
    Command("eval-every-negative", f"{DISTILL} --eval-every -1", expects=("--eval-every",)),
    Command(
        "eval-seeds-zero", f"{DISTILL} --eval-every 1 --eval-seeds 0", expects=("--eval-seeds",)
    ),
    Command("unknown-protocol", f"{DISTILL} --eval-protocol mttt", expects=("mtt",)),
    Command("checkpoint-zero", f"{DISTILL} --checkpoint-every 0", expects=("--checkpoint-every",)),
    Command("log-is-the-result", f"{DISTILL} --log x.safetensors", expects=("x.safetensors",)),
    Command("log-is-a-folder", f"{DISTILL} --log photos", expects=("photos",)),
    Command("log-in-missing-folder", f"{DISTILL} --log logs/a.jsonl", outcome="either"),
    Command("snapshots-negative", f"{DISTILL} --snapshots -1", expects=("--snapshots",)),
    Command("tape-negative", f"{DISTILL} --tape-mb -1", expects=("--tape-mb",)),
    Command("micro-batch-zero", f"{DISTILL} --micro-batch 0", expects=("--micro-batch",)),
    Command("timeout-negative", f"{DISTILL} --timeout -1", expects=("--timeout",)),
    Command(
        "growth-alone", f"{DISTILL} --growth-iterations 5", expects=("--first-max-start-epoch",)
    ),
    Command(
        "growth-backwards",
        f"{DISTILL} --first-max-start-epoch 5",
        expects=("first-max-start-epoch",),
    ),
    Command("distil-to-a-folder", f"{DISTILL} --out photos", expects=("photos",)),
    Command("distil-over-a-result", f"{DISTILL} --out d.safetensors", expects=("d.safetensors",)),
    Command("distil-over-the-data", f"{DISTILL} --out d.npz", expects=("d.npz",)),
    Command("distil-to-a-pt", f"{DISTILL} --out x.pt", expects=("x.pt",), outcome="told"),
    Command("distil-into-the-store", f"{DISTILL} --out experts/expert_0000.safetensors"),
    Command(
        "distil-not-writable",
        f"{DISTILL} --out closed/x.safetensors",
        both(folder("closed"), mode("closed", 0o555)),
        expects=("closed",),
    ),
    Command("distil-other-data", f"{DISTILL} --data npz:bad.npz", arrays(), outcome="works"),
    Command(
        "distil-changed-data",
        f"{DISTILL} --data npz:bad.npz",
        arrays(x_train=lambda x: x // 2),
        expects=("bad.npz",),
    ),
    Command(
        "distil-data-gone",
        DISTILL,
        both(
            remove("d.npz"),
            edit(
                "experts/store.json",
                lambda s: (s.pop("checksum"), s.update(data="npz:/gone/d.npz")),
            ),
        ),
        expects=("d.npz", "--data"),
    ),
    Command("distil-data-a-path", f"{DISTILL} --data d.npz", expects=("npz:",)),
    Command(
        "interrupted-again",
        "trajmatch distill --experts experts --out i.safetensors --student-steps 2 "
        "--expert-epochs 1 --max-start-epoch 1",
        expects=("--resume",),
    ),
    Command(
        "interrupted-other-settings",
        f"{DISTILL} --out i.safetensors --resume --lr-img 7",
        expects=("lr_img",),
    ),
    Command(
        "interrupted-checkpoint-flipped",
        "trajmatch distill --experts experts --out i.safetensors --student-steps 2 "
        "--expert-epochs 1 --max-start-epoch 1 --iterations 10000000 --resume",
        flip("i.checkpoint.safetensors"),
        expects=("i.checkpoint.safetensors",),
    ),
    Command("evaluate-the-interrupted", f"{EVAL} i.safetensors", expects=("i.safetensors",)),
    Command(
        "evaluate-a-checkpoint",
        f"{EVAL} i.checkpoint.safetensors",
        expects=("i.checkpoint.safetensors",),
    ),
    Command("resume-a-finished-one", f"{DISTILL} --out d.safetensors --resume", outcome="either"),
    # recipes
    Command(
        "misspelt-recipe", f"{TRAIN} --recipe mtt/cifar10/ipc11", expects=("mtt/cifar10/ipc1",)
    ),
    Command("recipe-file-missing", f"{TRAIN} --recipe my.toml", expects=("my.toml",)),
    Command(
        "recipe-not-toml",
        f"{TRAIN} --recipe r.toml",
        write("r.toml", "a = = 3"),
        expects=("r.toml",),
    ),
    Command("recipe-empty", f"{TRAIN} --recipe r.toml", write("r.toml"), outcome="either"),
    Command(
        "recipe-unknown-setting",
        f"{TRAIN} --recipe r.toml",
        write("r.toml", RECIPE + "epoch = 3\n"),
        expects=("r.toml", "epoch"),
    ),
    Command(
        "recipe-wrong-type",
        f"{TRAIN} --recipe r.toml",
        write("r.toml", RECIPE + 'batch_size = "many"\n'),
        expects=("r.toml", "batch_size"),
    ),
    Command("recipe-in-latin-1", f"{TRAIN} --recipe r.toml", write("r.toml", b"# caf\xe9\n")),
    Command(
        "recipe-is-a-folder", f"{TRAIN} --recipe r.toml", folder("r.toml"), expects=("r.toml",)
    ),
    Command("explain-a-missing-recipe", "trajmatch recipes mtt/cifar", expects=("mtt/cifar",)),
    Command("run-without-recipe", "trajmatch run --out x", expects=("--recipe",)),
    Command("run-unknown-recipe", "trajmatch run --recipe cpu/own --out x", expects=("cpu/own",)),
    Command(
        "run-flag-without-stage",
        "trajmatch run --recipe cpu/own/ipc1 --data imagefolder:photos --out x --epochs 1",
        expects=("--epochs", "--expert.epochs"),
    ),
    Command("run-no-data", "trajmatch run --recipe mtt/cifar10/ipc1 --out x", expects=("--data",)),
    Command(
        "run-into-photos",
        "trajmatch run --recipe cpu/own/ipc1 --data imagefolder:photos --out photos",
        expects=("photos",),
    ),
    Command(
        "run-out-is-a-file",
        "trajmatch run --recipe cpu/own/ipc1 --data imagefolder:photos --out d.npz",
        expects=("d.npz",),
    ),
    Command(
        "run-too-few-photos",
        "trajmatch run --recipe cpu/own/ipc1 --data imagefolder:few --out x --distill.ipc 50"
        " --expert.epochs 1 --expert.num-experts 1",
        photos("few", count=2),
        forbids=("1/1",),
    ),
    Command(
        "run-too-few-epochs",
        "trajmatch run --recipe cpu/own/ipc1 --data imagefolder:photos --out x --expert.epochs 2",
        expects=("--max-start-epoch",),
        forbids=("8/8",),
    ),
    Command(
        "run-other-network-in-evaluation",
        "trajmatch run --recipe cpu/own/ipc1 --data imagefolder:photos --out x --expert.epochs 2 "
        "--distill.max-start-epoch 1 --distill.expert-epochs 1 --distill.iterations 1 "
        "--evaluate.network resnet17",
        expects=("resnet17",),
        forbids=("8/8",),
    ),
    # evaluation
    Command("evaluate-nothing", "trajmatch eval --data npz:d.npz", expects=("FILE",)),
    Command("evaluate-missing", f"{EVAL} e.safetensors", expects=("e.safetensors",)),
    Command("evaluate-a-store", f"{EVAL} experts", expects=("experts",)),
    Command(
        "evaluate-an-expert", f"{EVAL} experts/expert_0000.safetensors", expects=("expert_0000",)
    ),
    Command("evaluate-snapshots", f"{EVAL} d.snapshots.safetensors", expects=("d.snapshots",)),
    Command("evaluate-the-data", f"{EVAL} d.npz", expects=("d.npz",)),
    Command("evaluate-the-log", f"{EVAL} d.jsonl", expects=("d.jsonl",)),
    Command("evaluate-two", f"{EVAL} d.safetensors i.safetensors", expects=("i.safetensors",)),
    Command("evaluate-without-data", "trajmatch eval d.safetensors", expects=("--data",)),
    Command(
        "evaluate-on-other-classes",
        f"{EVAL} d.safetensors --data imagefolder:photos",
        expects=("class",),
    ),
    Command(
        "evaluate-on-other-size",
        f"{EVAL} d.safetensors --data npz:bad.npz",
        arrays(
            x_train=lambda x: x.repeat(2, 1).repeat(2, 2),
            x_test=lambda x: x.repeat(2, 1).repeat(2, 2),
        ),
        expects=("32",),
    ),
    Command("eval-seeds-none", f"{EVAL} d.safetensors --seeds 0", expects=("--seeds",)),
    Command("eval-epochs-negative", f"{EVAL} d.safetensors --epochs -1", expects=("--epochs",)),
    Command("eval-steps-zero", f"{EVAL} d.safetensors --equal-steps 0", expects=("--equal-steps",)),
    Command(
        "eval-steps-and-epochs", f"{EVAL} d.safetensors --equal-steps 5", expects=("--epochs",)
    ),
    Command("eval-network", f"{EVAL} d.safetensors --network resnet17", expects=("resnet17",)),
    Command("eval-no-network", f"{EVAL} d.safetensors --network", outcome="either"),
    Command(
        "eval-networks-commas", f"{EVAL} d.safetensors --network convnet,mlp", expects=("mlp",)
    ),
    Command("eval-network-file-first", f"{EVAL} --network convnet d.safetensors", outcome="works"),
    Command(
        "eval-store-alone",
        f"{EVAL} d.safetensors --k-center-store experts",
        expects=("--k-center",),
    ),
    Command(
        "eval-store-missing", f"{EVAL} d.safetensors --k-center --k-center-store e", expects=("e",)
    ),
    Command("eval-batch-zero", f"{EVAL} d.safetensors --batch-size 0", expects=("--batch-size",)),
    # stores
    Command("store-no-action", "trajmatch store", outcome="either"),
    Command("store-unknown-action", "trajmatch store list experts", expects=("list",)),
    Command("store-nothing", "trajmatch store verify", expects=("PATH",)),
    Command("store-missing", "trajmatch store verify e", expects=("e",)),
    Command("store-ls-a-file", "trajmatch store ls d.safetensors", expects=("d.safetensors",)),
    Command("trim-without-out", "trajmatch store trim experts --keep 0-1", expects=("--out",)),
    Command("trim-onto-itself", "trajmatch store trim experts --out experts", expects=("experts",)),
    Command("trim-into-itself", "trajmatch store trim experts --out experts/x", outcome="either"),
    Command("trim-beyond", "trajmatch store trim experts --out x --keep 0-9", expects=("--keep",)),
    Command(
        "trim-no-such-expert", "trajmatch store trim experts --out x --experts 5", expects=("5",)
    ),
    Command(
        "trim-a-word", "trajmatch store trim experts --out x --experts all,1", expects=("all",)
    ),
    Command("merge-one", "trajmatch store merge experts --out x", outcome="either"),
    Command("merge-none", "trajmatch store merge --out x", expects=("PATHS",)),
    Command("merge-twice", "trajmatch store merge experts experts --out x", outcome="either"),
    Command("merge-other", "trajmatch store merge experts half --out x", expects=("half",)),
    # pictures and reports
    Command("zoo-misspelt", "trajmatch zoo no-such-set", expects=("no-such-set",)),
    Command("eval-zoo-misspelt", f"{EVAL} zoo:no-such-set", expects=("no-such-set", "zoo")),
    Command("zoo-without-a-name", f"{EVAL} zoo:", expects=("zoo",)),
    Command("push-nowhere", "trajmatch push d.safetensors", expects=("--to",)),
    Command("push-to-a-path", "trajmatch push d.safetensors --to me/sets", expects=("me/sets",)),
    Command("push-photos", "trajmatch push photos --to hf:me/sets", expects=("photos",)),
    Command("push-missing", "trajmatch push no.pt --to hf:a/b", expects=("no.pt",)),
    Command("pull-a-path", "trajmatch pull d.safetensors", expects=("d.safetensors", "hf:")),
    Command("pull-from-a-user", "trajmatch pull hf:me", expects=("hf:me", "REPOSITORY")),
    Command("show-missing", "trajmatch show e.safetensors", expects=("e.safetensors",)),
    Command("show-a-store", "trajmatch show experts", expects=("experts",)),
    Command("show-as-text", "trajmatch show d.safetensors --out x.txt", expects=("x.txt",)),
    Command("show-to-a-folder", "trajmatch show d.safetensors --out photos", expects=("photos",)),
    Command("show-to-itself", "trajmatch show d.safetensors --out d.safetensors"),
    Command("show-scale-zero", "trajmatch show d.safetensors --scale 0", expects=("--scale",)),
    Command(
        "show-scale-enormous",
        "ulimit -v 4000000; trajmatch show d.safetensors --scale 99999",
        expects=("--scale",),
    ),
    Command(
        "show-per-class-zero",
        "trajmatch show d.safetensors --per-class 0",
        expects=("--per-class",),
    ),
    Command(
        "show-frame-negative",
        "trajmatch show d.safetensors --out x.gif --frame-seconds -1",
        expects=("--frame-seconds",),
    ),
    Command("show-misspelt-clip", "trajmatch show d.safetensors --clip sgima", expects=("sigma",)),
    Command(
        "show-strip-as-gif",
        "trajmatch show d.safetensors --out x.gif --strip",
        expects=("x.gif", ".png"),
    ),
    Command(
        "show-no-snapshots",
        "trajmatch show d.safetensors --out x.gif",
        remove("d.snapshots.safetensors"),
        expects=("d.snapshots.safetensors",),
    ),
    Command(
        "show-snapshots-of-others",
        "trajmatch show d.safetensors --out x.gif --snapshots i.snapshots.safetensors",
        expects=("i.snapshots.safetensors",),
    ),
    Command("report-of-photos", "trajmatch report photos", expects=("photos",)),
    Command("report-of-a-store", "trajmatch report experts", expects=("experts",)),
    Command("report-missing", "trajmatch report nothing", expects=("nothing",)),
    Command(
        "report-other-log", "trajmatch report d.safetensors --log i.jsonl", expects=("i.jsonl",)
    ),
    Command(
        "report-broken-log",
        "trajmatch report d.safetensors",
        write("d.jsonl", "{{{\n"),
        expects=("d.jsonl",),
    ),
    Command(
        "report-log-missing", "trajmatch report d.safetensors --log l.jsonl", expects=("l.jsonl",)
    ),
    Command(
        "report-evaluation-text",
        "trajmatch report d.safetensors --evaluation e.json",
        write("e.json", "accuracy 73 %"),
        expects=("e.json",),
    ),
    Command(
        "report-evaluation-other-json",
        "trajmatch report d.safetensors --evaluation experts/store.json",
        expects=("store.json",),
    ),
    Command("report-over-the-set", "trajmatch report d.safetensors --out d.safetensors"),
    # conversion and export
    Command("convert-missing", "trajmatch convert b --out x --data npz:d.npz", expects=("b",)),
    Command("convert-photos", "trajmatch convert photos --out x", expects=("photos",)),
    Command("convert-the-data", "trajmatch convert d.npz --out x", expects=("d.npz",)),
    Command(
        "convert-a-text",
        "trajmatch convert replay_buffer_0.pt --out x --data npz:d.npz --network convnet",
        write("replay_buffer_0.pt", "hello"),
        expects=("replay_buffer_0.pt",),
    ),
    Command(
        "convert-an-empty-file",
        "trajmatch convert replay_buffer_0.pt --out x --data npz:d.npz --network convnet",
        write("replay_buffer_0.pt"),
        expects=("replay_buffer_0.pt",),
    ),
    Command(
        "convert-a-zip",
        "trajmatch convert images_best.pt --out x.safetensors --data npz:d.npz --network convnet",
        zipped("images_best.pt"),
        expects=("images_best.pt",),
    ),
    Command(
        "convert-a-pickle",
        "trajmatch convert images_best.pt --out x.safetensors --data npz:d.npz --network convnet",
        pickled("images_best.pt", {"a": print}),
        expects=("images_best.pt",),
    ),
    Command(
        "convert-a-state-dict",
        "trajmatch convert replay_buffer_0.pt --out x --data npz:d.npz --network convnet "
        "--preprocessing data --dsa none",
        torch_file("replay_buffer_0.pt", lambda torch: torch.nn.Linear(3, 2).state_dict()),
        expects=("replay_buffer_0.pt",),
    ),
    Command(
        "convert-a-whole-model",
        "trajmatch convert replay_buffer_0.pt --out x --data npz:d.npz --network convnet "
        "--preprocessing data --dsa none",
        torch_file("replay_buffer_0.pt", lambda torch: torch.nn.Linear(3, 2)),
        expects=("replay_buffer_0.pt",),
    ),
    Command(
        "convert-another-network",
        "trajmatch convert theirs --out x --data npz:d.npz --network convnet:width=8,depth=2 "
        "--preprocessing data --dsa none",
        torch_file(
            "theirs/replay_buffer_0.pt",
            lambda torch: [[[torch.randn(16, 3, 3, 3), torch.randn(16)] for _ in range(2)]],
        ),
        expects=("16",),
    ),
    Command(
        "convert-images-alone",
        "trajmatch convert images_best.pt --out x.safetensors --data npz:d.npz --network convnet "
        "--preprocessing data --dsa none --lr 0.01",
        torch_file("images_best.pt", lambda torch: torch.randn(3, 3, 16, 16)),
        expects=("labels",),
    ),
    Command(
        "convert-labels-of-others",
        "trajmatch convert images_best.pt --out x.safetensors --data npz:d.npz --network "
        "convnet:width=16,depth=2 --preprocessing data --dsa none --lr 0.01",
        both(
            torch_file("images_best.pt", lambda torch: torch.randn(3, 3, 16, 16)),
            torch_file("labels_best.pt", lambda torch: torch.arange(5)),
        ),
        expects=("labels_best.pt",),
    ),
    Command(
        "convert-mean-without-std",
        "trajmatch convert images_best.pt --out x.safetensors --data npz:d.npz --network convnet "
        "--mean 0.5 0.5 0.5 --dsa none --lr 0.01",
        torch_file("images_best.pt", lambda torch: torch.randn(3, 3, 16, 16)),
        expects=("--std",),
    ),
    Command(
        "convert-onto-photos", "trajmatch convert d.safetensors --out photos", expects=("photos",)
    ),
    Command(
        "convert-per-file-zero",
        "trajmatch convert experts --out x --per-file 0",
        expects=("--per-file",),
    ),
    Command("export-no-form", "trajmatch export d.safetensors --out x", expects=("--to",)),
    Command(
        "export-as-csv", "trajmatch export d.safetensors --to csv --out x", expects=("csv", "npz")
    ),
    Command(
        "export-onto-photos",
        "trajmatch export d.safetensors --to imagefolder --out photos",
        expects=("photos",),
    ),
    Command(
        "export-npz-over", "trajmatch export d.safetensors --to npz --out d.npz", expects=("d.npz",)
    ),
    Command(
        "export-npz-to-folder",
        "trajmatch export d.safetensors --to npz --out photos",
        expects=("photos",),
    ),
    Command(
        "export-a-store", "trajmatch export experts --to npz --out x.npz", expects=("experts",)
    ),
    Command(
        "export-npz-other-ending",
        "trajmatch export d.safetensors --to npz --out x.zip",
        outcome="either",
    ),
    # the small commands
    Command(
        "demo-onto-photos",
        "trajmatch demo --out photos --num-experts 1 --max-start-epoch 1 --expert-epochs 1 "
        "--expert.epochs 1 --width 8 --iterations 1 --student-steps 1 --seeds 1",
        expects=("photos",),
    ),
    Command("demo-no-out", "trajmatch demo", expects=("--out",)),
    Command("demo-missing-data", "trajmatch demo --out x --data npz:no.npz", expects=("no.npz",)),
    Command(
        "demo-too-many-epochs",
        "trajmatch demo --out x --expert.epochs 2",
        expects=("epoch",),
        forbids=("2/8",),
    ),
    Command("doctor-network", "trajmatch doctor --network convnt", expects=("convnt", "convnet")),
    Command(
        "doctor-no-classes",
        "trajmatch doctor --network convnet --classes 0",
        expects=("--classes",),
    ),
    Command(
        "doctor-no-pixels",
        "trajmatch doctor --network convnet --image-size 0",
        expects=("--image-size",),
    ),
    Command(
        "doctor-no-channels",
        "trajmatch doctor --network convnet --channels 0",
        expects=("--channels",),
    ),
]
"""Wrong commands, flags, values and places."""

FILES: list[Mistake] = [
    Command(
        "set-truncated",
        f"{EVAL} d.safetensors",
        truncate("d.safetensors"),
        expects=("d.safetensors",),
    ),
    Command(
        "set-cut-in-header",
        f"{EVAL} d.safetensors",
        truncate("d.safetensors", 0.05),
        expects=("d.safetensors",),
    ),
    Command(
        "set-empty", f"{EVAL} d.safetensors", write("d.safetensors"), expects=("d.safetensors",)
    ),
    Command(
        "set-is-text",
        f"{EVAL} d.safetensors",
        write("d.safetensors", "hello " * 99),
        expects=("d.safetensors",),
    ),
    Command(
        "set-is-json",
        f"{EVAL} d.safetensors",
        write("d.safetensors", "{}"),
        expects=("d.safetensors",),
    ),
    Command(
        "set-is-a-zip", f"{EVAL} d.safetensors", zipped("d.safetensors"), expects=("d.safetensors",)
    ),
    Command(
        "set-is-a-folder",
        f"{EVAL} d.safetensors",
        folder("d.safetensors"),
        expects=("d.safetensors",),
    ),
    Command(
        "set-closed",
        f"{EVAL} d.safetensors",
        mode("d.safetensors", 0),
        expects=("d.safetensors", "permission"),
    ),
    Command(
        "set-dangling",
        f"{EVAL} d.safetensors",
        link("d.safetensors", "gone"),
        expects=("d.safetensors",),
    ),
    Command(
        "set-in-a-circle",
        f"{EVAL} d.safetensors",
        link("d.safetensors", "d.safetensors"),
        expects=("d.safetensors",),
    ),
    Command(
        "set-flipped",
        f"{EVAL} d.safetensors",
        flip("d.safetensors", 0.5),
        expects=("d.safetensors",),
    ),
    Command(
        "set-flipped-at-the-end",
        f"{EVAL} d.safetensors",
        flip("d.safetensors", 0.999),
        expects=("d.safetensors",),
    ),
    Command(
        "set-flipped-header",
        f"{EVAL} d.safetensors",
        flip("d.safetensors", 0.02),
        expects=("d.safetensors",),
    ),
    Command(
        "set-flipped-length",
        f"{EVAL} d.safetensors",
        flip("d.safetensors", 0.0003),
        expects=("d.safetensors",),
    ),
    Command(
        "set-of-the-future",
        f"{EVAL} d.safetensors",
        replace("d.safetensors", b'format_version\\": 1', b'format_version\\": 9'),
        expects=("d.safetensors",),
    ),
    Command(
        "set-edited-lr",
        f"{EVAL} d.safetensors",
        replace("d.safetensors", b'\\"ipc\\": 1', b'\\"ipc\\": 7'),
        expects=("d.safetensors",),
    ),
    Command(
        "set-a-pt",
        f"{EVAL} d.pt",
        torch_file("d.pt", lambda torch: {"images": torch.ones(3, 3, 16, 16)}),
        expects=("d.pt",),
    ),
    Command(
        "set-of-another-program",
        f"{EVAL} o.safetensors",
        copy("experts/expert_0000.safetensors", "o.safetensors"),
        expects=("o.safetensors",),
    ),
    Command(
        "show-truncated",
        "trajmatch show d.safetensors",
        truncate("d.safetensors"),
        expects=("d.safetensors",),
    ),
    Command(
        "export-truncated",
        "trajmatch export d.safetensors --to npz --out x.npz",
        truncate("d.safetensors"),
        expects=("d.safetensors",),
    ),
    Command(
        "report-truncated",
        "trajmatch report d.safetensors",
        truncate("d.safetensors"),
        expects=("d.safetensors",),
    ),
    Command(
        "report-snapshots-truncated",
        "trajmatch report d.safetensors",
        truncate("d.snapshots.safetensors"),
        expects=("d.snapshots.safetensors",),
    ),
    Command(
        "verify-flipped",
        "trajmatch store verify d.safetensors",
        flip("d.safetensors", 0.5),
        expects=("d.safetensors",),
    ),
    Command(
        "init-from-truncated",
        f"{DISTILL} --init-from d.safetensors",
        truncate("d.safetensors"),
        expects=("d.safetensors",),
    ),
    Command(
        "expert-truncated",
        DISTILL,
        truncate("experts/expert_0000.safetensors"),
        expects=("expert_0000",),
    ),
    Command(
        "expert-flipped",
        DISTILL,
        flip("experts/expert_0000.safetensors", 0.3),
        expects=("expert_0000",),
    ),
    Command(
        "expert-empty", DISTILL, write("experts/expert_0000.safetensors"), expects=("expert_0000",)
    ),
    Command(
        "expert-removed",
        DISTILL,
        remove("experts/expert_0000.safetensors"),
        expects=("number 0",),
    ),
    Command(
        "expert-closed",
        DISTILL,
        mode("experts/expert_0000.safetensors", 0),
        expects=("expert_0000",),
    ),
    Command(
        "expert-a-folder",
        DISTILL,
        folder("experts/expert_0000.safetensors"),
        expects=("expert_0000",),
    ),
    Command(
        "expert-is-the-set",
        DISTILL,
        both(
            remove("experts/expert_0000.safetensors"),
            copy("d.safetensors", "experts/expert_0000.safetensors"),
        ),
        expects=("expert_0000",),
    ),
    Command(
        "expert-of-another-store",
        DISTILL,
        both(remove("experts/store.json"), copy("half/store.json", "experts/store.json")),
    ),
    Command("store-json-removed", DISTILL, remove("experts/store.json"), expects=("store.json",)),
    Command(
        "store-json-truncated", DISTILL, truncate("experts/store.json"), expects=("store.json",)
    ),
    Command("store-json-empty", DISTILL, write("experts/store.json"), expects=("store.json",)),
    Command(
        "store-json-a-list", DISTILL, write("experts/store.json", "[]"), expects=("store.json",)
    ),
    Command(
        "store-json-null", DISTILL, write("experts/store.json", "null"), expects=("store.json",)
    ),
    Command(
        "store-json-binary",
        DISTILL,
        write("experts/store.json", b"\xff\xfe\x00\x01"),
        expects=("store.json",),
    ),
    Command("store-json-closed", DISTILL, mode("experts/store.json", 0), expects=("store.json",)),
    Command("store-json-a-folder", DISTILL, folder("experts/store.json"), expects=("store.json",)),
    Command(
        "store-of-the-future",
        DISTILL,
        edit("experts/store.json", lambda s: s.update(version=9)),
        expects=("store.json",),
    ),
    Command(
        "store-trained-for-no-epoch",
        DISTILL,
        edit("experts/store.json", lambda s: s.update(trained_epochs=0)),
        expects=("store.json", "trained_epochs"),
    ),
    Command(
        "store-of-something",
        DISTILL,
        edit("experts/store.json", lambda s: s.update(format="x")),
        expects=("experts",),
    ),
    Command(
        "store-more-experts",
        DISTILL,
        edit("experts/store.json", lambda s: s.update(num_experts=5)),
        expects=("experts",),
    ),
    Command(
        "store-no-experts",
        DISTILL,
        edit("experts/store.json", lambda s: s.update(num_experts=0)),
        expects=("experts",),
    ),
    Command(
        "store-other-width",
        DISTILL,
        edit("experts/store.json", lambda s: s["network"].update(width=8)),
        expects=("store.json",),
    ),
    Command(
        "store-network-gone",
        DISTILL,
        edit("experts/store.json", lambda s: s.pop("network")),
        expects=("store.json",),
    ),
    Command(
        "store-checksum-gone",
        DISTILL,
        edit("experts/store.json", lambda s: s.pop("checksum")),
        outcome="either",
    ),
    Command(
        "store-no-checksum-bad-std",
        DISTILL,
        edit(
            "experts/store.json",
            lambda s: (s.pop("checksum"), s["preprocessing"].update(std=[0, 0, 0])),
        ),
        expects=("store.json",),
    ),
    Command(
        "store-no-checksum-one-mean",
        DISTILL,
        edit(
            "experts/store.json",
            lambda s: (s.pop("checksum"), s["preprocessing"].update(mean=[0.5])),
        ),
        expects=("store.json",),
    ),
    Command(
        "store-no-checksum-text",
        DISTILL,
        edit("experts/store.json", lambda s: (s.pop("checksum"), s.update(snapshots="all"))),
        expects=("store.json",),
    ),
    Command(
        "store-no-checksum-network",
        DISTILL,
        edit(
            "experts/store.json", lambda s: (s.pop("checksum"), s["network"].update(name="Convnet"))
        ),
        expects=("store.json",),
    ),
    Command(
        "verify-truncated-expert",
        "trajmatch store verify experts",
        truncate("experts/expert_0000.safetensors"),
        expects=("expert_0000",),
    ),
    Command(
        "ls-truncated-expert",
        "trajmatch store ls experts",
        truncate("experts/expert_0000.safetensors"),
        expects=("expert_0000",),
    ),
    Command(
        "trim-truncated-expert",
        "trajmatch store trim experts --out x --keep 0-1",
        truncate("experts/expert_0000.safetensors"),
        expects=("expert_0000",),
    ),
    Command(
        "convert-truncated-store",
        "trajmatch convert experts --out x",
        truncate("experts/expert_0000.safetensors"),
        expects=("expert_0000",),
    ),
    Command(
        "convexify-with-waypoints-beyond-the-course",
        "trajmatch store convexify experts --out x",
        expects=("--waypoints", "6,25", "2"),
    ),
    Command(
        "curriculum-without-scores",
        f"{TRAIN} --curriculum 0.75,20",
        expects=("--curriculum", "--scores", "trajmatch score"),
    ),
    Command(
        "curriculum-of-one-number",
        f"{TRAIN} --curriculum 0.75 --scores s.npy",
        expects=("--curriculum", "0.75,20"),
    ),
    Command(
        "scores-of-other-data",
        f"trajmatch score experts --quiet && {BAD} --curriculum 0.5,1 "
        "--scores experts.scores.safetensors",
        setup=arrays(x_train=lambda images: images + 1),
        expects=("experts.scores.safetensors", "d.npz", "bad.npz"),
    ),
    Command(
        "scores-that-are-a-distilled-set",
        f"{DISTILL} --init difficulty --scores d.safetensors",
        expects=("d.safetensors", "scores"),
    ),
    Command(
        "scores-missing",
        f"{DISTILL} --init difficulty",
        expects=("experts.scores.safetensors", "trajmatch score"),
    ),
    Command(
        "hard-images-left-out-beyond-the-class",
        f"trajmatch score experts --quiet && {DISTILL} --init difficulty --init-beta 99",
        expects=("--init-beta 99", "8"),
    ),
]
"""Damaged and mistaken files of the program itself."""

DATA: list[Mistake] = [
    Command("no-such-data", f"{EXPERT} --data npz:absent.npz", expects=("absent.npz",)),
    Command("data-a-path", f"{EXPERT} --data d.npz", expects=("d.npz", "npz:")),
    Command("data-a-folder", f"{EXPERT} --data photos", expects=("photos", "imagefolder:")),
    Command("data-misspelt-kind", f"{EXPERT} --data imagefoldr:photos", expects=("imagefoldr",)),
    Command("data-kind-alone", f"{EXPERT} --data imagefolder", expects=("imagefolder",)),
    Command("data-nothing-behind", f"{EXPERT} --data npz:", expects=("npz:",)),
    Command("data-empty", f"{EXPERT} --data ''", expects=("--data",)),
    Command("npz-is-a-folder", f"{EXPERT} --data npz:photos", expects=("photos",)),
    Command("folder-is-an-npz", f"{EXPERT} --data imagefolder:d.npz", expects=("d.npz",)),
    Command("cifar-of-photos", f"{EXPERT} --data cifar10:photos", expects=("photos",)),
    Command("mnist-of-nothing", f"{EXPERT} --data mnist:nowhere", expects=("nowhere",)),
    Command("imagenet-no-subset", f"{EXPERT} --data imagenet:photos", expects=("subset",)),
    Command(
        "imagenet-misspelt-subset",
        f"{EXPERT} --data 'imagenet:photos?subset=net'",
        expects=("nette",),
    ),
    Command(
        "tiny-imagenet-of-photos", f"{EXPERT} --data tiny-imagenet:photos", expects=("photos",)
    ),
    Command(
        "cifar-truncated",
        f"{EXPERT} --data cifar10:c",
        write("c/cifar-10-batches-py/data_batch_1", b"\x80"),
        expects=("c",),
    ),
    Command(
        "hf-unknown",
        f"{EXPERT} --data hf:nobody/nothing-at-all",
        environment={"HF_HUB_OFFLINE": "1"},
        expects=("nothing-at-all",),
    ),
    Command("truncated-npz", BAD, both(arrays(), truncate("bad.npz")), expects=("bad.npz",)),
    Command("npz-empty", BAD, write("bad.npz"), expects=("bad.npz",)),
    Command("npz-a-text", BAD, write("bad.npz", "x_train"), expects=("bad.npz",)),
    Command("npz-a-zip", BAD, zipped("bad.npz"), expects=("bad.npz",)),
    Command("npz-a-npy", BAD, _plain_array, expects=("bad.npz",)),
    Command("npz-flipped", BAD, both(arrays(), flip("bad.npz", 0.4)), expects=("bad.npz",)),
    Command(
        "npz-closed", BAD, both(arrays(), mode("bad.npz", 0)), expects=("bad.npz", "permission")
    ),
    Command("npz-dangling", BAD, link("bad.npz", "gone.npz"), expects=("bad.npz",)),
    Command(
        "npz-objects",
        BAD,
        arrays(x_train=lambda x: np.array([*list(x), None], dtype=object)),
        expects=("bad.npz", "objects"),
    ),
    Command("npz-other-names", BAD, _other_names, expects=("bad.npz", "x_train")),
    Command("npz-no-labels", BAD, arrays(y_train=None), expects=("y_train",)),
    Command("npz-no-test", BAD, arrays(x_test=None, y_test=None), expects=("x_test",)),
    Command(
        "npz-no-images",
        BAD,
        arrays(x_train=lambda x: x[:0], y_train=lambda y: y[:0]),
        expects=("images",),
    ),
    Command(
        "npz-empty-test",
        BAD,
        arrays(x_test=lambda x: x[:0], y_test=lambda y: y[:0]),
        expects=("x_test",),
    ),
    Command(
        "one-image",
        BAD,
        arrays(x_train=lambda x: x[:1], y_train=lambda y: y[:1]),
        expects=("class",),
    ),
    Command(
        "one-class",
        BAD,
        arrays(y_train=lambda y: y * 0, y_test=lambda y: y * 0),
        expects=("class",),
    ),
    Command("fewer-labels", BAD, arrays(y_train=lambda y: y[:20]), expects=("24", "20")),
    Command("fewer-test-labels", BAD, arrays(y_test=lambda y: y[:5]), expects=("12", "5")),
    Command(
        "labels-from-1",
        BAD,
        arrays(y_train=lambda y: y + 1, y_test=lambda y: y + 1),
        expects=("class",),
    ),
    Command("labels-negative", BAD, arrays(y_train=lambda y: y - 1), expects=("-1",)),
    Command(
        "labels-with-a-gap",
        BAD,
        arrays(y_train=lambda y: y * 2, y_test=lambda y: y * 2),
        expects=("label 4", "gaps"),
    ),
    Command("labels-whole-floats", BAD, arrays(y_train=lambda y: y * 1.0), outcome="either"),
    Command("labels-fractions", BAD, arrays(y_train=lambda y: y + 0.5), expects=("y_train",)),
    Command(
        "labels-one-hot",
        BAD,
        arrays(y_train=lambda y: np.eye(3)[y], y_test=lambda y: np.eye(3)[y]),
        expects=("y_train",),
    ),
    Command(
        "labels-a-column",
        BAD,
        arrays(y_train=lambda y: y[:, None], y_test=lambda y: y[:, None]),
        outcome="either",
    ),
    Command(
        "labels-texts",
        BAD,
        arrays(
            y_train=lambda y: np.array(["a", "b", "c"])[y],
            y_test=lambda y: np.array(["a", "b", "c"])[y],
        ),
        expects=("y_train",),
    ),
    Command(
        "labels-booleans",
        BAD,
        arrays(y_train=lambda y: y > 1, y_test=lambda y: y > 1),
        outcome="either",
    ),
    Command(
        "labels-nan",
        BAD,
        arrays(y_train=lambda y: np.where(y == 1, np.nan, y)),
        expects=("y_train",),
    ),
    Command("label-enormous", BAD, arrays(y_train=_huge_label), expects=("1000000000000",)),
    Command(
        "label-for-each-image",
        BAD,
        arrays(y_train=lambda y: np.arange(24), y_test=lambda y: y),
        outcome="either",
    ),
    Command("test-class-unknown", BAD, arrays(y_test=lambda y: y + 2), expects=("test",)),
    Command(
        "test-other-size",
        BAD,
        arrays(x_test=lambda x: x.repeat(2, 1).repeat(2, 2)),
        expects=("32",),
    ),
    Command("test-grey", BAD, arrays(x_test=lambda x: x[..., :1]), expects=("channel",)),
    Command(
        "images-flat",
        BAD,
        arrays(x_train=lambda x: x.reshape(24, -1), x_test=lambda x: x.reshape(12, -1)),
        expects=("x_train",),
    ),
    Command(
        "images-channels-first",
        BAD,
        arrays(x_train=lambda x: x.transpose(0, 3, 1, 2), x_test=lambda x: x.transpose(0, 3, 1, 2)),
        outcome="either",
    ),
    Command(
        "images-not-square",
        BAD,
        arrays(x_train=lambda x: x[:, :, :12], x_test=lambda x: x[:, :, :12]),
        expects=("square",),
    ),
    Command(
        "images-two-channels",
        BAD,
        arrays(x_train=lambda x: x[..., :2], x_test=lambda x: x[..., :2]),
        outcome="either",
    ),
    Command(
        "images-with-alpha",
        BAD,
        arrays(x_train=lambda x: np.concatenate([x, x[..., :1]], 3)),
        expects=("channel",),
    ),
    Command(
        "images-floats-255",
        BAD,
        arrays(x_train=lambda x: x.astype(np.float32), x_test=lambda x: x.astype(np.float32)),
        expects=("x_train", "255"),
    ),
    Command(
        "images-normalised",
        BAD,
        arrays(x_train=lambda x: x / 50 - 2, x_test=lambda x: x / 50 - 2),
        expects=("x_train",),
    ),
    Command("images-nan", BAD, arrays(x_train=_not_a_number), expects=("x_train",)),
    Command(
        "images-int64",
        BAD,
        arrays(x_train=lambda x: x.astype(np.int64), x_test=lambda x: x.astype(np.int64)),
        outcome="either",
    ),
    Command(
        "images-16-bit",
        BAD,
        arrays(
            x_train=lambda x: x.astype(np.uint16) * 257, x_test=lambda x: x.astype(np.uint16) * 257
        ),
        expects=("x_train",),
    ),
    Command("images-complex", BAD, arrays(x_train=lambda x: x * 1j), expects=("x_train",)),
    Command("images-texts", BAD, arrays(x_train=lambda x: x.astype(str)), expects=("x_train",)),
    Command("images-constant", BAD, arrays(x_train=lambda x: x * 0), expects=("one value",)),
    Command(
        "images-tiny",
        BAD,
        arrays(x_train=lambda x: x[:, :1, :1], x_test=lambda x: x[:, :1, :1]),
        expects=("depth",),
    ),
    Command(
        "photos-of-all-sizes",
        f"{EXPERT} --data imagefolder:photos",
        pictures(("photos/cat/big.png", {"width": 40, "height": 30})),
        expects=("size=",),
    ),
    Command(
        "photos-grey-among",
        f"{EXPERT} --data imagefolder:photos",
        pictures(("photos/cat/grey.png", {"mode": "L"})),
        outcome="either",
    ),
    Command(
        "photos-alpha-palette",
        f"{EXPERT} --data imagefolder:photos",
        pictures(("photos/cat/a.png", {"mode": "RGBA"}), ("photos/cat/p.png", {"mode": "P"})),
        outcome="works",
    ),
    Command(
        "photos-one-corrupt",
        f"{EXPERT} --data imagefolder:photos",
        write("photos/cat/9.jpg", b"\xff\xd8\xff\xe0 no more"),
        expects=("9.jpg",),
    ),
    Command(
        "photos-one-truncated",
        f"{EXPERT} --data imagefolder:photos",
        truncate("photos/cat/3.png"),
        expects=("3.png",),
    ),
    Command(
        "photos-one-empty",
        f"{EXPERT} --data imagefolder:photos",
        write("photos/dog/3.png"),
        expects=("3.png",),
    ),
    Command(
        "photos-one-closed",
        f"{EXPERT} --data imagefolder:photos",
        mode("photos/dog/3.png", 0),
        expects=("3.png",),
    ),
    Command(
        "photos-one-dangling",
        f"{EXPERT} --data imagefolder:photos",
        link("photos/dog/3.png", "gone.png"),
        expects=("3.png",),
    ),
    Command(
        "photos-a-text-among",
        f"{EXPERT} --data imagefolder:photos",
        both(
            write("photos/cat/notes.txt", "x"),
            write("photos/cat/Thumbs.db", "x"),
            write("photos/.DS_Store", "x"),
        ),
        outcome="told",
        expects=("notes.txt",),
    ),
    Command("photos-empty-folder", f"{EXPERT} --data imagefolder:e", folder("e"), expects=("e",)),
    Command(
        "photos-empty-class",
        f"{EXPERT} --data imagefolder:photos",
        folder("photos/eel"),
        expects=("eel",),
    ),
    Command(
        "photos-one-class",
        f"{EXPERT} --data imagefolder:photos",
        remove("photos/dog"),
        expects=("class",),
    ),
    Command("photos-of-one-class", f"{EXPERT} --data imagefolder:photos/cat", expects=("class",)),
    Command(
        "photos-no-classes",
        f"{EXPERT} --data imagefolder:flat",
        pictures(("flat/1.png", {}), ("flat/2.png", {})),
        expects=("flat",),
    ),
    Command(
        "photos-one-each",
        f"{EXPERT} --data imagefolder:one",
        photos("one", count=1),
        expects=("one",),
    ),
    Command(
        "photos-too-deep",
        f"{EXPERT} --data imagefolder:deep",
        photos("deep/all/of"),
        expects=("deep",),
    ),
    Command(
        "photos-train-alone", f"{EXPERT} --data imagefolder:t", photos("t/train"), outcome="either"
    ),
    Command(
        "photos-test-other-class",
        f"{EXPERT} --data imagefolder:t",
        both(photos("t/train"), photos("t/test", ("cat", "eel"))),
        expects=("eel",),
    ),
    Command(
        "photos-test-lacks-class",
        f"{EXPERT} --data imagefolder:t",
        both(photos("t/train"), photos("t/test", ("cat",))),
        expects=("dog",),
        outcome="told",
    ),
    Command(
        "photos-unicode-space",
        f"{EXPERT} --data 'imagefolder:my phötos'",
        photos("my phötos", ("Kätzchen 1", "犬")),
        outcome="works",
    ),
    Command(
        "photos-space-unquoted",
        f"{EXPERT} --data imagefolder:my photos",
        photos("my photos"),
        expects=("photos",),
    ),
    Command("photos-bad-name", f"{EXPERT} --data imagefolder:$'b\\xe9'", expects=("UTF-8",)),
    Command(
        "photos-percent-hash",
        f"{EXPERT} --data 'imagefolder:50%#1'",
        photos("50%#1"),
        outcome="works",
    ),
    Command(
        "photos-two-kinds", f"{EXPERT} --data imagefolder:photos --data npz:d.npz", outcome="either"
    ),
    Command(
        "option-misspelt", f"{EXPERT} --data 'imagefolder:photos?sise=16'", expects=("sise", "size")
    ),
    Command(
        "option-a-word", f"{EXPERT} --data 'imagefolder:photos?size=big'", expects=("size", "big")
    ),
    Command("option-zero", f"{EXPERT} --data 'imagefolder:photos?size=0'", expects=("size",)),
    Command("option-negative", f"{EXPERT} --data 'imagefolder:photos?size=-16'", expects=("size",)),
    Command(
        "option-enormous", f"{EXPERT} --data 'imagefolder:photos?size=1000000'", expects=("size",)
    ),
    Command("option-empty", f"{EXPERT} --data 'imagefolder:photos?size='", expects=("size",)),
    Command("option-no-value", f"{EXPERT} --data 'imagefolder:photos?size'", expects=("size",)),
    Command(
        "option-question-twice",
        f"{EXPERT} --data 'imagefolder:photos?size=16?test=0.5'",
        expects=("size",),
    ),
    Command(
        "option-comma", f"{EXPERT} --data 'imagefolder:photos?size=16,test=0.5'", expects=("size",)
    ),
    Command(
        "option-unquoted",
        f"{EXPERT} --data imagefolder:photos?size=16&test=0.5; wait",
        outcome="either",
    ),
    Command(
        "option-test-percent", f"{EXPERT} --data 'imagefolder:photos?test=25'", expects=("test",)
    ),
    Command("option-test-none", f"{EXPERT} --data 'imagefolder:photos?test=0'", expects=("test",)),
    Command("option-test-all", f"{EXPERT} --data 'imagefolder:photos?test=1'", expects=("test",)),
    Command("option-size-of-npz", f"{EXPERT} --data 'npz:d.npz?size=8'", expects=("size",)),
    Command(
        "option-classes-unknown",
        f"{EXPERT} --data 'imagefolder:photos?classes=cat,mouse'",
        expects=("mouse",),
    ),
    Command(
        "option-classes-one",
        f"{EXPERT} --data 'imagefolder:photos?classes=cat'",
        expects=("class",),
    ),
    Command(
        "option-classes-twice",
        f"{EXPERT} --data 'imagefolder:photos?classes=cat,cat'",
        expects=("cat",),
    ),
    Command("option-classes-beyond", f"{EXPERT} --data 'npz:d.npz?classes=0,9'", expects=("9",)),
    Command(
        "option-classes-spaces",
        f"{EXPERT} --data 'imagefolder:photos?classes=cat, dog'",
        outcome="either",
    ),
    Command(
        "own-raises",
        f"{EXPERT} --data mine:load",
        write("mine.py", "def load():\n    raise KeyError('root')\n"),
        expects=("mine", "root"),
        environment=HERE,
    ),
    Command(
        "own-nothing",
        f"{EXPERT} --data mine:load",
        write("mine.py", "def load():\n    pass\n"),
        expects=("mine:load",),
        environment=HERE,
    ),
    Command(
        "own-two-arrays",
        f"{EXPERT} --data mine:load",
        write(
            "mine.py",
            "import numpy\ndef load():\n    return numpy.ones((9, 16, 16, 3)), numpy.arange(9)\n",
        ),
        expects=("mine:load",),
        environment=HERE,
    ),
    Command(
        "own-lists",
        f"{EXPERT} --data mine:load",
        write("mine.py", "def load():\n    return [[1]], [0], [[1]], [0]\n"),
        expects=("mine:load",),
        environment=HERE,
    ),
    Command(
        "own-missing-function",
        f"{EXPERT} --data mine:laod",
        write("mine.py", "def load():\n    pass\n"),
        expects=("laod",),
        environment=HERE,
    ),
    Command(
        "own-missing-module", f"{EXPERT} --data mien:load", expects=("mien",), environment=HERE
    ),
    Command(
        "own-syntax-error",
        f"{EXPERT} --data mine:load",
        write("mine.py", "def load(:\n"),
        expects=("mine",),
        environment=HERE,
    ),
    Command(
        "own-import-error",
        f"{EXPERT} --data mine:load",
        write("mine.py", "import nothing_like_that\n"),
        expects=("nothing_like_that",),
        environment=HERE,
    ),
    Command(
        "own-not-a-function",
        f"{EXPERT} --data mine:load",
        write("mine.py", "load = 3\n"),
        expects=("mine:load",),
        environment=HERE,
    ),
    Command(
        "own-with-argument",
        f"{EXPERT} --data mine:load",
        write("mine.py", "def load(root):\n    pass\n"),
        expects=("mine:load",),
        environment=HERE,
    ),
    Command(
        "own-exits",
        f"{EXPERT} --data mine:load",
        write("mine.py", "import sys\ndef load():\n    sys.exit(0)\n"),
        expects=("mine",),
        environment=HERE,
    ),
    Command(
        "own-file-name",
        f"{EXPERT} --data mine.py:load",
        write("mine.py", "def load():\n    pass\n"),
        expects=("mine",),
        environment=HERE,
    ),
    Command(
        "own-prints",
        f"{EXPERT} --data mine:load",
        write(
            "mine.py",
            "import numpy\n"
            "def load():\n"
            "    print('hi')\n"
            "    d = numpy.load('d.npz')\n"
            "    return d['x_train'], d['y_train'], d['x_test'], d['y_test']\n",
        ),
        outcome="works",
        environment=HERE,
    ),
    Command(
        "own-dictionary",
        f"{EXPERT} --data mine:load",
        write("mine.py", "import numpy\ndef load():\n    return dict(numpy.load('d.npz'))\n"),
        outcome="works",
        environment=HERE,
    ),
]
"""Data sets that cannot be used."""

NETWORK = "import torch\n\n\ndef net(in_channels, num_classes, image_size):\n    "
"""The beginning of a network of the user's own, up to its body."""
TERM = "import torch\nfrom trajmatch.distill.terms import Waypoint\n\n\nclass Mine:\n"
"""The beginning of a matching term of the user's own."""
WAYPOINTS = "    def waypoints(self, steps, epochs):\n        return [Waypoint(steps, epochs)]\n"
OWN = f"{ANY} --network mine:net"

OWN_PARTS: list[Mistake] = [
    Command(
        "net-raises",
        OWN,
        write("mine.py", NETWORK + "raise IndexError('layer 7')\n"),
        expects=("mine:net", "layer 7"),
        environment=HERE,
    ),
    Command(
        "net-nothing",
        OWN,
        write("mine.py", NETWORK + "pass\n"),
        expects=("mine:net",),
        environment=HERE,
    ),
    Command(
        "net-a-class",
        OWN,
        write("mine.py", NETWORK + "return torch.nn.Linear\n"),
        expects=("mine:net",),
        environment=HERE,
    ),
    Command(
        "net-other-signature",
        OWN,
        write("mine.py", "def net(channels, classes):\n    pass\n"),
        expects=("mine:net", "in_channels"),
        environment=HERE,
    ),
    Command(
        "net-wrong-output",
        OWN,
        write(
            "mine.py",
            NETWORK
            + (
                "return torch.nn.Sequential(torch.nn.Flatten(), "
                "torch.nn.Linear(in_channels * image_size**2, 7))\n"
            ),
        ),
        expects=("7", "3"),
        environment=HERE,
    ),
    Command(
        "net-wrong-input",
        OWN,
        write(
            "mine.py",
            NETWORK
            + "return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(99, num_classes))\n",
        ),
        expects=("mine:net",),
        environment=HERE,
    ),
    Command(
        "net-no-parameters",
        OWN,
        write("mine.py", NETWORK + "return torch.nn.Flatten()\n"),
        expects=("mine:net",),
        environment=HERE,
    ),
    Command(
        "net-returns-tuple",
        OWN,
        write(
            "mine.py",
            NETWORK.replace(
                "import torch\n",
                "import torch\n"
                "\n"
                "\n"
                "class N(torch.nn.Linear):\n"
                "    def forward(self, x):\n"
                "        return super().forward(x.flatten(1)), None\n",
            )
            + "return N(in_channels * image_size**2, num_classes)\n",
        ),
        expects=("mine:net",),
        environment=HERE,
    ),
    Command(
        "net-dropout",
        f"{OWN} --epochs 1 && trajmatch distill --experts x --out y.safetensors {STUDENT}",
        write(
            "mine.py",
            NETWORK
            + (
                "return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.5), "
                "torch.nn.Linear(in_channels * image_size**2, num_classes))\n"
            ),
        ),
        expects=("dropout",),
        environment=HERE,
    ),
    Command(
        "net-gone-later",
        f"{OWN} && mkdir e && cd e && trajmatch distill --experts ../x --data npz:../d.npz "
        f"--out y.safetensors {STUDENT}",
        write(
            "mine.py",
            NETWORK
            + (
                "return torch.nn.Sequential(torch.nn.Flatten(), "
                "torch.nn.Linear(in_channels * image_size**2, num_classes))\n"
            ),
        ),
        expects=("mine",),
        environment=HERE,
    ),
    Command(
        "net-changed-later",
        f"{OWN} && mkdir e && sed s/Sequential/Flatten/ mine.py > e/mine.py && cd e && "
        f"trajmatch distill --experts ../x --data npz:../d.npz --out y.safetensors {STUDENT}",
        write(
            "mine.py",
            NETWORK
            + (
                "return torch.nn.Sequential(torch.nn.Flatten(), "
                "torch.nn.Linear(in_channels * image_size**2, num_classes))\n"
            ),
        ),
        expects=("mine",),
        environment=HERE,
    ),
    Command(
        "net-double",
        OWN,
        write(
            "mine.py",
            NETWORK
            + (
                "return torch.nn.Sequential(torch.nn.Flatten(), "
                "torch.nn.Linear(in_channels * image_size**2, num_classes)).double()\n"
            ),
        ),
        outcome="either",
        environment=HERE,
    ),
    Command(
        "term-none",
        f"{DISTILL} --terms mine:Mine",
        write("mine.py", TERM + WAYPOINTS + "    def loss(self, course):\n        pass\n"),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-vector",
        f"{DISTILL} --terms mine:Mine",
        write(
            "mine.py",
            TERM
            + WAYPOINTS
            + "    def loss(self, course):\n        return course.student[course.steps]\n",
        ),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-number",
        f"{DISTILL} --terms mine:Mine",
        write("mine.py", TERM + WAYPOINTS + "    def loss(self, course):\n        return 1.5\n"),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-detached",
        f"{DISTILL} --terms mine:Mine",
        write(
            "mine.py",
            TERM
            + WAYPOINTS
            + (
                "    def loss(self, course):\n"
                "        return course.student[course.steps].detach().sum()\n"
            ),
        ),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-raises",
        f"{DISTILL} --terms mine:Mine",
        write(
            "mine.py",
            TERM + WAYPOINTS + "    def loss(self, course):\n        return course.student[99]\n",
        ),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-nan",
        f"{DISTILL} --terms mine:Mine --iterations 30",
        write(
            "mine.py",
            TERM
            + WAYPOINTS
            + (
                "    def loss(self, course):\n"
                "        return course.student[course.steps].sum() * float('nan')\n"
            ),
        ),
        expects=("finite",),
        environment=HERE,
    ),
    Command(
        "term-no-waypoints",
        f"{DISTILL} --terms mine:Mine",
        write(
            "mine.py",
            TERM
            + (
                "    def waypoints(self, steps, epochs):\n"
                "        return []\n"
                "    def loss(self, course):\n"
                "        return course.start.sum()\n"
            ),
        ),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-waypoints-none",
        f"{DISTILL} --terms mine:Mine",
        write(
            "mine.py",
            TERM
            + (
                "    def waypoints(self, steps, epochs):\n"
                "        pass\n"
                "    def loss(self, course):\n"
                "        return course.start.sum()\n"
            ),
        ),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-waypoint-beyond",
        f"{DISTILL} --terms mine:Mine",
        write(
            "mine.py",
            TERM
            + (
                "    def waypoints(self, steps, epochs):\n"
                "        return [Waypoint(steps + 5, epochs)]\n"
                "    def loss(self, course):\n"
                "        return course.start.sum()\n"
            ),
        ),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-no-loss",
        f"{DISTILL} --terms mine:Mine",
        write("mine.py", TERM + WAYPOINTS),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-with-arguments",
        f"{DISTILL} --terms mine:Mine",
        write("mine.py", TERM + "    def __init__(self, weight):\n        pass\n" + WAYPOINTS),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-a-function",
        f"{DISTILL} --terms mine:Mine",
        write("mine.py", "def Mine(student, expert):\n    return 0\n"),
        expects=("mine:Mine",),
        environment=HERE,
    ),
    Command(
        "term-missing",
        f"{DISTILL} --terms mine:Yours",
        write("mine.py", TERM + WAYPOINTS),
        expects=("Yours",),
        environment=HERE,
    ),
    Command(
        "term-with-dot",
        f"{DISTILL} --terms mine.Mine",
        write("mine.py", TERM + WAYPOINTS),
        expects=("mine.Mine",),
        environment=HERE,
    ),
    Command(
        "own-data-here",
        f"{EXPERT} --data mine:load",
        write(
            "mine.py",
            "import numpy\ndef load():\n"
            "    images, labels = numpy.zeros((8, 16, 16), 'uint8'), numpy.arange(8) % 2\n"
            "    images[labels == 1] = 200\n"
            "    return images, labels, images, labels\n",
        ),
        outcome="works",
    ),
    Command(
        "net-here",
        OWN,
        write(
            "mine.py",
            NETWORK + "return torch.nn.Sequential(\n"
            "        torch.nn.Flatten(), torch.nn.Linear(in_channels * 256, num_classes))\n",
        ),
        outcome="works",
    ),
    Command(
        "term-here",
        f"{DISTILL} --terms mine:Mine",
        write(
            "mine.py",
            TERM + WAYPOINTS + "    def loss(self, course):\n"
            "        return course.student[course.steps].sum()\n",
        ),
        outcome="works",
    ),
]
"""Networks and matching terms of the user's own, with a mistake in them."""

ENVIRONMENT: list[Mistake] = [
    Command(
        "ascii-output",
        f"{TRAIN} && trajmatch store ls x",
        environment={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        outcome="works",
    ),
    Command(
        "ascii-help",
        "trajmatch expert --help",
        environment={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        outcome="works",
    ),
    Command(
        "ascii-error",
        f"{TRAIN} --epochs two",
        environment={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        expects=("--epochs",),
    ),
    Command(
        "ascii-unicode-name",
        f"{EXPERT} --data imagefolder:phötos",
        environment={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
    ),
    Command(
        "latin-1-doctor",
        "trajmatch doctor",
        environment={"PYTHONIOENCODING": "latin-1"},
        outcome="works",
    ),
    Command(
        "ascii-recipe",
        "trajmatch recipes datm/cifar10/ipc10",
        environment={"PYTHONIOENCODING": "ascii", "LC_ALL": "C"},
        outcome="works",
    ),
    Command(
        "narrow-help", "trajmatch distill --help", environment={"COLUMNS": "40"}, outcome="works"
    ),
    Command(
        "narrow-error",
        f"{TRAIN} --epochs two",
        environment={"COLUMNS": "40"},
        expects=("--epochs",),
    ),
    Command(
        "columns-a-word",
        "trajmatch expert --help",
        environment={"COLUMNS": "wide"},
        outcome="works",
    ),
    Command(
        "columns-zero", "trajmatch expert --help", environment={"COLUMNS": "0"}, outcome="works"
    ),
    Command(
        "columns-one", f"{TRAIN} --epochs two", environment={"COLUMNS": "1"}, outcome="refused"
    ),
    Command("no-home", TRAIN, environment={"HOME": None}, outcome="works"),
    Command("home-nowhere", TRAIN, environment={"HOME": "/nowhere/at/all"}, outcome="works"),
    Command(
        "no-path-no-home-no-lang",
        "trajmatch doctor",
        environment={"HOME": None, "LANG": None, "USER": None, "TERM": None},
        outcome="works",
    ),
    Command(
        "dumb-terminal",
        f"{TRAIN} --epochs two",
        environment={"TERM": "dumb"},
        expects=("--epochs",),
    ),
    Command(
        "folder-not-writable",
        f"mkdir closed && cp d.npz closed && cd closed && chmod 555 . && {TRAIN}",
        expects=("x",),
    ),
    Command(
        "show-not-writable", "chmod 555 . && trajmatch show d.safetensors", expects=("folder .",)
    ),
    Command(
        "report-not-writable",
        "chmod 555 . && trajmatch report d.safetensors",
        expects=("folder .",),
    ),
    Command(
        "bytecode-not-writable",
        f"chmod 555 photos && {EXPERT} --data imagefolder:photos",
        outcome="works",
    ),
    Command("no-tmpdir", TRAIN, environment={"TMPDIR": "/nowhere/at/all"}, outcome="works"),
    Command(
        "no-tmpdir-two-workers",
        f"{TRAIN} --num-experts 2 --workers 2",
        environment={"TMPDIR": "/nowhere/at/all"},
        outcome="works",
    ),
    Command("omp-a-word", TRAIN, environment={"OMP_NUM_THREADS": "abc"}, outcome="works"),
    Command("omp-zero", TRAIN, environment={"OMP_NUM_THREADS": "0"}, outcome="works"),
    Command("cuda-visible", TRAIN, environment={"CUDA_VISIBLE_DEVICES": "7"}, outcome="works"),
    Command(
        "cuda-visible-and-wanted",
        f"{TRAIN} --device cuda",
        environment={"CUDA_VISIBLE_DEVICES": "7"},
        expects=("cuda",),
    ),
    Command(
        "a-file-named-random",
        TRAIN,
        write("random.py", "raise RuntimeError('not the module')\n"),
        outcome="works",
        own_process=True,
    ),
    Command(
        "a-file-named-torch", TRAIN, write("torch.py", "x = 1\n"), outcome="works", own_process=True
    ),
    Command("closed-head", "trajmatch recipes | head -1", outcome="works"),
    Command("closed-head-json", "trajmatch recipes --json | head -1", outcome="works"),
    Command("closed-help", "trajmatch distill --help | head -1", outcome="works"),
    Command("closed-ls", "trajmatch store ls experts | true", outcome="works"),
    Command(
        "closed-progress",
        f"{TRAIN.replace('--epochs 1', '--epochs 50')} 2>&1 | head -1",
        outcome="works",
    ),
    Command("no-stdout", f"{TRAIN} >&-", outcome="works"),
    Command("no-stderr", f"{TRAIN} 2>&-", outcome="works"),
    Command("no-stdin", f"{TRAIN} <&-", outcome="works"),
    Command("full-disk-stdout", "trajmatch recipes > /dev/full", expects=("space",)),
    Command(
        "full-disk-out",
        "ln -s /dev/full x.npz && trajmatch export d.safetensors --to npz --out x.npz",
        expects=("x.npz",),
    ),
    Command(
        "out-to-a-pipe",
        "mkfifo p.npz && trajmatch export d.safetensors --to npz --out p.npz",
        expects=("p.npz",),
    ),
    Command("set-from-a-pipe", f"{EVAL} <(cat d.safetensors)", outcome="either"),
    Command("set-from-stdin", f"{EVAL} /dev/stdin < d.safetensors", outcome="either"),
    Command("set-from-a-device", f"{EVAL} /dev/zero", expects=("/dev/zero",)),
    Command(
        "folder-removed", f"mkdir gone && cd gone && rmdir ../gone && {TRAIN}", outcome="refused"
    ),
    Command(
        "little-memory",
        f"ulimit -v 1500000; {EXPERT} --data 'imagefolder:photos?size=8000'",
        expects=("memory",),
    ),
    Command("few-files", f"ulimit -n 24; {TRAIN}", outcome="either"),
    Command("file-size-limit", f"ulimit -f 8; {TRAIN}", expects=("x",)),
    Command(
        "trajmatch-data-nowhere",
        EVAL.replace("--data npz:d.npz", "") + " d.safetensors",
        environment={"TRAJMATCH_DATA": "/nowhere"},
        expects=("/nowhere",),
    ),
    Command(
        "killed-then-again",
        f"{LONG} & {AWAITED} kill -KILL $!; {TRAIN}",
        expects=("x", "--resume"),
    ),
    Command(
        "terminated",
        f"{LONG} & {AWAITED} kill $!; wait $!",
        expects=("--resume",),
    ),
    Command(
        "interrupted-by-hand",
        f"timeout -s INT 8 {LONG}",
        expects=("--resume",),
    ),
    Command(
        "distilled-before-experts",
        f"trajmatch distill --experts soon --out x.safetensors {STUDENT}",
        expects=("soon", "trajmatch expert"),
    ),
    Command(
        "torchrun-more-than-matches",
        f"torchrun --standalone --nproc-per-node 2 -m {DISTILL}",
        expects=("--matches",),
    ),
    Command(
        "torchrun-evaluate",
        f"torchrun --standalone --nproc-per-node 2 -m {EVAL} d.safetensors",
        expects=("without torchrun",),
    ),
    Command(
        "torchrun-bad-rank",
        TRAIN,
        environment={
            "RANK": "5",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29999",
        },
        outcome="either",
    ),
    Command(
        "torchrun-rank-a-word",
        TRAIN,
        environment={
            "RANK": "first",
            "WORLD_SIZE": "2",
            "LOCAL_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "29999",
        },
        outcome="either",
    ),
    Command("torchrun-half-set", TRAIN, environment={"WORLD_SIZE": "2"}, outcome="either"),
    Command(
        "torchrun-no-command",
        "torchrun --standalone --nproc-per-node 2 -m trajmatch",
        outcome="either",
    ),
    Command(
        "torchrun-misspelt-flag",
        f"torchrun --standalone --nproc-per-node 2 -m {DISTILL} --match 2",
        expects=("--match",),
    ),
    Command("parallel-alone", f"{DISTILL} --parallel batch", outcome="either"),
    Command(
        "wandb-not-there",
        f"{DISTILL} --wandb mine",
        environment={"WANDB_MODE": "offline"},
        outcome="either",
    ),
    Command("tensorboard-not-there", f"{DISTILL} --tensorboard d.npz", expects=("tensorboard",)),
]
"""Surroundings that a user did not think of."""

EXAMPLE = """\
import numpy, torch
from trajmatch import networks, ops

student = networks.ConvNet(in_channels=3, num_classes=10, image_size=16, width=16, depth=2)
theta0 = networks.flat_parameters(student)
target = theta0 + 0.01 * torch.randn_like(theta0)
images = torch.randn(10, 3, 16, 16, requires_grad=True)
labels = torch.arange(10)
lr = torch.tensor(0.01, requires_grad=True)
batches = torch.arange(10).repeat(5, 1)
theta = ops.unroll(student, theta0, images, labels, lr, batches)
loss = ops.param_distance(theta, target, theta0)
loss.backward()
assert torch.isfinite(images.grad).all() and loss.item() > 0
"""
"""The README's program that calls the operators, smaller."""

LOADED = """\
import torch, trajmatch
from trajmatch import networks

distilled = trajmatch.load("d.safetensors")
"""
"""The README's program that loads a distilled set."""


def _wrong(
    name: str, old: str, new: str, *, works: bool = False, expects: tuple[str, ...] = ()
) -> Call:
    """The example of the operators with one thing wrong."""
    assert EXAMPLE.count(old) == 1, (name, old)
    outcome = "either" if works else "refused"
    return Call(name, EXAMPLE.replace(old, new), expects=expects, outcome=outcome)


def _unroll(name: str, more: str, *, works: bool = False, expects: tuple[str, ...] = ()) -> Call:
    """The example with more arguments of ``unroll``."""
    return _wrong(name, "lr, batches)", f"lr, batches, {more})", works=works, expects=expects)


def _after(name: str, lines: str, *, works: bool = False, expects: tuple[str, ...] = ()) -> Call:
    """A distilled set is loaded, and then something wrong is done with it."""
    return Call(name, LOADED + lines, expects=expects, outcome="either" if works else "refused")


def _alone(
    name: str, imports: str, call: str, *, works: bool = False, expects: tuple[str, ...] = ()
) -> Call:
    """One call of what ``trajmatch`` has."""
    source = f"import numpy, torch, trajmatch\nfrom trajmatch import {imports}\n{call}\n"
    return Call(name, source, expects=expects, outcome="either" if works else "refused")


IMAGES = "images = torch.randn(10, 3, 16, 16, requires_grad=True)"
LABELS = "labels = torch.arange(10)\n"
LR = "lr = torch.tensor(0.01, requires_grad=True)"
BATCHES = "batches = torch.arange(10).repeat(5, 1)"
THETA = "theta0 = networks.flat_parameters(student)\n"

CALLS: list[Mistake] = [
    _wrong(
        "images-numpy",
        IMAGES,
        "images = numpy.ones((10, 3, 16, 16), dtype='float32')",
        expects=("images",),
    ),
    _wrong("images-list", IMAGES, "images = [torch.randn(3, 16, 16)] * 10", expects=("images",)),
    _wrong(
        "images-float64",
        IMAGES,
        "images = torch.randn(10, 3, 16, 16, dtype=torch.float64, requires_grad=True)",
        expects=("images", "float64"),
    ),
    _wrong(
        "images-half",
        IMAGES,
        "images = torch.randn(10, 3, 16, 16).half().requires_grad_()",
        expects=("images",),
    ),
    _wrong(
        "images-bytes",
        IMAGES,
        "images = torch.randint(256, (10, 3, 16, 16), dtype=torch.uint8)",
        expects=("images",),
    ),
    _wrong(
        "images-without-batch",
        IMAGES,
        "images = torch.randn(3, 16, 16, requires_grad=True)",
        expects=("images",),
    ),
    _wrong(
        "images-channels-last",
        IMAGES,
        "images = torch.randn(10, 16, 16, 3, requires_grad=True)",
        expects=("images",),
    ),
    _wrong(
        "images-too-large",
        IMAGES,
        "images = torch.randn(10, 3, 32, 32, requires_grad=True)",
        expects=("images", "32"),
    ),
    _wrong(
        "images-other-channels",
        IMAGES,
        "images = torch.randn(10, 1, 16, 16, requires_grad=True)",
        expects=("images",),
    ),
    _wrong(
        "images-on-meta",
        IMAGES,
        "images = torch.randn(10, 3, 16, 16, device='meta', requires_grad=True)",
        expects=("images", "meta"),
    ),
    _wrong("images-none", IMAGES, "images = torch.empty(0, 3, 16, 16, requires_grad=True)"),
    _wrong(
        "images-sparse",
        IMAGES,
        "images = torch.randn(10, 3, 16, 16).to_sparse()",
        expects=("images",),
    ),
    _wrong("images-None", IMAGES, "images = None", expects=("images",)),
    _wrong("labels-list", LABELS, "labels = list(range(10))\n", works=True),
    _wrong("labels-numpy", LABELS, "labels = numpy.arange(10)\n", works=True),
    _wrong(
        "labels-int32",
        LABELS,
        "labels = torch.arange(10, dtype=torch.int32)\n",
        expects=("labels",),
    ),
    _wrong("labels-float", LABELS, "labels = torch.arange(10).float()\n", expects=("labels",)),
    _wrong("labels-from-one", LABELS, "labels = torch.arange(1, 11)\n", expects=("labels", "10")),
    _wrong("labels-minus-one", LABELS, "labels = torch.arange(10) - 1\n", expects=("labels", "-1")),
    _wrong("labels-too-few", LABELS, "labels = torch.arange(9)\n", expects=("labels", "9")),
    _wrong("labels-one-hot-int", LABELS, "labels = torch.eye(10).long()\n", expects=("labels",)),
    _wrong("labels-other-classes", LABELS, "labels = torch.eye(10, 7)\n", expects=("labels", "7")),
    _wrong("labels-column", LABELS, "labels = torch.arange(10)[:, None]\n", expects=("labels",)),
    _wrong("lr-a-list", LR, "lr = [0.01]", expects=("lr",)),
    _wrong("lr-a-vector", LR, "lr = torch.tensor([0.01], requires_grad=True)", expects=("lr",)),
    _wrong("lr-of-each-step", LR, "lr = torch.full((5,), 0.01)", works=True),
    _wrong("lr-of-other-steps", LR, "lr = torch.full((4,), 0.01)", expects=("lr",)),
    _wrong("lr-a-text", LR, "lr = '0.01'", expects=("lr",)),
    _wrong("lr-below-zero", LR, "lr = torch.tensor(-0.01)", works=True),
    _wrong(
        "lr-float64",
        LR,
        "lr = torch.tensor(0.01, dtype=torch.float64, requires_grad=True)",
        expects=("lr",),
    ),
    _wrong("lr-an-int", LR, "lr = torch.tensor(1)", expects=("lr",)),
    _wrong("lr-none", LR, "lr = None", expects=("lr",)),
    _wrong(
        "batches-float", BATCHES, "batches = torch.arange(10.0).repeat(5, 1)", expects=("batches",)
    ),
    _wrong(
        "batches-int32",
        BATCHES,
        "batches = torch.arange(10).repeat(5, 1).int()",
        expects=("batches",),
    ),
    _wrong(
        "batches-beyond",
        BATCHES,
        "batches = torch.arange(1, 11).repeat(5, 1)",
        expects=("batches", "10"),
    ),
    _wrong(
        "batches-negative",
        BATCHES,
        "batches = torch.arange(10).repeat(5, 1) - 1",
        expects=("batches",),
    ),
    _wrong("batches-one-step", BATCHES, "batches = torch.arange(10)", expects=("batches",)),
    _wrong("batches-lists", BATCHES, "batches = [[0, 1, 2], [3, 4, 5]]", works=True),
    _wrong("batches-a-number", BATCHES, "batches = 5", expects=("batches",)),
    _wrong("batches-numpy", BATCHES, "batches = numpy.arange(10)[None]", works=True),
    _wrong(
        "batches-none",
        BATCHES,
        "batches = torch.empty(0, 10, dtype=torch.int64)",
        expects=("batches",),
    ),
    _wrong(
        "batches-of-nothing",
        BATCHES,
        "batches = torch.empty(5, 0, dtype=torch.int64)",
        expects=("batches",),
    ),
    _wrong(
        "batches-bool",
        BATCHES,
        "batches = torch.ones(5, 10, dtype=torch.bool)",
        expects=("batches",),
    ),
    _wrong(
        "batches-a-generator", BATCHES, "batches = (torch.arange(10) for _ in range(5))", works=True
    ),
    _wrong(
        "theta-of-another-network",
        THETA,
        "theta0 = networks.flat_parameters(networks.ConvNet(3, 10, 16, 8, 2))\n",
        expects=("theta0",),
    ),
    Call(
        "theta-a-list",
        EXAMPLE.replace("unroll(student, theta0", "unroll(student, list(student.parameters())"),
        expects=("theta0",),
    ),
    Call(
        "theta-a-state-dict",
        EXAMPLE.replace("unroll(student, theta0", "unroll(student, student.state_dict()"),
        expects=("theta0",),
    ),
    Call(
        "theta-a-column",
        EXAMPLE.replace("unroll(student, theta0", "unroll(student, theta0[:, None]"),
        expects=("theta0",),
    ),
    Call(
        "theta-float64-alone",
        EXAMPLE.replace("unroll(student, theta0", "unroll(student, theta0.double()"),
    ),
    Call(
        "model-in-wrong-place",
        EXAMPLE.replace("unroll(student, theta0", "unroll(theta0, student"),
        expects=("model",),
    ),
    Call(
        "model-a-class",
        EXAMPLE.replace("unroll(student, theta0", "unroll(networks.ConvNet, theta0"),
        expects=("model",),
    ),
    Call(
        "model-a-name",
        EXAMPLE.replace("unroll(student, theta0", "unroll('convnet', theta0"),
        expects=("model",),
    ),
    Call(
        "model-double",
        EXAMPLE.replace("unroll(student, theta0", "unroll(student.double(), theta0"),
        outcome="either",
    ),
    Call(
        "model-a-list-of-layers",
        EXAMPLE.replace("unroll(student, theta0", "unroll(torch.nn.ModuleList([student]), theta0"),
        expects=("ModuleList",),
    ),
    Call(
        "images-and-labels-swapped",
        EXAMPLE.replace("images, labels, lr, batches", "labels, images, lr, batches"),
        expects=("images",),
    ),
    Call(
        "lr-and-batches-swapped",
        EXAMPLE.replace("images, labels, lr, batches", "images, labels, batches, lr"),
        expects=("batches",),
    ),
    Call(
        "batches-forgotten",
        EXAMPLE.replace("labels, lr, batches", "labels, lr"),
        expects=("unroll",),
    ),
    _unroll("steps-beyond", "steps=[2, 9]", expects=("steps", "9")),
    _unroll("steps-zero", "steps=[0]", expects=("steps",)),
    _unroll("steps-a-number", "steps=5", expects=("steps",)),
    _unroll("steps-empty", "steps=[]", expects=("steps",)),
    _unroll("steps-floats", "steps=[2.5]", expects=("steps",)),
    _unroll("momentum-negative", "momentum=-1", works=True),
    _unroll("momentum-text", "momentum='0.9'", expects=("momentum",)),
    _unroll("augment-a-name", "augment='color_flip'", expects=("augment",)),
    _unroll(
        "augment-dsa-itself", "augment=__import__('trajmatch').data.DSA()", expects=("augment",)
    ),
    _unroll("augment-other-shape", "augment=lambda x, step: x[:, :, :8, :8]", expects=("augment",)),
    _unroll("augment-none-returned", "augment=lambda x, step: None", expects=("augment",)),
    _unroll("augment-one-argument", "augment=lambda x: x", expects=("augment",)),
    _unroll("augment-half-of-batch", "augment=lambda x, step: x[:5]", expects=("augment",)),
    _unroll("augment-float64", "augment=lambda x, step: x.double()", expects=("augment",)),
    _unroll("micro-batch-none", "micro_batch=0", expects=("micro_batch",)),
    _unroll("tape-below-zero", "tape_bytes=-1", expects=("tape_bytes",)),
    _unroll("misspelt-argument", "momentun=0.9", works=False),
    Call(
        "distance-other-length",
        EXAMPLE.replace("param_distance(theta, target", "param_distance(theta, target[:-1]"),
        expects=("target",),
    ),
    Call(
        "distance-numpy",
        EXAMPLE.replace("param_distance(theta, target", "param_distance(theta, target.numpy()"),
        expects=("target",),
    ),
    Call(
        "dropout-in-training",
        EXAMPLE.replace(
            "networks.ConvNet(in_channels=3, num_classes=10, image_size=16, width=16, depth=2)",
            "torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(768, 10))",
        ),
        outcome="either",
    ),
    Call(
        "batch-norm-micro-batch",
        EXAMPLE.replace("depth=2)", "depth=2, norm='batch')").replace(
            "lr, batches)", "lr, batches, micro_batch=2)"
        ),
        expects=("micro_batch",),
    ),
    Call(
        "second-order",
        EXAMPLE.replace(
            "loss.backward()",
            "g, = torch.autograd.grad(loss, images, create_graph=True)\ng.sum().backward()",
        ),
        expects=("reference",),
    ),
    # the other operators
    _alone("convnet-no-image-size", "networks", "networks.ConvNet(3, 10)", expects=("image_size",)),
    _alone(
        "convnet-too-deep", "networks", "networks.ConvNet(3, 10, 8, depth=5)", expects=("depth",)
    ),
    _alone(
        "convnet-unknown-norm",
        "networks",
        "networks.ConvNet(3, 10, 16, norm='instancenorm')",
        expects=("norm", "instance"),
    ),
    _alone(
        "convnet-width-a-float",
        "networks",
        "networks.ConvNet(3, 10, 16, width=16.0)",
        expects=("width",),
    ),
    _alone(
        "convnet-size-a-pair",
        "networks",
        "networks.ConvNet(3, 10, (16, 16))",
        expects=("image_size",),
    ),
    _alone(
        "convnet-no-classes", "networks", "networks.ConvNet(3, 0, 16)", expects=("num_classes",)
    ),
    _alone("build-a-name", "networks", "networks.build('convnet')"),
    _alone(
        "build-unknown",
        "networks",
        "networks.build({'name': 'ConvNett', 'in_channels': 3, 'num_classes': "
        "10, 'image_size': 16})",
        expects=("ConvNett",),
    ),
    _alone(
        "build-no-size", "networks", "networks.build({'name': 'ConvNet'})", expects=("in_channels",)
    ),
    _alone(
        "specify-unknown", "networks", "networks.specify('convnt', 3, 10, 16)", expects=("convnt",)
    ),
    _alone(
        "load-flat-too-short",
        "networks",
        "networks.load_flat_parameters(networks.ConvNet(3, 10, 16), torch.zeros(5))",
        expects=("5",),
    ),
    _alone(
        "dsa-without-parameters",
        "ops",
        "ops.dsa(torch.rand(4, 3, 16, 16), torch.rand(4))",
        expects=("parameters",),
    ),
    _alone(
        "dsa-other-number",
        "ops",
        "ops.dsa(torch.rand(4, 3, 16, 16), torch.zeros(3, 5))",
        expects=("parameters",),
    ),
    _alone(
        "dsa-a-name", "ops", "ops.dsa(torch.rand(4, 3, 16, 16), 'flip')", expects=("parameters",)
    ),
    _alone("dsa-strategy-unknown", "data", "data.DSA('colour')", expects=("colour", "color")),
    _alone("dsa-strategy-a-list", "data", "data.DSA(['color', 'flip'])"),
    _alone(
        "cross-entropy-probabilities",
        "ops",
        "ops.soft_cross_entropy(torch.randn(4, 3), torch.tensor([0, 1, 2]))",
        expects=("targets",),
    ),
    _alone(
        "cross-entropy-beyond",
        "ops",
        "ops.soft_cross_entropy(torch.randn(2, 3), torch.tensor([0, 3]))",
        expects=("targets", "3"),
    ),
    _alone(
        "norm-act-pool-name",
        "ops",
        "ops.norm_act_pool(torch.randn(2, 4, 8, 8), activation='gelu')",
        expects=("activation", "gelu"),
    ),
    _alone("norm-act-pool-flat", "ops", "ops.norm_act_pool(torch.randn(2, 4))", expects=("x",)),
    _alone(
        "norm-act-pool-weight",
        "ops",
        "ops.norm_act_pool(torch.randn(2, 4, 8, 8), torch.ones(3), torch.ones(3))",
        expects=("weight",),
    ),
    _alone(
        "sgd-step-shapes",
        "ops",
        "ops.sgd_step(torch.zeros(3), torch.zeros(4), 0.1)",
        expects=("grad",),
    ),
    _alone(
        "sgd-step-text",
        "ops",
        "ops.sgd_step(torch.zeros(3), torch.zeros(3), '0.1')",
        expects=("lr",),
    ),
    _alone(
        "gradient-loss-unknown",
        "networks, ops",
        "m = networks.ConvNet(3, 10, 16, 16, 2)\n"
        "ops.gradient(m, networks.flat_parameters(m), torch.rand(2, 3, 16, 16), "
        "torch.tensor([0, 1]), loss='mse')",
        expects=("loss", "mse"),
    ),
    _alone(
        "gradient-no-labels",
        "networks, ops",
        "m = networks.ConvNet(3, 10, 16, 16, 2)\n"
        "ops.gradient(m, networks.flat_parameters(m), torch.rand(2, 3, 16, 16), "
        "None)",
        expects=("labels",),
    ),
    _alone(
        "jvp-no-direction",
        "networks, ops",
        "m = networks.ConvNet(3, 10, 16, 16, 2)\n"
        "ops.gradient_jvp(m, networks.flat_parameters(m), torch.rand(2, 3, 16, "
        "16), torch.tensor([0, 1]))",
        works=True,
    ),
    _alone(
        "jvp-short-direction",
        "networks, ops",
        "m = networks.ConvNet(3, 10, 16, 16, 2)\n"
        "ops.gradient_jvp(m, networks.flat_parameters(m), torch.rand(2, 3, 16, "
        "16), torch.tensor([0, 1]), torch.zeros(3))",
        expects=("tangent",),
    ),
    _alone(
        "tape-bytes-a-number",
        "networks, ops",
        "ops.tape_bytes(networks.ConvNet(3, 10, 16), 10)",
        expects=("batch_sizes",),
    ),
    _alone("engine-for-a-name", "ops", "ops.engine_for('convnet')", expects=("model",)),
    # distilled sets, stores, configurations
    _alone(
        "load-missing",
        "artifact",
        "trajmatch.load('nothing.safetensors')",
        expects=("nothing.safetensors",),
    ),
    _alone("load-a-folder", "artifact", "trajmatch.load('photos')", expects=("photos",)),
    _alone("load-a-store", "artifact", "trajmatch.load('experts')", expects=("experts",)),
    _alone("load-an-npz", "artifact", "trajmatch.load('d.npz')", expects=("d.npz",)),
    _alone(
        "load-an-expert",
        "artifact",
        "trajmatch.load('experts/expert_0000.safetensors')",
        expects=("expert_0000",),
    ),
    _alone("load-nothing", "artifact", "trajmatch.load(None)"),
    _alone("load-an-open-file", "artifact", "trajmatch.load(open('d.safetensors', 'rb'))"),
    _alone(
        "load-a-pt",
        "artifact",
        "torch.save({'images': torch.ones(3)}, 'd.pt')\ntrajmatch.load('d.pt')",
        expects=("d.pt",),
    ),
    _after(
        "train-fewer-classes",
        "distilled.train(networks.ConvNet(3, 2, 16, 16, 2), epochs=1)",
        expects=("labels",),
    ),
    _after(
        "train-more-classes",
        "distilled.train(networks.ConvNet(3, 9, 16, 16, 2), epochs=1)",
        works=True,
    ),
    _after(
        "train-other-image-size",
        "distilled.train(networks.ConvNet(3, 3, 32, 16, 2), epochs=1)",
        expects=("ConvNet", "16"),
    ),
    _after(
        "train-grey-model",
        "distilled.train(networks.ConvNet(1, 3, 16, 16, 2), epochs=1)",
        expects=("1", "3"),
    ),
    _after("train-a-class", "distilled.train(networks.ConvNet, epochs=1)", expects=("model",)),
    _after("train-a-name", "distilled.train('convnet', epochs=1)", expects=("model",)),
    _after(
        "train-negative-epochs",
        "distilled.train(networks.ConvNet(3, 3, 16, 16, 2), epochs=-5)",
        expects=("epochs",),
    ),
    _after(
        "train-half-epochs",
        "distilled.train(networks.ConvNet(3, 3, 16, 16, 2), epochs=1.5)",
        expects=("epochs",),
    ),
    _after(
        "train-text-seed",
        "distilled.train(networks.ConvNet(3, 3, 16, 16, 2), epochs=1, seed='x')",
        expects=("seed",),
    ),
    _after(
        "train-double-model",
        "m = distilled.train(networks.ConvNet(3, 3, 16, 16, 2).double(), "
        "epochs=1)\n"
        "assert all(p.isfinite().all() for p in m.parameters())",
        works=True,
    ),
    _after(
        "train-frozen-model",
        "distilled.train(networks.ConvNet(3, 3, 16, 16, 2).requires_grad_(False), epochs=1)",
        works=True,
    ),
    _after("train-no-parameters", "distilled.train(torch.nn.Flatten(), epochs=1)"),
    Call("train-without-flatten", LOADED + "distilled.train(torch.nn.Linear(768, 3), epochs=1)\n"),
    _after("to-images-over-photos", "distilled.to_images('photos')", expects=("photos",)),
    _after("to-images-onto-a-file", "distilled.to_images('d.npz')", expects=("d.npz",)),
    _after("set-a-field", "distilled.lr = 0.5", expects=("lr",)),
    _after("save-elsewhere", "trajmatch.artifact.save('a/b/c.safetensors', distilled)", works=True),
    _after("save-wrong-way-round", "trajmatch.artifact.save(distilled, 'c.safetensors')"),
    _after("save-a-tensor", "trajmatch.artifact.save('c.safetensors', distilled.images)"),
    _after(
        "replace-labels",
        "import dataclasses\ndataclasses.replace(distilled, labels=distilled.labels + 5)",
        expects=("labels",),
    ),
    _after(
        "replace-labels-list",
        "import dataclasses\ndataclasses.replace(distilled, labels=[0, 1, 2])",
        expects=("labels",),
    ),
    _after(
        "replace-images-nan",
        "import dataclasses\n"
        "dataclasses.replace(distilled, images=distilled.images * float('nan'))",
        expects=("images",),
    ),
    _after(
        "replace-images-shape",
        "import dataclasses\ndataclasses.replace(distilled, images=distilled.images[:2])",
        expects=("labels",),
    ),
    _after(
        "replace-lr-negative",
        "import dataclasses\ndataclasses.replace(distilled, lr=-1.0)",
        expects=("lr",),
    ),
    _after(
        "replace-std",
        "import dataclasses\ndataclasses.replace(distilled, std=(0.0, 0.0, 0.0))",
        expects=("std",),
    ),
    _after(
        "replace-names",
        "import dataclasses\ndataclasses.replace(distilled, class_names=('a', 'b'))",
        expects=("label",),
    ),
    _after(
        "replace-dsa",
        "import dataclasses\ndataclasses.replace(distilled, dsa='colour')",
        expects=("colour",),
    ),
    Call(
        "store-open-missing",
        "from trajmatch.experts import Store\nStore.open('nothing')\n",
        expects=("nothing",),
    ),
    Call(
        "store-open-a-file",
        "from trajmatch.experts import Store\nStore.open('d.safetensors')\n",
        expects=("d.safetensors",),
    ),
    Call(
        "store-expert-beyond",
        "from trajmatch.experts import Store\nStore.open('experts').snapshot(7, 0)\n",
        expects=("7",),
    ),
    Call(
        "store-expert-negative",
        "from trajmatch.experts import Store\nStore.open('experts').snapshot(-1, 0)\n",
        expects=("-1",),
    ),
    Call(
        "store-epoch-beyond",
        "from trajmatch.experts import Store\nStore.open('experts').snapshot(0, 99)\n",
        expects=("99",),
    ),
    Call(
        "store-epoch-a-float",
        "from trajmatch.experts import Store\nStore.open('experts').snapshot(0, 1.5)\n",
        expects=("1.5",),
    ),
    Call(
        "config-text-path",
        "from trajmatch.distill import DistillConfig, distill\n"
        "distill(DistillConfig(experts='experts', out='x.safetensors', "
        "iterations=1, student_steps=2, expert_epochs=1, max_start_epoch=1, "
        "quiet=True))\n",
        outcome="either",
    ),
    Call(
        "config-text-number",
        "from pathlib import Path\n"
        "from trajmatch.distill import DistillConfig, distill\n"
        "distill(DistillConfig(experts=Path('experts'), "
        "out=Path('x.safetensors'), iterations='1'))\n",
        expects=("iterations",),
    ),
    Call(
        "config-bad-choice",
        "from pathlib import Path\n"
        "from trajmatch.distill import DistillConfig, distill\n"
        "distill(DistillConfig(experts=Path('experts'), "
        "out=Path('x.safetensors'), iterations=1, student_steps=2, "
        "expert_epochs=1, max_start_epoch=1, labels='softt'))\n",
        expects=("labels",),
    ),
    Call(
        "config-negative",
        "from pathlib import Path\n"
        "from trajmatch.distill import DistillConfig, distill\n"
        "distill(DistillConfig(experts=Path('experts'), "
        "out=Path('x.safetensors'), iterations=-1))\n",
        expects=("iterations",),
    ),
    Call(
        "config-expert-negative",
        "from pathlib import Path\n"
        "from trajmatch.experts import ExpertConfig, train_experts\n"
        "train_experts(ExpertConfig(out=Path('x'), data='npz:d.npz', "
        "num_experts=1, epochs=1, width=16, depth=2, lr=-1.0))\n",
        expects=("lr",),
    ),
    Call(
        "config-expert-fraction",
        "from pathlib import Path\n"
        "from trajmatch.experts import ExpertConfig, train_experts\n"
        "train_experts(ExpertConfig(out=Path('x'), data='npz:d.npz', "
        "num_experts=1, epochs=1.5, width=16, depth=2))\n",
        expects=("epochs",),
    ),
    Call("distill-without-config", "from trajmatch.distill import distill\ndistill('experts')\n"),
    Call(
        "load-dataset-path",
        "from trajmatch.data import load_dataset\nload_dataset('d.npz')\n",
        expects=("d.npz",),
    ),
    Call("load-dataset-number", "from trajmatch.data import load_dataset\nload_dataset(10)\n"),
    Call(
        "load-dataset-pathlib",
        "from pathlib import Path\n"
        "from trajmatch.data import load_dataset\n"
        "load_dataset(Path('photos'))\n",
    ),
    Call(
        "k-center-too-many",
        "import torch\n"
        "from trajmatch import evaluate\n"
        "evaluate.k_center(torch.randn(6, 4), torch.arange(6) % 3, 5)\n",
        outcome="either",
    ),
    Call(
        "random-subset-too-many",
        "import torch\n"
        "from trajmatch import evaluate\n"
        "evaluate.random_subset(torch.arange(6) % 3, 5, torch.Generator())\n",
        outcome="either",
    ),
    Call(
        "accuracy-no-images",
        "import torch\n"
        "from trajmatch import evaluate, networks\n"
        "evaluate.accuracy(networks.ConvNet(3, 3, 16, 16, 2), torch.empty(0, 3, "
        "16, 16), torch.empty(0, dtype=torch.int64))\n",
    ),
    Call(
        "accuracy-fewer-labels",
        "import torch\n"
        "from trajmatch import evaluate, networks\n"
        "evaluate.accuracy(networks.ConvNet(3, 3, 16, 16, 2), torch.rand(4, 3, "
        "16, 16), torch.tensor([0, 1]))\n",
        expects=("labels",),
    ),
    Call(
        "train-fewer-labels",
        "import torch\n"
        "from trajmatch import evaluate, networks\n"
        "evaluate.train(networks.ConvNet(3, 3, 16, 16, 2), torch.rand(4, 3, 16, "
        "16), torch.tensor([0, 1]), evaluate.Protocol(epochs=1))\n",
        expects=("labels",),
    ),
    Call(
        "protocol-negative",
        "import torch\n"
        "from trajmatch import evaluate, networks\n"
        "evaluate.train(networks.ConvNet(3, 3, 16, 16, 2), torch.rand(4, 3, 16, "
        "16), torch.tensor([0, 1, 2, 0]), evaluate.Protocol(epochs=1, lr=-1.0))\n",
        outcome="either",
    ),
    Call(
        "normalise-floats",
        "import torch\n"
        "from trajmatch.data import ChannelNormalisation\n"
        "x = ChannelNormalisation((0.5,), (0.5,)).apply(torch.rand(2, 3, 4, 4))\n"
        "assert x.max() > 0\n",
        outcome="either",
    ),
    Call(
        "normalise-channels",
        "import torch\n"
        "from trajmatch.data import ChannelNormalisation\n"
        "ChannelNormalisation((0.5, 0.5), (0.5, 0.5)).apply(torch.zeros(2, 3, 4, 4))\n",
        expects=("channel",),
    ),
    Call(
        "a-file-named-secrets",
        "import trajmatch\ntrajmatch.load('d.safetensors')\n",
        setup=write("secrets.py", "x = 1\n"),
        outcome="works",
    ),
]
"""Wrong calls from Python."""

MISTAKES: list[Mistake] = [*COMMANDS, *FILES, *DATA, *OWN_PARTS, *ENVIRONMENT, *CALLS]
"""All of them."""
