"""Recipes are the paper's, studies come back from disk unchanged, and bad values are errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fasttransfer.core.errors import InputError
from fasttransfer.networks.caffenet import CAFFENET
from fasttransfer.study import recipe
from fasttransfer.study.configuration import Choices, Study
from fasttransfer.study.recipe import Recipe, load_recipe, parse_recipe, recipe_names


def study(**changes: object) -> Study:
    made = Study(
        data="builtin", images="00", split="natural-manmade", tasks="11", layers=(1, 7),
        treatments=("transfer",), targets=("A", "B"), seeds=(0,), bad_images="fail", precision="fp32",
        device="cpu", threads=1, recipe=load_recipe("mini"),
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_caffe_recipe_is_the_papers() -> None:
    r = load_recipe("caffe")
    assert (r.network, r.batch, r.steps, r.epochs) == (CAFFENET, 256, 450_000, None)
    assert (r.momentum, r.weight_decay, r.bias_lr, r.bias_decay, r.dropout) == (0.9, 5e-4, 2, 0, 0.5)
    assert (r.init, r.scale, r.outputs) == ("caffe", 1.0, "all")
    checks = r.check_steps(450_000)
    assert checks[:2] == (1000, 2000)
    assert len(checks) == 450
    rates = {step: r.lr_at(step, 450_000) for step in (0, 99_999, 100_000, 199_999, 200_000, 300_000, 400_000)}
    expected = {
        0: 1e-2,
        99_999: 1e-2,
        100_000: 1e-3,
        199_999: 1e-3,
        200_000: 1e-4,
        300_000: 1e-5,
        400_000: 1e-6,
    }
    assert rates == pytest.approx(expected)


def test_a_study_from_before_a_value_had_a_name_is_the_same_study(tmp_path: Path) -> None:
    made = study(recipe=load_recipe("caffe"))
    made.write(tmp_path / "study.toml")
    text = (tmp_path / "study.toml").read_text()
    (tmp_path / "study.toml").write_text(text.replace("give_up = 0.5\n", ""))
    before = Study.read(tmp_path / "study.toml")
    assert "give_up" in text and before == made
    (tmp_path / "study.toml").write_text(text.replace("[recipe.network]", "[recipe.geometry]"))
    assert "[recipe.network]" in text and Study.read(tmp_path / "study.toml") == made
    assert made.digest() == "8ea5e89a8c1f6813e5b97a0d7d168770"  # what weights of such studies carry
    assert replace(made, recipe=replace(made.recipe, give_up=0.7)).digest() != made.digest()


@pytest.mark.parametrize("name", ["caffe", "fast", "mini"])
def test_every_recipe_of_the_package_loads(name: str) -> None:
    assert name in recipe_names()
    assert load_recipe(name).name == name


def test_checks_are_spread_over_training_and_end_with_it() -> None:
    r = replace(load_recipe("mini"), checks=10)
    assert r.check_steps(25) == (2, 5, 8, 10, 12, 15, 18, 20, 22, 25)
    assert r.check_steps(4) == (1, 2, 3, 4)
    assert r.check_steps(1) == (1,)


def test_caffe_gives_halves_as_many_outputs_as_the_whole_study_has_classes() -> None:
    classes = {"A": ["a", "b"], "B": ["c", "d", "e"]}
    assert load_recipe("caffe").outputs_for("A", classes) == 5
    assert load_recipe("mini").outputs_for("A", classes) == 2


def test_epochs_become_steps() -> None:
    r = replace(load_recipe("mini"), epochs=2.5, batch=32)
    assert r.steps_for(100) == 8  # 250 images in batches of 32
    assert replace(r, epochs=None, steps=7).steps_for(100) == 7


def test_options_change_the_recipe() -> None:
    recipe = Choices(steps=5, batch=3, lr=0.5, dropout=0.0).resolve_recipe(is_small=False)
    assert (recipe.steps, recipe.epochs, recipe.batch, recipe.lr, recipe.dropout) == (5, None, 3, 0.5, 0)
    assert Choices(epochs=2.0).resolve_recipe(is_small=False).steps is None


def test_layers_are_those_of_the_network() -> None:
    assert Choices(data="images").resolve_layers(CAFFENET) == (1, 2, 3, 4, 5, 6, 7)
    assert Choices().resolve_layers(CAFFENET) == (1, 3, 5, 7)  # of the built-in images, for a first look
    assert Choices(layers=(2, 7)).resolve_layers(CAFFENET) == (2, 7)
    for layers, wrong in (((0,), 0), ((3, 8), 8)):
        with pytest.raises(InputError, match=f"--layers {wrong}: choose among 1 to 7 for caffenet"):
            Choices(layers=layers).resolve_layers(CAFFENET)


def test_a_cosine_rises_over_the_warmup_and_falls_to_nothing() -> None:
    recipe = replace(load_recipe("caffe"), lr=0.5, schedule="cosine", lr_drops=(), warmup=0.1)
    rates = [recipe.lr_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.5 * (i + 1) / 11 for i in range(10)])
    assert rates[10] == max(rates) == 0.5
    assert rates[55] == pytest.approx(0.25)  # half way down
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 0.001
    assert replace(recipe, warmup=0.0).lr_at(0, 100) == 0.5


@pytest.mark.parametrize("recipe", ["caffe", "mini"])
def test_a_study_comes_back_from_disk(tmp_path: Path, recipe: str) -> None:
    made = study(recipe=load_recipe(recipe), classes=5, seeds=(0, 3))
    made.write(tmp_path / "study.toml")
    assert Study.read(tmp_path / "study.toml") == made
    assert Study.read(tmp_path / "study.toml").digest() == made.digest()


def test_differences_name_what_differs_and_nothing_else() -> None:
    other = study(split="random:0", recipe=replace(load_recipe("mini"), batch=7), classes=4)
    assert study().differences(other) == [
        "classes: not set in the study, 4 in the command",
        "recipe.batch: 16 in the study, 7 in the command",
        "split: natural-manmade in the study, random:0 in the command",
    ]
    assert study().differences(study()) == []
    assert study().digest() != other.digest()


@pytest.mark.parametrize(
    ("choices", "sentence"),
    [
        ({"layers": (3, 3)}, "given twice"),
        ({"treatments": ("frozen",)}, "--treatments frozen: choose among selffer"),
        ({"targets": ("C",)}, "--targets C: choose among A, B"),
        ({"targets": ()}, "--targets: name at least one"),
        ({"seeds": ()}, "--seeds: name at least one"),
        ({"dropout": 1.0}, "--dropout 1.0: a probability from 0 and below 1"),
        ({"dropout": -0.1}, "--dropout -0.1: a probability from 0 and below 1"),
        ({"seeds": (-1,)}, "--seeds: whole numbers from 0"),
        ({"classes": 1}, "--classes 1: at least 2"),
        ({"per_class": 0}, "--per-class 0: at least 1"),
        ({"epochs": 2.0, "steps": 3}, "--epochs and --steps: give one"),
        ({"precision": "fp16"}, "--precision fp16"),
    ],
)
def test_bad_choices_are_errors(choices: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        Choices(**choices)  # type: ignore[arg-type]
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch": 0}, "batch is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": float("inf")}, "lr is inf"),
        ({"lr": 1e300}, "at most 1e+06 is possible"),
        ({"weight_decay": float("nan")}, "weight_decay is nan"),
        ({"checks": 10**9}, "at most 10,000 are possible"),
        ({"steps": 5}, "either steps or epochs"),
        ({"epochs": None}, "either steps or epochs"),
        ({"epochs": -1.0}, "epochs is -1.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"schedule": "linear"}, "choose one of step, cosine"),
        ({"schedule": "cosine", "lr_drops": (0.5,)}, "lr_drops belong to the schedule step"),
        ({"warmup": 1.0}, "warmup is 1.0"),
        ({"give_up": 0.0}, "give_up is 0.0"),
        ({"give_up": 1.1}, "give_up is 1.1"),
        ({"init": "xavier"}, "choose one of caffe, he"),
        ({"outputs": "some"}, "choose one of task, all"),
        ({"schedule": "step", "lr_drops": (1.5,)}, "shares of the run"),
        ({"checks": 0}, "checks is 0"),
    ],
)
def test_bad_recipes_are_errors(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        replace(load_recipe("mini"), **changes)  # type: ignore[arg-type]
    assert sentence in str(refused.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("this is no TOML", "not a readable TOML file"),
        ('name = "x"\nnetwork = "resnet"', "network 'resnet' is unknown"),
        ('name = "x"\nnetwork = 5', "network 5 is unknown"),
        ('name = "x"\nnetwork = "caffenet"', "'batch' is missing"),
        ('name = "x"\nnetwork = "caffenet"\nspeed = 3', "'speed' is not known"),
        ('name = "x"\n[network]\nname = "y"', "network: 'store' is missing"),
        ("MINI\nbatch = true", "batch is True, int is needed"),
        ('MINI\nbatch = "many"', "batch is 'many', int is needed"),
    ],
)
def test_bad_recipe_files_are_errors(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "r.toml"
    if text.startswith("MINI"):
        recipes = Path(recipe.__file__).with_name("recipes")
        mini = (recipes / "mini.toml").read_text().replace("batch = 16", text.removeprefix("MINI\n"))
        path.write_text(mini)
    else:
        path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_recipe(str(path))
    assert sentence in str(refused.value)


def test_unknown_and_missing_recipes_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose one of caffe, fast, large"):
        load_recipe("quick")
    with pytest.raises(InputError, match="no such recipe file"):
        load_recipe(str(tmp_path / "none.toml"))


def test_a_whole_number_stands_for_a_float(tmp_path: Path) -> None:
    table = study().to_dict()["recipe"]
    made = parse_recipe({**table, "lr": 1, "network": "caffenet-mini"}, "here")
    assert isinstance(made, Recipe)
    assert made.lr == 1.0
    assert isinstance(made.lr, float)


def test_hes_random_control_is_refused_where_the_random_control_is_the_same() -> None:
    choices = Choices(treatments=("transfer", "random-he"))
    assert choices.resolve_recipe(is_small=False).init == "caffe"
    with pytest.raises(InputError, match="recipe mini starts from He's values already"):
        choices.resolve_recipe(is_small=True)
    assert "random-he" not in Choices().treatments
