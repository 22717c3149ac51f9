"""The commands of the pages on the paper's scale, on small files in the true format.

Every ```bash block counts. A command runs as it stands but for what ``REPLACED`` says and for the
sizes of the preset "paper" (``small``); what cannot run here stands in ``NOT_RUN``.
"""

import base64
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import av
import google_crc32c
import huggingface_hub
import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hub_server import TOKEN, Hub, Repository, running
from movi_files import write_movi
from PIL import Image
from pycocotools import mask as coco
from released import released_shapes
from safetensors.torch import save_file

from slotmatch import data, experiments
from slotmatch.__main__ import _parser, main
from slotmatch.data import movi, ytvis
from slotmatch.data.preprocessing import PREPROCESSING
from slotmatch.evaluation import PROTOCOLS
from slotmatch.model import Preset, load, save
from slotmatch.model.slotcontrast import read_tensors
from slotmatch.paths import NOTEBOOKS, REPOSITORY, RESULTS
from slotmatch.reporting.results import read_results
from slotmatch.training import estimates

BOOK = REPOSITORY / "book"
PAGES = ("scale", "scale/movi", "scale/ytvis2021", "scale/ovis", "scale/davis")

REPLACED = (
    # on the page, here, why
    ("/scratch/slotmatch", "{scratch}", "a folder of the test"),
    ("data download movi_e", "data download movi_e --server {bucket}", "a server on this machine"),
    (
        "launch --multi_gpu --num_processes 8 -m slotmatch train teacher",
        "launch --multi_gpu --num_processes 2 --main_process_port 0 -m slotmatch train teacher "
        "--preset smoke --steps 2",
        "two processes in place of eight GPUs, which do not see the sizes of `small`",
    ),
    ("-p preset paper", "-p preset smoke", "a notebook does not see them either"),
    ("--precision bf16", "--precision no", "a CPU emulates it; test_training.py has a run in it"),
)
NOT_RUN = {
    "git clone https://github.com/slotmatch/slotmatch": "the network; README names the address",
    "cd slotmatch": "the tests are inside",
    "make install": "it is installed; make itself says what it would do",
    "source .venv/bin/activate": "it is active",
    "hf auth login": "asks for a token; here HF_TOKEN has one",
    "sbatch train.sh": "no Slurm; its script is checked line by line",
    "set -e": "a line of that script",
}
CPU_STEPS, N_FRAMES = 2, 8
DINOV2 = "vit_small_patch14_dinov2.lvd142m"
STUDENT = "runs/ytvis2021.student/student.safetensors"
SMALL_MOVI = {"train": 6, "validation": 3, "test": 2}


def blocks(page: str) -> list[str]:
    text = (BOOK / f"{page}.md").read_text()
    return re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def lines(block: str) -> list[str]:
    joined = block.replace("\\\n", " ").splitlines()
    found = [" ".join(line.split()) for line in joined]
    return [line for line in found if line and not line.startswith("#")]


def commands(page: str) -> list[str]:
    """What a reader types, in the order of the page; scripts are left out."""
    return [line for block in blocks(page) if not block.startswith("#!") for line in lines(block)]


EVERY = [command for page in PAGES for command in commands(page)]
OURS = [command for command in EVERY if command.startswith("python -m slotmatch ")]


# Without running anything


def test_our_commands_are_understood() -> None:
    assert len(OURS) >= 40
    for command in OURS:
        _parser().parse_args(shlex.split(command)[3:])  # exits if it is wrong


