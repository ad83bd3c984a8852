"""Trajectory matching as MTT's program does it, with none of its options."""

import argparse
import os

import numpy as np
import torch
import wandb
from reparam_module import ReparamModule
from utils import (
    DiffAugment,
    ParamDiffAug,
    criterion,
    evaluate_synset,
    get_dataset,
    get_network,
)

parser = argparse.ArgumentParser()
for name in ("dataset", "model", "buffer_path", "data_path"):
    parser.add_argument(f"--{name}")
for name in ("lr_img", "lr_lr", "lr_teacher"):
    parser.add_argument(f"--{name}", type=float)
for name in ("ipc", "syn_steps", "expert_epochs", "max_start_epoch", "batch_syn", "Iteration"):
    parser.add_argument(f"--{name}", type=int)
for name in ("eval_it", "num_eval", "epoch_eval_train"):
    parser.add_argument(f"--{name}", type=int, default=1)
args = parser.parse_args()
args.dsa_param, args.dsa_strategy, args.batch_train = ParamDiffAug(), "flip_color", 256
wandb.init(project="", config=args)

channel, size, classes, _, _, _, train, _, testloader, *_ = get_dataset(
    args.dataset, args.data_path, args=args
)
labels = torch.arange(classes).repeat_interleave(args.ipc)
images = torch.stack([train[train.targets.index(int(each))][0] for each in labels])
images = images.to(torch.float).requires_grad_()
step_size = torch.tensor(args.lr_teacher).requires_grad_()
optimisers = [
    torch.optim.SGD([images], lr=args.lr_img, momentum=0.5),
    torch.optim.SGD([step_size], lr=args.lr_lr, momentum=0.5),
]
folder = os.path.join(args.buffer_path, args.dataset + "_NO_ZCA", args.model)
expert = torch.load(os.path.join(folder, "replay_buffer_0.pt"))[0]

for it in range(args.Iteration + 1):
    wandb.log({"Progress": it}, step=it)
    for number in range(args.num_eval if it % args.eval_it == 0 else 0):
        net, args.lr_net = get_network(args.model, channel, classes, size), step_size.item()
        evaluate_synset(number, net, images.detach().clone(), labels, testloader, args)
    wandb.log({"Synthetic_LR": step_size.detach()}, step=it)
    student = ReparamModule(get_network(args.model, channel, classes, size))
    epoch = np.random.randint(0, args.max_start_epoch)
    theta = torch.cat([each.reshape(-1) for each in expert[epoch]]).requires_grad_()
    start = theta.detach()
    target = torch.cat([each.reshape(-1) for each in expert[epoch + args.expert_epochs]])
    chunks = []
    for _ in range(args.syn_steps):
        if not chunks:
            chunks = list(torch.split(torch.randperm(len(images)), args.batch_syn))
        batch = chunks.pop()
        shown = DiffAugment(images[batch], args.dsa_strategy, param=args.dsa_param)
        loss = criterion(student(shown, flat_param=theta), labels[batch])
        theta = theta - step_size * torch.autograd.grad(loss, theta, create_graph=True)[0]
    loss = (theta - target).square().sum() / (start - target).square().sum()
    for optimiser in optimisers:
        optimiser.zero_grad()
    loss.backward()
    for optimiser in optimisers:
        optimiser.step()
    wandb.log({"Grand_Loss": loss.detach(), "Start_Epoch": epoch})
