"""The augmentation pipe against numbers of the official code, and what must hold for any draws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sid_ray.diffusion.augment import (
    DRAWS,
    AugmentPipe,
    Draws,
    draw_augmentations,
)
from sid_ray.diffusion.warp import Margin, batch_margin
from sid_ray.errors import UserError
from tests.conftest import Reference
from tests.denoisers.official import uniform

# White noise is the hardest picture: an error of 1e-6 pixels is one of 2e-6 in a value. In float64
# the official numbers, themselves float32, are missed by 5e-6.
OFFICIAL = 1e-5
IDENTITY = 3e-5  # the chain with nothing to do, float32, white noise (the official one: 2.6e-5)


def columns(parts: list[Tensor]) -> Tensor:
    """Official draws, of shapes [N, 1, 1, 1], [N], [1, N] and [2, N], as [N, 15]."""
    count = len(parts[0])
    return torch.cat([part.reshape(-1, count) for part in parts]).T.float()


def official_draws(count: int, seed: int) -> Tensor:
    """What the official code draws after torch.manual_seed."""
    rng = torch.Generator().manual_seed(seed)
    flip = (count, 1, 1, 1)

    def flips() -> list[Tensor]:
        return [torch.randint(2, flip, generator=rng), torch.rand(flip, generator=rng)]

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=rng)

    parts = [*flips(), *flips(), normal(count), rand(count), rand(count), rand(count)]
    parts += [normal(count), rand(count), rand(count), rand(count), normal(2, count)]
    return columns([*parts, rand(1, count)])


def no_draws(count: int, **values: float) -> Tensor:
    """Draws with every gate open that leave an image alone but for the values given."""
    neutral = dict.fromkeys(Draws._fields, 0.0)
    neutral |= {"rotation_uniform": 0.5, "aniso_angle_uniform": 0.5}
    return torch.tensor(list((neutral | values).values())).expand(count, DRAWS)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def some_draws(count: int, seed: int = 0) -> Tensor:
    return draw_augmentations(count, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("batch_margin", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vector_of_the_official_code(dtype, batch_margin):
    reference = Reference("augment")
    arguments = reference.json("pipe")
    pipe = AugmentPipe(arguments.pop("p"), **arguments, batch_margin=batch_margin)
    assert pipe == AugmentPipe(0.12, batch_margin=batch_margin)  # the defaults are the published
    draws = columns([value for _, value in sorted(reference.under("draw/").items())])
    images, labels = pipe(reference["in/images"].to(dtype), draws)
    assert images.dtype == labels.dtype == dtype
    assert (images - reference["out/images"]).abs().max() < OFFICIAL
    assert (labels - reference["out/labels"]).abs().max() < 1e-6


# p; margin; mean, rms; first and last three pixels; first and last sample's labels.
KNOWN = [
    (
        1.0, (16, 19, 22, 18), (-0.008274555, 0.4398984),
        (-0.369577, -0.015541, -1.339282), (0.943022, 0.327854, 0.451554),
        (0, 1, -0.719258, -1.395815, -0.918330, -0.891995, 0, -0.020879, 0.191995),
        (0, 0, 0.182036, -1.910107, 0.414373, -0.390160, 1.403273, -1.312522, 0.258985),
    ),
    (
        0.12, (11, 11, 11, 11), (-0.007054986, 0.5489180),
        (0.787216, -0.046625, 0.246113), (0.030069, -0.158594, 0.698814),
        (0, 1, 0, 0, 0, 0, 0, 0, 0),
        (0, 0, 0.182036, -1.910107, 0.414373, 0, 0, 0, 0),
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("p", "margin", "moments", "first", "last", "first_labels", "last_labels"), KNOWN
)
def test_known_answers(p, margin, moments, first, last, first_labels, last_labels):
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("torch.randn differs in the last bits on a CPU without AVX2")
    draws = official_draws(4, seed=0)
    pipe = AugmentPipe(p, batch_margin=True)
    matrix = pipe.matrix(pipe.transforms(Draws(*draws.double().unbind(1))), 32, 32)
    assert batch_margin(matrix, 32, 32) == Margin(*margin)

    images, labels = pipe(2 * uniform("image", (4, 3, 32, 32)).float(), draws)
    found = (images.double().mean().item(), images.double().square().mean().sqrt().item())
    assert found == pytest.approx(moments, abs=3e-7)
    assert images[0, 0, 0, :3].tolist() == pytest.approx(first, abs=OFFICIAL)
    assert images[-1, -1, -1, -3:].tolist() == pytest.approx(last, abs=OFFICIAL)
    assert labels[0].tolist() == pytest.approx(first_labels, abs=1e-6)
    assert labels[-1].tolist() == pytest.approx(last_labels, abs=1e-6)


@pytest.mark.parametrize(("p", "bound"), [(0.12, 3e-5), (1.0, 3e-4)])
def test_padding_by_size_is_close_to_padding_by_batch(p, bound):
    images, draws = noise(64, 3, 32, 32), some_draws(64)
    ours, _ = AugmentPipe(p)(images, draws)
    official, _ = AugmentPipe(p, batch_margin=True)(images, draws)
    assert (ours - official).abs().max() < bound


def test_a_sample_does_not_depend_on_the_others():
    """To the bit on this CPU; a matrix product elsewhere may round otherwise, hence the bound."""
    pipe, images, draws = AugmentPipe(1.0), noise(12, 3, 16, 16), some_draws(12)
    together, labels = pipe(images, draws)
    order = torch.tensor([7, 0, 11, 3, 4, 9, 1, 10, 2, 8, 6, 5])
    for size in (1, 3, 5, 12):
        parts = [pipe(images[part], draws[part]) for part in order.split(size)]
        found = torch.cat([part for part, _ in parts])
        assert (found - together[order]).abs().max() < 1e-6, size
        assert torch.equal(torch.cat([part for _, part in parts]), labels[order]), size


def test_the_batch_margin_does_depend_on_the_others():
    """So that the test above would notice."""
    pipe = AugmentPipe(1.0, batch_margin=True)
    images, draws = noise(12, 3, 16, 16), some_draws(12)
    together, _ = pipe(images, draws)
    apart = torch.cat([pipe(images[i : i + 1], draws[i : i + 1])[0] for i in range(12)])
    assert (apart - together).abs().max() > 1e-5


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 16, 12)])
def test_what_was_planned_on_the_host_gives_the_same_pixels(shape):
    """To the bit, whatever samples are planned together: groups are planned, passes are applied."""
    pipe, images, draws = AugmentPipe(0.7), noise(12, *shape), some_draws(12)
    expected, labels = pipe(images, draws)
    for size in (1, 5, 12):
        planned = torch.cat([pipe.plan(part, shape) for part in draws.split(size)])
        assert planned.dtype == torch.float32
        found, found_labels = AugmentPipe(0.7).apply(images, planned)
        assert torch.equal(found, expected)
        assert torch.equal(found_labels, labels)
    two = draws.reshape(6, 2, -1)  # of generated and of real images
    assert torch.equal(pipe.plan(two, shape).reshape(12, -1), planned)
    with pytest.raises(ValueError, match="nothing to plan"):
        AugmentPipe(0.7, batch_margin=True).plan(draws, shape)


class Kernels(TorchDispatchMode):
    """The operators that were run, and whether any saw float64."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.wide: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.names.append(func.__name__)
            seen = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.wide += [func.__name__ for t in seen if t.dtype == torch.float64]
        return out


