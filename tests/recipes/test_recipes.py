"""Every recipe is whole, and says what was published. The tables here are written by hand from
the authors' scripts and READMEs; nothing in them is computed.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sid_ray import cli
from sid_ray.commands import distill
from sid_ray.config.distill_config import DistillConfig, differences, replace
from sid_ray.config.sections import ResourcesConfig
from sid_ray.denoisers.stable_diffusion import SD15, SD21_BASE
from sid_ray.errors import UserError
from sid_ray.recipes.known_networks import known_network
from sid_ray.recipes.registry import RECIPES, guidance_strategy, recipe, recipe_entry
from sid_ray.recipes.table import recipe_table
from sid_ray.weights.address import HubFile, parse_source

ROOT = Path(__file__).parents[2]
EDM_NAMES = ("cifar10-", "img64-", "ffhq64-", "afhqv2-")
NVIDIA_EDM = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-"
NVIDIA_EDM2 = "https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/edm2-img512-"
HUB = "hf://UT-Austin-PML/"

# Per teacher: file, data, batch size, learning rate, float16, dropout, augment, half-life of the
# average in millions, teacher's FID and its evaluations.
EDM_TEACHERS = {
    "cifar10-uncond": (
        "cifar10-32x32-uncond-vp", "cifar10", 256, 1e-5, 0, 0.13, 0.12, 0.5, 1.97, 35),
    "cifar10-cond": (
        "cifar10-32x32-cond-vp", "cifar10", 256, 1e-5, 0, 0.13, 0.12, 0.5, 1.79, 35),
    "img64": ("imagenet-64x64-cond-adm", "imagenet-64", 8192, 4e-6, 1, 0.1, 0, 2, 1.36, 511),
    "ffhq64": ("ffhq-64x64-uncond-vp", "ffhq-64", 512, 1e-5, 1, 0.05, 0.15, 0.5, 2.39, 79),
    "afhqv2": ("afhqv2-64x64-uncond-vp", "afhqv2-64", 512, 5e-6, 1, 0.05, 0.15, 0.5, 1.96, 79),
}  # fmt: skip
# Per recipe: alpha, group size, million images, thousand images seen by the published generator,
# its FID, the best FID of SiDA and SiD2A.
EDM_RUNS = {
    "cifar10-uncond-sid": (1.2, 16, 500, 403_968, 1.923, None),
    "cifar10-uncond-sid-alpha1": (1.0, 16, 500, 416_768, None, None),
    "cifar10-uncond-sida": (1.0, 32, 300, 217_920, None, 1.499),
    "cifar10-uncond-sid2a": (1.0, 32, 100, 28_160, None, 1.499),
    "cifar10-uncond-sid2a-alpha1.2": (1.2, 32, 100, 22_528, None, 1.499),
    "cifar10-cond-sid": (1.2, 16, 800, 713_312, 1.710, None),
    "cifar10-cond-sid-alpha1": (1.0, 16, 500, 415_744, None, None),
    "cifar10-cond-sida": (1.0, 32, 300, 293_184, None, 1.396),
    "cifar10-cond-sid2a": (1.0, 32, 100, 38_912, None, 1.396),
    "cifar10-cond-sid2a-alpha1.2": (1.2, 32, 100, 53_760, None, 1.396),
    "img64-sid": (1.2, 16, 1000, 939_176, 1.524, None),
    "img64-sid-alpha1": (1.0, 16, 500, 492_836, None, None),
    "img64-sida": (1.0, 32, 300, 249_167, None, 1.110),
    "img64-sid2a": (1.0, 32, 100, 29_499, None, 1.110),
    "img64-sid2a-alpha1.2": (1.2, 32, 100, 21_471, None, 1.110),
    "ffhq64-sid": (1.2, 32, 500, 498_176, 1.550, None),
    "ffhq64-sid-alpha1": (1.0, 32, 500, None, None, None),
    "ffhq64-sida": (1.0, 64, 200, 185_856, None, 1.040),
    "ffhq64-sid2a": (1.0, 64, 100, 168_960, None, 1.040),
    "ffhq64-sid2a-alpha1.2": (1.2, 64, 100, 80_896, None, 1.040),
    "afhqv2-sid": (1.0, 32, 500, 371_712, 1.628, None),
    "afhqv2-sida": (1.0, 64, 200, 127_488, None, 1.276),
    "afhqv2-sid2a": (1.0, 64, 100, 175_104, None, 1.276),
    "afhqv2-sid2a-alpha1.2": (1.2, 64, 100, None, None, 1.276),
}
# Per size: teacher file, dropout, group size, teacher's FID, best FID of SiDA and SiD2A, then for
# SiD, SiDA and SiD2A: million images, thousand images seen, log-variance head, generator's scale.
EDM2 = {
    "xs": ("2147483-0.135", 0, 64, 3.53, 2.156,
           (200, 249_360, 1, 100), (200, 166_410, 1, 100), (30, 28_674, 1, 100)),
    "s": ("2147483-0.130", 0, 64, 2.56, 1.669,
          (200, 192_010, 1, 100), (200, 117_764, 0, 100), (80, 75_268, 0, 100)),
    "m": ("2147483-0.100", 0.1, 32, 2.25, 1.488,
          (200, 226_830, 1, 100), (200, 115_716, 1, 100), (200, 44_036, 1, 50)),
    "l": ("1879048-0.085", 0.1, 32, 2.06, 1.413,
          (200, 203_788, 1, 100), (200, 166_918, 1, 100), (55, 50_182, 1, 100)),
    "xl": ("1342177-0.085", 0.1, 16, 1.96, 1.379,
           (200, 234_004, 1, 100), (200, 24_578, 1, 100), (50, 79_495, 1, 100)),
    "xxl": ("0939524-0.070", 0.1, 2, 1.91, 1.366,
            (100, 77_932, 1, 100), (100, 89_816, 1, 100), (30, 29_812, 1, 100)),
}  # fmt: skip
# Per recipe: kappa, FID, CLIP, thousand images seen.
LSG = {
    "sd15-lsg-kappa1.5": (1.5, 8.71, 0.302, 8_806),
    "sd15-lsg-kappa2": (2.0, 9.56, 0.313, 4_812),
    "sd15-lsg-kappa3": (3.0, 13.21, 0.314, 6_349),
    "sd15-lsg-kappa4.5": (4.5, 16.59, 0.317, 8_380),
    "sd21-base-lsg-kappa1.5": (1.5, 9.52, 0.308, 9_728),
    "sd21-base-lsg-kappa2": (2.0, 10.97, 0.318, 8_482),
    "sd21-base-lsg-kappa3": (3.0, 13.50, 0.321, 6_144),
    "sd21-base-lsg-kappa4.5": (4.5, 16.54, 0.322, 7_168),
}
# Addresses that the authors' scripts and READMEs hold, letter by letter.
CHECKPOINTS = {
    "cifar10-uncond-sid": "SiD/cifar10-uncond/alpha1.2/network-snapshot-1.200000-403968.pkl",
    "cifar10-cond-sid": "SiD/cifar10-cond/alpha1.2/network-snapshot-1.200000-713312.pkl",
    "img64-sid": "SiD/imagenet64/alpha1.2/network-snapshot-1.200000-939176.pkl",
    "ffhq64-sid": "SiD/ffhq64/alpha1.2/network-snapshot-1.200000-498176.pkl",
    "afhqv2-sid": "SiD/afhq64/alpha1/network-snapshot-1.000000-371712.pkl",
    "cifar10-cond-sid2a-alpha1.2":
        "SiDA/EDM_distillation/cifar10_cond_sid2a_alpha1.2-053760.pkl",
    "img64-sid2a": "SiDA/EDM_distillation/imgnet64_sid2a_alpha1-029499.pkl",
    "ffhq64-sid2a-alpha1.2": "SiDA/EDM_distillation/ffhq64_sid2a_alpha1.2-080896.pkl",
    "afhqv2-sida": "SiDA/EDM_distillation/afhq64-v2_sida_alpha1-127488.pkl",
    "img512-xs-sid": "SiDA/EDM2_distillation/edm2_img512_xs_sid_alpha1-249360.pkl",
    "img512-s-sid": "SiDA/EDM2_distillation/edm2_img512_s_sid_alpha1-192010.pkl",
    "img512-m-sid": "SiDA/EDM2_distillation/edm2_img512_m_sid_alpha1-226830.pkl",
    "img512-l-sid": "SiDA/EDM2_distillation/edm2_img512_l_sid_alpha1-203788.pkl",
    "img512-xl-sid": "SiDA/EDM2_distillation/edm2_img512_xl_sid_alpha1-234004.pkl",
    "img512-xl-sida": "SiDA/EDM2_distillation/edm2_img512_xl_sid2a_alpha1-024578.pkl",
    "img512-xxl-sid": "SiDA/EDM2_distillation/edm2_img512_xxl_sida_alpha1-077932.pkl",
    "img512-xxl-sid2a": "SiDA/EDM2_distillation/edm2_img512_xxl_sid2a_alpha1-029812.pkl",
    "sd15-lsg-kappa2": "SiD-LSG/batch512_cfg222_t625_4812_v2.pkl",
    "sd15-lsg-kappa1.5": "SiD-LSG/batch512_cfg1.51.51.5_t625_8806_v2.pkl",
    "sd21-base-lsg-kappa4.5": "SiD-LSG/batch512_sd21_cfg4.54.54.5_t625_7168_v2.pkl",
    "cifar10-uncond-sid-alpha1": None,
    "ffhq64-sid-alpha1": None,
    "afhqv2-sid2a-alpha1.2": None,
}  # fmt: skip

# Per recipe of SiD-DiT: repository, kind of noise levels, learning rate of both networks.
SANA = "Efficient-Large-Model/Sana_"
FLOW = {
    "sana-600m-512-dit": (SANA + "600M_512px_diffusers", "flow", 5e-6),
    "sana-1600m-512-dit": (SANA + "1600M_512px_diffusers", "flow", 1e-6),
    "sana-1600m-1024-dit": (SANA + "1600M_1024px_diffusers", "flow", 1e-6),
    "sd3-medium-dit": ("stabilityai/stable-diffusion-3-medium-diffusers", "flow", 1e-6),
    "sd35-medium-dit": ("stabilityai/stable-diffusion-3.5-medium", "flow", 1e-6),
    "sd35-large-dit": ("stabilityai/stable-diffusion-3.5-large", "flow", 1e-6),
    "flux-dev-512-dit": ("black-forest-labs/FLUX.1-dev", "guided-flow", 1e-6),
}


def of_prefix(*prefixes: str) -> set[str]:
    return {name for name in RECIPES if name.startswith(prefixes)}


@pytest.mark.parametrize("entry", RECIPES.values(), ids=RECIPES)
def test_every_recipe_is_valid_and_survives_json(entry):
    config = entry.config
    assert config.check() is config
    assert DistillConfig.from_json(config.to_json()) == config
    assert recipe(config.recipe) is config
    assert entry.summary
    for source in (config.teacher.source, config.teacher.initial_generator):
        if source.startswith("hf://"):
            HubFile.parse(source)
        elif source:
            assert parse_source(source).kind in ("https", "builtin")


def test_the_digits_recipe_has_not_changed():
    expected = DistillConfig().identity() | {
        "teacher.source": "builtin:digits-teacher", "objective.alpha": 1.0,
        "training.batch_size": 64, "training.group_size": 16, "training.fake_score_lr": 1e-4,
        "training.generator_lr": 1e-4, "training.ema_half_life": 5_000,
        "training.ema_rampup": 0.2,
    }  # fmt: skip
    assert recipe("digits-sid").identity() == expected


def common(config: DistillConfig) -> None:
    """What all published configurations share."""
    training, evaluation = config.training, config.evaluation
    assert (training.fake_score_beta1, training.beta2, training.ema_rampup) == (0.0, 0.999, 0.05)
    assert config.resources == ResourcesConfig(use_gpu=True)  # the rest is chosen at each start
    assert (evaluation.feature_space, evaluation.every) == ("", 0)
    assert not evaluation.final_report
    assert config.objective.fake_scale == 1.0
    assert config.objective.compat == "none"
    assert config.objective.num_steps == 1


def adversarial(config: DistillConfig, method: str, discriminator_weight: float) -> None:
    objective = config.objective
    assert recipe_entry(config.recipe).published.method == method
    if method == "SiD":
        assert objective.name == "sid"
    else:
        assert objective.name == "sida"
        assert (objective.generator_start, objective.adversarial_start) == (100_000, 200_000)
        assert objective.adversarial_weight == 0.01
        assert objective.discriminator_weight == discriminator_weight


def method_of(name: str) -> str:
    parts = name.split("-")
    return "SiD2A" if "sid2a" in parts else "SiDA" if "sida" in parts else "SiD"


def test_no_published_recipe_is_missing_here():
    assert of_prefix(*EDM_NAMES) == EDM_RUNS.keys()
    sizes = {f"img512-{size}-{method}" for size in EDM2 for method in ("sid", "sida", "sid2a")}
    assert of_prefix("img512-") == sizes
    assert of_prefix("sd15-lsg-", "sd21-") == {*LSG, "sd21-768-lsg-kappa2"}
    flow = {name for name in of_prefix("sana-", "sd3", "flux-") if not name.endswith("-lora")}
    assert flow == FLOW.keys()


@pytest.mark.parametrize("name", EDM_RUNS)
def test_edm(name):
    alpha, group, millions, kimg, fid, best = EDM_RUNS[name]
    (key,) = [key for key in EDM_TEACHERS if name.startswith(key + "-")]
    file, data, batch, lr, half, dropout, augment, ema, teacher_fid, nfe = EDM_TEACHERS[key]
    entry, method = recipe_entry(name), method_of(name)
    config, published = entry.config, entry.published
    training, objective = config.training, config.objective
    common(config)
    adversarial(config, method, discriminator_weight=1.0)
    assert config.teacher.source == f"{NVIDIA_EDM}{file}.pkl"
    assert (config.teacher.dropout, config.data.name) == (dropout, data)
    start = HUB + CHECKPOINTS[f"{key}-sid"] if method == "SiD2A" else ""
    assert config.teacher.initial_generator == start
    assert (objective.alpha, objective.augment, objective.generator_scale) == (alpha, augment, 100)
    assert not objective.logvar
    schedule = config.schedule
    assert (schedule.kind, schedule.p_mean, schedule.p_std) == ("edm", -1.2, 1.2)
    assert (schedule.t_max, schedule.init_sigma) == (0.8, 2.5)
    assert (training.batch_size, training.group_size) == (batch, group)
    assert (training.fake_score_lr, training.generator_lr) == (lr, lr)
    assert training.precision == ("float16" if half else "float32")
    assert training.epsilon == (1e-6 if half else 1e-8)
    beta1 = 0.9 if name in ("ffhq64-sid", "ffhq64-sid-alpha1") else 0.0
    assert training.generator_beta1 == beta1
    assert training.ema_half_life == ema * 1_000_000
    assert training.clip_value == (0 if method == "SiD" else 1)
    assert training.images == published.duration == millions * 1_000_000
    assert published.images_seen == (None if kimg is None else kimg * 1000)
    assert (published.fid, published.best_fid) == (fid, best)
    assert (published.teacher_fid, published.teacher_evaluations) == (teacher_fid, nfe)


@pytest.mark.parametrize("size", EDM2)
@pytest.mark.parametrize(("method", "place"), [("SiD", 0), ("SiDA", 1), ("SiD2A", 2)])
def test_edm2(size, method, place):
    file, dropout, group, teacher_fid, best, *runs = EDM2[size]
    millions, kimg, logvar, scale = runs[place]
    entry = recipe_entry(f"img512-{size}-{method.lower()}")
    config, published = entry.config, entry.published
    training, objective = config.training, config.objective
    common(config)
    adversarial(config, method, discriminator_weight=100.0)
    assert config.teacher.source == f"{NVIDIA_EDM2}{size}-{file}.pkl"
    assert (config.teacher.dropout, config.data.name) == (dropout, "imagenet-512")
    start = HUB + CHECKPOINTS[f"img512-{size}-sid"] if method == "SiD2A" else ""
    assert config.teacher.initial_generator == start
    assert (objective.alpha, objective.augment) == (1.0, 0.0)
    assert (objective.logvar, objective.generator_scale) == (bool(logvar), scale)
    schedule = config.schedule
    assert (schedule.kind, schedule.p_mean, schedule.p_std) == ("edm", -0.4, 1.0)
    assert (schedule.t_max, schedule.init_sigma) == (0.8, 2.5)
    assert (training.batch_size, training.group_size) == (2048, group)
    assert (training.fake_score_lr, training.generator_lr) == (5e-5, 5e-5)
    assert (training.precision, training.epsilon) == ("float16", 1e-6)
    assert (training.generator_beta1, training.clip_value) == (0.0, 0.0)
    assert training.ema_half_life == 2_000_000
    assert training.images == published.duration == millions * 1_000_000
    assert published.images_seen == kimg * 1000
    assert (published.fid, published.best_fid) == (None, None if method == "SiD" else best)
    assert (published.teacher_fid, published.teacher_evaluations) == (teacher_fid, 63)


@pytest.mark.parametrize("name", FLOW)
def test_flow(name):
    """SiD-DiT: one set of settings for all teachers, but for SANA 0.6B's learning rate."""
    source, kind, lr = FLOW[name]
    entry = recipe_entry(name)
    config, published = entry.config, entry.published
    objective, schedule, training = config.objective, config.schedule, config.training
    assert config.teacher.source == "hf://" + source
    assert (objective.name, objective.alpha, objective.num_steps) == ("lsg", 1.0, 4)
    kappas = objective.kappa1, objective.kappa2, objective.kappa3, objective.kappa4
    assert kappas == (4.5, 4.5, 4.5, 4.5)
    assert (objective.fake_scale, objective.generator_scale) == (1.0, 100.0)
    assert objective.text_dropout == 0
    assert (schedule.kind, schedule.weighting) == (kind, "1_minus_sigma")
    assert (schedule.time_mean, schedule.time_std) == (math.log(2), 1.6)
    assert (schedule.init_time, schedule.generator_shift) == (999, 1.0)
    assert schedule.step_noise == "fresh"
    assert (training.batch_size, training.precision) == (256, "bfloat16")
    assert (training.fake_score_lr, training.generator_lr) == (lr, lr)
    assert (training.epsilon, training.ema_half_life, training.clip_value) == (1e-8, 0, 0)
    assert (training.fake_score_beta1, training.generator_beta1, training.beta2) == (0, 0, 0.999)
    assert (published.method, published.duration) == ("SiD-DiT", 2_000_000)
    assert (published.fid, published.clip_score, published.checkpoint) == (None, None, None)
    assert "not published" in published.notes or name == "sana-600m-512-dit"
    assert config.resources == ResourcesConfig(use_gpu=True)


