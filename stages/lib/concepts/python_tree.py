"""Concepts of Python source that need its syntax tree: spans of characters, found node by node.

Nodes are visited parents first, so that where only one of several concepts can hold (which argument of a call), the
innermost node has the last word. The inside of f-strings is not visited (see `python_source`).
"""

import ast
import token
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from stages.lib.concepts.python_source import Source
from stages.lib.concepts.spans import Spans

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
ARGUMENTS = ("first_argument", "second_argument", "later_argument")


class _Context(NamedTuple):
    """Where a node is."""

    in_class: bool
    """Directly in a class body."""
    scope: int
    """The start of the innermost function, or -1."""
    parameters: frozenset[str]
    """Those of all the functions around."""


class _Use(NamedTuple):
    """A variable at a place."""

    start: int
    end: int
    name: str
    is_load: bool
    is_parameter: bool
    context: _Context


class TreePainter:
    """Paints the concepts of one syntax tree."""

    def __init__(self, source: Source, spans: Spans) -> None:
        self.source, self.tokens, self.paint = source, source.tokens, spans.paint
        self.spans = spans
        self.docstrings: list[int] = []
        """The numbers of the tokens that are docstrings or pieces of one."""
        self._uses: list[_Use] = []
        self._imports: list[tuple[str, int]] = []
        self._definitions: list[tuple[str, int]] = []
        self._stack: list[tuple[ast.AST, _Context]] = []

    def run(self, tree: ast.Module) -> None:
        """Paint everything."""
        self._docstring(tree.body, "module_docstring")
        self._stack = [(tree, _Context(False, -1, frozenset()))]
        while self._stack:
            node, context = self._stack.pop()
            kind = type(node)
            if isinstance(node, ast.stmt):
                number = self.source.at(self._start(node))
                self.paint("statement_start", self.tokens.starts[number], self.tokens.head_end(number))
            if kind in _SCOPED:
                _SCOPED[kind](self, node, context)
                continue
            if kind in _HANDLERS:
                _HANDLERS[kind](self, node)
            if context.in_class and not isinstance(node, ast.If | ast.Try | ast.With):
                context = context._replace(in_class=False)
            self._push(_children(node), context)
        self._paint_uses()

    def _push(self, nodes: Sequence[ast.AST | None], context: _Context) -> None:
        self._stack += [(node, context) for node in reversed(nodes) if node is not None]

    def _mark(self, name: str, *nodes: Any) -> None:
        for node in nodes:
            if node is not None:
                self.paint(name, *self.source.span(node))

    def _token(self, name: str, number: int) -> None:
        self.paint(name, self.tokens.starts[number], self.tokens.ends[number])

    def _token_before(self, name: str, node: ast.expr) -> None:
        self._token(name, self.source.before(self.source.span(node)[0]))

    def _after(self, place: int) -> int:
        """The number of the token after a place, not counting the parentheses that close in between."""
        number = self.source.at(place)
        while self.tokens.texts[number] == ")":
            number += 1
        return number

    def _start(self, node: ast.stmt) -> int:
        """Where a statement starts, with its decorators."""
        if isinstance(node, Definition) and node.decorator_list:
            at = self.source.before(self.source.span(node.decorator_list[0])[0])
            return self.tokens.starts[at]
        return self.source.span(node)[0]

    def _suite(self, body: Sequence[ast.stmt]) -> tuple[int, int]:
        """From after the colon of a block to the end of its last statement; counts into the depth of blocks."""
        colon = self.source.at(self._start(body[0])) - 1
        span = self.tokens.ends[colon], self.source.span(body[-1])[1]
        self.spans.deepen("block", *span)
        return span

    # Definitions

    def _docstring(self, body: Sequence[ast.stmt], name: str) -> bool:
        first = body[0] if body else None
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            return False
        if not isinstance(first.value.value, str):
            return False
        # Only the string tokens of the statement: it may be in parentheses or in several pieces.
        start, end = self.source.span(first)
        for number in range(self.source.at(start), self.source.at(end)):
            if self.tokens.kinds[number] == token.STRING:
                self._token("docstring", number)
                self._token(name, number)
                self.docstrings.append(number)
        return True

    def _name_of(self, node: Definition, *concepts: str) -> None:
        number = self.source.at(self.source.span(node)[0])
        while self.tokens.texts[number] in ("async", "def", "class"):
            number += 1
        for concept in ("definition_name", *concepts):
            self._token(concept, number)
        self._definitions.append((node.name, self.tokens.starts[number]))

    def _decorators(self, node: Definition) -> None:
        for decorator in node.decorator_list:
            start, end = self.source.span(decorator)
            self.paint("decorator", self.tokens.starts[self.source.before(start)], end)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, context: _Context) -> None:
        self._name_of(node, "function_name", *(["method_name"] if context.in_class else []))
        self._decorators(node)
        start, end = self.source.span(node)
        inner = self._parameters(node.args, context._replace(scope=start))
        self._mark("annotation", node.returns)
        body = self._suite(node.body)
        self.paint("function_signature", start, body[0])
        self.paint("function_body", *body)
        if context.in_class:
            self.paint("method_body", *body)
        if context.scope >= 0:
            self.paint("nested_function", start, end)
        has_docstring = self._docstring(node.body, "method_docstring" if context.in_class else "function_docstring")
        self._mark("function_first_statement", *node.body[has_docstring : has_docstring + 1])
        self._mark("function_last_statement", *node.body[max(1, has_docstring) :][-1:])
        outer = context._replace(in_class=False)
        self._push(node.body, inner._replace(in_class=False))
        self._push([*node.decorator_list, node.args, node.returns], outer)

    def _lambda(self, node: ast.Lambda, context: _Context) -> None:
        self._mark("lambda", node)
        inner = self._parameters(node.args, context)
        self._mark("lambda_body", node.body)
        self._push([node.args], context)
        self._push([node.body], inner)

    def _parameters(self, arguments: ast.arguments, context: _Context) -> _Context:
        """Paints parameters and their defaults; the context of the body."""
        positional = [*arguments.posonlyargs, *arguments.args]
        every = [*positional, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
        present = [argument for argument in every if argument is not None]
        inner = context._replace(parameters=context.parameters | {argument.arg for argument in present})
        for argument in present:
            number = self.source.at(self.source.span(argument)[0])
            start, end = self.tokens.starts[number], self.tokens.ends[number]
            self.paint("parameter", start, end)
            self._uses.append(_Use(start, end, argument.arg, False, True, inner))
            self._mark("annotation", argument.annotation)
        for number, argument in enumerate(positional):
            if argument.arg not in ("self", "cls"):
                self._token("first_parameter" if number == 0 else "later_parameter",
                            self.source.at(self.source.span(argument)[0]))  # fmt: skip
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            if default is not None:
                self._mark("default_argument", default)
                self._token_before("default_equals", default)
        return inner

    def _class(self, node: ast.ClassDef, context: _Context) -> None:
        self._name_of(node, "class_name")
        self._decorators(node)
        self._mark("class_base", *node.bases)
        self.paint("class_body", *self._suite(node.body))
        self._docstring(node.body, "class_docstring")
        self._push(node.body, context._replace(in_class=True))
        self._push([*node.decorator_list, *node.bases, *node.keywords], context._replace(in_class=False))

    # Blocks

    def _if(self, node: ast.If) -> None:
        self._mark("if_test", node.test)
        self.paint("if_body", *self._suite(node.body))
        is_elif = len(node.orelse) == 1 and self._starts_with("elif", node.orelse[0])
        if not is_elif:
            self._else(node.orelse)

    def _starts_with(self, keyword: str, node: ast.stmt) -> bool:
        return self.tokens.texts[self.source.at(self.source.span(node)[0])] == keyword

    def _else(self, body: Sequence[ast.stmt]) -> None:
        if body:
            self.paint("else_body", *self._suite(body))

    def _for(self, node: ast.For | ast.AsyncFor) -> None:
        self._mark("loop_target", node.target)
        self._mark("loop_iterable", node.iter)
        self.paint("loop_body", *self._suite(node.body))
        self._else(node.orelse)

    def _while(self, node: ast.While) -> None:
        self._mark("while_test", node.test)
        self.paint("loop_body", *self._suite(node.body))
        self._else(node.orelse)

    def _try(self, node: Any) -> None:
        self.paint("try_body", *self._suite(node.body))
        for handler in node.handlers:
            self._mark("except_type", handler.type)
            self.paint("except_body", *self._suite(handler.body))
        self._else(node.orelse)
        if node.finalbody:
            self.paint("finally_body", *self._suite(node.finalbody))

    def _with(self, node: ast.With | ast.AsyncWith) -> None:
        self._mark("with_item", *(item.context_expr for item in node.items))
        self.paint("with_body", *self._suite(node.body))

    def _match(self, node: ast.Match) -> None:
        colon = self._after(self.source.span(node.subject)[1])
        self.spans.deepen("block", self.tokens.ends[colon], self.source.span(node)[1])
        for case in node.cases:
            self.paint("case_body", *self._suite(case.body))

    # Statements

    def _assign(self, node: ast.Assign) -> None:
        self._mark("assignment_target", *node.targets)
        self._mark("assignment_value", node.value)
        for value in [*node.targets[1:], node.value]:
            self._token_before("assignment_equals", value)

    def _augmented(self, node: ast.AugAssign) -> None:
        self._mark("assignment_target", node.target)
        self._mark("assignment_value", node.value)

    def _annotated(self, node: ast.AnnAssign) -> None:
        self._mark("assignment_target", node.target)
        self._mark("annotation", node.annotation)
        self._mark("assignment_value", node.value)
        if node.value is not None:
            self._token_before("assignment_equals", node.value)

    def _return(self, node: ast.Return) -> None:
        self._mark("return_value", node.value)

    def _raise(self, node: ast.Raise) -> None:
        self._mark("raise_value", node.exc)
        if isinstance(node.exc, ast.Call):
            self._mark("raise_argument", *node.exc.args)

    def _assert(self, node: ast.Assert) -> None:
        self._mark("assert_test", node.test)
        self._mark("assert_message", node.msg)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        self._mark("import_statement", node)
        tokens = self.tokens
        number = self.source.at(self.source.span(node)[0]) + 1
        while isinstance(node, ast.ImportFrom) and tokens.texts[number] != "import":
            self._token("import_module", number)
            number += 1
        for alias in node.names:
            start, end = self.source.span(alias)
            name = "imported_name" if isinstance(node, ast.ImportFrom) else "import_module"
            number = self.source.at(start)
            while number < len(tokens) and tokens.starts[number] < end and tokens.texts[number] != "as":
                self._token(name, number)
                number += 1
            if alias.asname:
                self._token("import_alias", number + 1)
            self._imports.append((alias.asname or alias.name.split(".")[0], start))

    # Expressions

    def _call(self, node: ast.Call) -> None:
        end, function_end = self.source.span(node)[1], self.source.span(node.func)[1]
        number = self._after(function_end)
        self._token("call_parenthesis", number)
        inside = self.tokens.ends[number], end - 1
        self.spans.deepen("call", *inside)
        self.paint("call_closing_parenthesis", end - 1, end)
        if isinstance(node.func, ast.Name | ast.Attribute):
            at = self.source.at(function_end) - 1
            self._token("call_name", at)
            if isinstance(node.func, ast.Attribute):
                self._token("called_method", at)
        spans = [*map(self.source.span, node.args), *map(self.source.span, node.keywords)]
        for place, (first, last) in enumerate(sorted(spans)):
            # A lone generator's span has the parentheses of the call.
            span = max(first, inside[0]), min(last, inside[1])
            self.paint("call_argument", *span)
            self.spans.choose(ARGUMENTS, min(place, 2), *span)
        for keyword in node.keywords:
            self._keyword(keyword)

    def _keyword(self, node: ast.keyword) -> None:
        if node.arg is not None:
            number = self.source.at(self.source.span(node)[0])
            self._token("keyword_argument_name", number)
            self._token("keyword_argument_equals", number + 1)
            self._mark("keyword_argument_value", node.value)

    def _attribute(self, node: ast.Attribute) -> None:
        number = self.source.at(self.source.span(node)[1]) - 1
        self._token("attribute", number)
        if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
            self._token("self_attribute", number)
        if isinstance(node.value, ast.Call):
            self._token("attribute_of_call", number)
        if isinstance(node.value, ast.Attribute):
            self._token("attribute_of_attribute", number)
        if isinstance(node.ctx, ast.Store):
            self._token("attribute_target", number)

    def _name(self, node: ast.Name, context: _Context) -> None:
        self._uses.append(_Use(*self.source.span(node), node.id, isinstance(node.ctx, ast.Load), False, context))

    def _subscript(self, node: ast.Subscript) -> None:
        number = self._after(self.source.span(node.value)[1])
        self._token("subscript_bracket", number)
        self.paint("subscript_index", self.tokens.ends[number], self.source.span(node)[1] - 1)

    def _display(self, node: ast.expr) -> None:
        if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
            return
        name = {ast.List: "list_display", ast.Tuple: "tuple_display", ast.Set: "set_display"}[type(node)]
        self._mark("display", node)
        self._mark(name, node)

    def _dict(self, node: ast.Dict) -> None:
        self._mark("display", node)
        self._mark("dict_display", node)
        self._mark("dict_key", *node.keys)
        self._mark("dict_value", *node.values)

    def _comprehension(self, node: Any) -> None:
        self._mark("comprehension", node)
        kind = {ast.ListComp: "list_comprehension", ast.GeneratorExp: "generator_expression"}.get(type(node))
        self._mark(kind or "dict_or_set_comprehension", node)
        elements = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self._mark("comprehension_element", *elements)
        for part in node.generators:
            self._mark("comprehension_target", part.target)
            self._mark("comprehension_iterable", part.iter)
            self._mark("comprehension_condition", *part.ifs)
            self._token_before("comprehension_for", part.target)
            for condition in part.ifs:
                self._token_before("comprehension_if", condition)

    def _binary(self, node: ast.BinOp) -> None:
        self._mark("binary_operation", node)
        self._token_before("binary_operator", node.right)
        right = {ast.Pow: "exponent", ast.Div: "divisor", ast.Mod: "modulus"}.get(type(node.op))
        if right is not None:
            self._mark(right, node.right)

    def _unary(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not):
            self._mark("negation", node)
        else:
            self._mark("sign_operation", node)
            self._token("sign", self.source.at(self.source.span(node)[0]))

    def _boolean(self, node: ast.BoolOp) -> None:
        self._mark("boolean_operation", node)
        self._mark("boolean_later_operand", *node.values[1:])

    def _compare(self, node: ast.Compare) -> None:
        self._mark("comparison", node)
        self._mark("comparison_right", *node.comparators)
        for operator, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(operator, ast.In | ast.NotIn):
                self._token_before("membership_in", right)

    def _conditional(self, node: ast.IfExp) -> None:
        self._mark("conditional_expression", node)
        self._token_before("conditional_if", node.test)
        self._token_before("conditional_else", node.orelse)

    def _starred(self, node: ast.Starred) -> None:
        self._mark("starred", node)

    def _slice(self, node: ast.Slice) -> None:
        self._mark("slice", node)

    def _yield(self, node: ast.Yield | ast.YieldFrom) -> None:
        self._mark("yield_value", node.value)

    # What is known only when all nodes have been seen

    def _paint_uses(self) -> None:
        """Variables against what was said of them earlier in the text."""
        imported, defined = _first(self._imports), _first(self._definitions)
        seen: set[tuple[int, str]] = set()
        stored: set[tuple[int, str]] = set()
        nowhere = self.spans.size
        for use in sorted(self._uses, key=lambda use: use.start):
            span, key = (use.start, use.end), (use.context.scope, use.name)
            names = ["variable"]
            if use.context.scope >= 0:
                names.append("variable_seen_in_function" if key in seen else "variable_new_in_function")
            if use.is_load:
                if use.name in use.context.parameters:
                    names.append("parameter_use")
                elif key in stored and use.context.scope >= 0:
                    names.append("local_variable_use")
                elif imported.get(use.name, nowhere) < use.start:
                    names.append("imported_name_use")
                elif defined.get(use.name, nowhere) < use.start:
                    names.append("earlier_definition_use")
            elif not use.is_parameter:
                names.append("variable_stored")
                stored.add(key)
            seen.add(key)
            for name in names:
                self.paint(name, *span)


def _first(places: Sequence[tuple[str, int]]) -> dict[str, int]:
    """The earliest place of each name."""
    earliest: dict[str, int] = {}
    for name, place in places:
        earliest[name] = min(place, earliest.get(name, place))
    return earliest


_SCOPED: dict[type[ast.AST], Callable[[TreePainter, Any, _Context], None]] = {
    ast.FunctionDef: TreePainter._function,
    ast.AsyncFunctionDef: TreePainter._function,
    ast.Lambda: TreePainter._lambda,
    ast.ClassDef: TreePainter._class,
    ast.Name: TreePainter._name,
}
"""Nodes that need their context; they visit their children themselves, since those have another one."""
_HANDLERS: dict[type[ast.AST], Callable[[TreePainter, Any], None]] = {
    ast.If: TreePainter._if,
    ast.For: TreePainter._for,
    ast.AsyncFor: TreePainter._for,
    ast.While: TreePainter._while,
    ast.Try: TreePainter._try,
    ast.TryStar: TreePainter._try,
    ast.With: TreePainter._with,
    ast.AsyncWith: TreePainter._with,
    ast.Match: TreePainter._match,
    ast.Assign: TreePainter._assign,
    ast.AugAssign: TreePainter._augmented,
    ast.AnnAssign: TreePainter._annotated,
    ast.Return: TreePainter._return,
    ast.Raise: TreePainter._raise,
    ast.Assert: TreePainter._assert,
    ast.Import: TreePainter._import,
    ast.ImportFrom: TreePainter._import,
    ast.Call: TreePainter._call,
    ast.Attribute: TreePainter._attribute,
    ast.Subscript: TreePainter._subscript,
    ast.List: TreePainter._display,
    ast.Tuple: TreePainter._display,
    ast.Set: TreePainter._display,
    ast.Dict: TreePainter._dict,
    ast.ListComp: TreePainter._comprehension,
    ast.SetComp: TreePainter._comprehension,
    ast.DictComp: TreePainter._comprehension,
    ast.GeneratorExp: TreePainter._comprehension,
    ast.BinOp: TreePainter._binary,
    ast.UnaryOp: TreePainter._unary,
    ast.BoolOp: TreePainter._boolean,
    ast.Compare: TreePainter._compare,
    ast.IfExp: TreePainter._conditional,
    ast.Starred: TreePainter._starred,
    ast.Slice: TreePainter._slice,
    ast.Yield: TreePainter._yield,
    ast.YieldFrom: TreePainter._yield,
}
_NO_NODES = {"ctx", "op", "ops", "type_comment", "kind", "type_ignores", "id", "attr", "arg", "level", "module", "n"}
"""Fields in which no node is that anything is said of."""


def _fields(kind: type[ast.AST]) -> Callable[[ast.AST], Any] | None:
    """What takes the fields of a node in which nodes can be, two or more at once; None if there is none."""
    names = [name for name in kind._fields if name not in _NO_NODES]
    if kind in (ast.Constant, ast.JoinedStr) or kind.__name__ == "TemplateStr" or not names:
        return None
    return attrgetter(*names, "_fields")


_FIELDS: dict[type[ast.AST], Callable[[ast.AST], Any] | None] = {}


def _children(node: ast.AST) -> list[ast.AST]:
    """The nodes right below a node, in the order of the text, except for those inside f-strings and operators."""
    kind = type(node)
    if kind not in _FIELDS:
        _FIELDS[kind] = _fields(kind)
    found: list[ast.AST] = []
    fields = _FIELDS[kind]
    for value in () if fields is None else fields(node):
        if isinstance(value, ast.AST):
            found.append(value)
        elif isinstance(value, list):
            found += [item for item in value if isinstance(item, ast.AST)]
    return found
