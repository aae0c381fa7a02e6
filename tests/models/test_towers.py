"""Towers against `transformers` and closed forms; padding, gradients, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from transfuse.errors import ConfigError, DataError, ModelDirectoryError
from transfuse.models.towers import (
    ImageTower,
    ImageTowerConfig,
    SoundTower,
    SoundTowerConfig,
    TableTower,
    TableTowerConfig,
    TowersConfig,
)
from transfuse.nn.embeddings import FeatureEmbedding, FrameEmbedding, PatchEmbedding
from transfuse.pretrained.directory import load_model, save_model

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}


def vit(folder: Path, head: bool = False, **changes: object) -> nn.Module:
    config = transformers.ViTConfig(image_size=20, patch_size=5, num_channels=3, **SIZES, **changes)  # type: ignore[arg-type]
    theirs = (transformers.ViTForImageClassification if head else transformers.ViTModel)(config).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator, dtype=torch.float64) * 0.3)
    theirs.save_pretrained(folder)
    return theirs


def both(theirs: nn.Module, ours: ImageTower) -> tuple[torch.Tensor, torch.Tensor]:
    pixels = torch.randint(0, 256, (2, 3, 20, 20), generator=torch.Generator().manual_seed(2)).byte()
    wanted = theirs(pixels.double() / 127.5 - 1)[0]
    return ours(pixels, torch.ones(2, dtype=torch.bool))[0], wanted


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": False}, {"hidden_act": "gelu_new"}])
def test_a_vit_directory_gives_the_vectors_of_transformers(
    tmp_path: Path, head: bool, changes: dict[str, object]
) -> None:
    theirs = vit(tmp_path, head, **changes)
    ours = load_model(tmp_path, torch.float64)
    assert isinstance(ours, ImageTower)
    found, wanted = both(theirs.vit if head else theirs, ours)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "bug",
    [
        lambda tower: setattr(tower.patches, "weight", nn.Parameter(tower.patches.weight.transpose(2, 3).contiguous())),
        lambda tower: tower.positions.weight.data.copy_(tower.positions.weight.data.roll(1, 0)),
        lambda tower: setattr(tower.encoder, "norm", None),
        lambda tower: [setattr(block, "norm_first", False) for block in tower.encoder.blocks],
        lambda tower: tower.first.data.zero_(),
    ],
)
def test_parity_notices_bugs(tmp_path: Path, bug: object) -> None:
    theirs = vit(tmp_path)
    ours = load_model(tmp_path, torch.float64)
    assert isinstance(ours, ImageTower) and callable(bug)
    bug(ours)
    found, wanted = both(theirs, ours)
    assert (found - wanted).abs().max() > 1e-3


def test_a_tower_saved_here_opens_in_transformers(tmp_path: Path) -> None:
    vit(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", torch.float64)
    save_model(ours, tmp_path / "ours")
    theirs = transformers.ViTModel.from_pretrained(tmp_path / "ours", add_pooling_layer=False, dtype=torch.float64)
    found, wanted = both(theirs.eval(), ours)  # type: ignore[arg-type]
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)


def test_an_unknown_weight_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    vit(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        weights | {"encoder.layer.0.extra.weight": torch.zeros(2)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ModelDirectoryError, match="extra"):
        load_model(tmp_path)


def test_patches_are_a_convolution() -> None:
    patches = PatchEmbedding(12, 3, 2, 7).double()
    nn.init.normal_(patches.weight)
    nn.init.normal_(patches.bias)
    pixels = torch.randn(2, 2, 12, 12, dtype=torch.float64)
    wanted = nn.functional.conv2d(pixels, patches.weight, patches.bias, stride=3).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches(pixels), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 9])
def test_frames_past_the_end_are_nothing(length: int) -> None:
    frames = FrameEmbedding(5, 2, 6).double()
    own = torch.randn(1, length, 5, dtype=torch.float64)
    alone, keep_alone = frames(own, torch.ones(1, length, dtype=torch.bool))
    padded = torch.cat([own, 7 * torch.ones(1, 6, 5, dtype=torch.float64)], 1)
    found, keep = frames(padded, torch.arange(length + 6)[None] < length)
    assert int(keep.sum()) == int(keep_alone.sum()) == -(-length // 4) == alone.shape[1]
    torch.testing.assert_close(found[:, : alone.shape[1]], alone, atol=1e-12, rtol=0)


def test_a_missing_number_has_a_vector_of_its_own() -> None:
    features = FeatureEmbedding(2, 3, (3,), 4)
    for weight in features.parameters():
        nn.init.normal_(weight)
    numbers, codes = torch.rand(1, 2, 3), torch.tensor([[2]])
    found = features(numbers, torch.tensor([[True, False]]), codes)[0]
    torch.testing.assert_close(found[0], numbers[0, 0] @ features.weight[0] + features.bias[0])
    torch.testing.assert_close(found[1], features.missing[1])
    torch.testing.assert_close(found[2], features.level.weight[2] + features.column[0])


def test_levels_of_columns_do_not_meet() -> None:
    features = FeatureEmbedding(0, 1, (2, 3), 4)
    nn.init.zeros_(features.column)
    found = features(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool), torch.tensor([[1, 0]]))[0]
    torch.testing.assert_close(found, features.level.weight[[1, 2]])


@pytest.mark.parametrize(
    "tower",
    [
        SoundTower(SoundTowerConfig(n_bands=5, d_model=8, n_layers=1, n_heads=2)),
        TableTower(TableTowerConfig(n_numbers=2, n_bins=3, n_levels=(3,), d_model=8, n_layers=1, n_heads=2)),
        ImageTower(ImageTowerConfig(size=8, patch=4, channels=1, d_model=8, n_layers=1, n_heads=2)),
    ],
)
def test_every_tower_learns(tower: nn.Module) -> None:
    draw = torch.Generator().manual_seed(0)
    for weight in tower.parameters():
        nn.init.normal_(weight, generator=draw)
    there = torch.ones(3, dtype=torch.bool)
    given: tuple[torch.Tensor, ...]
    if isinstance(tower, SoundTower):
        given = torch.randn(3, 9, 5), torch.ones(3, 9, dtype=torch.bool)
    elif isinstance(tower, TableTower):
        given = (
            torch.rand(3, 2, 3),
            torch.tensor([[True, False]] * 2 + [[False, True]]),
            torch.tensor([[0], [1], [2]]),
            there,
        )
    else:
        given = torch.randint(0, 256, (3, 1, 8, 8)).byte(), there
    tokens, keep = tower(*given)
    assert tokens.shape[:2] == keep.shape and bool(keep.all())
    (tokens * torch.randn(tokens.shape, generator=draw)).sum().backward()
    for name, weight in tower.named_parameters():
        assert weight.grad is not None and (weight.grad.abs().sum() > 0 or name.endswith("key.bias")), name


def test_images_of_another_size_are_refused() -> None:
    tower = ImageTower(ImageTowerConfig(size=8, patch=4, channels=1, d_model=8, n_layers=1, n_heads=2))
    with pytest.raises(DataError, match=r"\(3, 8, 8\).*\(1, 8, 8\)"):
        tower(torch.zeros(1, 3, 8, 8), torch.ones(1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (ImageTowerConfig, {"size": 10, "patch": 4}),
        (SoundTowerConfig, {"n_halvings": -1}),
        (TableTowerConfig, {}),
        (TowersConfig, {"frozen": True}),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(kind: type, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        kind(**changes)