@pytest.mark.parametrize(("name", "kappa"), [("sdxl-4step-zero", 0), ("sdxl-4step-anti", -1)])
def test_few_steps_of_sdxl(name, kappa):
    """arXiv:2505.12674: four steps from 625 on, a teacher without guidance, a fake score that is
    guided by 0 (Zero-CFG) or away from the text (Anti-CFG).
    """
    entry = recipe_entry(name)
    config, objective = entry.config, entry.config.objective
    assert config.teacher.source == "hf://stabilityai/stable-diffusion-xl-base-1.0"
    assert (objective.name, objective.alpha, objective.num_steps) == ("lsg", 1.0, 4)
    kappas = objective.kappa1, objective.kappa2, objective.kappa3, objective.kappa4
    assert kappas == (kappa, kappa, kappa, 1)
    strategy = name.rpartition("-")[2]
    assert guidance_strategy(strategy, kappa or None) == dict(
        zip(("kappa1", "kappa2", "kappa3", "kappa4"), kappas, strict=True)
    )
    schedule = config.schedule
    assert (schedule.kind, schedule.init_timestep) == ("vp", 625)
    assert (schedule.prediction_type, schedule.rescale_zero_snr) == ("epsilon", False)
    assert (config.training.precision, config.training.batch_size) == ("bfloat16", 256)
    assert "not published" in entry.published.notes
    assert (entry.published.fid, entry.published.checkpoint) == (None, None)
    assert known_network(config.teacher.source).family == "sdxl"


