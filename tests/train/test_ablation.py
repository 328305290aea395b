"""The ablation: parts of each variant, continued and refused runs, statistics."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from blpseg.ablation import (
    BASELINE,
    CEILING,
    PARTS,
    PEERS,
    VARIANTS,
    Ablation,
    Run,
    Spread,
    ablate,
    ablation_table,
)
from blpseg.ablation.results import SCORES
from blpseg.ablation.run import _claim, _settings
from blpseg.ablation.variants import choose_variants
from blpseg.cli import main
from blpseg.config import ModelConfig, OptimConfig, TrainConfig
from blpseg.curves import distance_curves
from blpseg.errors import UserError
from blpseg.metrics import DistanceBin, Scores
from blpseg.training import series, train

OPTIM = OptimConfig(3e-3, batch_size=2, iterations=2, self_training_from=1)


@pytest.fixture
def config(make_config: Callable[..., TrainConfig]) -> TrainConfig:
    return make_config(optim=OPTIM)


def scores(miou: float | None, accuracies: tuple[float | None, ...] = ()) -> Scores:
    bins = [
        DistanceBin(10 * place, 10 * (place + 1), share, 100)
        for place, share in enumerate(accuracies)
    ]
    return Scores(miou, {"a": miou}, miou, {"a": miou}, bins, bins, 1)


def test_variants_switch_parts_on_one_by_one(config: TrainConfig) -> None:
    switched = {}
    for variant in PARTS:
        found = variant.of(config)
        switched[variant.name] = (
            found.model.lam,
            found.model.gamma,
            found.optim.self_training_from,
        )
        model = replace(found.model, lam=config.model.lam, gamma=config.model.gamma)
        optim = replace(found.optim, self_training_from=1)
        assert replace(found, model=model, optim=optim) == config, "something else differs"
    assert switched == {
        "partial cross entropy": (False, 0, None),
        "LAM": (True, 0, None),
        "BLP": (False, 2, None),
        "LAM + BLP": (True, 2, None),
        "LAM + BLP + self-training": (True, 2, 1),
    }
    assert PARTS[-1].of(config) == config
    assert len({variant.folder for variant in VARIANTS}) == len(VARIANTS)


def test_peers_and_the_ceiling_differ_from_the_baseline_in_one_thing(config: TrainConfig) -> None:
    baseline = BASELINE.of(config)
    full = CEILING.of(config)
    assert full.data.train_labels == "masks"
    assert replace(full, data=baseline.data) == baseline
    crf, gated, soft = PEERS[:3]
    assert crf.crf and crf.trained is BASELINE and PEERS[3].trained is PARTS[3]
    assert [peer.of(config).model.regularizer for peer in (crf, gated, soft)] == [
        "none",
        "gated_crf",
        "soft_labels",
    ]
    for peer in (gated, soft):
        found = peer.of(config)
        assert replace(found, model=replace(found.model, regularizer="none")) == baseline


def test_variants_are_chosen_by_name() -> None:
    assert choose_variants(["parts"]) == list(PARTS) and choose_variants(["all"]) == list(VARIANTS)
    found = choose_variants(["lam+blp+dense-crf", "full-supervision"])
    assert [variant.folder for variant in found] == [
        "partial-cross-entropy",
        "lam+blp",
        "lam+blp+dense-crf",
        "full-supervision",
    ]
    for names in (["lamb"], []):
        with pytest.raises(UserError, match="variants: expected some of partial-cross-entropy, "):
            choose_variants(names)


def test_peers_are_added_to_an_ablation(config: TrainConfig) -> None:
    """Runs of earlier calls stay in the results; the ceiling learns from masks."""
    pytest.importorskip("pydensecrf")
    ablate(config, [3], ["lam"], quiet=True)
    found = ablate(config, [4], ["dense-crf", "full-supervision"], quiet=True)
    seeds = {name: [run.seed for run in runs] for name, runs in found.runs.items()}
    assert seeds == {
        "partial cross entropy": [3, 4],
        "LAM": [3],
        "dense CRF": [4],
        "full supervision": [4],
    }
    written = json.loads((config.output / "ablation.json").read_text())
    assert written == found.as_plain_data()
    assert found.gap_closed(CEILING.name, SCORES["boundary_miou"]) in ((1.0, None), None)
    assert not (config.output / "runs" / "dense-crf" / "4" / "last.pt").exists()


def test_ablation_goes_on_where_it_stopped(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []

    def stop_after_7(run: TrainConfig, **options: object) -> object:
        if len(trained) == 7:
            raise KeyboardInterrupt
        trained.append((run.output.parent.name, run.seed))
        return train(run, **options)

    monkeypatch.setattr(series, "train", stop_after_7)
    with pytest.raises(KeyboardInterrupt):
        ablate(config, [3, 4], quiet=True)
    stopped = json.loads((config.output / "ablation.json").read_text())["variants"]
    assert sum(len(variant["runs"]) for variant in stopped.values()) == 7
    finished = {path: path.read_bytes() for path in config.output.glob("runs/*/*/finished.json")}
    assert len(finished) == 7

    monkeypatch.setattr(
        series, "train", lambda run, **rest: trained.append(run.output) or train(run, **rest)
    )
    found = ablate(config, [3, 4], quiet=True)
    assert len(trained) == 10
    assert all(path.read_bytes() == content for path, content in finished.items())
    written = json.loads((config.output / "ablation.json").read_text())
    assert list(written["variants"]) == [variant.name for variant in PARTS]
    assert written == found.as_plain_data()
    for name, variant in written["variants"].items():
        assert [run["seed"] for run in variant["runs"]] == [3, 4]
        mious = [run["scores"]["miou"] for run in variant["runs"]]
        assert variant["miou"]["mean"] == pytest.approx(statistics.mean(mious))
        assert variant["miou"]["deviation"] == pytest.approx(statistics.stdev(mious))
        assert found.runs[name][0].scores.by_border_distance
    picture = np.asarray(Image.open(config.output / "ablation.png"))
    assert picture.std() > 10

    assert ablate(config, [4], quiet=True).runs == found.runs
    assert len(trained) == 10, "a finished run was made again"


def test_runs_are_those_of_train(config: TrainConfig, tmp_path: Path) -> None:
    """A run of the ablation equals `blpseg train` with the same settings and seed."""
    found = ablate(config, [5], quiet=True)
    alone = replace(config, output=tmp_path / "alone", seed=5)
    last = train(alone, on_step=lambda step: None).scores
    assert found.runs["LAM + BLP + self-training"][0].scores.iou == last.iou


def test_folders_of_something_else_are_left_alone(config: TrainConfig) -> None:
    config.output.mkdir()
    (config.output / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is no folder of an ablation"):
        ablate(config, [0], quiet=True)
    assert [path.name for path in config.output.iterdir()] == ["thesis.tex"]


def test_other_settings_are_refused_by_name(config: TrainConfig) -> None:
    _claim(config.output, _settings(config))
    other = replace(config, model=replace(config.model, sigma=3.0))
    with pytest.raises(UserError, match=r"model.sigma: 6.0 saved, 3.0 requested"):
        ablate(other, [0], quiet=True)
    assert not (config.output / "runs").exists()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"model": ModelConfig("test_resnet", lam=False)}, "model.lam: expected true"),
        ({"model": ModelConfig("test_resnet", gamma=0)}, "model.gamma: expected more than 0"),
        (
            {"optim": replace(OPTIM, self_training_from=None)},
            "optim.self_training_from: expected an iteration below 2, or a share .* got None",
        ),
        ({"optim": replace(OPTIM, self_training_from=2)}, "self_training_from: .* got 2"),
    ],
)
def test_parts_that_are_off_cannot_be_ablated(
    config: TrainConfig, part: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ablate(replace(config, **part), [0], quiet=True)
    assert not config.output.exists()


def test_seeds_and_masks_are_needed(config: TrainConfig, own_shapes: Path) -> None:
    for seeds in ([], [1, 1]):
        with pytest.raises(UserError, match="seeds: expected different numbers"):
            ablate(config, seeds, quiet=True)
    without = replace(config, data=replace(config.data, root=own_shapes))
    with pytest.raises(UserError, match="expected masks and a list of images to score on"):
        ablate(without, [0], quiet=True)


def test_gains_are_taken_seed_by_seed() -> None:
    """Seeds differ by 20 points, the variant by 1 to 3 points within a seed."""
    base = [0.2, 0.4, 0.6]
    runs = {
        BASELINE.name: [Run(seed, 1.0, scores(miou)) for seed, miou in enumerate(base)],
        "LAM": [
            Run(seed, 1.0, scores(miou + gain))
            for seed, (miou, gain) in enumerate(zip(base, (0.01, 0.02, 0.03), strict=True))
        ],
    }
    found, miou = Ablation({}, runs), SCORES["miou"]
    assert found.gain("LAM", miou) == pytest.approx((0.02, 0.01))
    assert found.mean("LAM", miou) == pytest.approx((0.42, statistics.stdev([0.21, 0.42, 0.63])))
    assert found.gain("LAM", miou).percent(signed=True) == "+2.0 ± 1.0"
    assert found.gap_closed("LAM", miou) is None


def test_the_gap_is_that_of_the_seeds_with_full_supervision() -> None:
    runs = {
        BASELINE.name: [Run(0, 1.0, scores(0.2)), Run(1, 1.0, scores(0.4))],
        "LAM": [Run(0, 1.0, scores(0.3)), Run(1, 1.0, scores(0.9))],
        CEILING.name: [Run(0, 1.0, scores(0.6))],
    }
    found, miou = Ablation({}, runs), SCORES["miou"]
    assert found.gap_closed("LAM", miou) == pytest.approx((0.25, None))
    assert found.share_of_full("LAM", miou) == pytest.approx((0.5, None))
    assert found.gap_closed(CEILING.name, miou) == (1.0, None)


def test_spread_of_few_values() -> None:
    assert Spread.of([]) is None and Spread.of([None]) is None
    assert Spread.of([0.5, None]) == (0.5, None) and Spread.of([0.5]).percent() == "50.0"


def test_curves_are_means_and_gains_over_seeds() -> None:
    figure = distance_curves(
        {
            "base": [scores(0, (0.5, 0.9)), scores(0, (0.7, None))],
            "ours": [scores(0, (0.6, 0.8)), scores(0, (0.9, None))],
        },
        "base",
    )
    accuracy, _, gain, _ = figure.axes
    drawn = [container[0].get_ydata() for container in accuracy.containers]
    assert np.allclose(drawn, [[60, np.nan], [75, np.nan]], equal_nan=True)
    gains = [container[0].get_ydata() for container in gain.containers]
    assert np.allclose(gains, [[0, np.nan], [15, np.nan]], equal_nan=True)
    bars = gain.containers[1][2][0].get_segments()[0]
    deviation = statistics.stdev([10, 20])
    assert np.allclose(bars[:, 1], [15 - deviation, 15 + deviation])
    assert [label.get_text() for label in gain.get_xticklabels()] == ["0 to 10", "10 to 20"]


def test_ablate_from_the_command_line(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "small.yaml"
    content = config.as_plain_data()
    for name in ("seed", "overwrite", "resume"):
        del content[name]
    path.write_text(yaml.safe_dump(content))
    assert main(["ablate", str(path), "--seeds=[1]", "--optim.iterations=3"]) == 0
    shown = capsys.readouterr().out
    written = json.loads((config.output / "ablation.json").read_text())
    assert written["settings"]["optim"]["iterations"] == 3
    assert "mean and deviation, in %" in shown and "LAM + BLP + self-training" in shown
    assert f"{100 * written['variants']['LAM']['miou']['mean']:.1f}" in shown
    assert main(["ablate", str(path), "--seeds=[1]"]) == 2
    assert "optim.iterations: 3 saved, 2 requested" in capsys.readouterr().err
    assert ablation_table(Ablation({}, {BASELINE.name: [Run(1, 0, scores(None))]})).row_count == 1
