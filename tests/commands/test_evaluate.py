"""sid-ray evaluate: the same scores for any number of actors, whatever happens in between."""

import errno
import json
import pickle
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sid_ray.checkpoint.best import SCORE
from sid_ray.cli import main
from sid_ray.commands import evaluate as command
from sid_ray.config.distill_config import DistillConfig, replace
from sid_ray.evaluation.blocks import Bench, Kept
from sid_ray.evaluation.judge import Judge, seed_blocks
from sid_ray.evaluation.samplers import generator_sampler
from sid_ray.run_folder import EVALUATIONS, RunRecord, write_record
from sid_ray.storage.cache import file_sha256
from sid_ray.storage.store import Store
from sid_ray.training.assemble import data_of, generation_of
from sid_ray.weights.description import WEIGHTS, ModelDescription, save_model
from sid_ray.weights.folder import load_model
from tests.support.networks import TINY, tiny_network

IMAGES = 300  # two blocks, the second one of 44
DESCRIPTION = ModelDescription("edm", TINY.to_json(), {"sigma": 2.5})
CONFIG = replace(DistillConfig(), teacher__source="builtin:digits-teacher")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's best weights, of a network that was never trained."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    weights = folder / "best_000000000064"
    save_model(weights, tiny_network().state_dict(), DESCRIPTION)
    result = {"images_seen": 64, "weights_sha256": file_sha256(weights / WEIGHTS)}
    (weights / SCORE).write_text(json.dumps(result))
    write_record(Store.at(folder), RunRecord(CONFIG.to_json()))
    return folder / "best"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SID_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def evaluate(source, *flags, code: int = 0) -> dict:
    """The command in this process; the JSON that it wrote."""
    base = ["--num-images", str(IMAGES), "--actors", "1"]
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", str(source), *base, *map(str, flags)])
    assert stop.value.code == code
    out = Path("evaluation.json")
    return json.loads(out.read_text()) if out.exists() else {}


def plain(result: dict) -> dict:
    """Without what the time of day decides."""
    changing = ("date", "seconds", "images_per_s", "images_made")
    return {name: value for name, value in result.items() if name not in changing}


def refused(capsys, source, *flags) -> str:
    """The one line of a command that is refused before it makes images."""
    assert evaluate(source, *flags, code=2) == {}
    (line,) = capsys.readouterr().err.splitlines()
    assert not list(Path("cache").glob("evaluations/*/*.npz"))
    return line


class FakePool:
    """Stands for the actors: so many of them, each with what was sent to it, in any order."""

    def __init__(self, count: int, seed: int = 0, stop_after: int = 10**9):
        self.count, self.stop_after, self.order = count, stop_after, random.Random(seed)
        self.made = 0

    def looks_on_ray(self, job, network, todo, actors, use_gpu, key):
        sent = pickle.dumps((job, network.state_dict()))
        benches = [self.bench(*pickle.loads(sent)) for _ in range(self.count)]
        for seeds in self.order.sample(todo, len(todo)):
            if self.made == self.stop_after:
                raise KeyboardInterrupt
            self.made += 1
            yield seeds, self.order.choice(benches).look(seeds)

    @staticmethod
    def bench(job, weights):
        network = tiny_network()
        network.load_state_dict(weights)
        return Bench(job, network.eval())


@pytest.fixture
def pool(monkeypatch):
    """Puts a fake pool into the place of the real one."""

    def install(pool: FakePool) -> FakePool:
        held = SimpleNamespace(looks_on_ray=pool.looks_on_ray)
        monkeypatch.setitem(sys.modules, "sid_ray.actors.pool", held)
        monkeypatch.setattr(command, "SMALL", 0)
        return pool

    return install


def test_the_numbers_are_those_of_the_judge_beside_the_training(run, capsys):
    result = evaluate(run, "--trials", 2)
    folder = run.parent / "best_000000000064"
    network, description = load_model(folder)
    source = data_of(CONFIG, description).source
    config = replace(CONFIG, evaluation__num_images=IMAGES)
    judge = Judge(config.evaluation, source)
    sampler = generator_sampler(network, *generation_of(description))
    for trial, seeds in zip(result["trials"], (range(300), range(300, 600)), strict=True):
        expected = judge.scores(judge.look(sampler, block) for block in seed_blocks(seeds))
        assert trial["scores"] == expected
        assert trial["seeds"] == f"{seeds.start}-{seeds.stop - 1}"
    each = [trial["scores"]["FD-digits-cnn"] for trial in result["trials"]]
    assert result["scores"]["FD-digits-cnn"] == pytest.approx(np.mean(each), rel=1e-15)
    assert result["deviations"]["FD-digits-cnn"] == pytest.approx(abs(each[0] - each[1]) / 2)
    assert result["images_seen"] == 64
    assert (result["labels"], result["sampler"], result["sigma"]) == ("digits", "generator", 2.5)
    shown = capsys.readouterr().out
    assert "deviation" in shown and "trial 2" in shown and "600 images made" in shown


@pytest.mark.parametrize("count", [2, 5])
def test_any_number_of_actors_gives_the_same_bits(run, pool, count):
    alone = evaluate(run, "--trials", 2)
    pool(FakePool(count, seed=count))
    together = evaluate(run, "--trials", 2, "--actors", count, "--fresh")
    assert together["images_made"] == 600
    assert plain(together) == plain(alone)


