"""evaluations.jsonl: once each, whole lines, whoever writes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from sid_ray.evaluation.records import add_result, merge_results, results_in
from sid_ray.run_folder import EVALUATIONS
from sid_ray.storage.store import Store

ONE = {"images_seen": 64, "scores": {"FD": 1.0}, "seconds": 1.0}


def test_a_result_that_is_made_again_is_no_second_line(tmp_path):
    run = Store.at(tmp_path)
    for seconds in (1.0, 2.0):
        add_result(run, ONE | {"seconds": seconds, "date": str(seconds)})
    add_result(run, ONE | {"images_seen": 128})
    found = results_in((tmp_path / EVALUATIONS).read_bytes())
    assert [result["images_seen"] for result in found] == [64, 128]


def test_half_a_line_of_a_killed_process_spoils_no_other(tmp_path):
    (tmp_path / EVALUATIONS).write_text('{"images_seen": 32}\n{"images_se')
    add_result(Store.at(tmp_path), ONE)
    data = (tmp_path / EVALUATIONS).read_bytes()
    assert [result["images_seen"] for result in results_in(data)] == [32, 64]
    assert results_in(b'{"a": 1}\n[1]\n{"b": 2}') == [{"a": 1}]  # the last one may be half written


def test_what_a_driver_adds_that_has_lost_the_run_is_left_out(tmp_path):
    run, other = Store.at(tmp_path), Store.at(tmp_path / "other")
    other.create()
    for images_seen, lease in ((64, 1), (128, 1), (128, 2), (192, 2), (256, 1), (256, 2)):
        add_result(run, ONE | {"images_seen": images_seen, "lease": lease})
    add_result(run, ONE | {"images_seen": 7})  # of sid-ray evaluate, which has no lease
    found = [(result["images_seen"], result.get("lease")) for result in lines_of(run)]
    assert found == [(64, 1), (128, 1), (192, 2), (256, 2), (7, None)], "(128, 2) is (128, 1)"
    add_result(other, ONE | {"images_seen": 320, "lease": 2})
    add_result(other, ONE | {"images_seen": 192, "lease": 2})
    for _ in range(2):
        merge_results(run, other)
        found = [result["images_seen"] for result in lines_of(other)]
        assert found == [7, 64, 128, 320, 192, 256], "what came later by another host counts"


def lines_of(run):
    return results_in(run.read(EVALUATIONS))


def add_many(run, who, count):
    for number in range(count):
        add_result(run, ONE | {"images_seen": number, "who": who})
        add_result(run, ONE | {"images_seen": number})  # the same result by everybody


@pytest.fixture(params=["disk", "s3"])
def place(request, tmp_path):
    return Store.at(tmp_path if request.param == "disk" else request.getfixturevalue("bucket"))


def test_many_who_add_and_merge_at_once_lose_nothing(place, tmp_path):
    run, other = place / "run", Store.at(tmp_path / "other")
    run.create()
    other.create()
    add_result(other, ONE | {"images_seen": -1})
    code = "from tests.evaluation.test_records import *; import sys;"
    code += "add_many(Store(sys.argv[1]), int(sys.argv[2]), 12)"
    jobs = [subprocess.Popen([sys.executable, "-c", code, run.url, str(w)]) for w in range(3)]
    while any(job.poll() is None for job in jobs):
        merge_results(other, run)
        time.sleep(0.05)
    assert [job.returncode for job in jobs] == [0, 0, 0]
    found = sorted((result["images_seen"], result.get("who", -1)) for result in lines_of(run))
    assert found == [(-1, -1), *((n, who) for n in range(12) for who in (-1, 0, 1, 2))]
