"""The list of the concepts of Python source; `stages.lib.concepts.python_labels` finds where they hold.

Spans of expressions are those of `ast`: they leave out redundant parentheses around them. Source that does not parse
gets the concepts that its tokens alone can tell (`Source.tree` is None), and none if it is no sequence of tokens.

Local concepts are those that a token of Python, its kind and the kinds of the two tokens before it tell: a list of such
triples has an F1 of at least 0.95 for them, and of less for all other concepts of single tokens.
"""

from collections.abc import Iterable

from stages.lib.concepts.labels import Kind, Spec
from stages.lib.concepts.python_source import KEYWORDS

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
