"""Text to tree, by lark's LALR parser: no recursion, so deep nesting costs memory and never the stack."""

from __future__ import annotations

import math
import re
from typing import Any, cast

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedToken, v_args

from services.recommender.filters import syntax
from shared.errors import FieldError, FilterInvalid

MAX_CHARACTERS = 4096
MAX_DEPTH = 64

# A keyword is a regular expression with its own end, because lark would otherwise read "android" as AND and "roid".
_GRAMMAR = r"""
start: _any
_any: any_of | _all
_all: all_of | _unary
any_of: _all (OR _all)+
all_of: _unary (AND _unary)+
_unary: negation | _test | "(" _any ")"
negation: NOT _unary
_test: compare | member | contains | is_null | truth
compare: _operand COMPARISON _operand
member: _operand [NOT] IN "(" _operand ("," _operand)* ")" | _operand [NOT] IN single
single: PARAMETER | USER_FIELD
contains: _operand CONTAINS _operand
is_null: _operand IS [NOT] NULL
truth: _operand
_operand: field | user_field | context_field | parameter | text | number | boolean | now
field: NAME
user_field: USER_FIELD
context_field: CONTEXT_FIELD
parameter: PARAMETER
text: TEXT
number: NUMBER
boolean: TRUE | FALSE
now: NOW

COMPARISON: "!=" | "<=" | ">=" | "<" | ">" | "="
AND.3: /AND(?![A-Za-z0-9_.])/i
OR.3: /OR(?![A-Za-z0-9_.])/i
NOT.3: /NOT(?![A-Za-z0-9_.])/i
IN.3: /IN(?![A-Za-z0-9_.])/i
IS.3: /IS(?![A-Za-z0-9_.])/i
NULL.3: /NULL(?![A-Za-z0-9_.])/i
CONTAINS.3: /CONTAINS(?![A-Za-z0-9_.])/i
TRUE.3: /TRUE(?![A-Za-z0-9_.])/i
FALSE.3: /FALSE(?![A-Za-z0-9_.])/i
NOW.3: /now\(\)/i
USER_FIELD.2: /user\.[A-Za-z_][A-Za-z0-9_]*/
CONTEXT_FIELD.2: /context\.[A-Za-z_][A-Za-z0-9_]*/
PARAMETER: /\$[A-Za-z_][A-Za-z0-9_]*/
NAME: /[A-Za-z_][A-Za-z0-9_]*/
NUMBER: /[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?(?![A-Za-z0-9_.])/
TEXT: /"(\\.|[^"\\\n])*"|'(\\.|[^'\\\n])*'/
%ignore /[ \t\r\n]+/
"""

_SPOKEN = {
    "COMPARISON": "a comparison (= != < <= > >=)",
    "PARAMETER": "a $value",
    "USER_FIELD": "a user field",
    "CONTEXT_FIELD": "a context field",
    "NAME": "a field",
    "NUMBER": "a number",
    "TEXT": "a text in quotes",
    "LPAR": "(",
    "RPAR": ")",
    "COMMA": ",",
    "NOW": "now()",
    "$END": "the end",
}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\", "/": "/"}


def fault(message: str, position: int, pointer: str = "/filter") -> FilterInvalid:
    """The one way in which a filter is refused. `position` counts characters from 0."""
    detail = f"{message} (character {position + 1})"
    return FilterInvalid(detail, errors=[FieldError(pointer, message, "filter_invalid", position)])


def parse(text: str) -> syntax.Expression:
    """Raises FilterInvalid that names the character."""
    if len(text) > MAX_CHARACTERS:
        message = f"the filter has {len(text)} characters; {MAX_CHARACTERS} are allowed: pass long lists as $values"
        raise fault(message, MAX_CHARACTERS)
    try:
        tree: Any = _PARSER.parse(text)
    except UnexpectedToken as error:
        at_end = error.token.type == "$END"
        seen = "the end of the filter" if at_end else ascii(str(error.token))
        position = len(text) if at_end else _place(error.token)
        raise fault(
            f"{seen} is not expected here; expected {_expected(error.accepts or error.expected)}", position
        ) from None
    except UnexpectedCharacters as error:
        position = int(error.pos_in_stream or 0)
        character = text[position]
        hint = "this text is not closed" if character in "\"'" else f"{character!a} has no meaning here"
        raise fault(hint, position) from None
    return cast("syntax.Expression", tree)


