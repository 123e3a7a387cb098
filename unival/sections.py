"""What all sections of a configuration are: frozen, with known keys, and with paths below a root."""

from pathlib import PurePath
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool):  # pydantic takes it for 1 or 0
            annotation = cls.model_fields[info.field_name or ""].annotation
            kinds = {annotation, *get_args(annotation)}
            if kinds & {int, float} and bool not in kinds:
                raise PydanticCustomError("float_bool", "a truth value")
        return value


class DataConfig(Section):
    """Where data lie."""

    root: str = "data"
    """Folder that a text beginning with `$data/` starts from, wherever it stands in the file."""


class Rooted(Section):
    """A file whose paths may begin with `$data/`."""

    data: DataConfig = DataConfig()

    @model_validator(mode="before")
    @classmethod
    def _start_at_the_root(cls, values: Any) -> Any:
        section = values.get("data", {}) if isinstance(values, dict) else None
        root = section.get("root", DataConfig().root) if isinstance(section, dict) else None
        return _rooted(values, root) if isinstance(root, str) else values


def _rooted(value: Any, root: str) -> Any:
    """Return a tree with `$data/` at the beginning of texts replaced."""
    if isinstance(value, dict):
        return {key: _rooted(item, root) for key, item in value.items()}
    if isinstance(value, list):
        return [_rooted(item, root) for item in value]
    if isinstance(value, str) and value.startswith("$data/"):
        return str(PurePath(root) / value.removeprefix("$data/"))
    return value
