"""Concepts of Python source, exact, from `tokenize` and `ast`: their list, and masks over the characters.

Spans of expressions are those of `ast`: they leave out redundant parentheses around them. Source that does not parse
gets the concepts that its tokens alone can tell (`Source.tree` is None), and none if it is no sequence of tokens.

Local concepts are those that a token of Python, its kind and the kinds of the two tokens before it tell: a list of such
triples has an F1 of at least 0.95 for them, and of less for all other concepts of single tokens.
"""

import re
import token
from collections.abc import Callable, Iterable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from stages.lib.concepts.labels import Kind, Spec
from stages.lib.concepts.python_source import KEYWORDS, Source, Token, string_opening
from stages.lib.concepts.python_tree import Masks, TreePainter

COMPARISON = {"==": "equal", "!=": "not_equal", "<": "less", ">": "greater", "<=": "less_equal", ">=": "greater_equal"}
ARITHMETIC = {"+": "plus", "-": "minus", "*": "star", "/": "slash", "//": "floor_division", "%": "percent"}
ARITHMETIC |= {"**": "power"}
AUGMENTED = {"+=": "plus_assign", "-=": "minus_assign", "*=": "star_assign", "/=": "slash_assign"}
AUGMENTED |= {f"{symbol}=": f"{symbol}=" for symbol in ("//", "%", "**", "&", "|", "^", "<<", ">>", "@")}
BITWISE = {"&": "bit_and", "|": "bit_or", "^": "bit_xor", "~": "bit_not", "<<": "left_shift", ">>": "right_shift"}
OTHER_OPERATORS = {"=": "equals_sign", "->": "arrow", "@": "at_sign", ":=": "walrus", "...": "ellipsis"}
DELIMITERS = {",": "comma_delimiter", ":": "colon_delimiter", ".": "dot", ";": "semicolon_delimiter"}
BRACKETS = {"(": "parenthesis", "[": "square_bracket", "{": "brace"}
CLOSING = {")": "parenthesis", "]": "square_bracket", "}": "brace"}
OPERATOR_CLASSES = (
    ("comparison_operator", COMPARISON),
    ("arithmetic_operator", ARITHMETIC),
    ("augmented_operator", {symbol: name for symbol, name in AUGMENTED.items() if name.isidentifier()}),
    ("bitwise_operator", BITWISE),
    ("operator", OTHER_OPERATORS),
)
CONSTANTS = ("None", "True", "False")
_BUILTINS = (
    "abs all any ascii bin bool breakpoint bytearray bytes callable chr classmethod compile complex delattr dict dir "
    "divmod enumerate eval exec filter float format frozenset getattr globals hasattr hash help hex id input int "
    "isinstance issubclass iter len list locals map max memoryview min next object oct open ord pow print property "
    "range repr reversed round set setattr slice sorted staticmethod str sum super tuple type vars zip "
    "NotImplemented Ellipsis"
)
BUILTINS = frozenset(_BUILTINS.split())
"""A list of our own, because that of the running Python grows from version to version."""
SECTIONS = {
    "parameters": "docstring_parameters",
    "returns": "docstring_returns",
    "examples": "docstring_examples",
    "references": "docstring_references",
    "see also": "docstring_see_also",
    "notes": "docstring_notes",
    "explanation": "docstring_explanation",
}
"""Sections of the numpydoc convention, and sympy's "Explanation", by their titles in lower case."""
NUMBERS = {"0": "zero", "1": "one", "2": "two", "3": "three"}


def _specs(kind: Kind, entries: str, parents: tuple[str, ...] = (), group: str | None = None) -> list[Spec]:
    """Concepts that differ by name only; a name that ends in `?` needs lookahead."""
    return [Spec(e.removesuffix("?"), kind, parents, group, e.endswith("?")) for e in entries.split()]


