"""Tracking states that waiting cannot mend: found before a run, said while it works, and mended."""

import contextlib
import re
import shlex
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from sid_ray.commands.distill import run_distillation
from sid_ray.config.distill_config import replace
from sid_ray.errors import UserError
from sid_ray.recipes.registry import recipe
from sid_ray.tracking import mlflow_sqlite, mlflow_state, sender
from sid_ray.tracking.mlflow_state import AwayError, advice, look_at_store, look_at_tracking
from sid_ray.tracking.sender import Tracking
from tests.support.tracking import empty_store, target
from tests.support.waiting import wait_for

READY = (
    b'{"experiment": {"experiment_id": "7", "lifecycle_stage": "active", '
    b'"artifact_location": "mlflow-artifacts:/7"}}'
)
NONE = b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}'


@contextlib.contextmanager
def server(code: int, body: bytes):
    """Answers everything with this; yields its address and the headers that it was sent."""
    heard: list[dict] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            heard.append(dict(self.headers))
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    serving = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{serving.server_port}", heard
    finally:
        serving.shutdown()
        serving.server_close()


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder of runs with an empty store; its address."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    return f"sqlite:///{tmp_path}/mlflow.db"


def delete_experiment(uri: str, name: str) -> None:
    client = mlflow.MlflowClient(uri)
    client.delete_experiment(client.get_experiment_by_name(name).experiment_id)


def follow_advice(text: str) -> None:
    """Runs the command that stands in a message between two spaces each, in this process."""
    from mlflow.cli import cli

    (command,) = re.findall(r"  (.*?)(?:  |$)", text)
    words = shlex.split(command)
    environment = dict([words.pop(0).split("=", 1)]) if "=" in words[0] else {}
    assert words.pop(0) == "mlflow"
    mlflow.set_tracking_uri(None)  # what this process named before would count
    done = CliRunner(env=environment).invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_a_deleted_experiment_is_found_before_anything_starts(tmp_path, store):
    """The advice works: another name at once, and the command that restores it."""
    config = replace(recipe("digits-sid"), output__folder=str(tmp_path))
    assert look_at_tracking(config) == f"{store}: experiment 'sid_ray' will be made"
    mlflow.MlflowClient(store).create_experiment("sid_ray")
    assert look_at_tracking(config) == f"{store}: experiment 'sid_ray'"
    delete_experiment(store, "sid_ray")
    with pytest.raises(UserError, match="experiment 'sid_ray' was deleted there") as refused:
        run_distillation(config)
    assert not (tmp_path / "digits-sid").exists(), "nothing was begun"
    other = replace(config, output__experiment="other")
    assert look_at_tracking(other) == f"{store}: experiment 'other' will be made"
    follow_advice(str(refused.value))
    assert look_at_tracking(config) == f"{store}: experiment 'sid_ray'"


