"""evaluations.jsonl: once each, whole lines, whoever writes."""

from __future__ import annotations

from sid_ray.evaluations import add_result, results_in
from sid_ray.run_folder import EVALUATIONS
from sid_ray.store import Store

ONE = {"images_seen": 64, "scores": {"FD": 1.0}, "seconds": 1.0}


def test_a_result_that_is_made_again_is_no_second_line(tmp_path):
    run = Store.at(tmp_path)
    for seconds in (1.0, 2.0):
        add_result(run, ONE | {"seconds": seconds, "date": str(seconds)})
    add_result(run, ONE | {"images_seen": 128})
    found = results_in((tmp_path / EVALUATIONS).read_text())
    assert [result["images_seen"] for result in found] == [64, 128]


def test_half_a_line_of_a_killed_process_spoils_no_other(tmp_path):
    (tmp_path / EVALUATIONS).write_text('{"images_seen": 32}\n{"images_se')
    add_result(Store.at(tmp_path), ONE)
    text = (tmp_path / EVALUATIONS).read_text()
    assert [result["images_seen"] for result in results_in(text)] == [32, 64]
    assert results_in('{"a": 1}\n[1]\n{"b": 2}') == [{"a": 1}]  # the last one may be half written