def _lexical() -> Iterable[Spec]:
    yield from _specs("lexical", "keyword", group="token_class")
    yield Spec("keyword_constant", "lexical", ("keyword",))
    for word in sorted(KEYWORDS):
        parent = "keyword_constant" if word in CONSTANTS else "keyword"
        yield Spec(f"keyword_{word}", "lexical", (parent,), "keyword")
    yield from _specs("lexical", "operator", group="token_class")
    for parent, symbols in OPERATOR_CLASSES:
        if parent != "operator":
            yield Spec(parent, "lexical", ("operator",), "operator_class")
        for name in symbols.values():
            yield Spec(f"operator_{name}", "lexical", (parent,), "operator")
    yield from _specs("lexical", "delimiter", group="token_class")
    yield from _specs("lexical", " ".join(DELIMITERS.values()), ("delimiter",), "delimiter")
    yield from _specs("lexical", "opening closing", group="token_class")
    for name in BRACKETS.values():
        yield from _specs("lexical", f"opening_{name}", ("opening",), "bracket")
        yield from _specs("lexical", f"closing_{name}", ("closing",), "bracket")
    yield from _specs("lexical", "name number string comment", group="token_class")
    forms = "dunder_name? private_name? single_letter_name? upper_case_name? capitalised_name? snake_case_name?"
    yield from _specs("lexical", f"{forms} lower_case_name?", ("name",), "name_form")
    yield from _specs("lexical", "name_with_digit? builtin_name? self_name? exception_name? test_name?", ("name",))
    yield from _specs("lexical", "integer? float_number?", ("number",), "number_form")
    yield from _specs("lexical", "integer_zero? integer_one? integer_two? integer_three?", ("integer",), "number_value")
    yield Spec("multi_digit_integer", "lexical", ("integer",), "number_value", needs_lookahead=True)
    yield from _specs("lexical", "string_start string_end", ("string",))
    yield from _specs("contextual", "triple_quoted_string single_quoted_string double_quoted_string", ("string",),
                      "string_quotes")  # fmt: skip
    yield from _specs("contextual", "raw_string f_string", ("string",))
    yield from _specs("contextual", "f_string_field", ("f_string",))
    yield from _specs("contextual", "comment_line comment_after_code", ("comment",), "comment_place")


def _statements() -> Iterable[Spec]:
    yield from _specs("local", "after_opening after_comma after_equals after_operator after_keyword after_dot "
                      "after_colon after_closing", group="previous_token")  # fmt: skip
    yield Spec("statement_start", "local")
    yield from _specs("syntactic", "decorator function_signature import_statement")
    yield from _specs("local", "definition_name", ("name",))
    yield from _specs("local", "function_name class_name", ("definition_name",), "definition_name")
    yield from _specs("contextual", "method_name", ("function_name",))
    yield from _specs("syntactic", "parameter", ("variable",))
    yield from _specs("syntactic", "first_parameter later_parameter", ("parameter",), "parameter_place")
    yield from _specs("syntactic", "annotation default_argument class_base")
    yield from _specs("syntactic", "assignment_equals default_equals keyword_argument_equals",
                      ("operator_equals_sign",), "equals_sign_role")  # fmt: skip
    yield from _specs("syntactic", "assignment_target? loop_target comprehension_target")
    yield from _specs("syntactic", "assignment_value return_value yield_value raise_value assert_test assert_message "
                      "if_test while_test loop_iterable with_item except_type")  # fmt: skip
    yield from _specs("contextual", "raise_argument", ("raise_value",))
    yield from _specs("syntactic", "import_module imported_name import_alias", ("import_statement",), "import_part")


