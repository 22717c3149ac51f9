"""Sharing: the folder and its card, and a round trip through a hub that runs on this machine."""

import json
import pickle
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from hub_server import TOKEN, Hub, Repository, running
from huggingface_hub import ModelCard
from tiny import normal, result, tiny

from slotmatch.__main__ import main
from slotmatch.experiments import MINI_STUDENT
from slotmatch.model import PRESETS, ModelConfig, VideoSlotModel, load, save
from slotmatch.model.hub import fetch
from slotmatch.paths import REPOSITORY, RESULTS, checksum
from slotmatch.reporting.results import numbers, read_results
from slotmatch.sharing.card import model_card, write_folder
from slotmatch.sharing.push import push_to_hub

CONFIG = tiny(decoder_layers=3, n_heads=4, decoder_hidden=16)
REPO = "user/tiny"


@pytest.fixture(scope="module")
def model() -> VideoSlotModel:
    return VideoSlotModel(CONFIG, seed=1).eval()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """An empty hub that is the hub, a token for it, and an empty cache."""
    with running() as server:
        here = huggingface_hub.constants
        monkeypatch.setattr(here, "ENDPOINT", server.endpoint)
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(here, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(here, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setattr(here, "HF_HUB_DISABLE_XET", True)  # another protocol, of binaries
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
        yield server


def results(**models: dict[str, Any]) -> dict[str, Any]:
    """A result file of two videos, as `read_results` gives it."""
    config = {
        "parameters": {"dataset": "minimovi_c", "output": "home"},
        "training": {"steps": 70, "seed": 3},
    }
    rules = {"name": "original", "masks": "decoder", "window": None}
    return result(models, 2, config=config, seeds=[3], protocol=rules)


def entry(*fg_ari: float, **more: Any) -> dict[str, Any]:
    return {"metrics": {"video_fg_ari": list(fg_ari), "mask_entropy": [0.1, 0.2]}, **more}


def same(one: VideoSlotModel, other: VideoSlotModel) -> bool:
    features = normal(1, 2, 9, 6).float()
    return torch.equal(one.forward_features(features).slots, other.forward_features(features).slots)


# The folder and its card


def test_a_folder_holds_weights_config_and_card(model: VideoSlotModel, tmp_path: Path) -> None:
    folder = write_folder(model, tmp_path / "tiny", about="A model for tests.")
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    assert same(load(folder / "model.safetensors"), model)
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("library_name") == "slotmatch"
    assert config.pop("format") == "slotmatch 1"
    assert ModelConfig(**config) == CONFIG
    card = (folder / "README.md").read_text()
    assert "# tiny\n\nA model for tests.\n" in card
    assert f"`{checksum(folder / 'model.safetensors')}`" in card
    assert 'load("model.safetensors")' in card
    assert "None were given with this model." in card
    for heading in ("Intended use", "Training", "Scores", "Limits", "Licence", "Citation"):
        assert f"\n## {heading}\n" in card


def test_the_front_matter_is_what_the_hub_reads(model: VideoSlotModel) -> None:
    scored = results(model=entry(0.5, 0.7))
    text = model_card(model, title=REPO, results=scored)
    front = yaml.safe_load(text.split("---\n", 2)[1])
    assert front["license"] == "mit"
    assert front["library_name"] == "slotmatch"
    assert {"slotmatch", "object-centric-learning"} <= set(front["tags"])
    data = ModelCard(text).data
    assert data.model_name == REPO
    (score,) = data.eval_results
    assert (score.metric_type, score.metric_value) == ("video_fg_ari", 60.0)
    assert (score.dataset_name, score.dataset_split) == ("minimovi_a", "test")


def test_scores_come_with_interval_data_and_protocol(model: VideoSlotModel) -> None:
    scored = results(model=entry(0.5, 0.7))
    card = model_card(model, title=REPO, results=scored)
    assert f"| FG-ARI, video | {numbers(scored)['model_video_fg_ari']} |" in card
    assert "[" in str(numbers(scored)["model_video_fg_ari"])
    assert (
        "2 videos of minimovi_a (version 1), split test, protocol `original`, masks of the decoder."
    ) in card
    assert '"steps": 70' in card
    assert "Seeds: 3." in card
    assert "entropy" not in card
    assert '"output"' not in card  # a folder of whoever shares it


def test_scores_in_half_precision_say_so(model: VideoSlotModel) -> None:
    scored = results(model=entry(0.5, 0.7))
    assert "computed in" not in model_card(model, title=REPO, results=scored)
    scored["config"]["precision"] = "bf16"
    card = model_card(model, title=REPO, results=scored)
    assert "masks of the decoder, computed in bf16." in card
    (score,) = ModelCard(card).data.eval_results
    assert score.metric_args == {"precision": "bf16"}


def test_the_checksum_tells_which_scores_are_this_models(
    model: VideoSlotModel, tmp_path: Path
) -> None:
    save(model, tmp_path / "scored.safetensors")
    mine = entry(0.5, 0.5, checkpoint=checksum(tmp_path / "scored.safetensors"))
    scored = results(other=entry(0.1, 0.1), mine=mine)
    card = (write_folder(model, tmp_path / "tiny", results=scored) / "README.md").read_text()
    assert "| FG-ARI, video | 50.0" in card
    assert "Measured with this very file of weights." in card
    named = model_card(model, title=REPO, results=results(mine=mine), sha256="0" * 64)
    assert f"SHA-256 `{mine['checkpoint']}`, which is not byte for byte this one" in named


@pytest.mark.parametrize(
    ("models", "name", "complaint"),
    [
        ({"a": entry(0.1, 0.2), "b": entry(0.1, 0.2)}, None, "hold a, b: say which"),
        ({"a": entry(0.1, 0.2)}, "b", "hold a, not 'b'"),
        ({"a": entry(0.1, 0.2, parameters=7)}, None, "a has 7 parameters, this model .* another"),
    ],
)
def test_scores_of_another_model_are_refused_and_nothing_is_written(
    model: VideoSlotModel,
    tmp_path: Path,
    models: dict[str, dict[str, Any]],
    name: str | None,
    complaint: str,
) -> None:
    with pytest.raises(ValueError, match=complaint):
        write_folder(model, tmp_path / "tiny", results=results(**models), entry=name)
    assert list(tmp_path.iterdir()) == []


def test_a_card_says_where_the_backbone_is_from_and_what_it_saw() -> None:
    with torch.device("meta"):
        student = VideoSlotModel(PRESETS["movi_e"].student, pretrained=False)
    assert "The backbone was never trained" in model_card(student, title=REPO)
    assert student.backbone is not None
    student.backbone.pretrained = True
    card = model_card(student, title=REPO)
    assert ModelCard(card).data.base_model == "timm/vit_small_patch14_dinov2.lvd142m"
    assert "DINOv2 (LVD-142M, no labels), Apache-2.0" in card
    assert "saw labels" not in card
    assert "| parameters | 25.63 M" in card
    mini = model_card(load("mini-student"), title="mini-student")
    assert "the system as a whole is not unsupervised" in mini
    assert ModelCard(mini).data.base_model is None


def test_the_citation_is_the_readmes(model: VideoSlotModel) -> None:
    readme = (REPOSITORY / "README.md").read_text()
    cited = readme[readme.index("@article{") :].partition("```")[0]
    assert cited in model_card(model, title="a model")


# The hub


def test_a_pushed_model_comes_back_the_same(
    model: VideoSlotModel, hub: Hub, tmp_path: Path
) -> None:
    address = push_to_hub(model, REPO, about="For tests.", private=True)
    repository = hub.repositories[REPO]
    assert repository.private
    ((number, files),) = repository.commits
    assert address == f"hf://{REPO}@{number}"
    folder = write_folder(model, tmp_path, title=REPO, address=f"hf://{REPO}", about="For tests.")
    assert files == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert "PUT /store" in hub.requests  # large files do not travel inside the commit
    repository.private = False
    assert same(load(address), model)
    assert same(load(f"hf://{REPO}"), model)


def test_an_equal_model_makes_no_commit_and_another_keeps_the_first(
    model: VideoSlotModel, hub: Hub
) -> None:
    first = push_to_hub(model, REPO)
    assert push_to_hub(VideoSlotModel(CONFIG, seed=1), REPO) == first
    assert len(hub.repositories[REPO].commits) == 1
    other = VideoSlotModel(CONFIG, seed=2).eval()
    second = push_to_hub(other, REPO)
    assert len(hub.repositories[REPO].commits) == 2
    assert same(load(first), model)
    assert same(load(second), other)


def test_a_fetched_commit_needs_no_network(model: VideoSlotModel, hub: Hub) -> None:
    address = push_to_hub(model, REPO)
    path, asked = fetch(address), len(hub.requests)
    assert fetch(address) == path
    assert same(load(address), model)
    assert len(hub.requests) == asked


def test_a_push_needs_a_token_that_may_write(
    model: VideoSlotModel, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PermissionError, match=r"refuses access to user/tiny \(401\).*settings/tok"):
        push_to_hub(model, REPO, token="hf_reads")
    with pytest.raises(PermissionError, match=r"refuses access to somebody/tiny \(403\)"):
        push_to_hub(model, "somebody/tiny")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(PermissionError, match=r"no token to push .*hf auth login.*HF_TOKEN"):
        push_to_hub(model, REPO)
    assert hub.repositories == {}


def test_a_hub_that_does_not_answer_or_fails_is_told(model: VideoSlotModel, hub: Hub) -> None:
    hub.broken = True
    with pytest.raises(ConnectionError, match=r"could not do it for user/tiny \(500: out of order"):
        push_to_hub(model, REPO)
    nobody = "http://127.0.0.1:9"
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:9 does not answer for user/tiny"):
        push_to_hub(model, REPO, endpoint=nobody)
    with pytest.raises(ConnectionError, match="does not answer for user/tiny: check the network"):
        fetch(f"hf://{REPO}", endpoint=nobody)


def test_what_is_not_there_is_told(model: VideoSlotModel, hub: Hub) -> None:
    with pytest.raises(FileNotFoundError, match=r"user/tiny is not on .*, or is private"):
        load(f"hf://{REPO}")
    push_to_hub(model, REPO)
    with pytest.raises(FileNotFoundError, match=r"user/tiny on .* has no such revision"):
        load(f"hf://{REPO}@{'0' * 40}")
    hub.repositories["user/other"] = Repository(False, [("1" * 40, {"README.md": b""})])
    with pytest.raises(FileNotFoundError, match=r"user/other on .* holds no model\.safetensors"):
        load("hf://user/other")
    for address in ("hf://tiny", "hf://user/tiny/more", "hf://", "hf://user/ti ny"):
        with pytest.raises(ValueError, match="is not the name of a model on the hub, user/name"):
            load(address)


class Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_no_code_comes_out_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    content = pickle.dumps(Trap(tmp_path / "sprung"))
    files = {"model.safetensors": content, "modeling.py": b"raise SystemExit"}
    hub.repositories[REPO] = Repository(False, [("2" * 40, files)])
    with pytest.raises(ValueError, match=r"a file of torch\.save, not of safetensors"):
        load(f"hf://{REPO}")
    assert not (tmp_path / "sprung").exists()


# The command


def test_share_writes_a_folder_and_pushes_it(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scored = RESULTS / "03_distill" / "results.json"
    arguments = ["share", "mini-student", "--folder", str(tmp_path / "mini"), "--push", REPO]
    assert main([*arguments, "--results", str(scored), "--entry", "student"]) == 0
    shown = capsys.readouterr().out
    ((number, files),) = hub.repositories[REPO].commits
    assert f"load('hf://{REPO}@{number}')" in shown
    assert "README.md, config.json, model.safetensors" in shown
    card = (tmp_path / "mini" / "README.md").read_text()
    text = numbers(read_results(scored))["student_video_fg_ari"]
    assert f"| FG-ARI, video | {text} |" in card
    assert f'"match_weight": {MINI_STUDENT.match_weight}' in card
    assert files["model.safetensors"] == (tmp_path / "mini" / "model.safetensors").read_bytes()
    config = json.loads(files["config.json"])
    assert config["backbone"] == asdict(load("mini-student").config)["backbone"]


def test_share_says_in_one_sentence_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["share", "mini-student"]) == 1
    assert "give --folder DIR, --push USER/NAME or both" in capsys.readouterr().err
    config = replace(CONFIG, n_slots=3)
    save(VideoSlotModel(config), tmp_path / "tiny.safetensors")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert main(["share", str(tmp_path / "tiny.safetensors"), "--push", REPO]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("slotmatch share: no token to push user/tiny with")
