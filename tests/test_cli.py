"""The command line: one clear line and exit code 2 for wrong input, help for every field."""

import pytest

from sid_ray import __version__
from sid_ray.cli import main
from sid_ray.commands.arguments import number_list
from sid_ray.config.distill_config import DistillConfig, flatten
from sid_ray.errors import UserError


def run(capsys, *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(args))
    captured = capsys.readouterr()
    return int(stop.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["distil"], "no command 'distil'. Did you mean distill?"),
        (["distill", "digits-sd"], "no recipe 'digits-sd'. Did you mean digits-vsd, digits-sid"),
        (["distill", "--seed", "1"], "name a recipe first"),
        (["distill", "digits-sid", "--training.bach-size", "3"], "training.batch_size"),
        (["distill", "digits-sid", "--training.bach-size=3"], "training.batch_size"),
        (["distill", "digits-sid", "--seed", "one"], "--training.seed"),
        (["distill", "digits-sid", "--resources.zero-stage", "5"], "--resources.zero-stage"),
        (["distill", "digits-sid", "--seed"], "--training.seed"),
        (["distill", "digits-sid", "stray"], "stray"),
        (["distill", "digits-sid", "--training.batch-size", "100"], "multiple of group size"),
        (["distill", "digits-sid", "--teacher.source", "/nowhere"], "no network at /nowhere"),
        (["distill", "digits-sid", "--teacher.source", "builtin:digit"], "builtin"),
        (["generate", "/nowhere"], "/nowhere does not exist"),
        (["generate"], "SOURCE"),
        (["generate", "runs", "--seeds", "5-1"], "--seeds '5-1'"),
        (["generate", "runs", "--batch", "0"], "--batch is 0; it must be at least 1"),
        (["recipes", "nope"], "no recipe 'nope'"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(capsys, args, words):
    code, out, err = run(capsys, *args)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1, err
    assert err.startswith("sid-ray: ")
    assert words in err or words.replace("builtin", "built-in") in err


def test_help_explains_every_field(capsys):
    code, out, _ = run(capsys, "distill", "digits-sid", "--help")
    assert code == 0
    for name in flatten(DistillConfig()):
        assert name.replace("_", "-") in out, name
    assert "Half-life of the generator's weight average" in " ".join(out.split())


def test_help_and_version_of_the_command(capsys):
    assert run(capsys)[0] == 0
    assert "distill RECIPE" in run(capsys, "--help")[1]
    assert run(capsys, "--version")[1].strip() == __version__
    assert "digits-sid" in run(capsys, "distill", "--help")[1]


def test_ranges_of_numbers():
    found = number_list("0-3,7", "seeds")
    assert list(found) == [0, 1, 2, 3, 7]
    assert (len(found), found[4], found[-2], found[1:4]) == (5, 7, 3, [1, 2, 3])
    assert 7 in found and 4 not in found
    for wrong in (
        "",
        "a",
        "1-",
        "-1",
        "3-1",
        "1,,2",
        "0-1e9",
        "\u0663",
        "9" * 5000,
        "0-2000000000",
    ):
        with pytest.raises(UserError):
            number_list(wrong, "seeds")


def test_many_numbers_take_no_memory():
    found = number_list("0-99999999,200000000-299999999", "seeds")
    assert len(found) == 2 * 10**8
    assert (found[10**8], found[-1]) == (2 * 10**8, 299_999_999)
