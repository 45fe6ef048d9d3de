"""Mutations of Python code: a choice of Cosmic Ray's operators, and some beside them."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

CHOSEN = (
    *("ReplaceComparisonOperator_" + pair for pair in (
        "Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is", "Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt",
        "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt",
    )),
    *("ReplaceBinaryOperator_" + pair for pair in (
        "Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Mul", "Mod_FloorDiv",
    )),
    "ReplaceUnaryOperator_Delete_Not", "ReplaceUnaryOperator_Delete_USub",
    "ReplaceAndWithOr", "ReplaceOrWithAnd", "ReplaceTrueWithFalse", "ReplaceFalseWithTrue",
    "AddNot", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "NumberReplacer",
    "ZeroIterationForLoop",
)  # fmt: skip


class Operator(Protocol):
    """What Cosmic Ray asks of an operator."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]: ...
    def mutate(self, node: Any, index: int) -> Any: ...


class Drop:
    """Replaces a call, a raise, a bare return, a `del`, an augmented assignment or one to an
    attribute or an item by `pass`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "simple_stmt" and _droppable(node.children[0]):
            yield node.start_pos, node.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        return get_ast(f"{node.get_first_leaf().prefix}pass\n")


class Unguard:
    """Replaces `with x:`, without `as`, by `if True:`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        inner = node.children[1] if node.type == "async_stmt" else node
        outer = node.parent is not None and node.parent.type == "async_stmt"
        if inner.type == "with_stmt" and not outer and inner.children[1].type != "with_item":
            yield node.start_pos, inner.children[2].start_pos

    def mutate(self, node: Any, index: int) -> Any:
        suite = (node.children[1] if node.type == "async_stmt" else node).children[-1]
        return get_ast(f"{node.get_first_leaf().prefix}if True:{suite.get_code()}")


class SwapIn:
    """Replaces `in` by `not in`, and the other way round."""

    _new = {"in": " not in", "not in": " in"}  # noqa: RUF012 - constant

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        for child in self._found(node):
            yield child.start_pos, child.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        old = self._found(node)[index]
        new = get_ast(self._new[" ".join(old.get_code().split())])
        node.children[node.children.index(old)] = new
        return node

    def _found(self, node: Any) -> list[Any]:
        operators = node.children[1::2] if node.type == "comparison" else []
        return [each for each in operators if " ".join(each.get_code().split()) in self._new]


class Uncaught:
    """Makes an `except` catch nothing. Cosmic Ray's own operator fails at names with dots."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "except_clause":
            yield node.children[1].start_pos, node.children[1].end_pos

    def mutate(self, node: Any, index: int) -> Any:
        node.children[1] = get_ast(" ()")
        return node


OPERATORS: tuple[Operator, ...] = (
    *(get_operator(f"core/{name}")() for name in CHOSEN),
    Drop(),
    Unguard(),
    SwapIn(),
    Uncaught(),
)


def places(source: str) -> Iterator[tuple[int, Callable[[], str]]]:
    """Where a source can be mutated: the line, and what makes the mutated source.

    These are the bodies of functions, without annotations, asserts and log calls.
    """
    nodes = [(node, _counts(node)) for node in ast_nodes(get_ast(source))]
    for operator in OPERATORS:
        occurrence = 0
        for node, counts in nodes:
            for start, _ in operator.mutation_positions(node):
                if counts:
                    yield start[0], partial(mutate_code, source, operator, occurrence)
                occurrence += 1


def _droppable(node: Any) -> bool:
    if node.type in ("raise_stmt", "del_stmt"):
        return True
    if node.type == "keyword":
        return bool(node.value == "return")
    if node.type == "expr_stmt":
        sign = node.children[1].get_code().strip()
        return bool(sign[-1:] == "=" and (sign != "=" or node.children[0].type == "atom_expr"))
    return bool(node.type == "atom_expr" and node.get_last_leaf().value == ")")


def _counts(node: Any) -> bool:
    """Whether a node is in the body of a function, outside of what is left as it is."""
    child = None
    while node is not None and node.type != "funcdef":
        if (
            node.type in ("assert_stmt", "decorator", "classdef")
            or (node.type == "annassign" and child is node.children[1])
            or node.get_code(include_prefix=False).startswith("log.")
        ):
            return False
        child, node = node, node.parent
    return node is not None and child is node.children[-1]
