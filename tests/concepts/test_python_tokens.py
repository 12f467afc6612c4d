import ast
import io
import json.decoder
import textwrap
import token
import tokenize
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np
import pytest

from stages.lib.concepts import python_source
from stages.lib.concepts.python_labels import fields, label_python
from stages.lib.concepts.python_source import Source, join_fstrings, split_tokens
from stages.lib.concepts.python_tokens import SPECS
from stages.lib.concepts.spans import Spans

BY_NAME = {spec.name: spec for spec in SPECS}


def masks_of(source: Source, places: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """A mask over the characters for each concept, or over some of them."""
    places = np.arange(len(source.text)) if places is None else places
    return dict(zip(BY_NAME, label_python(source, [*BY_NAME]).labels(places).T, strict=True))


def pieces(text: str) -> dict[str, list[str]]:
    """The stretches of the text in which each concept holds."""
    source = Source(text)
    found = {}
    for name, mask in masks_of(source, source.place(np.arange(len(text)))).items():
        assert mask.shape == (len(text),)
        stretches = [[i for i, _ in run] for holds, run in groupby(enumerate(mask), key=lambda pair: pair[1]) if holds]
        if stretches:
            found[name] = [text[run[0] : run[-1] + 1] for run in stretches]
    return found


def assert_labels(text: str, expected: dict[str, list[str]]) -> None:
    found = pieces(text)
    assert {name: found.get(name, []) for name in expected} == expected


def test_tokens():
    text = "if x_1 == 10 and not _y: Total += 0x1F * 2.5 ** z  # why\n# alone\n"
    assert_labels(
        text,
        {
            "keyword": ["if", "and", "not"],
            "keyword_if": ["if"],
            "keyword_and": ["and"],
            "keyword_or": [],
            "operator": ["==", "+=", "*", "**"],
            "operator_equal": ["=="],
            "comparison_operator": ["=="],
            "augmented_operator": ["+="],
            "operator_plus_assign": ["+="],
            "arithmetic_operator": ["*", "**"],
            "operator_power": ["**"],
            "delimiter": [":"],
            "name": ["x_1", "_y", "Total", "z"],
            "snake_case_name": ["x_1"],
            "private_name": ["_y"],
            "capitalised_name": ["Total"],
            "single_letter_name": ["z"],
            "name_with_digit": ["x_1"],
            "number": ["10", "0x1F", "2.5"],
            "integer": ["10", "0x1F"],
            "multi_digit_integer": ["10"],
            "float_number": ["2.5"],
            "comment": ["# why", "# alone"],
            "comment_after_code": ["# why"],
            "comment_line": ["# alone"],
            "if_test": ["x_1 == 10 and not _y"],
            "boolean_operation": ["x_1 == 10 and not _y"],
            "boolean_later_operand": ["not _y"],
            "negation": ["not _y"],
            "comparison": ["x_1 == 10"],
            "comparison_right": ["10"],
            "if_body": [" Total += 0x1F * 2.5 ** z"],
            "binary_operation": ["0x1F * 2.5 ** z"],
            "exponent": ["z"],
            "binary_operator": ["*", "**"],
            "assignment_target": ["Total"],
            "assignment_value": ["0x1F * 2.5 ** z"],
            "statement_start": ["if", "Total"],
            "after_operator": ["10", "0x1F", "2.5", "z"],
            "after_keyword": ["x_1", "not", "_y"],
            "after_colon": ["Total"],
        },
    )


CLASS = '''\
"""A shape."""
import os.path as p
from . import base, area as measure


@register(1)
class Shape(base.Shape, metaclass=Meta):
    """Anything flat."""

    def __init__(self, size: int, *rest, name="", **more) -> None:
        r"""Make one."""
        self.size = measure(size)
        for key in more:
            more.pop(key)[0].x.y = Shape
        return None

    def grow(self):
        def twice(v):
            return v * self.size
        return lambda u=2: twice(u)
'''


def test_definitions():
    assert_labels(
        CLASS,
        {
            "docstring": ['"""A shape."""', '"""Anything flat."""', 'r"""Make one."""'],
            "module_docstring": ['"""A shape."""'],
            "class_docstring": ['"""Anything flat."""'],
            "method_docstring": ['r"""Make one."""'],
            "raw_string": ['r"""Make one."""'],
            "docstring_first_line": ["A shape.", "Anything flat.", "Make one."],
            "string": ['"""A shape."""', '"""Anything flat."""', '""', 'r"""Make one."""'],
            "import_statement": ["import os.path as p", "from . import base, area as measure"],
            "import_module": ["os.path", "."],
            "import_alias": ["p", "measure"],
            "imported_name": ["base", "area"],
            "imported_name_use": ["base", "measure"],
            "decorator": ["@register(1)"],
            "definition_name": ["Shape", "__init__", "grow", "twice"],
            "class_name": ["Shape"],
            "function_name": ["__init__", "grow", "twice"],
            "method_name": ["__init__", "grow"],
            "dunder_name": ["__init__"],
            "class_base": ["base.Shape"],
            "keyword_argument_name": [],
            "parameter": ["self", "size", "rest", "name", "more", "self", "v", "u"],
            "first_parameter": ["v", "u"],
            "later_parameter": ["size"],
            "annotation": ["int", "None"],
            "default_argument": ['""', "2"],
            "default_equals": ["=", "="],
            "assignment_equals": ["=", "="],
            "assignment_target": ["self.size", "more.pop(key)[0].x.y"],
            "attribute_target": ["size", "y"],
            "self_attribute": ["size", "size"],
            "attribute": ["Shape", "size", "pop", "x", "y", "size"],
            "attribute_of_attribute": ["y"],
            "loop_target": ["key"],
            "loop_iterable": ["more"],
            "loop_body": ["\n            more.pop(key)[0].x.y = Shape"],
            "call_name": ["register", "measure", "pop", "twice"],
            "called_method": ["pop"],
            "call_argument": ["1", "size", "key", "u"],
            "subscript_index": ["0"],
            "subscript_bracket": ["["],
            "return_value": ["None", "v * self.size", "lambda u=2: twice(u)"],
            "lambda": ["lambda u=2: twice(u)"],
            "lambda_body": ["twice(u)"],
            "nested_function": ["def twice(v):\n            return v * self.size"],
            "function_signature": [
                'def __init__(self, size: int, *rest, name="", **more) -> None:',
                "def grow(self):",
                "def twice(v):",
            ],
            "parameter_use": ["self", "size", "more", "more", "v", "self", "u"],
            "earlier_definition_use": ["Shape", "twice"],
            "function_last_statement": ["return None", "return lambda u=2: twice(u)"],
        },
    )


def test_bodies():
    found = pieces(CLASS)
    assert found["class_body"] == [CLASS[CLASS.index('\n    """Anything') : -1]]
    init = CLASS[CLASS.index('\n        r"""') : CLASS.index("\n\n    def grow")]
    grow = CLASS[CLASS.index("\n        def twice") : -1]
    assert found["method_body"] == found["function_body"] == [init, grow]
    assert found["function_first_statement"] == ["self.size = measure(size)", grow[9 : grow.index("size") + 4]]
    # A local variable that is a parameter of the function around is one; `self` in `twice` is.
    assert "local_variable_use" not in found or found["local_variable_use"] == ["key"]
    assert found["block_depth_1_up"] == found["class_body"]
    assert found["block_depth_2_up"] == found["method_body"]
    assert found["block_depth_3_up"] == [
        "\n            more.pop(key)[0].x.y = Shape",
        "\n            return v * self.size",
    ]


EXPRESSIONS = """\
def f(a, b=(1 + 2)):
    c = [g(i, k=i)[1:-i, :] for i in a if i in b if not i]
    d = {"x": c, **a}, {1, 2}, sum(j for j in c)
    assert (a) == b, "no"
    raise ValueError("bad", *c) if d else (yield c)
    return h(a, k(b)(c), *d, e=1).m().n
"""


def test_expressions():
    assert_labels(
        EXPRESSIONS,
        {
            "default_argument": ["1 + 2"],
            "default_equals": ["="],
            "list_comprehension": ["[g(i, k=i)[1:-i, :] for i in a if i in b if not i]"],
            "generator_expression": ["(j for j in c)"],
            "comprehension_element": ["g(i, k=i)[1:-i, :]", "j"],
            "comprehension_target": ["i", "j"],
            "comprehension_iterable": ["a", "c"],
            "comprehension_condition": ["i in b", "not i"],
            "comprehension_for": ["for", "for"],
            "comprehension_if": ["if", "if"],
            "membership_in": ["in"],
            "conditional_if": ["if"],
            "conditional_else": ["else"],
            "conditional_expression": ['ValueError("bad", *c) if d else (yield c)'],
            "keyword_in": ["in", "in", "in"],
            "slice": ["1:-i", ":"],
            "subscript_index": ["1:-i, :"],
            "sign": ["-"],
            "sign_operation": ["-i"],
            "keyword_argument_name": ["k", "e"],
            "keyword_argument_equals": ["=", "="],
            "keyword_argument_value": ["i", "1"],
            "dict_display": ['{"x": c, **a}'],
            "dict_key": ['"x"'],
            "dict_value": ["c", "a"],
            "set_display": ["{1, 2}"],
            "tuple_display": ["1:-i, :", '{"x": c, **a}, {1, 2}, sum(j for j in c)'],
            "assert_test": ["(a) == b"],
            "assert_message": ['"no"'],
            "raise_value": ['ValueError("bad", *c) if d else (yield c)'],
            "exception_name": ["ValueError"],
            "builtin_name": ["sum"],
            "starred": ["*c", "*d"],
            "yield_value": ["c"],
            "first_argument": ["i", "j for j in c", '"bad"', "a", "b", "c"],
            "second_argument": ["k=i", "*c", "k(", ")(", ")"],
            "later_argument": ["*d", "e=1"],
            "attribute_of_call": ["m", "n"],
            "call_name": ["g", "sum", "ValueError", "h", "k", "m"],
            "call_depth_2_up": ["b", "c"],
            "call_depth_3_up": [],
        },
    )


BLOCKS = """\
try:
    while x < 1:
        break
    else:
        pass
except (E, F) as e:
    with open(p) as q, r:
        y = 1
else:
    if a:
        b
    elif c:
        d
    else: e
finally:
    z = (
        1,
        'a'  # note
    )
w = yy \\
    + 1
v
(u)
"""


def test_blocks():
    assert_labels(
        BLOCKS,
        {
            "try_body": ["\n    while x < 1:\n        break\n    else:\n        pass"],
            "while_test": ["x < 1"],
            "loop_body": ["\n        break"],
            "except_type": ["(E, F)"],
            "except_body": ["\n    with open(p) as q, r:\n        y = 1"],
            "with_item": ["open(p)", "r"],
            "with_body": ["\n        y = 1"],
            "else_body": [
                "\n        pass",
                "\n    if a:\n        b\n    elif c:\n        d\n    else: e",
            ],
            "if_test": ["a", "c"],
            "if_body": ["\n        b", "\n        d"],
            "finally_body": ["\n    z = (\n        1,\n        'a'  # note\n    )"],
            "continuation_line": ["        1,\n        'a'  # note\n    )\n"],
            # An `elif` is not deeper than its `if`.
            "block_depth_2_up": [
                "\n        break",
                "\n        pass",
                "\n        y = 1",
                "\n        b",
                "\n        d",
                " e",
            ],
            "block_depth_3_up": [],
            "bracket_depth_1_up": ["E, F", "p", "\n        1,\n        'a'  # note\n    ", "u"],
            "after_comma": ["F", "r", "'"],
            "after_opening": ["E", "p", "1", "u"],
            # Another statement is not after what the last one ended with, a continued line is.
            "after_closing": ["as", "as"],
            "after_operator": ["1", "1"],
        },
    )


DOCSTRING = '''\
def f(x):
    """
    Sum of ``x`` and `y`.

    Parameters
    ==========

    x : int

    Examples
    --------

    >>> f(1)
    2
    >>> for i in a:
    ...     i
    3

    ... and so on
    """
'''


def test_docstring():
    assert_labels(
        DOCSTRING,
        {
            "docstring_first_line": ["Sum of ``x`` and `y`."],
            "docstring_code": ["``x``", "`y`"],
            "docstring_title": ["Parameters", "Examples"],
            "docstring_underline": ["==========", "--------"],
            "docstring_parameters": ["\n\n    x : int\n\n"],
            "docstring_examples": [DOCSTRING[DOCSTRING.index("--------") + 8 : -4]],
            "doctest": ["    >>> f(1)\n    2\n    >>> for i in a:\n    ...     i\n    3\n"],
            "doctest_input": ["    >>> f(1)\n", "    >>> for i in a:\n    ...     i\n"],
            "doctest_output": ["    2\n", "    3\n"],
            "string_start": ['"""'],
            "string_end": ['"""'],
        },
    )


def test_names_seen_before():
    text = "def f(a):\n    b = a.a + b\ndef g():\n    b\n"
    found = pieces(text)
    assert found["variable_new_in_function"] == ["a", "b", "b"]
    assert found["variable_seen_in_function"] == ["a", "b"]
    assert found["name_new_in_document"] == ["f", "a", "b", "g"]
    assert found["name_seen_in_document"] == ["a", "a", "b", "b"]
    names = " ".join(f"n{i};" for i in range(10))
    assert "name_seen_recently" not in pieces(f"a; {names} a")
    assert pieces(f"a; {names[:-4]} a")["name_seen_recently"] == ["a"]


def test_fstring_is_one_string_and_its_inside_is_only_fields():
    text = "x = f'a{b!r:>{w}} {{c}} {d[1]}' 'e' + rf\"{y}\"\n"
    assert_labels(
        text,
        {
            "string": ["f'a{b!r:>{w}} {{c}} {d[1]}'", "'e'", 'rf"{y}"'],
            "f_string": ["f'a{b!r:>{w}} {{c}} {d[1]}'", 'rf"{y}"'],
            "f_string_field": ["{b!r:>{w}}", "{d[1]}", "{y}"],
            "raw_string": ['rf"{y}"'],
            "single_quoted_string": ["f'a{b!r:>{w}} {{c}} {d[1]}'", "'e'"],
            "name": ["x"],
            "number": [],
            "subscript_index": [],
            "bracket_depth_1_up": [],
        },
    )


@pytest.mark.parametrize(("body", "expected"), [("", []), ("{a}", [(0, 3)]), ("{{a}}", []), ("}}{{{a}", [(4, 7)])])
def test_fields(body, expected):
    assert list(fields(body)) == expected


def test_fstrings_of_python_3_12_are_joined(monkeypatch):
    """The tokens that Python 3.12 makes of `f"a{f'{b}'}" + c`, with made-up numbers for its kinds of token."""
    start, middle, end = 901, 902, 903
    monkeypatch.setattr(python_source, "_FSTRING_STARTS", {start})
    monkeypatch.setattr(python_source, "_FSTRING_ENDS", {end})
    op, name = tokenize.OP, tokenize.NAME
    kinds = [(start, 'f"'), (middle, "a"), (op, "{"), (start, "f'"), (op, "{"), (name, "b"), (op, "}"), (end, "'")]
    kinds += [(op, "}"), (end, '"'), (op, "+"), (name, "c")]
    tokens, column = [], 0
    for kind, text in kinds:
        tokens.append(tokenize.TokenInfo(kind, text, (1, column), (1, column + len(text)), ""))
        column += len(text)
    joined = [(t.type, t.start[1], t.end[1]) for t in join_fstrings(tokens)]
    assert joined == [(tokenize.STRING, 0, 12), (op, 12, 13), (name, 13, 14)]


PLAIN = "def f(ä, *, b='é𝄞'):\n\tif ä:\n\t\treturn b.ö(1, \\\n  ä) # ü\n\f\nclass Ünit: pass\n"
PLAIN_LABELS = {
    "parameter": ["ä", "b"],
    "default_argument": ["'é𝄞'"],
    "if_test": ["ä"],
    "called_method": ["ö"],
    "second_argument": ["ä"],
    "comment": ["# ü"],
    "class_name": ["Ünit"],
    "string_end": ["'"],
    "keyword_pass": ["pass"],
}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_columns_are_characters_with_any_line_ends(newline, mark):
    """Tabs, form feed, continuation, characters of two to four bytes, byte order mark."""
    text = mark + PLAIN.replace("\n", newline)
    assert Source(text).tree is not None
    assert_labels(text, PLAIN_LABELS)


def test_offset_counts_bytes():
    source = Source("a = 1\né = '𝄞' + b\n")
    assert source.text[source.offset(2, len("é = '𝄞' + ".encode())) :] == "b\n"
    assert source.offset(1, 4) == 4


@pytest.mark.parametrize("text", ['print "a", x\n', "def f(a b):\n    return 1\n"])
def test_source_that_does_not_parse_has_the_concepts_of_its_tokens(text):
    source = Source(text)
    masks = masks_of(source)
    assert source.tree is None
    assert masks["name"].any()
    assert not any(masks[name].any() for name in ("statement_start", "variable", "block_depth_1_up") if name in masks)


@pytest.mark.parametrize("text", ["x = (1,\n", "a\n  b\n c\n", '"""open\n', "a = $b\n", "x = 'open\n"])
def test_text_that_is_no_sequence_of_tokens_has_no_concept(text):
    source = Source(text)
    assert (source.tree, [*source.tokens]) == (None, [])
    assert not any(mask.any() for mask in masks_of(source).values())


@pytest.mark.parametrize("text", ["", "\n", "a\x00b\n", "x = '\ud800'\n", "# only\n", "x = 1", "'a\\d'\n"])
def test_odd_texts_are_labelled(text):
    assert all(mask.shape == (len(text),) for mask in masks_of(Source(text)).values())


def test_deep_nesting_is_not_fatal():
    source = Source("-" * 20_000 + "1\n")
    assert source.tree is None


def test_match_statement():
    text = "match (a):\n    case [1, b]:\n        c\n    case _: d\n"
    found = pieces(text)
    assert found["case_body"] == ["\n        c", " d"]
    assert found["block_depth_1_up"] == ["\n    case [1, b]:\n        c\n    case _: d"]
    assert found["block_depth_2_up"] == found["case_body"]


REAL = [json.decoder, textwrap, tokenize]


@pytest.fixture(scope="module")
def real() -> list[tuple[Source, dict[str, np.ndarray]]]:
    sources = [Source(Path(module.__file__).read_text(encoding="utf-8")) for module in REAL]
    return [(source, masks_of(source)) for source in sources]


OPERANDS = [
    "x",
    "_y1",
    "0x1F",
    "1_0.5e-3j",
    ".5",
    "1.",
    "'a'",
    '"b\\"c"',
    "rb'z'",
    '"""d\n""e"""',
    "F'{e}'",
    "é",
    "...",
]
OPERATORS = [
    "**",
    "//",
    "!=",
    "<",
    ">>",
    "@",
    "==",
    ",",
    "-~",
    "if 1else",
    "or",
    "and\\\n",
    ".a.",
    "#f 'g\n+",
    ":=",
    "%\f",
]


def random_source(generator: np.random.Generator) -> str:
    """Operands and operators in parentheses, with and without space; not all of it is Python."""
    pieces = [*generator.choice(OPERANDS, 4), *generator.choice(OPERATORS, 4), *generator.choice(["", " ", "\n"], 7)]
    return "(" + "".join(pieces[i] for i in (0, 8, 4, 9, 1, 10, 5, 11, 2, 12, 6, 13, 3, 14)) + ")\n"


def test_a_pattern_finds_the_tokens_of_tokenize(real):
    """On real source, and on random pieces wherever they are Python."""
    generator, n_checked = np.random.default_rng(0), 0
    for text in [*(source.text for source, _ in real), *(random_source(generator) for _ in range(2000))]:
        found = split_tokens(text)
        if python_source._parse(text) is None or found is None:
            continue
        lines = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
        expected = [
            (t.type, lines[t.start[0] - 1] + t.start[1], lines[t.end[0] - 1] + t.end[1])
            for t in join_fstrings(tokenize.generate_tokens(io.StringIO(text).readline))
            if t.type in (token.NAME, token.NUMBER, token.STRING, token.OP, token.COMMENT)
        ]
        assert [(*one,) for one in found] == [(kind, text[start:end], start, end) for kind, start, end in expected]
        n_checked += 1
    assert n_checked >= 200


def test_what_a_pattern_cannot_tell_is_left_to_tokenize():
    assert split_tokens("a·b = 1\n") is None  # a name, but not of characters that words are made of
    assert Source("a·b = 1\n").tree is not None


def test_every_painted_concept_is_listed_once(monkeypatch, real):
    assert len(BY_NAME) == len(SPECS)
    painted = set()
    monkeypatch.setattr(Spans, "paint", lambda _, name, start, end: painted.add(name))
    monkeypatch.setattr(Spans, "paint_each", lambda _, name, start, end: painted.add(name))
    for source, _ in real:
        label_python(source, [*BY_NAME])
    assert len(painted) > 90
    assert painted <= set(BY_NAME)


def test_parents_exist_and_hold_wherever_the_concept_does(real):
    for spec in SPECS:
        for parent in spec.parents:
            assert parent in BY_NAME
            for _, masks in real:
                if spec.name in masks:
                    assert not (masks[spec.name] & ~masks[parent]).any(), (spec.name, parent)


def test_concepts_of_a_group_exclude_each_other(real):
    for group in {spec.group for spec in SPECS if spec.group}:
        names = [spec.name for spec in SPECS if spec.group == group]
        for source, masks in real:
            together = np.sum([masks[name] for name in names if name in masks], axis=0)
            assert np.max(together, initial=0) <= 1, (group, source.text[int(np.argmax(together)) :][:40])


def test_tokens_agree_with_the_tree(real):
    """An independent reading: every `ast.Name` is text of that name, every string constant lies in a string."""
    for source, masks in real:
        assert source.tree is not None
        inside = {
            id(sub) for node in ast.walk(source.tree) if isinstance(node, ast.JoinedStr) for sub in ast.walk(node)
        }
        for node in ast.walk(source.tree):
            if id(node) in inside or not isinstance(node, ast.expr):
                continue
            start, end = source.span(node)
            if isinstance(node, ast.Name):
                assert source.text[start:end] == node.id
                assert masks["variable"][start:end].all()
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert masks["string"][start]


def test_docstrings_are_those_of_ast(real):
    for source, masks in real:
        assert source.tree is not None
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        expected = sum(ast.get_docstring(node) is not None for node in ast.walk(source.tree) if isinstance(node, kinds))
        starts = masks["docstring"] & masks["string_start"] if "docstring" in masks else np.zeros(1, bool)
        assert int((np.diff(starts.astype(int), prepend=0) == 1).sum()) == expected