def test_on_the_device_there_is_float32_alone_and_nothing_made_again():
    """Matrices and filters are ready: left are flips, products, one grid and its samples."""
    pipe, images = AugmentPipe(0.12), noise(4, 3, 32, 32)
    planned = pipe.plan(some_draws(4), (3, 32, 32))
    pipe.apply(images, planned)
    with Kernels() as seen:
        pipe.apply(images, planned)
    assert seen.wide == []
    assert len(seen.names) < 25, seen.names
    made = {"arange.default", "full_like.default", "sin.default", "one_hot.default"}
    assert not made & set(seen.names)


def test_gradient_equals_finite_differences():
    images = noise(2, 1, 4, 5).double().requires_grad_(True)
    draws = some_draws(2, seed=1)
    pipe = AugmentPipe(1.0)
    assert torch.autograd.gradcheck(lambda x: pipe(x, draws)[0], images, atol=1e-8)


def test_probability_zero_does_nothing():
    images = noise(4, 3, 8, 8)
    found, labels = AugmentPipe(0.0)(images, some_draws(4))
    assert torch.equal(found, images)
    assert torch.equal(labels, torch.zeros(4, 9))


@pytest.mark.parametrize(("name", "axis", "label"), [("xflip", 3, 0), ("yflip", 2, 1)])
def test_a_flip_alone_is_a_flip(name, axis, label):
    images = noise(2, 3, 16, 12)
    found, labels = AugmentPipe(0.5)(images, no_draws(2, **{name: 1.0}))
    assert (found - images.flip(axis)).abs().max() < IDENTITY
    assert torch.equal(labels, torch.eye(9)[[label, label]])


def test_a_shift_by_whole_pixels_is_exact():
    images = noise(2, 3, 16, 24)
    # Content moves by 0.125 * 24 = 3 pixels to the right and 2 * 0.125 * 16 = 4 up.
    found, labels = AugmentPipe(0.5)(images, no_draws(2, shift_x_normal=1.0, shift_y_normal=-2.0))
    padded = torch.nn.functional.pad(images, (3, 0, 0, 4), mode="reflect")
    assert (found - padded[..., 4:, :24]).abs().max() < IDENTITY
    assert labels[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, -2]


