"""``sid-ray push``: a generator, exported, in a repository of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from sid_ray.commands.push_options import PushOptions
from sid_ray.errors import UserError
from sid_ray.exporting.card import card_on_hub
from sid_ray.exporting.compared import NotTheSameError
from sid_ray.exporting.hub import MAIN, HubRepository, PushFailedError, RepositoryState, listed
from sid_ray.exporting.record import RECORD, record_in
from sid_ray.storage.cache import cache_folder
from sid_ray.storage.places import check_folder
from sid_ray.storage.scratch import scratch_folder
from sid_ray.weights.licence import CARD, fields_in_front, licence_in


def push(options: PushOptions) -> int:
    """Sends the files, or lists them; the exit code: 1 where the hub or the export fails.

    Raises UserError.
    """
    repository = HubRepository(options.repository())
    known = files_to_send(options.folder, repository) if options.is_export else {}
    found = None
    try:
        if not options.dry_run:
            found = repository.look(known, options.force)
            print(visibility(repository, found, options.public), flush=True)
        with exported(options, repository) as folder:
            files = known or files_to_send(folder, repository)
            print(*filter(None, (listing(files), left_out(folder, files))), sep="\n", flush=True)
            if found is None:
                print(f"{repository.url}: nothing was sent")
                return 0
            record = export_record_of(folder)
            message = options.message or default_message(record)
            commit = repository.send(found, files, message, options.public)
    except (NotTheSameError, PushFailedError) as error:
        print(f"sid-ray: {error}", file=sys.stderr)
        return 1
    said = f"commit {commit[:12]}" if commit else "it held the same already"
    print(f"{repository.url}: {said}")
    return 0


def visibility(repository: HubRepository, found: RepositoryState, public: bool) -> str:
    """A sentence on who can see the repository, before anything is sent."""
    if not found.commit:
        return f"{repository.url} is new and will be {'public' if public else 'private'}"
    now = "private" if found.private else "public"
    branch = "" if found.has_branch else f"; branch {repository.branch} is new, made of {MAIN}"
    return f"{repository.url} is there and {now}, which a push does not change{branch}"


@contextlib.contextmanager
def exported(options: PushOptions, repository: HubRepository) -> Iterator[Path]:
    """The folder of the export, made if SOURCE is none. Raises UserError, NotTheSameError."""
    if options.is_export:
        yield options.folder
        return
    from sid_ray.commands.export import write_export

    # In the cache: on the disk of what was fetched its files need no room again.
    place = cache_folder()
    check_folder(place, "the cache (SID_RAY_CACHE)")
    with scratch_folder(place, "push.") as above:
        folder = above / repository.repo.partition("/")[2]
        print(write_export(options.exported_to(folder)), flush=True)
        yield folder


def export_record_of(folder: Path) -> dict[str, Any]:
    """What sid_ray.json says. Raises UserError where the folder is no whole export."""
    try:
        record = record_in((folder / RECORD).read_bytes())
    except OSError as error:
        raise UserError(f"{folder / RECORD}: {error.strerror}") from None
    if record is None:
        raise UserError(f"{folder / RECORD} was not written by sid-ray export")
    missing = [name for name in record["files"] if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} is no whole export, it lacks {missing[0]}: export it anew")
    return record


def files_to_send(folder: Path, repository: HubRepository) -> dict[str, Path | bytes]:
    """The export's own files, as its record lists them, by their names in the repository. The card
    opens the repository. Raises UserError.
    """
    record = export_record_of(folder)
    files: dict[str, Path | bytes] = {name: folder / name for name in record["files"]}
    if CARD in files:
        name = str(record.get("name") or folder.name)
        card = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        files[CARD] = card_on_hub(card, name, repository.repo, repository.branch).encode()
    return files


def left_out(folder: Path, files: Collection[str]) -> str:
    """A line on what lies in the folder beside the export's own files: a person's, or what running
    the card's lines has left; empty where there is nothing.
    """
    paths = (path for path in folder.rglob("*") if not path.is_dir())
    others = sorted({path.relative_to(folder).as_posix() for path in paths} - {*files})
    return f"not of the export, so not sent: {listed(others)}" if others else ""


def size_of(file: Path | bytes) -> int:
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def listing(files: Mapping[str, Path | bytes]) -> str:
    """Names with bytes, their sum, and what the card says of licence and base."""
    sizes = {name: size_of(file) for name, file in files.items()}
    card = files.get(CARD, b"")
    text = card.decode() if isinstance(card, bytes) else ""
    licence, base = licence_in(text).told(), fields_in_front(text).get("base_model")
    return "\n".join(
        [
            *(f"{size:>16,}  {name}" for name, size in sizes.items()),
            f"{sum(sizes.values()):>16,}  bytes in {len(sizes)} files",
            f"the card names {f'the licence {licence}' if licence else 'no licence'} and "
            f"{f'the base {base}' if base else 'no base on the hub'}",
        ]
    )


def default_message(record: Mapping[str, Any]) -> str:
    seen = record.get("images_seen")
    return f"Generator of sid_ray{f' at {seen:,} images seen' if isinstance(seen, int) else ''}"
