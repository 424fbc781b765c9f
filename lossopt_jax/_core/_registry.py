"""Names → objects: one class, an instance per family, a decorator as the only way in."""

import ast
import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

Entry = TypeVar("Entry", bound=Callable[..., Any])


def _fold(name: str) -> str:
    return "".join(character for character in name.lower() if character not in "_- ")


class Registry(Mapping[str, Any]):
    """The public objects of one family by canonical name; lookup ignores case, `_`, `-` and spaces.

    `by_name` holds arguments that are supplied only where an object is asked for by a string, such as an optimizer's
    customary learning rate.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Any] = {}
        self._canonical: dict[str, str] = {}
        self.by_name: dict[str, dict[str, Any]] = {}

    def register(
        self, *aliases: str, name: str | None = None, by_name: Mapping[str, Any] | None = None
    ) -> Callable[[Entry], Entry]:
        """Decorator: enter an object under its own name and these aliases."""

        def enter(entry: Entry) -> Entry:
            canonical = name or entry.__name__
            for alias in (canonical, *aliases):
                holder = self._canonical.setdefault(_fold(alias), canonical)
                if holder != canonical:
                    raise ValueError(f"{self.kind} name {alias!r} already belongs to {holder!r}")
            self._entries[canonical] = entry
            self.by_name[canonical] = dict(by_name or {})
            return entry

        return enter

    def __getitem__(self, name: str) -> Any:
        return self._entries[self.canonical(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _fold(name) in self._canonical

    def canonical(self, name: str) -> str:
        """The canonical spelling of a name or alias.

        Raises:
          ValueError: an unknown name; the message lists the nearest ones.
        """
        if _fold(name) in self._canonical:
            return self._canonical[_fold(name)]
        near = [self._canonical[m] for m in difflib.get_close_matches(_fold(name), self._canonical, 5, 0.5)]
        near = list(dict.fromkeys(near))[:3]
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(sorted(self))}"
        raise ValueError(f"no {self.kind} named {name!r}; {hint}")

    def parse(self, text: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """`"adamw(weight_decay=0.1)"` → ("adamw", (), {"weight_decay": 0.1}); literals only, never `eval`.

        Raises:
          ValueError: an unknown name, or arguments that are not literals.
        """
        if "(" not in text:
            return self.canonical(text.strip()), (), {}
        name, _, arguments = text.strip().partition("(")
        canonical = self.canonical(name.strip())
        try:
            call = ast.parse(f"f({arguments}", mode="eval").body
            if not isinstance(call, ast.Call) or any(keyword.arg is None for keyword in call.keywords):
                raise ValueError
            args = tuple(ast.literal_eval(node) for node in call.args)
            kwargs = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except (ValueError, SyntaxError):
            raise ValueError(
                f"{self.kind} {text!r} must be a name, or a name with literal arguments; "
                f"write for example '{canonical}(argument=0.1)'"
            ) from None
        return canonical, args, kwargs

    def build(self, text: str) -> Any:
        """Call the object that a string names, with the string's arguments over the by-name ones.

        Raises:
          ValueError: an unknown name, or an argument the object does not take.
        """
        canonical, args, kwargs = self.parse(text)
        defaults = self.by_name[canonical] if not args else {}
        try:
            return self._entries[canonical](*args, **{**defaults, **kwargs})
        except TypeError as error:
            raise ValueError(f"{self.kind} {text!r}: {error}") from error
