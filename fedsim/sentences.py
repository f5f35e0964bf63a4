"""Words for messages: what pydantic finds wrong with a table of a scenario, and lists that may be long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ValidationError

from fedsim import plugins

_WORDS = {
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be finite",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "dict_type": "must be a table",
    "literal_error": "must be {expected}",
}


def sentences(prefix: str, error: ValidationError, model: type[BaseModel], owner: str) -> Iterator[str]:
    """Yield a line for each problem, "key: what is wrong, got X".

    Args:
        prefix: What comes before an option in its key, such as "client.".
        error: What pydantic found.
        model: The table's class; `nested` names options that were checked before, `instead` what is no option and
            what to use in its place.
        owner: What the options belong to, "" for the scenario itself.
    """
    for item in error.errors():
        path = prefix + ".".join(str(part) for part in item["loc"])
        option = str(item["loc"][0]) if item["loc"] else ""
        if option in getattr(model, "nested", ()) and item["input"] is None:
            continue  # what is wrong with it has been said
        if item["type"] == "extra_forbidden":
            known = list(model.model_fields)
            takes = f"{owner or 'a scenario'} takes {', '.join(known) if known else 'no options'}"
            instead = getattr(model, "instead", {}).get(option)
            unknown = f"unknown option{plugins.nearest(option, known)} {takes}"
            yield f"{path}: {f'no option of {owner} here; {instead}' if instead else unknown}"
        elif item["type"] == "missing":
            yield f"{path}: missing; {owner or 'a scenario'} needs it"
        elif item["type"] == "value_error":
            yield f"{path.removesuffix('.')}: {item['ctx']['error']}"  # the words of the plugin
        else:
            words = _WORDS.get(item["type"])
            said = words.format(**item.get("ctx", {})) if words else item["msg"].lower()
            yield f"{path.removesuffix('.')}: {said}, got {item['input']!r}"


def some(members: Sequence[int]) -> str:
    """Return the first of many numbers, and how many there are.

    >>> some(range(10))
    '0, 1, 2, 3, 4, 5, 6, 7, ... (10 in all)'
    """
    shown = ", ".join(str(client) for client in members[:8])
    return shown if len(members) <= 8 else f"{shown}, ... ({len(members)} in all)"
