"""Fusions of towers: what is missing is as if it were not there, padding is nothing, and one modality is itself."""

from __future__ import annotations

import math

import pytest
import torch

from transfuse.errors import ConfigError, DataError
from transfuse.models.alignment import interpolate, trim
from transfuse.models.bert import BertConfig
from transfuse.models.fusion import FusionConfig, FusionModel, MultimodalConfig
from transfuse.models.towers import ImageTowerConfig, ScoreTowerConfig, SoundTowerConfig, TableTowerConfig

FUSIONS = ("early", "middle", "bottleneck", "concatenate", "gate", "average")
ALIGNED = [("early", one) for one in ("pad", "trim", "interpolate", "attend", "resample")]
EVERY = ALIGNED + [(one, how) for one in ("middle", "bottleneck") for how in ("pad", "trim", "resample")]
EVERY += [(one, "pad") for one in FUSIONS[3:]]

TOWERS = (
    BertConfig(vocab_size=23, d_model=12, n_layers=1, n_heads=2, max_positions=31, dropout=0.0, attention_dropout=0.0),
    TableTowerConfig(n_numbers=3, n_bins=5, n_levels=(4, 7), d_model=8, n_layers=1, n_heads=2, dropout=0.0),
    ImageTowerConfig(size=12, patch=4, channels=1, d_model=8, n_layers=1, n_heads=2, dropout=0.0),
    SoundTowerConfig(n_bands=7, n_halvings=2, d_model=8, n_layers=1, n_heads=2, dropout=0.0),
)
NAMES = ("text", "table", "photo", "clip")
B = 5


def model(fusion: str, align: str, which: tuple[int, ...] = (0, 1, 2, 3), **changes: object) -> FusionModel:
    sizes = {"d_model": 16, "n_heads": 2, "n_layers": 2, "dropout": 0.0, "n_outputs": 3, "n_queries": 3, "longest": 0}
    config = FusionConfig(fusion=fusion, align=align, **{**sizes, **changes})  # type: ignore[arg-type]
    towers, names = tuple(TOWERS[i] for i in which), tuple(NAMES[i] for i in which)
    made = FusionModel(MultimodalConfig(fusion=config, towers=towers, names=names)).double()
    generator = torch.Generator().manual_seed(3)
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return made.eval()


def parts(seed: int = 0, longer: int = 0) -> list[tuple[torch.Tensor, ...]]:
    """Rows of all four modalities; `longer` appends as many tokens of padding, full of rubbish."""
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([7, 3, 5, 7, 1])
    ids = torch.randint(0, 23, (B, 7), generator=draw)
    frames = torch.randn(B, 13, 7, generator=draw, dtype=torch.float64)
    n_frames = torch.tensor([13, 8, 1, 11, 5])
    if longer:
        ids = torch.cat([ids, torch.full((B, longer), 17)], 1)
        frames = torch.cat([frames, 9 * torch.ones(B, longer, 7, dtype=torch.float64)], 1)
    text = (ids, torch.zeros_like(ids), torch.arange(ids.shape[1]) < lengths[:, None])
    there = torch.ones(B, dtype=torch.bool)
    table = (
        torch.rand(B, 3, 5, generator=draw, dtype=torch.float64),
        torch.rand(B, 3, generator=draw) > 0.3,
        torch.stack([torch.randint(0, 4, (B,), generator=draw), torch.randint(0, 7, (B,), generator=draw)], 1),
        there,
    )
    photo = (torch.randint(0, 256, (B, 1, 12, 12), generator=draw).byte(), there.clone())
    clip = (frames, torch.arange(frames.shape[1]) < n_frames[:, None])
    return [text, table, photo, clip]


def without(given: list[tuple[torch.Tensor, ...]], which: int, row: int) -> list[tuple[torch.Tensor, ...]]:
    changed = list(given)
    keep = given[which][-1].clone()
    keep[row] = False
    changed[which] = (*given[which][:-1], keep)
    return changed


@pytest.mark.parametrize(("fusion", "align"), EVERY)
def test_appended_padding_changes_nothing(fusion: str, align: str) -> None:
    made = model(fusion, align)
    torch.testing.assert_close(made(parts()), made(parts(longer=6)), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("fusion", "align"), EVERY)
def test_rows_do_not_see_each_other(fusion: str, align: str) -> None:
    made, given, order = model(fusion, align), parts(), torch.tensor([3, 0, 4, 2, 1])
    shuffled = [tuple(one[order] for one in part) for part in given]
    torch.testing.assert_close(made(shuffled), made(given)[order], atol=1e-12, rtol=0)
    alone = [tuple(one[2:3] for one in part) for part in given]
    torch.testing.assert_close(made(alone), made(given)[2:3], atol=1e-12, rtol=0)