def test_sd21_at_768_predicts_v():
    entry, base = recipe_entry("sd21-768-lsg-kappa2"), recipe("sd21-base-lsg-kappa2")
    assert entry.config.schedule == replace(base, schedule__prediction_type="v_prediction").schedule
    assert (entry.config.objective, entry.config.training) == (base.objective, base.training)
    assert "not published" in entry.published.notes
    network = known_network(entry.config.teacher.source).network
    assert (network["sample_size"], network["prediction_type"]) == (96, "v_prediction")


@pytest.mark.parametrize("name", LSG)
def test_lsg(name):
    kappa, fid, clip, kimg = LSG[name]
    entry = recipe_entry(name)
    config, published = entry.config, entry.published
    training, objective = config.training, config.objective
    common(config)
    assert config.teacher.source == (SD15 if name.startswith("sd15") else SD21_BASE)
    assert config.teacher.dropout < 0
    assert (config.data.name, config.data.source) == ("prompts", "")
    assert (objective.name, objective.alpha, objective.generator_scale) == ("lsg", 1.0, 1.0)
    kappas = (objective.kappa1, objective.kappa2, objective.kappa3, objective.kappa4)
    assert kappas == (kappa,) * 4
    assert objective.text_dropout == 0.1
    schedule = config.schedule
    assert (schedule.kind, schedule.init_timestep) == ("vp", 625)
    assert (schedule.timestep_min, schedule.timestep_max) == (20, 980)
    assert (training.batch_size, training.group_size, training.images) == (512, 1, 10_000_000)
    assert (training.fake_score_lr, training.generator_lr) == (1e-6, 1e-6)
    assert (training.precision, training.epsilon) == ("float32", 1e-8)
    assert (training.generator_beta1, training.clip_value) == (0.0, 0.0)
    assert training.ema_half_life == 50_000
    assert (published.method, published.fid, published.clip_score) == ("SiD-LSG", fid, clip)
    assert published.images_seen == kimg * 1000
    assert published.teacher_fid is None


