"""The command line, from arguments to exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
import yaml
from PIL import Image

from blpseg import cli
from blpseg.cli import main
from blpseg.config import TrainConfig
from blpseg.training import TrainResult


@pytest.fixture
def config_file(tmp_path: Path, shapes: Path) -> Path:
    """Return a YAML file of a small run."""
    path = tmp_path / "small.yaml"
    content = {
        "data": {"root": str(shapes), "workers": 0},
        "output": str(tmp_path / "run"),
        "model": {"backbone": "test_resnet", "pretrained": False, "width": 16, "embedding_dim": 8},
        "augment": {"crop": 32},
        "optim": {"learning_rate": 1e-3, "batch_size": 2, "iterations": 3},
        "device": "cpu",
    }
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[TrainConfig]:
    """Collect configurations in place of training them."""
    configs: list[TrainConfig] = []

    def train(config: TrainConfig) -> TrainResult:
        configs.append(config)
        return TrainResult(config.output, config.output / "last.pt", None, None, 0)

    monkeypatch.setattr("blpseg.training.train", train)
    return configs


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("blpseg: error: ") and "Traceback" not in shown
    return shown.removeprefix("blpseg: error: ").strip()


def test_train_evaluate_and_predict(
    config_file: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(config_file), "--optim.iterations=5"]) == 0
    shown = capsys.readouterr().out
    assert "mIoU" in shown and "background" in shown
    assert f"checkpoints in {tmp_path / 'run'}: last.pt and best.pt." in shown

    checkpoint = str(tmp_path / "run/last.pt")
    options = ["--split", "train", "--scales", "[0.5,1]", "--flip"]
    assert main(["evaluate", checkpoint, *options]) == 0
    shown = capsys.readouterr().out
    assert "over 5 images" in shown and "Accuracy by distance to the nearest scribble" in shown
    written = json.loads((tmp_path / "run/last.evaluation.json").read_text())
    assert written["iteration"] == 5 and written["views"]["scales"] == [0.5, 1]
    assert written["views"]["flip"] and written["views"]["window"] == 1024
    page = tmp_path / "run/last.evaluation.html"
    assert page.read_text().startswith("<!doctype html>") and str(page) in shown

    output = tmp_path / "out"
    assert main(["predict", checkpoint, str(shapes / "images"), "--output", str(output)]) == 0
    assert Image.open(output / "masks/shape6.png").size == (64, 48)
    assert f"Results written to {output}." in capsys.readouterr().out


def test_options_replace_what_the_file_says(
    config_file: Path, configured: list[TrainConfig], shapes: Path
) -> None:
    options = ["--optim.batch_size", "7", "--augment.scale=[0.5,2]", "--model.lam=false"]
    assert main(["train", str(config_file), *options, "--optim.self_training_from=null"]) == 0
    (config,) = configured
    assert config.data.root == shapes and config.optim.learning_rate == 1e-3
    assert config.optim.batch_size == 7 and config.augment.scale == (0.5, 2)
    assert config.model.lam is False and config.optim.self_training_from is None


@pytest.mark.parametrize("argv", [["{root}"], ["small", "{root}"], ["--data.root={root}"]])
def test_a_folder_is_trained_on_with_the_small_configuration(
    configured: list[TrainConfig], own_shapes: Path, argv: list[str]
) -> None:
    assert main(["train", *(word.format(root=own_shapes) for word in argv), "--seed=5"]) == 0
    (config,) = configured
    assert (config.data.root, config.output) == (own_shapes, Path("runs/shapes"))
    assert config.model.backbone == "tf_efficientnet_lite0"
    assert config.model.pretrained == "pypi"
    assert config.optim.self_training_from is None and config.seed == 5


def test_a_folder_may_come_after_options_and_have_an_output_of_its_own(
    configured: list[TrainConfig], own_shapes: Path
) -> None:
    argv = ["--output", "elsewhere", "voc", "--resume", str(own_shapes), "--data.layout=folder"]
    assert main(["train", *argv]) == 0
    (config,) = configured
    assert (config.data.root, config.output) == (own_shapes, Path("elsewhere"))
    assert config.resume and config.model.backbone == "resnet101s"


def test_a_name_of_a_configuration_comes_before_a_folder_of_that_name(
    configured: list[TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scenes").mkdir()
    monkeypatch.chdir(tmp_path)
    for argv in (["scenes"], ["scenes/"], ["demo", "scenes"]):
        assert main(["train", *argv]) == 0
    assert [(config.model.backbone, config.model.width) for config in configured] == [
        ("resnet18", 64),
        ("tf_efficientnet_lite0", 64),
        ("tf_efficientnet_lite0", 48),
    ]
    assert {config.data.root for config in configured} == {Path("scenes")}
    assert [config.output.name for config in configured] == ["scenes", "scenes", "demo"]


def test_flags_and_null(configured: list[TrainConfig]) -> None:
    for value, expected in (("None", None), ("null", None), ("7", 7), ("0.25", 0.25)):
        option = f"--optim.self_training_from={value}"
        assert main(["train", "voc", "--overwrite", option, "--model.lam", "false"]) == 0
        config = configured.pop()
        assert config.overwrite and not config.resume and config.model.lam is False
        assert config.optim.self_training_from == expected
        assert type(config.optim.self_training_from) is type(expected)


def test_numbers_in_a_path_stay_a_path(
    configured: list[TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "2012").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["train", "2012"]) == 0
    assert (configured[0].data.root, configured[0].output) == (Path("2012"), Path("runs/2012"))


def test_published_recipes_go_by_name(configured: list[TrainConfig]) -> None:
    assert main(["train", "voc", "--data.root=VOCdevkit/VOC2012", "--output=runs/voc"]) == 0
    assert main(["train", "context", "--data.root=elsewhere"]) == 0
    voc, context = configured
    assert (voc.data.root, voc.output) == (Path("VOCdevkit/VOC2012"), Path("runs/voc"))
    assert (voc.data.layout, voc.data.train_split) == ("voc", "trainaug")
    assert (context.data.root, context.output) == (Path("elsewhere"), Path("runs/context"))
    assert (context.data.layout, context.data.train_split) == ("context", "train")
    # SPEC.md, section 4: learning rate, batch, epochs, self-training from iteration.
    for config, published in ((voc, (3e-5, 10, 40, 10_000)), (context, (2.4e-5, 8, 85, 20_000))):
        optim, model, augment = config.optim, config.model, config.augment
        recipe = optim.learning_rate, optim.batch_size, optim.epochs, optim.self_training_from
        assert recipe == published
        assert (optim.weight_decay, optim.power, optim.mixed_precision) == (0.01, 0.9, "fp16")
        assert (model.backbone, model.pretrained, model.width) == ("resnet101s", True, 256)
        assert (model.sigma, model.eps, model.gamma) == (6, 1e-7, 2)
        assert (model.unlabeled_weight, model.threshold) == (0.02, 0.9)
        assert (augment.flip, augment.scale, augment.crop) == (0.5, (0.75, 1.25), 384)
        assert (config.data.val_split, config.data.scribble_width) == ("val", 1)


def test_run_folder_holds_a_configuration_to_train_from(
    config_file: Path, configured: list[TrainConfig], tmp_path: Path
) -> None:
    main(["train", str(config_file)])
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(configured[0].as_plain_data()))
    main(["train", str(again)])
    assert configured[1] == configured[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--optim.batch_size=many"], "--optim.batch_size: expected a whole number, got 'many'"),
        (["--optim.batch_size"], "--optim.batch_size: expected a whole number, got nothing"),
        (["--model.lam=perhaps"], "--model.lam: expected true or false, got 'perhaps'"),
        (
            ["--optim.self_training_from=soon"],
            "--optim.self_training_from: expected a number or null, got 'soon'",
        ),
        (["--optim.self_training_from=1.5"], "expected an iteration (a whole number), or a share"),
        (["--optim.batch_size=0"], "optim.batch_size: expected at least 2, got 0"),
        (["--device=abacus"], "--device: expected one of auto, cpu, got 'abacus'"),
        (["--model.sigma=-1"], "model: cannot build 'test_resnet': "),
    ],
)
def test_wrong_options_are_named(
    config_file: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert message in error_of(capsys, "train", str(config_file), *options)
    assert not (config_file.parent / "run").exists()


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--optim.lr", "--optim.learning_rate"),
        ("--lr", "--optim.learning_rate"),
        ("--learning_rate", "--optim.learning_rate"),
        ("--optim.batchsize", "--optim.batch_size"),
        ("--batch-size", "--optim.batch_size"),
        ("--optim.iters", "--optim.iterations"),
        ("--optim.self_training", "--optim.self_training_from"),
        ("--model.sigmas", "--model.sigma"),
        ("--out", "--output"),
    ],
)
def test_an_unknown_option_names_the_nearest(
    capsys: pytest.CaptureFixture[str], option: str, meant: str
) -> None:
    message = error_of(capsys, "train", "voc", f"{option}=3")
    assert message == f"{option}: there is no such option; did you mean {meant}?"


def test_an_unknown_option_without_a_near_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "train", "voc", "--xyzzy=3") == "--xyzzy: there is no such option"
    assert error_of(capsys, "scenes", "here", "--val-count=3") == (
        "--val-count: there is no such option; did you mean --val_count?"
    )


def test_wrong_files_are_named(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "train", "nosuch.yaml").startswith(
        "nosuch.yaml: expected the folder of a data set, a YAML file, or the name of a"
    )
    assert error_of(capsys, "train", "scnes").endswith("did you mean scenes?")
    assert "nowhere: expected the folder of a data set, found none" in error_of(
        capsys, "train", "small", "nowhere"
    )
    folder = str(config_file.parent)
    assert error_of(capsys, "train", folder, "small") == (
        f"expected CONFIG before FOLDER: blpseg train small {folder}"
    )
    assert error_of(capsys, "train").startswith(
        "expected the folder of a data set: blpseg train FOLDER"
    )
    config_file.write_text("data: {root: here}\noutput: run\noptim: {batchsize: 3}\n")
    assert error_of(capsys, "train", str(config_file)) == (
        f"{config_file}: optim.batchsize: there is no such setting; did you mean optim.batch_size?"
    )
    config_file.write_text("data: [")
    assert "expected a YAML file, but it cannot be read" in error_of(
        capsys, "train", str(config_file)
    )
    assert "classes.txt: expected a file" in error_of(
        capsys, "train", "--data.root=nowhere", "--output=run"
    )


def test_failed_photos_are_listed_at_the_end(
    checkpoint: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    photo = str(shapes / "images/shape0.png")
    argv = ["predict", str(checkpoint), str(broken), photo, "--output", str(tmp_path / "out")]
    assert main(argv) == 1
    shown = capsys.readouterr().err
    assert shown.index("1 of the images failed:") < shown.rindex(f"  {broken}: cannot be read")
    assert (tmp_path / "out/masks/shape0.png").exists()
    assert "exists already" in error_of(capsys, *argv)


def test_evaluation_of_another_folder(
    checkpoint: Path, own_shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(checkpoint), "--data.root", str(own_shapes)]) == 0
    assert "over 3 images" in capsys.readouterr().out
    options = ["--data.root", str(own_shapes), "--data.mask_void_value=0", "--overwrite=true"]
    assert "the value 0 cannot mean both void and class 0" in error_of(
        capsys, "evaluate", str(checkpoint), *options
    )


def test_scenes_are_written_and_trained_on(
    tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scenes"
    options = ["--count=3", "--val_count=1", "--size=48", "--seed=2"]
    assert main(["scenes", str(folder), *options]) == 0
    assert f"4 scenes written to {folder}." in capsys.readouterr().out
    assert len(list((folder / "images").iterdir())) == 4
    assert main(["train", str(config_file), f"--data.root={folder}"]) == 0
    assert "beast" in capsys.readouterr().out
    assert str(folder) in error_of(capsys, "scenes", str(folder), *options)
    assert "must not be negative" in error_of(capsys, "scenes", str(tmp_path / "x"), "--count=-1")


def test_demo_gets_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    demo = types.SimpleNamespace(demo=lambda **options: calls.append(options))
    monkeypatch.setitem(sys.modules, "blpseg.demo", demo)
    assert main(["demo"]) == 0
    assert main(["demo", "--quick", "--seeds=[3,4]", "--output", "here"]) == 0
    assert calls == [
        {"quick": False, "output": Path("blpseg-demo"), "seeds": [0]},
        {"quick": True, "output": Path("here"), "seeds": [3, 4]},
    ]


def test_help_lists_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in ([], ["--help"], ["-h"]):
        assert main(argv) == 0
        shown = capsys.readouterr().out
        assert all(f"  {name} " in shown for name in cli.COMMANDS)
    for name, command in cli.COMMANDS.items():
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert f"usage: blpseg {name}" in shown and command.__doc__ in shown
    main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--optim.learning_rate LEARNING_RATE Learning rate of the first iteration." in shown
    assert "--resume Continue the run" in shown and "class '" not in shown and "type:" not in shown
    assert "default: 3e-05" in shown


def test_unknown_commands_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert error_of(capsys, "paint") == (
        f"unknown command 'paint'; expected one of {', '.join(cli.COMMANDS)}"
    )
    assert error_of(capsys, "trian").endswith("; did you mean train?")


def test_interruption_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.COMMANDS["demo"], "run", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "blpseg: interrupted\n"


def test_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "blpseg", "paint"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "unknown command 'paint'" in done.stderr
