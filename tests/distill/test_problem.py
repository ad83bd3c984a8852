"""What is refused before anything long starts."""

import json
import shutil
from dataclasses import replace

import pytest

from trajmatch.distill import distill
from trajmatch.distill.problem import prepare
from trajmatch.errors import UserError
from trajmatch.experts import Store, manifest


def test_no_store(configure, tmp_path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        distill(configure(experts=tmp_path / "nowhere"))


def test_a_window_outside_the_snapshots_kept(configure) -> None:
    with pytest.raises(UserError, match=r"--max-start-epoch 4 .* 3 \+ 2 = 5, .* epochs 0-4"):
        prepare(configure(max_start_epoch=4, expert_epochs=2))


@pytest.mark.parametrize(
    ("settings", "end"),
    [({}, 3), ({"expert_epochs": 1}, 4), ({"min_start_epoch": 1}, 3), ({"max_start_epoch": 1}, 1)],
)
def test_the_default_window_is_what_the_experts_have(configure, settings, end) -> None:
    """Of experts with epochs 0 to 4, for segments of 2 epochs unless said otherwise."""
    problem = prepare(configure(**{"max_start_epoch": None, "expert_epochs": 2, **settings}))
    assert problem.objective.window.maximum == problem.identity["max_start_epoch"] == end


def test_a_run_by_the_default_window_is_the_run_that_names_it(configure, tmp_path) -> None:
    distill(configure(max_start_epoch=None, expert_epochs=2, balance=True))
    named = configure(max_start_epoch=3, expert_epochs=2, balance=True, out=tmp_path / "named")
    distill(named)
    assert named.out.read_bytes() == (tmp_path / "distilled.safetensors").read_bytes()


def test_experts_too_short_for_any_segment(configure) -> None:
    with pytest.raises(UserError, match=r"0 \+ 5 = 5, .* epochs 0-4 .* train experts for longer"):
        prepare(configure(max_start_epoch=None, expert_epochs=5))
    with pytest.raises(
        UserError, match=r"--first-max-start-epoch .* --max-start-epoch 3, but is 4"
    ):
        prepare(
            configure(
                max_start_epoch=None,
                expert_epochs=2,
                first_max_start_epoch=4,
                growth_iterations=9,
            )
        )


def test_another_data_set(configure, make_data, tmp_path) -> None:
    with pytest.raises(UserError, match=r"trained on npz:.*shapes.npz, but npz:.* other images"):
        prepare(configure(data=make_data(tmp_path / "shapes.npz", seed=1)))


def test_data_that_is_gone(configure, tmp_path) -> None:
    with pytest.raises(UserError, match="gone"):
        prepare(configure(data=f"npz:{tmp_path / 'gone.npz'}"))


def test_data_that_the_store_names_and_that_is_gone(configure, tmp_path) -> None:
    config, gone = configure(data=None), f"npz:{tmp_path / 'gone.npz'}"
    store = Store.open(shutil.copytree(config.experts, tmp_path / "moved"))
    manifest.write(store.path, {**store.manifest, "data": gone})
    with pytest.raises(UserError, match=rf"trained on {gone}: cannot read .* where with --data"):
        prepare(replace(config, experts=store.path))


def test_more_images_than_a_class_has(configure) -> None:
    config = configure(ipc=13)
    with pytest.raises(UserError, match="13 instead of 12"):
        distill(config)
    assert not config.out.exists()


def test_noise_may_be_more_than_a_class_has(configure) -> None:
    assert len(prepare(configure(ipc=13, init="noise")).initial_set().images) == 39


def test_an_unknown_augmentation(configure) -> None:
    with pytest.raises(UserError, match="swirl"):
        prepare(configure(dsa="flip_swirl"))


def test_holdout_needs_a_store_with_one(configure, holdout_store) -> None:
    settings = {"select": "holdout", "eval_every": 5}
    with pytest.raises(UserError, match=r"the store .* holds out none"):
        prepare(configure(**settings))
    problem = prepare(configure(experts=holdout_store, **settings))
    assert len(problem.held_out[1]) == 9
    assert len(problem.training.train_labels) == 27


def test_initial_images_are_not_held_out(configure, holdout_store) -> None:
    problem = prepare(configure(experts=holdout_store, ipc=9))
    with pytest.raises(UserError, match=r"has \(10 instead of 9\)"):
        prepare(configure(experts=holdout_store, ipc=10)).initial_set()
    held_out = problem.training.normalise(problem.held_out[0])
    first = problem.initial_set().images
    assert not (first[:, None] == held_out[None]).flatten(2).all(dim=2).any()


def test_an_unknown_device(configure) -> None:
    with pytest.raises(UserError, match="--device"):
        prepare(configure(device="abacus"))


def test_an_unwritable_folder(configure, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write in the folder"):
        distill(configure(out=tmp_path / "file" / "distilled.safetensors"))


def test_a_folder_in_place_of_the_artifact(configure, tmp_path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        distill(configure(out=tmp_path))


@pytest.mark.parametrize("change", [{"width": 8}, {"name": "Perceptron"}, {"depth": 9}])
def test_a_store_whose_network_does_not_fit_its_snapshots(
    configure, store, tmp_path, change
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    manifest = json.loads((copy / "store.json").read_text())
    manifest["network"].update(change)
    (copy / "store.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=str(copy)):
        prepare(configure(experts=copy))


def test_a_run_that_release_0_1_could_make_is_known_as_it_was_then(configure) -> None:
    identity = prepare(configure(batch_syn=None)).identity
    assert identity["batch_syn"] is identity["skip_above"] is None
    assert not {"images", "objective"} & identity.keys()
