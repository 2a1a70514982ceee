"""DDPM++, NCSN++ and ADM against numbers of the official code."""

import pytest
import torch

from sid_ray.denoisers.edm import EDMDenoiser, EDMNetwork
from sid_ray.diffusion.schedules import EDMSchedule
from sid_ray.types import Condition, Want
from tests.denoisers.official import (
    Official,
    answer,
    check,
    check_weight_gradients,
    count,
    fill,
    listing,
    official_listing,
    relative_error,
    summary,
)

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
NAMES = ["edm_ddpmpp_cond", "edm_ncsnpp_uncond", "edm_adm_uncond"]
SIDA = {
    "decoder": Want.X0,
    "encoder": Want.LOGITS,
    "encoder_decoder": Want.X0 | Want.LOGITS,
}

NCSNPP = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}
SKIP = {"encoder_type": "skip", "decoder_type": "skip", "resample_filter": (1, 3, 3, 1)}
ADM = {
    "model_type": "DhariwalUNet",
    "model_channels": 192,
    "channel_mult": (1, 2, 3, 4),
    "num_blocks": 3,
    "attn_resolutions": (32, 16, 8),
}


def small(**arguments) -> EDMNetwork:
    values = {"img_resolution": 16, "img_channels": 3, "model_channels": 16, "num_blocks": 1}
    return EDMNetwork(**values | {"attn_resolutions": (8,)} | arguments)


def cifar(**arguments) -> EDMNetwork:
    return EDMNetwork(img_resolution=32, img_channels=3, channel_mult=(2, 2, 2), **arguments)


def pixels64(**arguments) -> EDMNetwork:
    return EDMNetwork(img_resolution=64, img_channels=3, **arguments)


@BOTH
@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradients(name, dtype):
    official = Official(name)
    network = official.build(dtype)
    out, grad_x, grad_sigma = official.run(network)
    assert out.logvar is None and out.logits is None
    check(out.x0, official, "out/D_x")
    check(grad_x, official, "grad/x")
    if dtype == torch.float32:
        assert relative_error(grad_sigma, official["grad/sigma"]) < 1e-5
        if name != "edm_adm_uncond":  # its weight gradients are not recorded
            bound = 4 * official.about["f32_vs_f64_rel"]["gradw_max"]
            check_weight_gradients(network, official.under("gradw/"), bound)


@pytest.mark.parametrize("name", NAMES)
def test_missing_labels_and_augmentation_labels(name):
    official = Official(name)
    network = official.build()
    check(official.run(network, augment=False)[0].x0, official, "out/D_x_noaug")
    if "out/D_x_nolabel" in official.tensors:
        check(official.run(network, labels=False)[0].x0, official, "out/D_x_nolabel")


@BOTH
@pytest.mark.parametrize("mode", SIDA)
def test_adversarial_logits(mode, dtype):
    official = Official("sida_ddpmpp_cond")
    network = official.build(dtype)
    out, grad_x, _ = official.run(network, SIDA[mode])
    if out.x0 is not None:
        check(out.x0, official, f"{mode}/out/D_x")
    if out.logits is not None:
        check(out.logits, official, f"{mode}/out/logits")
    check(grad_x, official, f"{mode}/grad/x")
    expected = official.under(f"{mode}/gradw/")
    if expected and dtype == torch.float32:
        check_weight_gradients(network, expected, 2e-5)


def test_logits_alone_do_not_run_the_decoder():
    network = EDMDenoiser(small())
    network.model.decode = None  # calling it would raise
    level = EDMSchedule().level(torch.tensor([1.0]))
    out = network(torch.randn(1, 3, 16, 16), level, Condition(), Want.LOGITS)
    assert out.x0 is None and out.logits.shape == (1, 1, 2, 2)


@pytest.mark.parametrize("name", ["edm_ncsnpp_uncond", "sida_ddpmpp_cond"])
def test_a_seed_means_the_official_initial_weights(name):
    """Bit for bit: the recorded weights are a known function of the initial ones."""
    official = Official(name)
    ours, theirs = official.weights_from_seeds(), official.under("w/")
    assert set(ours) == set(theirs)
    assert [key for key, value in theirs.items() if not torch.equal(ours[key], value)] == []