def _expressions() -> Iterable[Spec]:
    yield from _specs("local", "call_parenthesis", ("opening_parenthesis",))
    yield from _specs("contextual", "call_closing_parenthesis", ("closing_parenthesis",))
    yield from _specs("syntactic", "call_name?", ("name",))
    yield from _specs("syntactic", "called_method?", ("call_name", "attribute"))
    yield from _specs("syntactic", "call_argument", ("call_depth_1_up",))
    yield from _specs("contextual", "first_argument second_argument later_argument", ("call_argument",), "argument")
    yield from _specs("syntactic", "keyword_argument_name?", ("name", "call_argument"))
    yield from _specs("syntactic", "keyword_argument_value", ("call_argument",))
    yield from _specs("local", "attribute", ("name",))
    yield from _specs("local", "self_attribute attribute_of_call", ("attribute",), "attribute_owner")
    yield from _specs("syntactic", "attribute_of_attribute", ("attribute",), "attribute_owner")
    yield from _specs("syntactic", "attribute_target?", ("attribute",))
    yield from _specs("local", "subscript_bracket", ("opening_square_bracket",))
    yield from _specs("syntactic", "subscript_index lambda starred")
    yield from _specs("syntactic", "slice?", ("subscript_index",))
    yield from _specs("syntactic", "lambda_body", ("lambda",))
    yield from _specs("syntactic", "display?")
    yield from _specs("syntactic", "list_display? tuple_display? set_display? dict_display?", ("display",))
    yield from _specs("syntactic", "dict_key? dict_value", ("dict_display",))
    yield from _specs("syntactic", "comprehension?")
    yield from _specs("syntactic", "list_comprehension? generator_expression? dict_or_set_comprehension? "
                      "comprehension_element? comprehension_iterable comprehension_condition",
                      ("comprehension",))  # fmt: skip
    yield from _specs("syntactic", "binary_operation? comparison? boolean_operation? negation sign_operation "
                      "conditional_expression?")  # fmt: skip
    yield from _specs("syntactic", "exponent divisor modulus", ("binary_operation",))
    yield from _specs("syntactic", "comparison_right", ("comparison",))
    yield from _specs("syntactic", "boolean_later_operand", ("boolean_operation",))
    yield from _specs("local", "binary_operator sign", ("operator",), "operator_arity")
    yield from _specs("syntactic", "comprehension_for", ("keyword_for",))
    yield from _specs("syntactic", "comprehension_if conditional_if", ("keyword_if",), "if_role")
    yield from _specs("syntactic", "conditional_else", ("keyword_else",))
    yield from _specs("local", "membership_in", ("keyword_in",))


def _contextual() -> Iterable[Spec]:
    yield from _specs("contextual", "docstring", ("string",))
    yield from _specs("contextual", "module_docstring class_docstring function_docstring method_docstring",
                      ("docstring",), "docstring_owner")  # fmt: skip
    yield from _specs("contextual", "docstring_first_line docstring_code doctest", ("docstring",))
    yield from _specs("contextual", "doctest_input doctest_output", ("doctest",), "doctest")
    yield from _specs("contextual", "docstring_title? docstring_underline", ("docstring",), "docstring_heading")
    yield from _specs("contextual", " ".join(SECTIONS.values()), ("docstring",), "docstring_section")
    yield from _specs("contextual", "class_body function_body if_body else_body loop_body try_body except_body "
                      "finally_body with_body case_body", ("block_depth_1_up",))  # fmt: skip
    yield from _specs("contextual", "method_body", ("function_body",))
    yield from _specs("contextual", "nested_function", ("function_body",))
    yield from _specs("contextual", "function_first_statement function_last_statement?", ("function_body",))
    yield from _specs("local", "variable", ("name",))
    yield from _specs("contextual", "variable_new_in_function? variable_seen_in_function?", ("variable",),
                      "variable_history")  # fmt: skip
    yield from _specs("contextual", "parameter_use? local_variable_use? imported_name_use? earlier_definition_use?",
                      ("variable",), "variable_origin")  # fmt: skip
    yield from _specs("contextual", "variable_stored?", ("variable",))
    yield from _specs("contextual", "name_new_in_document? name_seen_in_document?", ("name",), "name_history")
    yield from _specs("contextual", "name_seen_recently?", ("name_seen_in_document",))
    yield from _specs("contextual", "continuation_line")


def _positional() -> Iterable[Spec]:
    for what, deepest in (("block", 4), ("bracket", 3), ("call", 3)):
        for depth in range(1, deepest + 1):
            parents = (f"{what}_depth_{depth - 1}_up",) if depth > 1 else ()
            yield Spec(f"{what}_depth_{depth}_up", "positional", parents)


SPECS = (*_lexical(), *_statements(), *_expressions(), *_contextual(), *_positional())
"""In this order in `concepts.json`."""

RECENT = 10
"""A name was seen recently if it is among this many names before."""
_HEADING = re.compile(r"^[^\S\n]*(\S[^\n]*)\n[^\S\n]*(([=\-~])\3{2,})[^\S\n]*$", re.MULTILINE)
_CODE = re.compile(r"(?<!`)(`{1,2})(?!`)[^`\n]+\1(?!`)")