def test_addresses_of_published_generators():
    for name, expected in CHECKPOINTS.items():
        address = None if expected is None else HUB + expected
        assert RECIPES[name].published.checkpoint == address, name


def test_odd_published_values_are_remarked():
    remarks = {
        "sd15-lsg-kappa1.5": "18,789,000",
        "img512-s-sida": "forced weight normalisation",
        "img512-xl-sida": "file called sid2a",
        "img512-xxl-sid": "called sida",
        "afhqv2-sid": "alpha 1.2",
        "afhqv2-sid2a-alpha1.2": "55,808,000",
        "ffhq64-sid2a": "more images than the script's duration",
        "img512-xs-sid": "more images than the script's duration",
    }
    for name, words in remarks.items():
        assert words in RECIPES[name].published.notes, name


# ------------------------------------------------------------------------------ command line


def run(capsys, *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(args))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


def test_the_table_shows_every_recipe_at_100_columns(capsys):
    code, out, _ = run(capsys, "recipes")
    lines = out.splitlines()
    assert code == 0
    assert max(map(len, lines)) <= 100
    shown = {line.split()[0]: line.split() for line in lines if line.strip()}
    assert shown.keys() >= RECIPES.keys()
    assert shown["img64-sid"][1:] == [
        "SiD", "imagenet-64", "1.524", "939,176,000", "alpha", "1.2", "8192", "16",
    ]  # fmt: skip
    assert shown["sd15-lsg-kappa3"][3:7] == ["13.21", "6,349,000", "kappa", "3"]
    assert shown["img512-m-sid2a"][3] == "1.488*"
    assert shown["ffhq64-sid-alpha1"][3:5] == ["-", "-"]


