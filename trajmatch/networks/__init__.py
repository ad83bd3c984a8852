"""Student and expert networks, and their parameters as one flat vector."""

from trajmatch.networks.convnet import ConvNet as ConvNet
from trajmatch.networks.differentiable import check_batches as check_batches
from trajmatch.networks.differentiable import check_runs_on as check_runs_on
from trajmatch.networks.differentiable import check_student as check_student
from trajmatch.networks.differentiable import (
    check_twice_differentiable as check_twice_differentiable,
)
from trajmatch.networks.differentiable import examine as examine
from trajmatch.networks.engine import engine_description as engine_description
from trajmatch.networks.external import External as External
from trajmatch.networks.external import is_external as is_external
from trajmatch.networks.external import is_user_function as is_user_function
from trajmatch.networks.flat import call_flat as call_flat
from trajmatch.networks.flat import flat_buffers as flat_buffers
from trajmatch.networks.flat import flat_parameters as flat_parameters
from trajmatch.networks.flat import load_flat_buffers as load_flat_buffers
from trajmatch.networks.flat import load_flat_parameters as load_flat_parameters
from trajmatch.networks.flat import num_buffers as num_buffers
from trajmatch.networks.flat import num_parameters as num_parameters
from trajmatch.networks.flat import parameter_shapes as parameter_shapes
from trajmatch.networks.flat import split as split
from trajmatch.networks.flat import trainable as trainable
from trajmatch.networks.initialise import initialise as initialise
from trajmatch.networks.registry import build as build
from trajmatch.networks.registry import build_student as build_student
from trajmatch.networks.registry import check_runs as check_runs
from trajmatch.networks.registry import specify as specify
from trajmatch.networks.resnet import ResNet18 as ResNet18
from trajmatch.networks.resnet import ResNet18_AP as ResNet18_AP
from trajmatch.networks.sequential import MLP as MLP
from trajmatch.networks.sequential import VGG11 as VGG11
from trajmatch.networks.sequential import AlexNet as AlexNet
from trajmatch.networks.sequential import LeNet as LeNet