K1 = [+0.06242683, 0.3140273, +0.405424, +0.420105, -0.318702, +0.034798, -0.009543, +0.093944]
K2 = [+0.03238934, 0.3126887, +0.389152, +0.436889, -0.369555, +0.223958, +0.620052, +0.133411]
K3 = [+0.1046624, 0.3500703, +0.235672, +0.216520, -0.626502, +0.175508, +0.343609, +0.099029]
K4 = [+0.1387706, 0.3912414, +0.383884, +0.385251, -0.449945, +0.314254, +0.219999, +0.165020]
F1 = [+0.04995136, 0.3892670, +0.451318, +0.346170, -0.317874, +0.528386, +0.065451, +0.309671]
F2 = [-0.01091238, 0.3823160, +0.385127, +0.233093, -0.406333, -0.134218, -0.075165, +0.562100]
F3 = [+0.04747558, 0.3875366, +0.478656, +0.299424, -0.192777, -0.184397, -0.279867, +0.448548]
SMALL_ANSWERS = {
    "K1": (
        small(label_dim=4, augment_dim=9, channel_mult=(1, 2), num_blocks=2),
        199,
        [*K1, -0.1138041, 0.1224705],
    ),
    "K2": (
        small(augment_dim=9, channel_mult=(1, 2, 2), **NCSNPP),
        216,
        [*K2, -0.006692886, 0.04648948],
    ),
    "K3": (
        small(label_dim=4, channel_mult=(1, 2, 2), **SKIP),
        226,
        [*K3, +0.03430061, 0.06474736],
    ),
    "K4": (
        small(
            label_dim=4,
            augment_dim=9,
            channel_mult=(1, 2),
            model_type="DhariwalUNet",
            model_channels=64,
        ),
        150,
        [*K4, -0.01611537, 0.06961206],
    ),
}
FULL_ANSWERS = {
    "F1": (cifar(label_dim=10, augment_dim=9), 427, [*F1, +0.02026732, 0.02780044]),
    "F2": (pixels64(augment_dim=9), 553, [*F2, +0.01180514, 0.02212174]),
    "F3": (pixels64(label_dim=1000, **ADM), 553, [*F3, -0.1201653, 0.1209794]),
}


def check_answer(net: EDMNetwork, entries: int, expected: list[float], batch: int) -> None:
    network = EDMDenoiser(net)
    fill(network)
    assert len(network.state_dict()) == entries
    assert summary(answer(network, batch, net.augment_dim)) == pytest.approx(
        expected, rel=1e-5, abs=2e-6
    )


@pytest.mark.parametrize("name", SMALL_ANSWERS)
def test_known_answer(name):
    check_answer(*SMALL_ANSWERS[name], batch=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_ANSWERS)
def test_known_answer_at_full_size(name):
    check_answer(*FULL_ANSWERS[name], batch=1)


FINGERPRINTS = {
    "ddpmpp": (
        cifar(label_dim=10, augment_dim=9),
        {
            "map_label.weight": -0.00156111,
            "enc.32x32_conv.weight": -0.01142052,
            "dec.32x32_aux_conv.weight": -1.824093e-07,
        },
    ),
    "ncsnpp": (
        cifar(**NCSNPP),
        {
            "map_noise.freqs": -18.013437,
            "enc.16x16_aux_residual.weight": +0.01948541,
            "dec.32x32_aux_conv.weight": -9.810645e-08,
        },
    ),
    "adm": (
        pixels64(label_dim=1000, **ADM),
        {
            "map_layer0.weight": -0.00054031,
            "map_label.weight": -0.3916391,
            "dec.64x64_block3.skip.bias": +0.01286174,
        },
    ),
}