def test_a_beginning_lists_its_recipes_only(capsys):
    _, out, _ = run(capsys, "recipes", "img512-m")
    assert "img512-m-sida" in out
    assert "img512-s-sida" not in out


def test_a_recipe_is_printed_in_full(capsys):
    printed = json.loads(run(capsys, "recipes", "img512-m-sid2a")[1])
    assert printed["published"]["images_seen"] == 44_036_000
    assert printed["published"]["fid"] is None
    assert "EDM2's M teacher" in printed["summary"]
    assert printed["objective"]["generator_scale"] == 50.0
    printed = json.loads(run(capsys, "recipes", "digits-sid")[1])
    assert printed["published"] is None
    assert printed["training"]["batch_size"] == 64


def test_an_unknown_recipe_comes_with_the_nearest(capsys):
    code, out, err = run(capsys, "recipes", "img512-xs-siad")
    assert (code, out) == (2, "")
    assert "no recipe 'img512-xs-siad'. Did you mean img512-xs-sid" in err


def test_a_reader_that_stops_reading_gets_no_traceback():
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "sid_ray.cli", "recipes"],
        stdout=writing, stderr=subprocess.PIPE, env=environment, text=True,
    )  # fmt: skip
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        ("sd15-lora", "sd15-lsg-kappa2"),
        ("sdxl-4step-lora", "sdxl-4step-zero"),
        ("sana-1600m-1024-lora", "sana-1600m-1024-dit"),
        ("sd35-medium-lora", "sd35-medium-dit"),
        ("flux-dev-512-lora", "flux-dev-512-dit"),
    ],
)
def test_adapters_differ_in_what_is_said_of_them(name, whole):
    """Rank, alpha and the fake score's rate are SwiftBrush's; guidance and noise the recipe's."""
    found, of = recipe(name), recipe(whole)
    assert (found.adapter.rank, found.adapter.alpha) == (64, 108)
    assert (found.training.fake_score_lr, found.training.generator_lr) == (1e-3, 1e-4)
    changed = {line.split(":")[0] for line in differences(of, found)}
    assert changed <= {
        "adapter.rank", "adapter.alpha", "training.batch_size", "training.group_size",
        "training.fake_score_lr", "training.generator_lr", "training.precision",
    }  # fmt: skip
    assert found.check().teacher == of.teacher