def label_python(source: Source) -> dict[str, NDArray[np.bool_]]:
    """A mask over the characters of the source for every concept of `SPECS` that is present in it."""
    masks = Masks(len(source.text))
    for found in source.tokens:
        for name in _token_names(found):
            masks.paint(name, (found.start, found.end))
        if found.kind == token.STRING:
            _paint_string(found, masks)
    _paint_comments(source, masks)
    _paint_names(source.tokens, masks)
    _paint_brackets(source, masks)
    _paint_sequence(source, masks)
    if source.tree is not None:
        TreePainter(source, masks).run(source.tree)
        _paint_docstrings(source, masks)
    return masks


def _operator_names() -> dict[str, list[str]]:
    names = {symbol: ["operator", "augmented_operator"] for symbol in AUGMENTED}
    for parent, symbols in OPERATOR_CLASSES:
        names |= {
            symbol: [*dict.fromkeys(("operator", parent)), f"operator_{name}"] for symbol, name in symbols.items()
        }
    names |= {symbol: ["delimiter", name] for symbol, name in DELIMITERS.items()}
    names |= {symbol: ["opening", f"opening_{name}"] for symbol, name in BRACKETS.items()}
    return names | {symbol: ["closing", f"closing_{name}"] for symbol, name in CLOSING.items()}


_OPERATOR_NAMES = _operator_names()


def _token_names(found: Token) -> list[str]:
    """The concepts that the token itself tells."""
    text = found.text
    if found.kind == token.OP:
        return _OPERATOR_NAMES.get(text, [])
    if found.kind == token.STRING:
        return ["string"]
    if found.kind == token.NUMBER:
        return ["number", *_number_names(text)]
    if text in KEYWORDS:
        return ["keyword", f"keyword_{text}", *(["keyword_constant"] if text in CONSTANTS else [])]
    return ["name", _name_form(text), *(name for name, test in _NAME_TESTS.items() if test(text))]


def _number_names(text: str) -> list[str]:
    digits = text.replace("_", "")
    if digits.isdigit():
        value = f"integer_{NUMBERS[digits]}" if digits in NUMBERS else ""
        return ["integer", *([value] if value else []), *(["multi_digit_integer"] if len(digits) > 1 else [])]
    if digits[:2].lower() in ("0x", "0b", "0o"):
        return ["integer"]
    return [] if digits[-1] in "jJ" else ["float_number"]


def _name_form(text: str) -> str:
    """The first form that fits."""
    if text.startswith("__") and text.endswith("__") and len(text) > 4:
        return "dunder_name"
    if text.startswith("_"):
        return "private_name"
    if len(text) == 1:
        return "single_letter_name"
    if text.isupper():
        return "upper_case_name"
    if text[0].isupper():
        return "capitalised_name"
    return "snake_case_name" if "_" in text else "lower_case_name"


_NAME_TESTS: dict[str, Callable[[str], bool]] = {
    "name_with_digit": lambda text: any(character.isdigit() for character in text),
    "builtin_name": BUILTINS.__contains__,
    "self_name": ("self", "cls").__contains__,
    "exception_name": lambda text: text.endswith(("Error", "Exception", "Warning")),
    "test_name": lambda text: text.startswith("test_"),
}


def _paint_string(found: Token, masks: Masks) -> None:
    """Prefix, quotes, and the fields of an f-string."""
    opening, quotes = string_opening(found.text)
    prefix, start = opening.lower(), found.start + len(opening)
    span = found.start, found.end
    masks.paint("string_start", found.head())
    masks.paint("string_end", (found.end - len(quotes), found.end))
    kind = (
        "triple_quoted_string"
        if len(quotes) == 3
        else {"'": "single_quoted_string", '"': "double_quoted_string"}[quotes]
    )
    masks.paint(kind, span)
    if "r" in prefix:
        masks.paint("raw_string", span)
    if "f" in prefix:
        masks.paint("f_string", span)
        for first, last in fields(found.text[len(opening) : -len(quotes)]):
            masks.paint("f_string_field", (start + first, start + last))


def fields(body: str) -> Iterable[tuple[int, int]]:
    """The replacement fields of an f-string's body, with their braces; `{{` is a brace, not a field."""
    depth = start = place = 0
    while place < len(body):
        character = body[place]
        if depth == 0 and body[place : place + 2] in ("{{", "}}"):
            place += 1
        elif character == "{":
            start = start if depth else place
            depth += 1
        elif character == "}" and depth:
            depth -= 1
            if depth == 0:
                yield start, place + 1
        place += 1


