"""Reads the body of ``POST /v1/images``: from bytes to images that are wanted, or a Problem."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from sid_ray.errors import nearest
from sid_ray.serving.contract import SEED_MAX, ImagesRequest, Limits, ServedModel, WantedImage
from sid_ray.serving.problems import QUOTED_CHARS, Problem, as_found, clipped

JSON, PNG = "application/json", "image/png"
SPACES = "\t\n\r"
FIELDS = tuple(field.alias or name for name, field in ImagesRequest.model_fields.items())


def read_request(body: bytes) -> ImagesRequest:
    """The body, whose fields have the right types. Raises Problem."""
    text = check_json(body)
    try:
        return ImagesRequest.model_validate_json(text)
    except ValidationError as error:
        raise field_problem(error) from None


def check_json(body: bytes) -> str:
    """Stricter than usual: a field that is there twice, NaN and other encodings are refused, since
    what stands between could read them otherwise. Raises Problem.
    """
    if not body.strip():
        raise Problem(400, "no_body", "the body is empty; a JSON object was expected")
    try:
        text = body.decode()
        json.loads(text, object_pairs_hook=_fields_once, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        words = f"the body is not UTF-8 at byte {error.start:,}"
    except json.JSONDecodeError as error:
        words = f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except RecursionError:
        words = "the body is not read: lists in lists too deep"
    except ValueError as error:
        words = f"the body is not read: {clipped(str(error), 200)}"
    else:
        return text
    raise Problem(400, "bad_json", words)


def _fields_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {as_found(twice)} is there twice")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def field_problem(error: ValidationError) -> Problem:
    """What pydantic found first, in our words."""
    found = error.errors(include_url=False, include_context=False)
    first = found[0]
    where, kind = field_place(first["loc"]), first["type"]
    more = f" ({len(found) - 1:,} more like it)" if len(found) > 1 else ""
    if kind == "json_invalid":
        return Problem(400, "bad_json", f"the body is not JSON: {clipped(first['msg'], 200)}")
    if kind == "extra_forbidden":
        name = where[:QUOTED_CHARS]
        words = f"there is no field {as_found(where)}; the fields are {', '.join(FIELDS)}."
        return Problem(422, "unknown_field", f"{words}{nearest(name, FIELDS)}{more}", where)
    if not where:
        words = f"the body is {as_found(first['input'])}; a JSON object was expected"
        return Problem(422, "wrong_type", words)
    if kind == "missing":
        words = f"{clipped(where)} is missing{more}"
    else:
        rule = re.sub(r"^(Input|List|String|Tuple) ", "it ", first["msg"])
        words = f"{clipped(where)} is {as_found(first['input'])}; {rule}{more}"
    return Problem(422, "wrong_value", words, where)


def field_place(location: Sequence[str | int]) -> str:
    """Like ``seeds[3]``."""
    return "".join(f"[{part}]" if isinstance(part, int) else part for part in location)


def wanted_images(
    asked: ImagesRequest, models: Sequence[ServedModel], limits: Limits
) -> tuple[ServedModel, list[WantedImage]]:
    """The model that is meant, and an image per seed. Raises Problem."""
    model = find_model(asked.model, models)
    check_seeds(asked.seeds, limits.images)
    check_condition(asked, model, limits.prompt_chars)
    if asked.size is not None and asked.size != tuple(model.size):
        own, other = (f"[{height}, {width}]" for height, width in (model.size, asked.size))
        words = f"size is {clipped(other)}; {model.name} makes {own} alone (height, width)"
        raise Problem(422, "wrong_size", words, "size")
    steps = chosen_steps(asked, model)
    return model, [
        WantedImage(asked.network, seed, asked.prompt or "", asked.class_, steps)
        for seed in asked.seeds
    ]


def find_model(name: str, models: Sequence[ServedModel]) -> ServedModel:
    """By its name; the first for none. Raises Problem."""
    if not models:
        raise Problem(503, "no_model", "no model is served yet", headers={"retry-after": "2"})
    if not name:
        return models[0]
    by_name = {model.name: model for model in models}
    if name not in by_name:
        listed = clipped(", ".join(by_name), 200)
        words = f"there is no model {as_found(name)}; served are {listed}.{nearest(name, by_name)}"
        raise Problem(422, "unknown_model", words, "model")
    return by_name[name]


def check_seeds(seeds: Sequence[int], most: int) -> None:
    """How many there are, and their range. Raises Problem."""
    if len(seeds) > most:
        words = f"{len(seeds):,} seeds are asked for; at most {most:,} are made per request"
        raise Problem(422, "too_many_images", words, "seeds")
    for index, seed in enumerate(seeds):
        if not 0 <= seed <= SEED_MAX:
            words = f"seeds[{index}] is {as_found(seed)}; seeds are whole numbers, 0 to {SEED_MAX}"
            raise Problem(422, "seed_out_of_range", words, f"seeds[{index}]")


def check_condition(asked: ImagesRequest, model: ServedModel, most_chars: int) -> None:
    """A prompt for models that read one, a class for those with classes. Raises Problem."""
    reads = {
        "prompt": "it generates from a prompt",
        "class": 'it generates from classes, as "class"',
        "none": "it reads neither prompt nor class",
    }[model.condition]
    if asked.prompt is not None and model.condition != "prompt":
        words = f"{model.name} takes no prompt: {reads}"
        raise Problem(422, "prompt_not_taken", words, "prompt")
    if asked.class_ is not None and model.condition != "class":
        raise Problem(422, "class_not_taken", f"{model.name} takes no class: {reads}", "class")
    if model.condition == "prompt":
        if asked.prompt is None:
            raise Problem(422, "prompt_missing", f"{model.name} needs a prompt", "prompt")
        check_prompt(asked.prompt, most_chars)
    if asked.class_ is not None and asked.class_ >= len(model.classes):
        words = f"class is {as_found(asked.class_)}; {model.name} has 0 to {len(model.classes) - 1}"
        raise Problem(422, "unknown_class", words, "class")


def check_prompt(prompt: str, most_chars: int) -> None:
    """Its length, and that a tokenizer can read it. Raises Problem."""
    if len(prompt) > most_chars:
        words = f"prompt has {len(prompt):,} characters; at most {most_chars:,} are taken"
        raise Problem(422, "prompt_too_long", words, "prompt")
    for index, each in enumerate(prompt):
        if unicodedata.category(each) in ("Cc", "Cs") and each not in SPACES:
            words = f"prompt has a control character, U+{ord(each):04X}, at position {index:,}"
            raise Problem(422, "prompt_not_text", words, "prompt")


def chosen_steps(asked: ImagesRequest, model: ServedModel) -> int | None:
    """Of the generator; the teacher's are its own. Raises Problem."""
    if asked.network == "teacher":
        if model.teacher is None:
            words = f"the teacher of {model.name} is not served here"
            raise Problem(422, "no_teacher", words, "network")
        if asked.steps is not None:
            words = f"the teacher takes {model.teacher.label}; leave steps out"
            raise Problem(422, "steps_not_taken", words, "steps")
        return None
    if asked.steps is None:
        return model.steps[0]
    if asked.steps not in model.steps:
        listed = ", ".join(str(count) for count in model.steps)
        words = f"steps is {as_found(asked.steps)}; {model.name} generates in {listed}"
        raise Problem(422, "wrong_steps", words, "steps")
    return asked.steps