def test_an_interrupted_command_goes_on(run, pool, capsys):
    whole = evaluate(run, "--trials", 2, "--fresh")
    pool(FakePool(2, stop_after=3))
    Path("evaluation.json").unlink()
    assert evaluate(run, "--trials", 2, "--actors", 2, "--fresh", code=130) == {}
    assert "the same command goes on" in capsys.readouterr().out
    second = pool(FakePool(3))
    resumed = evaluate(run, "--trials", 2, "--actors", 3)
    assert second.made == 1
    assert "going on: " in capsys.readouterr().out
    assert plain(resumed) == plain(whole)


def test_kept_features_serve_more_metrics_and_trials(run):
    first = evaluate(run)
    assert first["images_made"] == IMAGES
    more = evaluate(run, "--metrics", "fd,pr,kid", "--reference", "", "--trials", 2)
    assert more["images_made"] == IMAGES  # of the second trial
    assert more["trials"][0]["scores"].items() >= first["scores"].items()
    assert {"precision-digits-cnn", "KD-digits-cnn"} <= more["scores"].keys()
    assert evaluate(run, "--metrics", "is")["images_made"] == IMAGES  # their logits were not kept
    assert evaluate(run, "--metrics", "fd")["images_made"] == 0
    assert evaluate(run, "--batch-size", 32)["images_made"] == IMAGES  # rounds otherwise


def test_damaged_blocks_are_made_again(run, tmp_path):
    whole = evaluate(run)
    files = sorted(tmp_path.glob("cache/evaluations/*/*.npz"))
    assert [file.name for file in files] == [
        "000000000000-000000000255.npz", "000000000256-000000000299.npz"
    ]  # fmt: skip
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)
    files[1].write_bytes(files[1].read_bytes()[:1000])
    again = evaluate(run)
    assert again["images_made"] == IMAGES
    assert plain(again) == plain(whole)


def test_the_run_hears_of_a_result_once(run):
    told = run.parent / EVALUATIONS
    told.unlink(missing_ok=True)
    result = evaluate(run)
    evaluate(run, "--fresh")
    (line,) = told.read_text().splitlines()
    assert json.loads(line) == result
    evaluate(run, "--first-seed", 300)
    assert len(told.read_text().splitlines()) == 2


def test_a_teacher_is_sampled_in_many_steps():
    result = evaluate("builtin:digits-teacher", "--steps", 2)
    assert (result["sampler"], result["evaluations"]) == ("heun", 3)
    assert result["labels"] == "evenly of 10 classes"
    assert (result["run"], result["images_seen"]) == (None, None)
    own = evaluate("builtin:digits-teacher", "--steps", 2, "--data", "digits")
    assert own["labels"] == "digits" and own["images_made"] == IMAGES
    assert own["scores"] != result["scores"]


def test_wrong_numbers_are_refused(run, capsys):
    assert "--num-images 64: at least 65" in refused(capsys, run, "--num-images", 64)
    assert "--trials 0: at least 1" in refused(capsys, run, "--trials", 0)
    assert "--steps and --guidance are for teachers" in refused(capsys, run, "--steps", 4)


def test_wrong_choices_are_refused(run, capsys, tmp_path):
    teacher = "builtin:digits-teacher"
    assert "unknown metric 'fdd'" in refused(capsys, run, "--metrics", "fdd")
    assert "unknown feature extractor" in refused(capsys, run, "--feature-space", "lite")
    assert "no data set 'digit'" in refused(capsys, run, "--data", "digit")
    assert "--data-source needs --data" in refused(capsys, run, "--data-source", "x")
    assert "does not exist" in refused(capsys, tmp_path / "nowhere")
    assert "reads no text to be guided by" in refused(capsys, teacher, "--guidance", 3)
    assert "choose another --data" in refused(capsys, teacher, "--data", "cifar10")
    assert "images of shape" in refused(capsys, run, "--feature-space", "emoji-cnn")
    assert "reads text: name its prompts" in refused(capsys, "builtin:emoji-teacher")
    assert "need real images" in refused(capsys, teacher, "--metrics", "pr")
    for flag in (["--use-gpu"], ["--device", "cuda"]):
        assert "--device cuda: no NVIDIA driver" in refused(capsys, run, *flag)
    assert "give one of them" in refused(capsys, run, "--use-gpu", "--device", "cpu")


def test_a_reference_of_another_size_is_refused(run, capsys, tmp_path):
    np.savez(tmp_path / "real.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    line = refused(capsys, run, "--reference", tmp_path / "real.npz")
    assert "statistics of 2,048 features, digits-cnn has 64" in line


def test_a_full_disk_is_one_line(run, capsys, monkeypatch):
    def full(kept, seeds, look):
        raise OSError(errno.ENOSPC, "No space left on device", str(kept.path(seeds)))

    monkeypatch.setattr(Kept, "write", full)
    line = refused(capsys, run)
    assert "No space left on device; free some space, or set SID_RAY_CACHE" in line
    assert "the same command goes on" in line