# 0.2 * 5 = 1, so factors are 2; rotation by pi/2. What x + 10 y becomes, as slopes along x and y.
STRETCHES = [
    ({"scale_normal": 5.0}, (0.5, 5.0)),
    ({"aniso_normal": 5.0}, (0.5, 20.0)),
    ({"aniso_normal": 5.0, "aniso_angle_uniform": 0.75}, (2.0, 5.0)),
    ({"rotation_uniform": 0.75}, (10.0, -1.0)),
    ({"rotation_uniform": 0.75, "scale_normal": -5.0}, (20.0, -2.0)),
]


@pytest.mark.parametrize(("values", "slopes"), STRETCHES)
def test_what_becomes_of_a_ramp(values, slopes):
    """Slopes only, away from the reflected border: the filter, not symmetric, shifts a little."""
    x = torch.arange(32.0) - 15.5
    ramp = (x + 10 * x[:, None]).expand(1, 1, 32, 32)
    found, _ = AugmentPipe(1.0)(ramp, no_draws(1, **values))
    inner = found[..., 14:18, 14:18]
    assert inner.diff(dim=3).flatten().tolist() == pytest.approx([slopes[0]] * 12, abs=1e-3)
    assert inner.diff(dim=2).flatten().tolist() == pytest.approx([slopes[1]] * 12, abs=1e-3)


def test_a_constant_image_stays_constant():
    images = torch.full((64, 1, 16, 16), 0.7)
    found, _ = AugmentPipe(0.12)(images, some_draws(64))
    assert (found - images).abs().max() < 1e-6


def test_fractions_of_labels():
    count = 20_000
    _, labels = AugmentPipe(0.12)(torch.zeros(count, 1, 1, 1), some_draws(count))
    expected = [0.5, 0.06, 0.12, 0.12, 0.12, 0.12, 0.06, 0.12, 0.12]
    assert (labels != 0).double().mean(0).tolist() == pytest.approx(expected, abs=0.012)
    normal = labels[labels[:, 7] != 0][:, [2, 7, 8]]
    assert normal[:, 1:].std(0).tolist() == pytest.approx([1, 1], abs=0.07)


def test_a_multiplier_of_zero_switches_a_transform_off():
    off = dict.fromkeys(("xflip", "yflip", "scale", "rotate_frac", "aniso", "translate_frac"), 0.0)
    images = noise(4, 1, 8, 8)
    found, labels = AugmentPipe(1.0, **off)(images, some_draws(4))
    assert (found - images).abs().max() < IDENTITY
    assert not labels.any()


def test_draws():
    draws = some_draws(50_000)
    assert draws.dtype == torch.float32
    assert torch.equal(draws[:3], some_draws(3))  # a sample's draws whatever the count
    named = Draws(*draws.unbind(1))
    for name, column in named._asdict().items():
        if name in ("xflip", "yflip"):
            assert set(column.tolist()) == {0, 1}
            assert column.mean().item() == pytest.approx(0.5, abs=0.01)
        elif name.endswith("_normal"):
            assert (column.mean().item(), column.std().item()) == pytest.approx((0, 1), abs=0.02)
            # A standard normal number is below -1 and above 2 this often.
            assert (column < -1).double().mean().item() == pytest.approx(0.1587, abs=0.01)
            assert (column > 2).double().mean().item() == pytest.approx(0.0228, abs=0.005)
        else:
            assert 0 <= column.min() < 0.001
            assert 0.999 < column.max() < 1
            assert column.mean().item() == pytest.approx(0.5, abs=0.01)
    correlation = torch.corrcoef(draws.T) - torch.eye(DRAWS)
    assert correlation.abs().max() < 0.03


def test_half_precision_images_are_computed_in_float32():
    images, draws = noise(2, 3, 16, 16).bfloat16(), some_draws(2)
    found, labels = AugmentPipe(1.0)(images, draws)
    assert found.dtype == torch.bfloat16
    assert labels.dtype == torch.float32
    assert torch.equal(found, AugmentPipe(1.0)(images.float(), draws)[0].bfloat16())


@pytest.mark.parametrize("shape", [(3, 15), (4, 14), (15,), (4, 15, 1)])
def test_wrong_draws_are_refused(shape):
    with pytest.raises(ValueError, match=r"draws must be \[B, 15\] = \[4, 15\], got"):
        AugmentPipe(0.12)(torch.zeros(4, 3, 8, 8), torch.zeros(shape))


def test_wrong_images_and_probability_are_refused():
    with pytest.raises(ValueError, match=r"images must be \[B, C, H, W\], got \[3, 8, 8\]"):
        AugmentPipe(0.12)(torch.zeros(3, 8, 8), torch.zeros(3, 15))
    with pytest.raises(UserError, match=r"1.2 is not within 0..1"):
        AugmentPipe(1.2)
