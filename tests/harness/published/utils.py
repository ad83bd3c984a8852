"""A small program with the interface of MTT's: data, networks, augmentation, evaluation."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from trajmatch import networks


class ParamDiffAug:
    """Constants of the augmentation."""

    prob_flip, brightness, saturation, contrast = 0.5, 1.0, 2.0, 0.5


def DiffAugment(x, strategy, param):
    """Flip a batch, or change its colours."""
    group = strategy.split("_")[torch.randint(0, 2, size=(1,)).item()]
    if group == "flip":
        return torch.where(torch.rand(len(x), 1, 1, 1) < param.prob_flip, x.flip(3), x)
    x = x + (torch.rand(len(x), 1, 1, 1) - 0.5) * param.brightness
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * torch.rand(len(x), 1, 1, 1) * param.saturation + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (torch.rand(len(x), 1, 1, 1) + param.contrast) + mean


def get_dataset(name, data_path, batch_real=1, subset="", args=None):
    """Return what MTT's function of this name does."""
    from torchvision import datasets

    parts = [datasets.CIFAR10(data_path, train=each, transform=None) for each in (True, False)]
    loader = torch.utils.data.DataLoader(parts[1], batch_size=8)
    return 3, (32, 32), 10, parts[0].classes, [0], [1], *parts, loader, None, None, None


def get_network(model, channel, num_classes, im_size=(32, 32), dist=True):
    """Return a ConvNet of width 32."""
    assert model == "ConvNetW32"
    return networks.build(networks.specify("convnet:width=32", channel, num_classes, im_size[0]))


def evaluate_synset(it_eval, net, images, labels, testloader, args):
    """Train a network and test it."""
    lr, optimiser = args.lr_net, None
    data = torch.utils.data.TensorDataset(images, labels)
    for index in range(args.epoch_eval_train + 1):
        if optimiser is None or index == args.epoch_eval_train // 2 + 2:
            lr = lr if optimiser is None else 0.1 * lr
            parameters = net.parameters()
            optimiser = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)
        for batch, answers in torch.utils.data.DataLoader(data, args.batch_train, shuffle=True):
            shown = DiffAugment(batch, args.dsa_strategy, param=args.dsa_param)
            optimiser.zero_grad()
            cross_entropy(net(shown), answers).backward()
            optimiser.step()
    with torch.no_grad():
        right = [(net(batch).argmax(1) == answers).float() for batch, answers in testloader]
    return net, [], torch.cat(right).mean().item()


criterion = nn.CrossEntropyLoss()