def check_content(kind: str, encoding: str) -> None:
    """That the body says that it is JSON: a form of another site cannot. Raises Problem."""
    media, *parameters = (part.strip().lower() for part in kind.split(";"))
    charsets = [value for value in parameters if value.startswith("charset=")]
    if media != JSON or any(value.strip('"') not in UTF8 for value in charsets):
        found = as_found(kind) if kind else "none"
        words = f"the Content-Type is {found}; {JSON} in UTF-8 was expected"
        raise Problem(415, "not_json", words)
    if encoding.strip().lower() not in ("", "identity"):
        words = f"the Content-Encoding is {as_found(encoding)}; a body as it is was expected"
        raise Problem(415, "encoded_body", words)


UTF8 = ("charset=utf-8", 'charset="utf-8', "charset=utf8")


def answer_media(accept: str) -> str:
    """JSON or PNG, as the Accept header likes best; JSON where it has no liking. Raises Problem."""
    likings: dict[str, float] = {}
    for part in accept.lower().split(",") if accept.strip() else ["*/*"]:
        media, *parameters = (piece.strip() for piece in part.split(";"))
        likings[media] = accept_weight(parameters)
    best = max((JSON, PNG), key=lambda media: liking_for(media, likings))
    if liking_for(best, likings) <= 0:
        words = f"Accept is {as_found(accept)}; answers are {JSON} or {PNG}"
        raise Problem(406, "not_acceptable", words)
    return best


def liking_for(media: str, likings: Mapping[str, float]) -> float:
    """By the narrowest range that the media type is in."""
    ranges = (media, media.partition("/")[0] + "/*", "*/*")
    return next((likings[each] for each in ranges if each in likings), 0.0)


def accept_weight(parameters: Sequence[str]) -> float:
    """The q of a range in an Accept header; 0 for what is no number."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return min(1.0, max(0.0, float(value)))
            except ValueError:
                return 0.0
    return 1.0
