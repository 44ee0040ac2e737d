"""HTML pages and Markdown cards from the Jinja templates of a package."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_eval_context
from jinja2.nodes import EvalContext

from cache_tools.errors import printable

UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


def render(package: str, template: str, **values: Any) -> str:
    """Return `template`, a file in the folder `templates` of this package, with the values filled in.

    A value is text and never markup, escaped for HTML or by `as_markdown`, unless the template marks it as safe.
    Control characters and lone surrogates become U+FFFD.
    """
    return UNPRINTABLE.sub("\ufffd", _environment(package).get_template(template).render(values))


def as_markdown(text: object) -> str:
    """Return one line of at most 400 characters without markup: no link or HTML from a cache gets into a card."""
    return re.sub(r"([\\`\[\]<>*|!#&])", r"\\\1", printable(text))


@cache
def _environment(package: str) -> Environment:
    found = Environment(
        loader=PackageLoader(package), autoescape=lambda name: not str(name).endswith(".md.jinja"),
        finalize=_finalize, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    found.filters.update(format=format, repr=repr)  # Python's own; Jinja's format is that of %
    return found


@pass_eval_context
def _finalize(context: EvalContext, value: Any) -> Any:
    """Return a value of a Markdown template without markup. Jinja escapes those of the others."""
    return value if context.autoescape or hasattr(value, "__html__") else as_markdown(value)
