"""Parts: everything that a recipe can name.

A *slot* is an abstract class (``class Attention(Block, slot="attention")``), a *kind* fills it (``class GQA(Attention,
kind="gqa")``). The class statement is the registration. Each kind nests a frozen ``Config`` whose fields are its knobs;
a knob may itself be a slot. Errors carry the dotted path, the value, and the nearest right name.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

_UNSET: Any = object()


class ConfigError(ValueError):
    """A configuration that cannot be: what is wrong, at which dotted path, with which value.

    Raised by a part's constructor without a path; every host adds its own knob's name in front on the way up.
    """

    def __init__(self, message: str, path: str = "", value: Any = _UNSET) -> None:
        super().__init__(message)
        self.message, self.path, self.value = message, path, value

    def under(self, prefix: str) -> ConfigError:
        """The same fault seen from one level up."""
        joined = f"{prefix}{self.path}" if self.path.startswith("[") else f"{prefix}.{self.path}"
        return type(self)(self.message, joined.strip("."), self.value)

    def __str__(self) -> str:
        value = "" if self.value is _UNSET else f" = {_short(self.value)}"
        return f"{self.path}{value}: {self.message}" if self.path else self.message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:110]} ..."


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean 'x'?``, or the list of what there is when nothing is near."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, 1)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names) or 'none'}"


class Knobs(BaseModel):
    """A frozen table of knobs; an unknown key is an error that names the nearest known one.

    TOML has no null: the word "none" stands for it in every knob that may be None (and has no "none" of its own).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys_only(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        faults = [
            InitErrorDetails(
                type=PydanticCustomError(
                    "unknown_key", "unknown key, {hint}", {"hint": nearest(key, cls.model_fields)}
                ),
                loc=(key,),
                input=value,
            )
            for key, value in data.items()
            if key not in cls.model_fields
        ]
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return {name: None if value == "none" and cls.takes_none(name) else value for name, value in data.items()}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Itself: it cannot change, and a copied model need not copy its knobs block by block."""
        return self

    @classmethod
    def takes_none(cls, knob: str) -> bool:
        """Whether the word "none" means None in ``knob``, rather than a string or a kind of that name."""
        annotation = cls.model_fields[knob].annotation
        return type(None) in typing.get_args(annotation) and not any(map(_says_none, typing.get_args(annotation)))


def _says_none(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, PartConfig):
        return annotation.part.kind is None and "none" in annotation.part.all_kinds()
    return annotation is str or (typing.get_origin(annotation) is Literal and "none" in typing.get_args(annotation))


class PartConfig(Knobs):
    """The knobs of one kind. ``build`` makes the part; ``child`` makes the part that fills one of its knobs."""

    part: ClassVar[type[Part]]

    def build(self, *facts: Any) -> Any:
        """The part itself, given the facts of the place where it stands (for blocks: a Site)."""
        return self.part(self, *facts)

    def child(self, knob: str, *facts: Any) -> Any:
        """Build what fills ``knob``: a part, or a list of parts for a knob that holds several."""
        return build_child(self, knob, *facts)

    def notes(self) -> tuple[str, ...]:
        """What a reader of a table has to know of these knobs, e.g. one that means something else in this kind."""
        return ()

    @model_serializer(mode="wrap")
    def _with_kind(self, inner: Any) -> dict[str, Any]:
        return {"kind": self.part.kind, **inner(self)}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        part = cls.__dict__.get("part")
        if part is None or part.kind is not None:
            return handler(source)
        return core_schema.no_info_plain_validator_function(part.parse)


def build_child(config: BaseModel, knob: str, *facts: Any) -> Any:
    """Build the part or parts in ``config.<knob>``; a ConfigError inside comes out with the knob's path in front."""
    value = getattr(config, knob)
    if isinstance(value, tuple):
        return [_build_at(item, f"{knob}[{i}]", facts) for i, item in enumerate(value)]
    return _build_at(value, knob, facts)


def _build_at(config: PartConfig, path: str, facts: tuple[Any, ...]) -> Any:
    try:
        return config.build(*facts)
    except ConfigError as fault:
        raise fault.under(path) from None


class Part:
    """Base of every slot. ``slot="name"`` opens a slot, ``kind="name"`` fills the slot of the base class."""

    kind: ClassVar[str | None] = None
    slot: ClassVar[str | None] = None
    kinds: ClassVar[dict[str, type[Part]]]
    slots: ClassVar[dict[str, type[Part]]] = {}
    guests: ClassVar[tuple[type[Part], ...]] = ()  # other slots whose kinds may fill this one too
    breaks: ClassVar[
        Mapping[str, str]
    ] = {}  # promise of the contract -> why this kind breaks it, and where it was seen
    Config: ClassVar[type[PartConfig]] = PartConfig

    def __init_subclass__(cls, *, kind: str | None = None, slot: str | None = None) -> None:
        super().__init_subclass__()
        own = cls.__dict__.get("Config")
        if own is None:
            bases = (cls.Config,)
            cls.Config = own = type("Config", bases, {"__module__": cls.__module__, "__doc__": None})
        elif not issubclass(own, PartConfig) or (cls.slot and not issubclass(own, Part.slots[cls.slot].Config)):
            raise TypeError(f"{cls.__module__}.{cls.__qualname__}.Config must extend its slot's Config")
        own.part = cls
        cls.kind = kind
        if slot is not None:
            cls.slot, cls.kinds = slot, {}
            _claim(Part.slots, slot, cls, "slot")
        elif kind is not None:
            if cls.slot is None:
                raise TypeError(f"{cls.__qualname__} has a kind but fills no slot: derive it from a slot class")
            _claim(cls.kinds, kind, cls, f"{cls.slot} kind")

    @classmethod
    def parse(cls, value: Any) -> PartConfig:
        """A Config from a Config, a kind's bare name, or a table with ``kind``; raises with the nearest right name."""
        takes = (cls.Config, *(guest.Config for guest in cls.guests))
        if isinstance(value, takes) and value.part.kind is not None:
            return value
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, Mapping):
            raise ConfigError(f"must name a kind of {cls.slot}: a word, or a table with its kind")
        knobs = dict(value)
        kind = knobs.pop("kind", None)
        if kind is None:
            raise ConfigError(f"needs a kind, {nearest('', cls.all_kinds())}")
        return cls.kind_named(kind).Config.model_validate(knobs)

    @classmethod
    def kind_named(cls, kind: str) -> type[Part]:
        """The class registered under ``kind`` in this slot or a guest's."""
        known = cls.all_kinds()
        if not isinstance(kind, str) or kind not in known:
            raise ConfigError(f"no {cls.slot} is called {kind!r}, {nearest(str(kind), known)}")
        return known[kind]

    @classmethod
    def all_kinds(cls) -> dict[str, type[Part]]:
        """Every kind that may fill this slot; its own come before its guests'."""
        return {name: part for slot in (*reversed(cls.guests), cls) for name, part in slot.kinds.items()}

    @classmethod
    def pick(cls, kind: str) -> Any:
        """A field default: this kind with its own defaults (looked up late, since kinds may register later)."""
        return Field(default_factory=lambda: cls.parse(kind))

    @classmethod
    def pick_all(cls, *kinds: str) -> Any:
        """A field default for a knob that holds several parts in order."""
        return Field(default_factory=lambda: tuple(cls.parse(kind) for kind in kinds))

    @classmethod
    def idea(cls) -> str:
        """The first line of the docstring: what this kind is, in one line."""
        return (cls.__doc__ or "").strip().split("\n")[0]


def _claim(table: dict[str, type[Part]], name: str, cls: type[Part], what: str) -> None:
    """Enter ``cls`` under ``name``; the same definition read again (a reload) replaces itself, anything else clashes."""
    holder = table.get(name)
    if holder is not None and (holder.__module__, holder.__qualname__) != (cls.__module__, cls.__qualname__):
        raise TypeError(
            f"two parts claim the {what} {name!r}: {holder.__module__}.{holder.__qualname__} "
            f"and {cls.__module__}.{cls.__qualname__}"
        )
    table[name] = cls


def faults(error: ValidationError) -> list[ConfigError]:
    """Every fault of a pydantic error as a ConfigError with a dotted path."""
    found = []
    for item in error.errors(include_url=False):
        path = ""
        for step in item["loc"]:
            path += f"[{step}]" if isinstance(step, int) else (f".{step}" if path else str(step))
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ConfigError):  # raised by one of our own validators: it knows the place more exactly
            value = item["input"] if inner.value is _UNSET and not inner.path else inner.value
            found.append(ConfigError(inner.message, inner.path, value).under(path))
            continue
        value = item["input"] if item["type"] != "missing" else _UNSET
        found.append(ConfigError(item["msg"].removeprefix("Value error, "), path, value))
    return found