def test_what_is_not_run_stands_on_the_pages_and_is_checked_otherwise() -> None:
    scripts = [line for page in PAGES for block in blocks(page) for line in lines(block)]
    assert set(NOT_RUN) <= set(scripts)
    assert all(any(old in command for command in EVERY) for old, _, _ in REPLACED)
    address = next(name for name in NOT_RUN if name.startswith("git clone")).split()[-1]
    assert address in (REPOSITORY / "README.md").read_text()
    told = subprocess.run(["make", "-n", "install"], cwd=REPOSITORY, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr


def test_the_slurm_script_is_bash_and_its_commands_are_among_those_that_run() -> None:
    (script,) = (block for page in PAGES for block in blocks(page) if block.startswith("#!"))
    checked = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert set(lines(script)) <= {*EVERY, *NOT_RUN}
    assert any(line.startswith("accelerate launch ") for line in lines(script))
    options = re.findall(r"^#SBATCH (\S+)$", script, re.MULTILINE)
    assert {"--requeue", "--gres=gpu:8"} <= set(options)


def test_every_protocol_and_every_column_of_the_log_is_explained() -> None:
    text = (BOOK / "scale.md").read_text()
    told = re.findall(r"^\| `(\w+)`[ ,|]", text, re.MULTILINE)
    assert set(PROTOCOLS) <= set(told)
    watched = {"reconstruction", "contrast", "match", "grad_norm", "slot_cosine"}
    assert {*watched, "attention_entropy"} <= set(told)


def test_chance_and_the_small_run_are_as_the_page_says() -> None:
    text = (BOOK / "scale.md").read_text()
    for name in ("movi_c", "movi_e", "ytvis2021"):
        chosen = experiments.select("paper", name)
        chance = math.log(chosen.teacher.batch_size * chosen.models.teacher.n_slots)
        assert f"{chance:.2f} for `{name}`" in text
    log = pd.read_csv(RESULTS / "teacher" / "log.csv").set_index("step")
    for step in (1, 500, 10_000):
        row = log.loc[step, ["grad_norm", "slot_cosine", "attention_entropy"]]
        assert f"| {step:,} | " + " | ".join(f"{value:.2f}" for value in row) + " |" in text
    assert f"{9749 * 24 * 128 * 128 * 3 / 1e9:.1f} GB" in text  # decoded MOVi-E
    assert f"{1280 * 720 * 3 / 1e6:.1f} MB" in text


def test_bytes_of_a_batch_are_as_the_page_says() -> None:
    text = " ".join((BOOK / "scale.md").read_text().split())
    rng, found = np.random.default_rng(0), {}
    for name, size in (("ytvis2021", (720, 1280)), ("movi_e", (128, 128))):
        clip, _ = PREPROCESSING[name].cut(np.zeros((4, *size, 3), np.uint8), rng)
        found[name] = 64 * clip.size
    youtube, movi = f"{found['ytvis2021'] / 1e9:.1f} GB", f"{found['movi_e'] / 1e6:.0f} MB"
    assert f"64 clips are {youtube} of YouTube-VIS at 1280 x 720 pixels and {movi} of MOVi" in text


@pytest.mark.slow
def test_the_table_of_memory_and_hours_is_the_estimators() -> None:
    text = (BOOK / "scale.md").read_text()
    single, half = 19.5e12, 312e12  # FLOP a second by the data sheet of the A100
    for name in ("movi_c", "movi_e", "ytvis2021"):
        chosen = experiments.select("paper", name)
        for role in ("teacher", "student"):
            config, model = getattr(chosen, role), getattr(chosen.models, role)
            guide = chosen.models.teacher if role == "student" else None
            found = [
                estimates.estimate(
                    replace(config, mixed_precision=precision, accumulate=parts),
                    model,
                    teacher=guide,
                    speed=speed,
                )
                for precision, parts, speed in (
                    ("no", 1, single),
                    ("bf16", 1, half),
                    ("bf16", 4, half),
                )
            ]
            cells = [f"`{name}` {role}", f"{found[0].trained / 1e6:.1f} M"]
            cells += [f"{one.memory / 1e9:.1f} GB" for one in found]
            cells += [f"{one.hours:.0f}" for one in found[:2]]
            row = f"| {' | '.join(cells)} |"
            assert row in text, row


# A small world to run in


def write_video(rng: np.random.Generator, height: int, width: int) -> data.Clip:
    """Two bright squares on noise, one of which moves."""
    video = rng.integers(0, 60, (N_FRAMES, height, width, 3), np.uint8)
    labels = np.zeros((N_FRAMES, height, width), np.int32)
    for t in range(N_FRAMES):
        for number, (row, column) in enumerate(((4, 3 + t), (height - 15, width - 17)), 1):
            labels[t, row : row + 11, column : column + 11] = number
    video[labels == 1] = 220, 40, 40
    video[labels == 2] = 40, 40, 220
    return data.Clip(video, labels, "")


def write_small_movi(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, n_videos in SMALL_MOVI.items():
        clips = [write_video(rng, 32, 32) for _ in range(n_videos)]
        write_movi(clips, root, "movi_e", split, shards=2)


def picture(frame: np.ndarray, kind: str, palette: bool = False) -> bytes:
    image = Image.fromarray(frame)
    if palette:
        image = image.convert("P")
        image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def mask(labels: np.ndarray, number: int, t: int) -> dict | list | None:
    """COCO's string, a list of runs, or null, in turns."""
    if t == 5 and number == 2:
        return None
    area = np.asfortranarray(labels == number, np.uint8)
    if number == 1:
        found = coco.encode(area)
        return {"size": [*area.shape], "counts": found["counts"].decode()}
    flat = area.flatten(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *ends, flat.size]).tolist()
    return {"size": [*area.shape], "counts": runs}


def write_youtube_vis(folder: Path, n_videos: int, ovis: bool) -> None:
    """train.zip with frames, and the annotation file where each of the two sets has it."""
    rng = np.random.default_rng(1)
    videos, annotations = [], []
    frames = "train" if ovis else "train/JPEGImages"
    with zipfile.ZipFile(folder / "train.zip", "w") as archive:
        for i in range(1, n_videos + 1):
            height, width = (40, 60) if i % 2 else (48, 64)
            clip = write_video(rng, height, width)
            names = [f"v{i}/img_{t:07d}.jpg" for t in range(N_FRAMES)]
            for name, frame in zip(names, clip.video, strict=True):
                archive.writestr(f"{frames}/{name}", picture(frame, "JPEG"))
            size = {"height": height, "width": width, "length": N_FRAMES}
            videos.append({"id": i, "file_names": names, **size})
            for number in (1, 2):
                masks = [mask(clip.labels[t], number, t) for t in range(N_FRAMES)]
                own = {"id": len(annotations) + 1, "video_id": i, "category_id": number}
                annotations.append({**own, "iscrowd": 0, "segmentations": masks})
        categories = [{"id": number, "name": str(number)} for number in (1, 2)]
        text = json.dumps({"videos": videos, "annotations": annotations, "categories": categories})
        if ovis:
            (folder / "annotations_train.json").write_text(text)
        else:
            archive.writestr("train/instances.json", text)


def write_davis(folder: Path) -> None:
    """The archives of both years as they are published."""
    rng = np.random.default_rng(2)
    splits = {"train": ["bear", "boat", "dog"], "val": ["camel", "cows"]}
    clips = {name: write_video(rng, 48, 80) for names in splits.values() for name in names}
    for year, archive_name, masks in (
        (2017, "DAVIS-2017-Unsupervised-trainval-480p.zip", "Annotations_unsupervised"),
        (2016, "DAVIS-data.zip", "Annotations"),
    ):
        with zipfile.ZipFile(folder / archive_name, "w") as archive:
            for name, clip in clips.items():
                for t in range(N_FRAMES):
                    frame, ids = clip.video[t], clip.labels[t].astype(np.uint8)
                    grey = ids if year == 2017 else 255 * (ids > 0).astype(np.uint8)
                    own = picture(grey, "PNG", palette=year == 2017)
                    archive.writestr(f"DAVIS/{masks}/480p/{name}/{t:05d}.png", own)
                    own = picture(frame, "JPEG")
                    archive.writestr(f"DAVIS/JPEGImages/480p/{name}/{t:05d}.jpg", own)
            for split, names in splits.items():
                place, line = "2017", "{name}"
                if year == 2016:
                    place = "480p"
                    line = "/JPEGImages/480p/{name}/00000.jpg /Annotations/480p/{name}/00000.png"
                text = "\n".join(line.format(name=name) for name in names)
                archive.writestr(f"DAVIS/ImageSets/{place}/{split}.txt", text)


class Bucket(BaseHTTPRequestHandler):
    """Kubric's bucket, as far as a download asks it."""

    folder: Path

    def log_message(self, *_: object) -> None:
        """Stays quiet."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path.startswith("/storage/v1/"):
            prefix = parse_qs(url.query)["prefix"][0]
            content = json.dumps({"items": [self.item(prefix, p) for p in self.files()]}).encode()
        else:
            content = (self.folder / url.path.rpartition("/")[2]).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def item(self, prefix: str, path: Path) -> dict[str, str]:
        content = path.read_bytes()
        crc = base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()
        return {"name": f"{prefix}{path.name}", "size": str(len(content)), "crc32c": crc}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained weights by the names and shapes of the published files.

    ViT-S/14 everywhere, and a decoder for the 2 x 2 patches that ``small`` leaves.
    """
    folder = tmp_path_factory.mktemp("weights")
    network = timm.create_model(DINOV2, pretrained=False, num_classes=0)
    save_file(network.state_dict(), folder / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, slots, width in (("movi_e", 15, 128), ("ytvis", 7, 64)):
        shapes = released_shapes(slots=slots, width=width, features=384, patches=4)
        tensors = {
            key: 0.05 * torch.randn(shape, generator=generator) for key, shape in shapes.items()
        }
        torch.save({"state_dict": tensors, "global_step": 1}, folder / f"{name}.ckpt")
    return folder


@dataclass
class World:
    """A folder in which a reader stands, and servers in place of the internet."""

    scratch: Path
    bucket: str
    monkeypatch: pytest.MonkeyPatch

    def run(self, command: str) -> str:
        """What a command prints; it must succeed."""
        for old, new, _ in REPLACED:
            command = command.replace(old, new.format(scratch=self.scratch, bucket=self.bucket))
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.monkeypatch.setenv(name, value)
            return ""
        if command.startswith("python -m slotmatch "):
            arguments = shlex.split(os.path.expandvars(command))[3:]
            with redirect_stdout(io.StringIO()) as printed:
                assert main(arguments) == 0, command
            return printed.getvalue()
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def read(self, page: str) -> dict[str, str]:
        """Do what a page says; what each of its commands printed."""
        printed = {name: self.run(name) for name in commands(page) if name not in NOT_RUN}
        for command in printed:
            found = re.search(r"--(?:output|folder) (\S+)", command)
            if found and "--dry-run" not in command:
                assert Path(found[1]).exists(), command
        return printed


@pytest.fixture
def world(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """With the released teachers and DINOv2 in place, as the first page leaves them."""
    here, scratch = tmp_path / "slotmatch", tmp_path / "scratch"
    here.mkdir()
    (here / "notebooks").symlink_to(NOTEBOOKS)
    monkeypatch.chdir(here)
    teachers = scratch / "cache" / "teachers" / "slotcontrast"
    teachers.mkdir(parents=True)
    for path in weights.glob("*.ckpt"):
        (teachers / path.name).symlink_to(path)
    dinov2 = scratch / "data" / "weights" / f"{DINOV2}.safetensors"
    dinov2.parent.mkdir(parents=True)
    dinov2.symlink_to(weights / "model.safetensors")

    published = tmp_path / "bucket"
    write_small_movi(published)
    handler = type("OneBucket", (Bucket,), {"folder": movi.data_folder("movi_e", published)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    with running() as hub:
        use_hub(hub, tmp_path / "hub", monkeypatch)
        fill(hub, weights)
        for name, value in {
            "SLOTMATCH_DATA": str(scratch / "data"),
            "SLOTMATCH_CACHE": str(scratch / "cache"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
        }.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(experiments, "select", small(experiments.select))
        monkeypatch.setattr(ytvis, "HOLD_OUT", {"ytvis2021": 3, "ovis": 2})
        monkeypatch.setattr(ytvis, "PUBLISHED", {"ytvis2021": 7, "ovis": 5})
        monkeypatch.setattr(movi, "PUBLISHED", {**movi.PUBLISHED, "movi_e": SMALL_MOVI})
        yield World(scratch, f"http://127.0.0.1:{server.server_port}", monkeypatch)
    server.shutdown()
    server.server_close()
    thread.join()


def use_hub(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it the hub, here and in processes that are started."""
    constants = huggingface_hub.constants
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def fill(hub: Hub, weights: Path) -> None:
    """What the pages fetch, by its published names; the larger ViT as a few bytes."""
    files = {
        f"timm/{DINOV2}": {"model.safetensors": (weights / "model.safetensors").read_bytes()},
        "timm/vit_base_patch14_dinov2.lvd142m": {"model.safetensors": b"larger"},
        "annamanasyan/slotcontrast": {p.name: p.read_bytes() for p in weights.glob("*.ckpt")},
    }
    for name, content in files.items():
        hub.repositories[name] = Repository(private=False, commits=[("0" * 40, content)])


def small(select):
    """The experiments of the preset "paper" with 2 x 2 patches, a ViT-S/14 and two steps."""

    def chosen(preset: str, dataset: str, **options):
        experiment = select(preset, dataset, **options)
        if preset != "paper":
            return experiment
        student = replace(experiment.models.student, image_size=28)
        changes = {
            "steps": CPU_STEPS,
            "warmup_steps": 1,
            "batch_size": 4,
            "validate_every": CPU_STEPS,
            "checkpoint_every": 1,
        }
        return replace(
            experiment,
            models=Preset(replace(student, backbone="dinov2_vits14"), student, "test"),
            teacher=replace(experiment.teacher, **changes),
            student=replace(experiment.student, **changes),
        )

    return chosen


def leave_student() -> None:
    """What the page on YouTube-VIS leaves for those on OVIS and DAVIS."""
    from slotmatch.model import VideoSlotModel

    student = experiments.select("paper", "ytvis2021").models.student
    Path(STUDENT).parent.mkdir(parents=True)
    save(VideoSlotModel(student), STUDENT)


def protocol(path: str) -> str:
    return read_results(path)["protocol"]["name"]


@pytest.mark.slow
def test_the_videos_of_a_folder_train_teacher_and_student(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLOTMATCH_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    Path("my_videos").mkdir()
    for i in range(12):  # the teacher's batch
        with av.open(f"my_videos/{i}.mp4", "w") as film:
            stream = film.add_stream("mpeg4", rate=12)
            stream.width = stream.height = 64
            for picture in rng.integers(0, 255, (6, 64, 64, 3), np.uint8):
                film.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            film.mux(stream.encode())
    (program,) = re.findall(r"```python\n(.*?)```", (BOOK / "scale.md").read_text(), re.DOTALL)
    exec(program.replace('select("mini"', 'select("smoke"'), {"__name__": "__main__"})
    student = load("runs/mine/student.safetensors")
    assert student.config == experiments.select("mini", "minimovi_a").models.student
    assert pd.read_csv("runs/mine/student/log.csv")["match"].notna().all()


# The pages

slow = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:all slots are the same")]


class TestPages:
    pytestmark = slow

    def test_scale(self, world: World, tmp_path: Path, weights: Path) -> None:
        write_small_movi(world.scratch / "data")
        for placed in (*world.scratch.rglob("*.ckpt"), *world.scratch.rglob("*.safetensors")):
            placed.unlink()
        Path("model.safetensors").symlink_to(weights / "model.safetensors")
        printed = world.read("scale")
        (dry,) = (text for name, text in printed.items() if "--dry-run" in name)
        assert "in 4 micro-batches" in dry
        assert "hours for 2 steps (estimate" in dry
        for name in ("movi_e", "ytvis2021"):
            path = experiments.released_path(experiments.select("paper", name))
            assert path is not None
            assert read_tensors(path).keys() == read_tensors(weights / path.name).keys()
        assert list((tmp_path / "hub").glob(f"models--timm--{DINOV2}/*/*/model.safetensors"))
        assert (world.scratch / "data" / "weights" / f"{DINOV2}.safetensors").stat().st_size > 8e7
        teacher = read_results("runs/movi_e.teacher.8gpus/results.json")
        assert teacher["processes"] == 2
        distilled = read_results("runs/03_distill.movi_e.smoke.seed0/results.json")
        assert distilled["data"]["ids"] == [f"movi_e/validation/{i:05d}" for i in range(3)]

    def test_movi(self, world: World) -> None:
        printed = world.read("scale/movi")
        taste, whole = (text for name, text in printed.items() if "download" in name)
        assert "movi_e train (6 videos), " in taste
        assert "to come: 0 files" not in taste
        assert "to come: 0 files" in whole
        own = read_results("runs/movi_e.student/results.json")
        assert own["config"]["teacher"] == "released by SlotContrast: movi_e.ckpt, dinov2_vits14"
        assert own["protocol"]["name"] == "slotcontrast_all"
        assert protocol("runs/movi_e.student/scores.json") == "slotcontrast"
        assert protocol("runs/movi_e.student/scores.skip_first.json") == "slotcontrast_skip_first"
        assert protocol("runs/movi_e.student/scores.randsfq.json") == "randsfq"
        assert "Distilled on MOVi-E" in Path("shared/movi_e-student/README.md").read_text()
        assert read_results("runs/from_the_hub.json")["data"]["videos"] == 2
        # The same command again only loads what is there.
        (again,) = (name for name in printed if name.endswith("runs/movi_e.student"))
        before = Path("runs/movi_e.student/student.safetensors").read_bytes()
        world.run(again)
        assert Path("runs/movi_e.student/student.safetensors").read_bytes() == before

    def test_ytvis2021(self, world: World) -> None:
        write_youtube_vis(Path(), 7, ovis=False)
        printed = world.read("scale/ytvis2021")
        (found,) = (text for name, text in printed.items() if "data check" in name)
        assert "7 videos (4 train, 3 validation), 14 objects" in found
        ids = [f"ytvis2021/validation/{i}" for i in (5, 6, 7)]
        for n_videos, name in ((210, "slotcontrast"), (None, "slotcontrast_all")):
            scores = read_results(f"runs/ytvis2021.student/scores.{n_videos or 300}.json")
            assert scores["protocol"]["name"] == name
            assert scores["protocol"]["n_videos"] == n_videos
            assert scores["data"]["ids"] == ids
        pieces = read_results("runs/ytvis2021.student/scores.videosaur.json")["data"]["ids"]
        assert pieces == [f"{name}[0:6]" for name in ids]

    def test_ovis(self, world: World) -> None:
        write_youtube_vis(Path(), 5, ovis=True)
        leave_student()
        world.read("scale/ovis")
        assert len(read_results("runs/ovis.validation.json")["data"]["ids"]) == 2
        assert len(read_results("runs/ovis.train.json")["data"]["ids"]) == 3

    def test_davis(self, world: World) -> None:
        write_davis(Path())
        leave_student()
        world.read("scale/davis")
        scored = read_results("runs/davis2017.student.json")
        assert scored["data"]["ids"] == [f"davis2017/validation/{s}" for s in ("camel", "cows")]
        assert protocol("runs/davis2016.student.original.json") == "original"