@pytest.mark.parametrize(("fusion", "align"), EVERY)
@pytest.mark.parametrize("which", range(4))
def test_what_is_missing_is_not_looked_at(fusion: str, align: str, which: int) -> None:
    made, given = model(fusion, align), without(parts(), which, 1)
    rubbish = list(given)
    rubbish[which] = tuple(
        torch.where(
            (torch.arange(B) == 1).view(-1, *[1] * (one.dim() - 1)),
            torch.ones_like(one) * (one.dtype != torch.bool),
            one,
        ).to(one.dtype)
        for one in given[which]
    )
    found = made(given)
    torch.testing.assert_close(made(rubbish), found, atol=1e-12, rtol=0)
    others = torch.arange(B) != 1
    torch.testing.assert_close(found[others], made(parts())[others], atol=1e-12, rtol=0)
    assert (found[1] - made(parts())[1]).abs().max() > 1e-6  # it was looked at when it was there


@pytest.mark.parametrize(("fusion", "align"), EVERY)
@pytest.mark.parametrize("which", range(4))
def test_one_modality_alone_is_its_own_model(fusion: str, align: str, which: int) -> None:
    """All others missing, the fused model is that of one modality with the same weights."""
    made, given = model(fusion, align, longest=which), parts()
    for other in range(4):
        if other != which:
            for row in range(B):
                given = without(given, other, row)
    alone = model(fusion, align, (which,), longest=0)
    with torch.no_grad():
        theirs = dict(made.named_parameters())
        for name, weight in alone.named_parameters():
            source = theirs[_numbered(name, which, fusion)]
            weight.copy_(source[which : which + 1] if source.shape != weight.shape else source)
    torch.testing.assert_close(made(given), alone([given[which]]), atol=1e-12, rtol=0)


def _numbered(name: str, which: int, fusion: str) -> str:
    """The name in the model of all modalities of a weight of the model of one."""
    by_modality = ["towers", "entries", "entry_norms", *(f"fusion.{one}" for one in ("hidden", "gates", "resamplers"))]
    by_modality += ["fusion.output"] * (fusion == "average")
    for part in by_modality:
        name = name.replace(f"{part}.0.", f"{part}.{which}.")
    pieces = name.split(".")
    if len(pieces) > 3 and pieces[1] in ("cross", "blocks"):  # (layer, modality)
        pieces[3] = str(which)
    return ".".join(pieces)


@pytest.mark.parametrize(("fusion", "align"), EVERY)
def test_every_weight_learns(fusion: str, align: str) -> None:
    made, given = model(fusion, align), without(without(parts(), 0, 2), 2, 0)
    made.train()
    made(given).square().sum().backward()
    # what the longest attends to others with, and their segments that no row has, are the exceptions
    idle = {name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0}
    exempt = ("segments", "fusion.others.0", "attention.key.bias")
    assert {name for name in idle if not any(part in name for part in exempt)} == set()


def test_trim_keeps_as_many_tokens_as_the_shortest_has() -> None:
    x, y = torch.arange(12.0).view(2, 6, 1), torch.arange(8.0).view(2, 4, 1)
    keep_x = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    keep_y = torch.tensor([[True] * 3 + [False], [False] * 4])
    (cut_x, kept_x), (_, kept_y) = trim([(x, keep_x), (y, keep_y)])
    assert kept_x.sum(1).tolist() == [3, 2]  # where the other is missing nothing is cut
    assert kept_y.sum(1).tolist() == [3, 0]
    assert cut_x.shape[1] == 3


def test_interpolation_is_linear_and_ends_on_the_ends() -> None:
    long, short = torch.zeros(1, 5, 1), torch.tensor([[[0.0], [4.0], [99.0]]])
    total, keep = interpolate(
        [(long, torch.ones(1, 5, dtype=torch.bool)), (short, torch.tensor([[True, True, False]]))]
    )
    torch.testing.assert_close(total[0, :, 0], torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]))
    assert keep.all()


def test_average_is_of_probabilities() -> None:
    made, given = model("average", "pad", (1, 2)), parts()[1:3]
    both = made(given).exp()
    torch.testing.assert_close(both.sum(1), torch.ones(B, dtype=both.dtype))
    nothing = [without(given, one, 0) for one in (0, 1)]
    first, second = (made(one).exp()[0] for one in nothing)
    torch.testing.assert_close(both[0], (first + second) / 2, atol=1e-6, rtol=0)


def test_average_of_numbers_is_their_mean() -> None:
    made, given = model("average", "pad", (1, 2), outputs="number", n_outputs=1), parts()[1:3]
    first, second = (made(without(given, one, 0))[0] for one in (0, 1))
    torch.testing.assert_close(made(given)[0], (first + second) / 2, atol=1e-6, rtol=0)


