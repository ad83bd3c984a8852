"""Every built-in parametrisation in runs, and its files."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from stand_ins import PARAMETRISATIONS, Counting, Interrupter, gradients_of

import trajmatch
from trajmatch import artifact, files
from trajmatch.artifact import Artifact
from trajmatch.cli.main import main
from trajmatch.distill import distill
from trajmatch.distill.gradients import Graph
from trajmatch.distill.initialise import free_rows
from trajmatch.distill.objectives import Plan, read
from trajmatch.distill.parameters import learned, leaves, values
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError


@pytest.fixture(params=PARAMETRISATIONS)
def spec(request) -> str:
    return request.param


@pytest.fixture
def config(configure, spec):
    lr = 1e-3 if "implicit" in spec else 10.0
    return configure(images=spec, iterations=4, lr_img=lr, freeze=1, ema=0.5)


def test_a_run_goes_on_with_equal_bytes_and_keeps_frozen_rows(config, spec, tmp_path) -> None:
    whole = replace(config, out=tmp_path / "whole" / "d")
    part = replace(config, out=tmp_path / "part" / "d")
    result = distill(whole)
    with pytest.raises(KeyboardInterrupt):
        distill(part, Interrupter(3))
    distill(replace(part, resume=True))
    assert part.out.read_bytes() == whole.out.read_bytes()

    per_class = PARAMETRISATIONS[spec]
    first = prepare(whole).initial_set().images.unflatten(0, (3, per_class))
    last = result.images.unflatten(0, (3, per_class))
    frozen = 2 if spec == "flip" else 1  # with its mirror image
    assert torch.equal(last[:, :frozen], first[:, :frozen])
    assert all((last[:, each] != first[:, each]).any() for each in range(frozen, per_class))

    found = trajmatch.load(whole.out)
    assert torch.equal(found.images, result.images)
    assert "images" not in files.load_tensors(whole.out)[0]
    assert (found.parametrisation, found.fingerprint) == (spec, result.fingerprint)
    labels = 3 * per_class
    learned = 3 * 128 if "implicit" not in spec else 3 * per_class * 37
    sizes = [each.nbytes for each in found.parameters.values()]
    assert found.stored_bytes == sum(sizes) + 8 * labels
    if "palette" not in spec:
        assert found.stored_values == learned
    else:  # bytes, beside two numbers for the range of each palette
        assert found.stored_values == sum(sizes) - 6 * labels

    artifact.save(tmp_path / "kept", replace(found, keeps_rendered=True))
    kept = trajmatch.load(tmp_path / "kept")
    assert (
        torch.equal(kept.images, found.images) and kept.parameters.keys() == found.parameters.keys()
    )
    assert {"images", "pixels"} <= files.load_tensors(tmp_path / "kept")[0].keys()


def test_a_set_goes_on_from_its_parameters_and_may_grow(config, spec, tmp_path) -> None:
    made = distill(replace(config, iterations=1, freeze=0, out=tmp_path / "first"))
    later = replace(config, init_from=tmp_path / "first")
    problem = prepare(later)
    begun = values(problem.initial_state().parameters)
    restored = problem.parametrisation.restored(made.parameters, problem.shape)
    assert restored.keys() < begun.keys()
    assert all(torch.equal(begun[name], each) for name, each in restored.items())
    assert torch.equal(problem.render(begun).images, made.images)

    grown = prepare(replace(later, ipc=3))
    values_of_both = grown.initial_values()
    images = grown.render(values_of_both).images.unflatten(0, (3, -1))
    per_class = PARAMETRISATIONS[spec]
    assert images.shape[1] > per_class
    assert torch.equal(images[:, :per_class].flatten(0, 1), made.images)
    if spec == "flip":
        assert torch.equal(images[:, 4], images[:, 5].flip(-1))
    other = prepare(replace(later, images="pixels", ipc=images.shape[1])).initial_set().images
    assert torch.equal(other.unflatten(0, (3, -1))[:, :per_class].flatten(0, 1), made.images)
    with pytest.raises(UserError, match="but the run has 2 per class; give a set"):
        prepare(replace(later, images="pixels")).initial_set()


def test_pixels_that_grow_keep_frozen_rows(configure, tmp_path) -> None:
    made = distill(configure(iterations=1, out=tmp_path / "first"))
    grown = distill(configure(init_from=tmp_path / "first", ipc=3, freeze=2, iterations=2))
    images = grown.images.unflatten(0, (3, 3))
    assert torch.equal(images[:, :2].flatten(0, 1), made.images)
    first = prepare(configure(init_from=tmp_path / "first", ipc=3, freeze=2)).initial_set().images
    assert all(
        (each[2] != own[2]).any()
        for each, own in zip(images, first.unflatten(0, (3, 3)), strict=True)
    )


def test_a_parametrisation_is_known_by_its_settings(configure, tmp_path) -> None:
    first = configure(images="frequency:coefficients=32", iterations=1, out=tmp_path / "first")
    made = distill(first)
    for spec, same in (("frequency:32", True), ("frequency:31", False), ("upsample", False)):
        problem = prepare(replace(first, images=spec, ipc=2, init_from=first.out, init="noise"))
        parameters = problem.initial_values()
        kept = parameters.get("coefficients", torch.empty(0))
        assert torch.equal(kept, made.parameters["coefficients"]) == same


@pytest.mark.parametrize("spec", ["frequency:coefficients=32", "palette:colours=4"], indirect=True)
def test_every_command_works_on_the_rendered_images(config, spec, data, tmp_path, capsys) -> None:
    result = distill(config)
    out = str(config.out)
    assert main(["eval", out, "--data", data, "--seeds", "1", "--epochs", "2"]) == 0
    artifact.save(out, result.with_score({"mean": 50.0}))
    assert torch.equal(trajmatch.load(out).images, result.images)
    capsys.readouterr()
    assert main(["show", out, "--out", str(tmp_path / "picture.png")]) == 0
    contents = f"12 images made by {spec}, hard labels, {result.stored_values} values in "
    assert contents in capsys.readouterr().err
    assert main(["report", out, "--out", str(tmp_path / "page.html")]) == 0
    for kind, name in (("torch", "d.pt"), ("imagefolder", "d"), ("huggingface", "hub")):
        assert main(["export", out, "--to", kind, "--out", str(tmp_path / name)]) == 0
    exported = torch.load(tmp_path / "d.pt", weights_only=True)
    assert torch.equal(exported["images"], result.images)
    description = json.loads((tmp_path / "d" / "distilled.json").read_text())
    assert description["parametrisation"] == spec
    assert description["stored_bytes"] == result.stored_bytes
    assert len([*(tmp_path / "d").rglob("*.png")]) == len(result.images)
    assert main(["convert", out, "--out", str(tmp_path / "images")]) == 0
    assert torch.equal(torch.load(tmp_path / "images" / "images.pt"), result.images)


@pytest.fixture
def frequency(configure) -> Artifact:
    return distill(configure(images="frequency:coefficients=32", iterations=1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("wavelets", "has no parametrisation 'wavelets'; use .*keep.rendered"),
        ("a.b:C", "has no parametrisation 'a.b:C'"),
        (3, "has no parametrisation 3"),
        ("implicit", "cannot be rendered: 'weight_0'"),
        ("frequency:levels=2", "got an unexpected keyword argument 'levels'"),
    ],
)
def test_files_that_cannot_be_rendered(frequency, configure, spec, message) -> None:
    path = configure().out
    tensors, description = files.load_tensors(path)
    files.save_tensors(path, tensors, {**description, "parametrisation": spec})
    with pytest.raises(UserError) as error:
        trajmatch.load(path)
    assert str(path) in str(error.value)
    error.match(message)


def test_a_replayed_graph_gives_the_same_gradients(config) -> None:
    problem, record = prepare(config), Counting()
    graph, state = Graph(problem.objective, record), problem.initial_state()
    for iteration in range(3):
        tasks = [problem.objective.task(state.draws.draw(iteration, 0, 3))]
        now = leaves(state.parameters, "cpu")
        (plain,) = gradients_of(problem.objective, tasks, now)
        (replayed,) = read(graph(tasks, now, Plan()), now)
        assert plain.loss == replayed.loss
        assert (
            plain.gradients.keys() == replayed.gradients.keys() == learned(state.parameters).keys()
        )
        for name, each in plain.gradients.items():
            assert torch.equal(each, replayed.gradients[name]) and each.any()
            state.parameters[name] = state.parameters[name].updated(each)
    assert record.replays > 0


def test_rows_to_freeze() -> None:
    for freeze, kept in ((1, 1), (3.0, 3), (0.5, 2), (0.74, 2)):
        free = free_rows("pixels", torch.ones(12, 1, 8, 8), 3, freeze)
        assert free.shape == (12, 1, 1, 1)
        assert free.flatten().tolist() == [float(row % 4 >= kept) for row in range(12)]
    for shape, freeze, message in (
        ((12, 5), 4, "leaves nothing to learn: each class has 4 stored images"),
        ((12, 5), 0.2, "freezes nothing: each class has 4 stored images"),
        (
            (11, 5),
            1,
            r"rows for each class, but --images own has one of shape \[11, 5\]",
        ),
        ((), 0.5, r"but --images own has one of shape \[\]"),
    ):
        with pytest.raises(UserError) as error:
            free_rows("own", torch.ones(shape), 3, freeze)
        assert re.search(message, error.value.in_flags)