@pytest.mark.parametrize("name", FINGERPRINTS)
def test_initial_weights_at_full_size(name):
    net, expected = FINGERPRINTS[name]
    torch.manual_seed(0)
    weights = EDMDenoiser(net).model.state_dict()
    for key, value in expected.items():
        assert weights[key].flatten()[0].item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("net", "parameters", "entries"),
    [
        (cifar(augment_dim=9), 55_733_891, 425),
        (cifar(augment_dim=9, label_dim=10), 55_735_299, 427),
        (cifar(augment_dim=9, **NCSNPP), 56_397_827, 432),
        (cifar(augment_dim=9, label_dim=10, **NCSNPP), 56_400_643, 434),
        (pixels64(augment_dim=9), 61_805_571, 553),
        (pixels64(augment_dim=9, **NCSNPP), 62_761_091, 563),
        (pixels64(label_dim=1000, **ADM), 295_899_267, 553),
    ],
)
def test_published_sizes(net, parameters, entries):
    with torch.device("meta"):
        assert count(EDMDenoiser(net)) == (parameters, entries)


@pytest.mark.parametrize(
    ("name", "net"),
    [
        ("cifar10_ddpmpp_cond", cifar(augment_dim=9, label_dim=10)),
        ("imagenet64_adm", pixels64(label_dim=1000, **ADM)),
    ],
)
def test_state_dict_listing(name, net):
    with torch.device("meta"):
        assert listing(EDMDenoiser(net)) == official_listing(name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["edm_ncsnpp_uncond", "edm_adm_uncond"])
def test_half_precision_body(name, dtype):
    """The body is half, what surrounds it is not, and the answer is about the same."""
    official = Official(name)
    network = official.build()
    network.compute_dtype = dtype
    seen = {}

    def record(key):
        return lambda module, inputs, out: seen.__setitem__(key, (inputs[0].dtype, out.dtype))

    network.model.map_layer0.register_forward_hook(record("embedding"))
    network.model.enc["16x16_block0"].conv1.register_forward_hook(record("body"))
    network.model.enc["16x16_block0"].affine.register_forward_hook(record("affine"))
    out, grad_x, _ = official.run(network)
    assert seen["body"] == (dtype, dtype)
    assert seen["embedding"] == seen["affine"] == (torch.float32, torch.float32)
    assert out.x0.dtype == grad_x.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in network.parameters())
    bound = 0.02 if dtype == torch.bfloat16 else 0.003
    assert relative_error(out.x0, official["out/D_x"]) < bound
    x, level = torch.zeros(1, 3, 16, 16), EDMSchedule().level(torch.ones(1))
    assert network(x, level, Condition(), Want.LOGITS).logits.dtype == torch.float32


def test_label_dropout_drops_whole_rows_by_key():
    network = EDMDenoiser(small(label_dim=4, label_dropout=0.5, dropout=0.0))
    fill(network)
    labels, level = torch.eye(4)[:1].expand(32, 4), EDMSchedule().level(torch.ones(32))
    x = torch.randn(1, 3, 16, 16).expand(32, 3, 16, 16)
    with torch.no_grad():
        keyed = network(x, level, Condition(labels, dropout_keys=torch.arange(32))).x0
        kept = network(x, level, Condition(labels)).x0
        dropped = network(x, level, Condition()).x0
    is_kept = (keyed - kept).abs().amax((1, 2, 3)) < 1e-5
    is_dropped = (keyed - dropped).abs().amax((1, 2, 3)) < 1e-5
    assert torch.equal(is_kept, ~is_dropped)
    assert 8 <= int(is_kept.sum()) <= 24


def test_arguments_survive_json():
    net = cifar(augment_dim=9, **NCSNPP)
    assert EDMNetwork.from_json(net.to_json()) == net
    assert net.to_json()["resample_filter"] == [1, 3, 3, 1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model_type": "Unet"}, "model_type"),
        ({"model_type": "DhariwalUNet", "encoder_type": "skip"}, "encoder_type"),
        ({"img_resolution": 18, "channel_mult": (1, 2, 2)}, "multiple of 4"),
        ({"model_channels": 0}, "channel_mult"),
        ({"model_channels": 10**6}, "channel_mult"),
        ({"model_channels": 10**12}, "model_channels"),
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"num_blocks": "4"}, "num_blocks"),
        ({"channel_mult": (1, 2.5)}, "channel_mult"),
        ({"dropout": None}, "dropout"),
        ({"label_dim": True}, "label_dim"),
    ],
)
def test_wrong_arguments_are_named(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        small(**wrong)