def _paint_comments(source: Source, masks: Masks) -> None:
    for found in source.comments:
        span = found.start, found.end
        line = source.text[source.text.rfind("\n", 0, found.start) + 1 : found.start]
        masks.paint("comment", span)
        masks.paint("comment_after_code" if line.strip() else "comment_line", span)


def _paint_names(tokens: Iterable[Token], masks: Masks) -> None:
    """Names against the names before them."""
    names = [found for found in tokens if found.kind == token.NAME and found.text not in KEYWORDS]
    last: dict[str, int] = {}
    for number, found in enumerate(names):
        span = found.start, found.end
        masks.paint("name_seen_in_document" if found.text in last else "name_new_in_document", span)
        if number - last.get(found.text, -RECENT - 1) <= RECENT:
            masks.paint("name_seen_recently", span)
        last[found.text] = number


def _paint_brackets(source: Source, masks: Masks) -> None:
    """What is inside brackets, and the lines that begin there."""
    step = np.zeros(masks.size + 1, np.int32)
    open_ = 0
    for found in source.tokens:
        if found.kind == token.OP and found.text in BRACKETS:
            step[found.end] += 1
            open_ += 1
        elif found.kind == token.OP and found.text in CLOSING and open_:
            step[found.start] -= 1
            open_ -= 1
    depth = np.cumsum(step)[:-1]
    for deep in (1, 2, 3):
        masks[f"bracket_depth_{deep}_up"] = depth >= deep
    newlines = [match.start() for match in re.finditer("\n", source.text)]
    for start, end in pairwise([*newlines, masks.size - 1]):
        if depth[start] and not masks["string"][start]:
            masks.paint("continuation_line", (start + 1, end + 1))


def _paint_sequence(source: Source, masks: Masks) -> None:
    """Tokens by the one before them in the same statement."""
    inside = masks["bracket_depth_1_up"]
    for before, found in pairwise(source.tokens):
        between = source.text[before.end : found.start]
        if "\n" in between and not inside[found.start] and found.text not in CLOSING and "\\" not in between:
            continue
        name = _after(before)
        if name:
            masks.paint(name, found.head())


def _after(before: Token) -> str | None:
    if before.kind == token.OP:
        known = {"=": "after_equals", ",": "after_comma", ".": "after_dot", ":": "after_colon", ";": None}
        if before.text in known:
            return known[before.text]
        if before.text in BRACKETS:
            return "after_opening"
        return "after_closing" if before.text in CLOSING else "after_operator"
    return "after_keyword" if before.text in KEYWORDS else None


def _paint_docstrings(source: Source, masks: Masks) -> None:
    """What is inside docstrings."""
    for found in source.tokens:
        if found.kind == token.STRING and masks["docstring"][found.start]:
            start, end = found.head()[1], found.end - len(string_opening(found.text)[1])
            body = source.text[start:end]
            first = len(body) - len(body.lstrip())
            line_end = body.find("\n", first)
            masks.paint("docstring_first_line", (start + first, end if line_end < 0 else start + line_end))
            for code in _CODE.finditer(body):
                masks.paint("docstring_code", (start + code.start(), start + code.end()))
            _paint_sections(body, start, masks)
            _paint_doctests(body, start, masks)


def _paint_sections(body: str, start: int, masks: Masks) -> None:
    headings = list(_HEADING.finditer(body))
    ends = [*(heading.start() for heading in headings), len(body)][1:]
    for heading, end in zip(headings, ends, strict=True):
        masks.paint("docstring_title", (start + heading.start(1), start + heading.end(1)))
        masks.paint("docstring_underline", (start + heading.start(2), start + heading.end(2)))
        section = SECTIONS.get(heading.group(1).strip().lower())
        if section:
            masks.paint(section, (start + heading.end(), start + end))


def _paint_doctests(body: str, start: int, masks: Masks) -> None:
    """Lines from a prompt on: input at a prompt, output up to the next prompt or empty line."""
    place, state = start, ""
    for line in body.split("\n"):
        text = line.strip()
        if text.startswith(">>>") or (state == "doctest_input" and text.startswith("...")):
            state = "doctest_input"
        else:
            state = "doctest_output" if state and text else ""
        if state:
            for name in ("doctest", state):
                masks.paint(name, (place, min(place + len(line) + 1, start + len(body))))
        place += len(line) + 1
