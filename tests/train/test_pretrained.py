"""Pretrained weights: without a network, an error within seconds that says what to do."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from blpseg import pretrained
from blpseg.cli import main
from blpseg.pretrained import hub_answers, hub_if_reachable

NOWHERE = "http://127.0.0.1:9"  # no server listens on the port "discard"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Make the hub unreachable and its cache empty."""
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.usefixtures("no_network")
def test_missing_weights_are_an_error_within_5_seconds(
    own_shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "--help"])  # imports
    start = time.monotonic()
    assert main(["train", str(own_shapes), f"--output={tmp_path / 'run'}", "--device=cpu"]) == 2
    assert time.monotonic() - start < 5
    message = capsys.readouterr().err
    assert "cannot load the weights of 'tf_efficientnet_lite0'" in message
    assert f"{NOWHERE} cannot be reached" in message
    assert "--model.pretrained=false" in message and str(tmp_path / "cache") in message
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_network")
def test_only_the_cache_is_used_while_the_hub_does_not_answer() -> None:
    assert not hub_answers()
    with hub_if_reachable():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    with pytest.raises(OSError, match="cannot be reached, and"), hub_if_reachable():
        raise FileNotFoundError("not in the cache")
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(pretrained, "hub_answers", lambda: True)
    with hub_if_reachable():
        assert not constants.HF_HUB_OFFLINE


@pytest.mark.usefixtures("no_network")
def test_a_lookup_that_hangs_takes_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **options: object) -> None:
        time.sleep(30)

    monkeypatch.setattr("socket.getaddrinfo", hang)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    start = time.monotonic()
    assert not hub_answers()
    assert time.monotonic() - start < 4.5