def _expected(names: Any) -> str:
    return ", ".join(sorted({_SPOKEN.get(name, name) for name in names}))


def _place(token: Token) -> int:
    return int(token.start_pos or 0)


def _text(token: Token) -> str:
    position = _place(token)

    def unescape(match: re.Match[str]) -> str:
        body = match[1]
        if body[0] == "u" and len(body) == 5:
            code = int(body[1:], 16)
            if not 0xD800 <= code <= 0xDFFF:
                return chr(code)
        elif body in _ESCAPES:
            return _ESCAPES[body]
        raise fault(f"{match[0]!a} is no escape of a text", position + 1 + match.start())

    return _ESCAPE.sub(unescape, token[1:-1])


@v_args(inline=True)
class _Build(Transformer[Token, Any]):
    """Called at each reduction while parsing, so the tree is never walked."""

    def start(self, inner: syntax.Expression) -> syntax.Expression:
        return inner

    def any_of(self, *parts: Any) -> syntax.Or:
        kept = tuple(part for part in parts if not isinstance(part, Token))
        return syntax.Or(kept, _deeper(kept))

    def all_of(self, *parts: Any) -> syntax.And:
        kept = tuple(part for part in parts if not isinstance(part, Token))
        return syntax.And(kept, _deeper(kept))

    def negation(self, word: Token, inner: syntax.Expression) -> syntax.Not:
        return syntax.Not(inner, _deeper((inner,), _place(word)))

    def compare(self, left: syntax.Operand, operator: Token, right: syntax.Operand) -> syntax.Compare:
        return syntax.Compare(left, str(operator), right, _place(operator))  # type: ignore[arg-type]

    def member(self, left: syntax.Operand, negated: Token | None, word: Token, *values: Any) -> syntax.Member:
        return syntax.Member(left, values, negated is not None, _place(negated or word))

    def single(self, token: Token) -> syntax.Operand:
        return self.parameter(token) if token.startswith("$") else self.user_field(token)

    def contains(self, left: syntax.Operand, word: Token, right: syntax.Operand) -> syntax.Contains:
        return syntax.Contains(left, right, _place(word))

    def is_null(self, operand: syntax.Operand, word: Token, negated: Token | None, _null: Token) -> syntax.IsNull:
        return syntax.IsNull(operand, negated is not None, _place(word))

    def truth(self, operand: syntax.Operand) -> syntax.Truth:
        return syntax.Truth(operand, operand.position)

    def field(self, token: Token) -> syntax.ItemField:
        return syntax.ItemField(str(token), _place(token))

    def user_field(self, token: Token) -> syntax.UserField:
        return syntax.UserField(str(token)[5:], _place(token))

    def context_field(self, token: Token) -> syntax.ContextField:
        return syntax.ContextField(str(token)[len("context.") :], _place(token))

    def parameter(self, token: Token) -> syntax.Parameter:
        return syntax.Parameter(str(token)[1:], _place(token))

    def text(self, token: Token) -> syntax.Literally:
        return syntax.Literally(_text(token), _place(token))

    def number(self, token: Token) -> syntax.Literally:
        value = float(token)
        if not math.isfinite(value):
            raise fault("this number is too large", _place(token))
        return syntax.Literally(value, _place(token))

    def boolean(self, token: Token) -> syntax.Literally:
        return syntax.Literally(token.lower() == "true", _place(token))

    def now(self, token: Token) -> syntax.Now:
        return syntax.Now(_place(token))


def _deeper(parts: tuple[syntax.Expression, ...], position: int | None = None) -> int:
    depth = 1 + max(part.depth for part in parts)
    if depth > MAX_DEPTH:
        raise fault(f"the filter is nested more than {MAX_DEPTH} levels deep", position or 0)
    return depth


_PARSER = Lark(_GRAMMAR, parser="lalr", transformer=_Build(), maybe_placeholders=True)