def test_resampling_gives_every_sequence_as_many_tokens() -> None:
    made = model("early", "resample")
    x, keep = made.fusion.aligned(made.tokens(parts()))
    assert x.shape[1] == 1 + 4 * 3 and bool(keep.all())


def test_the_longest_alone_is_kept_when_it_attends() -> None:
    made = model("early", "attend")
    x, keep = made.fusion.aligned(made.tokens(parts()))
    assert x.shape[1] == 1 + 7 and keep.sum(1).tolist() == [8, 4, 6, 8, 2]


def test_a_row_without_anything_is_refused() -> None:
    given = parts()
    for which in range(4):
        given = without(given, which, 3)
    with pytest.raises(DataError, match="row 3: every modality is missing"):
        model("early", "pad")(given)


@pytest.mark.parametrize("outputs", ["class", "number"])
@pytest.mark.parametrize("fusion", ["concatenate", "gate", "average"])
def test_scores_are_what_a_new_model_predicts_and_training_adds_to(fusion: str, outputs: str) -> None:
    K = 3 if outputs == "class" else 1
    config = FusionConfig(fusion=fusion, d_model=16, n_heads=2, outputs=outputs, n_outputs=K)  # type: ignore[arg-type]
    towers = (ScoreTowerConfig(n_scores=K, d_model=8),)
    made = FusionModel(MultimodalConfig(fusion=config, towers=towers, names=("table",))).initialise(0)
    scores, there = torch.randn(B, K), torch.ones(B, dtype=torch.bool)
    said = scores.log_softmax(-1) if fusion == "average" and outputs == "class" else scores
    torch.testing.assert_close(made([(scores, there)]), said)
    (made([(scores, there)]) - 1).square().sum().backward()
    heads = [weight for name, weight in made.named_parameters() if name.endswith("output.0.weight")]
    assert heads and all(head.grad is not None and head.grad.abs().max() > 0 for head in heads)


@pytest.mark.parametrize("fusion", ["concatenate", "gate"])
def test_scores_count_whole_beside_other_modalities(fusion: str) -> None:
    config = FusionConfig(fusion=fusion, d_model=16, n_heads=2)  # type: ignore[arg-type]
    towers = (ScoreTowerConfig(n_scores=2, d_model=8), BertConfig(vocab_size=20, d_model=8, n_layers=1, n_heads=2))
    made = FusionModel(MultimodalConfig(fusion=config, towers=towers, names=("table", "text"))).initialise(0)
    ids, there = torch.randint(1, 20, (B, 5)), torch.ones(B, dtype=torch.bool)
    scores = torch.randn(B, 2)
    found = made.eval()([(scores, there), (ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool))])
    torch.testing.assert_close(found, scores)


@pytest.mark.parametrize("fusion", ["concatenate", "gate", "average"])
def test_scores_that_are_missing_are_not_added(fusion: str) -> None:
    config = FusionConfig(fusion=fusion, d_model=16, n_heads=2)  # type: ignore[arg-type]
    towers = (ScoreTowerConfig(n_scores=2, d_model=8), ScoreTowerConfig(n_scores=2, d_model=8))
    made = FusionModel(MultimodalConfig(fusion=config, towers=towers, names=("a", "b"))).initialise(0)
    scores, there = torch.randn(B, 2), torch.tensor([True] * (B - 1) + [False])
    other = torch.randn(B, 2), torch.ones(B, dtype=torch.bool)
    found = made([(scores, there), other])
    assert torch.equal(found, made([(torch.where(there[:, None], scores, torch.nan), there), other]))
    assert not torch.allclose(found[:-1], made([(scores + torch.tensor([1.0, 0.0]), there), other])[:-1])


def test_scores_are_one_an_output_and_for_parallel_fusions() -> None:
    towers = (ScoreTowerConfig(n_scores=3, d_model=8),)
    with pytest.raises(ConfigError, match="n_scores=3 must be n_outputs=2"):
        MultimodalConfig(fusion=FusionConfig(fusion="gate"), towers=towers, names=("table",))
    with pytest.raises(ConfigError, match="must be one of concatenate, gate, average"):
        MultimodalConfig(fusion=FusionConfig(n_outputs=3), towers=towers, names=("table",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": "gate", "align": "trim"}, "nothing is aligned"),
        ({"fusion": "middle", "align": "attend"}, "only fusion='early'"),
        ({"fusion": "sum"}, "one of"),
        ({"d_model": 30, "n_heads": 4}, "multiple"),
    ],
)
def test_contradictions_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FusionConfig(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 5])
def test_first_weights_are_a_function_of_the_seed(seed: int) -> None:
    config = model("early", "resample").config
    torch.manual_seed(99)
    first, second = (FusionModel(config).initialise(seed).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = FusionModel(config).initialise(seed + 1).state_dict()
    assert not torch.equal(first["modality"], other["modality"])
    assert all(math.isfinite(float(weight.float().sum())) for weight in first.values())
