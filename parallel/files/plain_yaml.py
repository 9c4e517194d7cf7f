"""YAML as plain values: no tags, which make objects, and no aliases, which inflate small files."""

from __future__ import annotations

from typing import Any

import yaml

DEEPEST = 20


def plain_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises ValueError, in one line without the name of the file, for anything that is not one: bad
    YAML, an alias, a value that Python cannot represent (a 13th month), or nesting too deep.
    """
    try:
        return yaml.load(text, _ValueLoader)
    except yaml.MarkedYAMLError as error:
        line = f", in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{error.problem}{line}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


class PlainLoader(yaml.SafeLoader):
    """Makes nodes of a document without tags, nested no deeper than any of ours is."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="tags are not supported", problem_mark=event.start_mark
            )
        if self.depth >= DEEPEST:
            problem = f"nested deeper than {DEEPEST}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _ValueLoader(PlainLoader):
    """Makes values, without aliases: those can turn a small file into a huge or endless value."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"the alias *{event.anchor} is not allowed: write its value",
                event.start_mark,
            )  # fmt: skip
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice} is there more than once", node.start_mark
            )
        return super().construct_mapping(node, deep)