def test_the_page_shows_the_table_as_it_is():
    page = (ROOT / "docs" / "recipes.md").read_text()
    assert "\n".join(recipe_table()) in page, "put the output of `sid-ray recipes` there"


@pytest.fixture
def started(monkeypatch) -> list[DistillConfig]:
    """Configs that would have been distilled."""
    configs: list[DistillConfig] = []
    monkeypatch.setattr(distill, "run_distillation", lambda config: configs.append(config) or 0)
    return configs


@pytest.mark.parametrize(
    ("given", "kappas"),
    [
        ("long:7.5", (1.0, 1.0, 1.0, 7.5)),
        ("short:0.5", (0.5, 1.0, 1.0, 1.0)),
        ("short:-0.5", (-0.5, 1.0, 1.0, 1.0)),
        ("long-short:1.5", (1.5, 1.5, 1.5, 1.5)),
        ("zero", (0.0, 0.0, 0.0, 1.0)),
        ("anti:-1", (-1.0, -1.0, -1.0, 1.0)),
    ],
)
def test_guidance_sets_all_kappas(capsys, started, given, kappas):
    for flags in (["--guidance", given], [f"--guidance={given}"]):
        code, _, err = run(
            capsys, "distill", "sd15-lsg-kappa2", "--data.source", "prompts.txt", *flags
        )
        assert code == 0, err
        objective = started.pop().objective
        found = (objective.kappa1, objective.kappa2, objective.kappa3, objective.kappa4)
        assert found == kappas


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("lng:2", "no guidance strategy 'lng'; there are: long, short, long-short, zero, anti."),
        ("long", "guidance long needs a scale above 1, found none"),
        ("long:1", "guidance long needs a scale above 1, found 1"),
        ("long:inf", "guidance long needs a scale above 1, found inf"),
        ("long-short:0.5", "needs a scale above 1, found 0.5"),
        ("short:1", "needs a scale below 1, found 1"),
        ("anti:2", "needs a scale below 0, found 2"),
        ("anti:nan", "needs a scale below 0, found nan"),
        ("zero:1", "guidance zero takes no scale, found 1"),
        ("long:x", "--guidance 'long:x': expected STRATEGY:NUMBER"),
        ("", "no guidance strategy ''"),
    ],
)
def test_wrong_guidance_is_one_line(capsys, started, given, words):
    code, out, err = run(capsys, "distill", "sd15-lsg-kappa2", "--guidance", given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err
    assert started == []


def test_strategies_are_data():
    assert guidance_strategy("zero") == {"kappa1": 0, "kappa2": 0, "kappa3": 0, "kappa4": 1}
    with pytest.raises(UserError, match="Did you mean anti"):
        guidance_strategy("ant", -1.0)


def test_prompts_are_asked_for_before_anything_is_fetched(capsys, started):
    code, _, err = run(capsys, "distill", "sd15-lsg-kappa2")
    assert code == 2
    assert "data.source is empty; give --data.source a text file" in err
    assert started == []


@pytest.mark.parametrize(
    ("script", "default"),
    [
        ("sid_edm", "digits-sid"),
        ("sida_edm2", "img512-xs-sida"),
        ("sid_lsg_sd", "sd15-lsg-kappa2"),
        ("sid_flow", "sana-600m-512-dit"),
    ],
)
def test_entry_scripts_take_any_recipe(capsys, started, monkeypatch, script, default):
    import runpy

    def call(*args: str) -> DistillConfig:
        monkeypatch.setattr(sys, "argv", [script, *args, "--data.source", "prompts.txt"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
        assert stop.value.code == 0, capsys.readouterr().err
        return started.pop()

    assert call().recipe == default
    assert call("--seed", "3").training.seed == 3
    other = call("ffhq64-sid2a", "--alpha", "1.1")
    assert (other.recipe, other.objective.alpha) == ("ffhq64-sid2a", 1.1)