def test_an_experiment_that_is_deleted_while_a_run_works(tmp_path, monkeypatch):
    """One line says so at once; all numbers are kept, and sent once it is restored."""
    monkeypatch.setattr(sender, "pause_s", lambda tries: 0.05)
    where, said = target(tmp_path), []
    kept = Tracking(where, tmp_path, said.append)
    kept.metrics({"loss": 1.0}, 1)
    wait_for(lambda: not kept.left, "the first number")
    delete_experiment(where.uri, "tests")
    kept.metrics({"loss": 2.0}, 2)
    wait_for(lambda: kept.advice, "the trouble")
    kept.metrics({"loss": 3.0}, 3)
    left = kept.finish()
    assert re.match(r"2 records are not in MLflow .* are kept in .*: experiment 'tests' was", left)
    assert left.endswith("; the same command then sends them")
    warnings = [line for line in said if line.startswith("warning")]
    assert len(warnings) == 1 and "takes no numbers: experiment 'tests' was deleted" in warnings[0]
    assert not any("to a new one" in line for line in said), "its runs are deleted only with it"
    client = mlflow.MlflowClient(where.uri)
    client.restore_experiment(client.get_experiment_by_name("tests").experiment_id)
    again = Tracking(where, tmp_path)
    assert again.finish() == ""
    assert again.run_id == kept.run_id
    history = mlflow.MlflowClient(where.uri).get_metric_history(kept.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_run_that_is_deleted_while_it_works_becomes_another_one(tmp_path, monkeypatch):
    monkeypatch.setattr(sender, "pause_s", lambda tries: 0.05)
    where, said = target(tmp_path), []
    kept = Tracking(where, tmp_path, said.append)
    kept.metrics({"loss": 1.0}, 1)
    wait_for(lambda: not kept.left, "the first number")
    first = kept.run_id
    mlflow.MlflowClient(where.uri).delete_run(first)
    kept.metrics({"loss": 2.0}, 2)
    assert kept.finish() == ""
    assert kept.run_id != first and f"MLflow run {first} is not in {where.uri}" in said[0]
    history = mlflow.MlflowClient(where.uri).get_metric_history(kept.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize(
    ("code", "body", "what"),
    [
        (401, b"who are you?", "refuses the credentials"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "refuses the credentials"),
        (404, b"<html>nothing here</html>", "is no MLflow server"),
        (200, b"<html>please sign in</html>", "is no MLflow server"),
        (200, b'{"hello": 1}', "is no MLflow server"),
    ],
)
def test_a_server_that_will_never_take_numbers(code, body, what):
    with server(code, body) as (uri, _), pytest.raises(UserError, match=what) as refused:
        look_at_store(uri, "sid_ray")
    assert "\n" not in str(refused.value)


def test_a_server_that_is_well_or_away(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    with server(200, READY) as (uri, heard):
        assert look_at_store(uri, "sid_ray") == f"{uri}: experiment 'sid_ray'"
        assert heard[0]["Authorization"] == "Basic bWU6c2VjcmV0"
    with server(404, NONE) as (uri, _):
        assert look_at_store(uri, "sid_ray").endswith("will be made")
    gone = READY.replace(b"active", b"deleted")
    with server(200, gone) as (uri, _), pytest.raises(UserError, match="-id 7  or give"):
        look_at_store(uri, "sid_ray")
    (tmp_path / "file").touch()
    where = f"{tmp_path}/file/artifacts".encode()
    elsewhere, what = READY.replace(b"mlflow-artifacts:/7", where), "which cannot be written here"
    with server(200, elsewhere) as (uri, _), pytest.raises(UserError, match=what):
        look_at_store(uri, "sid_ray")
    with server(503, b"") as (uri, _), pytest.raises(AwayError, match="503"):
        look_at_store(uri, "sid_ray")
    with pytest.raises(AwayError, match="refused"):
        look_at_store("http://127.0.0.1:1", "sid_ray")


def test_a_server_that_hangs_is_away(monkeypatch):
    answers = threading.Event()
    monkeypatch.setattr(mlflow_state, "told_by_mlflow", lambda *_: answers.wait(30))
    monkeypatch.setattr(mlflow_state, "OPEN_S", 0.1)
    with pytest.raises(AwayError, match="no answer within 0 s"):
        look_at_store("postgresql://127.0.0.1/db", "sid_ray")
    answers.set()


def set_revision(database: Path, revision: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.commit()


def test_files_that_are_no_store_of_this_mlflow(tmp_path, store, monkeypatch):
    database = tmp_path / "mlflow.db"
    known, head = mlflow_sqlite.revisions()
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (head,)
    set_revision(database, "f00f00f00f00")
    with pytest.raises(UserError, match="a newer MLflow made its tables"):
        look_at_store(store, "sid_ray")
    set_revision(database, min(known - {head}))
    with pytest.raises(UserError, match="mlflow db upgrade"):
        look_at_store(store, "sid_ray")
    database.write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="the file is no sqlite database: move it away"):
        look_at_store(store, "sid_ray")
    database.unlink()
    database.mkdir()
    with pytest.raises(UserError, match="the file or its folder cannot be written"):
        look_at_store(store, "sid_ray")
    with pytest.raises(UserError, match=r"test_mlflow_state\.py cannot be written"):
        look_at_store(f"sqlite:///{__file__}/mlflow.db", "sid_ray")


def test_a_file_that_cannot_be_written_or_is_locked(tmp_path, store, monkeypatch):
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        monkeypatch.setattr(mlflow_sqlite, "PATIENCE_S", 0.1)
        with pytest.raises(AwayError, match="locked"):
            look_at_store(store, "sid_ray")
    connect = sqlite3.connect

    def read_only(address, **options):
        return connect(address.replace("mode=rw", "mode=ro"), **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)  # root may write any file
    with pytest.raises(UserError, match="cannot be written: change its rights, or name another"):
        look_at_store(store, "sid_ray")


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("htp://host:5000", "MLflow knows no store of that kind"),
        ("http:/host", "MLflow knows no store of that kind"),
        ("http://", "MLflow knows no store of that kind"),
        ("/some/folder/mlruns", "MLflow gave up stores of plain files"),
        ("mysql+nothing://host/db", "MLflow knows no store of that kind"),
    ],
)
def test_addresses_of_no_store(uri, what, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(UserError, match=what):
        look_at_store(uri, "sid_ray")


def test_what_passes_by_itself_is_no_lasting_state():
    for text in ("database is locked", "[Errno 111] Connection refused", "HTTP 503", "timed out"):
        assert advice(OSError(text), "sqlite:////x.db", "e") == ""
    assert "no sqlite database" in advice(
        RuntimeError("(sqlite3.DatabaseError) file is not a database"), "sqlite:////x.db", "e"
    )


def test_a_place_for_files_that_cannot_be_written_holds_up_nothing_else(tmp_path):
    """The MLflow run gets its numbers and its end; one line says what is missing."""
    where, said = target(tmp_path), []
    first = Tracking(where, tmp_path)
    first.status("RUNNING")
    assert first.finish() == ""
    Path(where.artifacts).touch()  # a file where the folder should be: root may write any folder
    kept = Tracking(where, tmp_path, said.append)
    for number in range(3):
        (tmp_path / f"{number}.txt").touch()
        kept.file(tmp_path / f"{number}.txt")
    kept.metrics({"loss": 1.0}, 1)
    kept.status("FINISHED")
    assert kept.finish() == ""
    run = mlflow.MlflowClient(where.uri).get_run(kept.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"loss": 1.0})
    assert len(said) == 1 and "(file) is not in MLflow" in said[0]


def test_params_that_an_older_server_refuses_are_cut(tmp_path, monkeypatch):
    from mlflow.exceptions import MlflowException

    def limited(self, run_id, params=(), **rest):
        if any(len(param.value) > 500 for param in params):
            raise MlflowException("too long", error_code=1000)
        return real(self, run_id, params=params, **rest)

    real = mlflow.MlflowClient.log_batch
    one = mlflow.MlflowClient.log_param

    def limited_one(self, run_id, key, value):
        if len(value) > 500:
            raise MlflowException("too long", error_code=1000)
        return one(self, run_id, key, value)

    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", limited)
    monkeypatch.setattr(mlflow.MlflowClient, "log_param", limited_one)
    where, said = target(tmp_path), []
    where.params.update({"long": "x" * 600, "last": "y"})
    kept = Tracking(where, tmp_path, said.append)
    kept.metrics({"loss": 1.0}, 1)
    assert kept.finish() == ""
    params = mlflow.MlflowClient(where.uri).get_run(kept.run_id).data.params
    assert params == {"a": "1", "long": "x" * 250, "last": "y"}
    assert said == ["warning: param long is cut in MLflow: too long"]


@pytest.mark.slow
def test_tables_of_an_older_mlflow_are_upgraded_by_the_command_that_is_given(tmp_path):
    from alembic import command
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from mlflow.store.tracking.dbmodels.initial_models import Base
    from sqlalchemy import create_engine

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    engine = create_engine(uri)
    Base.metadata.create_all(engine)
    config = _get_alembic_config(uri)
    script = ScriptDirectory.from_config(config)
    before = script.get_revision(script.get_current_head()).down_revision
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, before)
    engine.dispose()
    with pytest.raises(UserError, match="an older MLflow made its tables") as refused:
        look_at_store(uri, "sid_ray")
    follow_advice(str(refused.value).partition(" (it says")[0])
    assert look_at_store(uri, "sid_ray").endswith("will be made")
