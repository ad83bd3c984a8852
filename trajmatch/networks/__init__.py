"""Student and expert networks, and their parameters as one flat vector."""

from trajmatch.networks.alexnet import AlexNet
from trajmatch.networks.convnet import ConvNet
from trajmatch.networks.differentiable import (
    check_batches,
    check_runs_on,
    check_student,
    check_twice_differentiable,
    examine,
)
from trajmatch.networks.engine import engine_description
from trajmatch.networks.external import External, is_external, is_user_function
from trajmatch.networks.flat import (
    call_flat,
    flat_buffers,
    flat_parameters,
    load_flat_buffers,
    load_flat_parameters,
    num_buffers,
    num_parameters,
    parameter_shapes,
    split,
    trainable,
)
from trajmatch.networks.initialise import initialise
from trajmatch.networks.lenet import LeNet
from trajmatch.networks.mlp import MLP
from trajmatch.networks.registry import build, build_student, check_runs, specify
from trajmatch.networks.resnet import ResNet18, ResNet18_AP
from trajmatch.networks.vgg import VGG11

__all__ = [
    "MLP",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "External",
    "LeNet",
    "ResNet18",
    "ResNet18_AP",
    "build",
    "build_student",
    "call_flat",
    "check_batches",
    "check_runs",
    "check_runs_on",
    "check_student",
    "check_twice_differentiable",
    "engine_description",
    "examine",
    "flat_buffers",
    "flat_parameters",
    "initialise",
    "is_external",
    "is_user_function",
    "load_flat_buffers",
    "load_flat_parameters",
    "num_buffers",
    "num_parameters",
    "parameter_shapes",
    "specify",
    "split",
    "trainable",
]
