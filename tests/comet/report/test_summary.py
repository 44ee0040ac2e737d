"""What a cache says ends up in a card as text, and as nothing else."""

from cache_tools.templates import as_markdown


def test_markup_of_a_cache_is_text_in_a_card() -> None:
    assert as_markdown("Davlan/afro-xlmr-large (mit)") == "Davlan/afro-xlmr-large (mit)"
    assert as_markdown("a\n# b\x1b") == r"a\\n\# b\\x1b"
    assert as_markdown("[x](http://y) <script> `z` ![i](u)") == r"\[x\](http://y) \<script\> \`z\` \!\[i\](u)"
    assert len(as_markdown("x" * 10_000)) == 400
