"""comet-cache: build, inspect and share caches."""

import click

from cache_tools.cli.attach import attach_text
from cache_tools.cli.build import build
from cache_tools.cli.help import GroupedCommands
from cache_tools.cli.info import info, languages
from cache_tools.cli.parts import merge_caches, subset
from cache_tools.cli.transfer import pull, push
from cache_tools.cli.verify import repair, verify_cache

COMMANDS = {
    "Make a cache": {
        "build": "run a teacher over a text once, and keep what students need",
        "languages": "languages, their codes, and where their text comes from",
        "info": "what is in a cache, from what it was made, how far it is",
    },
    "Trust it": {
        "verify": "compare every file, every value, or the teacher itself",
        "repair": "drop what is damaged, so that build or pull fill it again",
    },
    "Share it": {
        "push": "to a folder or URL",
        "pull": "from a folder or URL, whole or in part",
        "subset": "a part as a smaller cache",
        "merge": "join what was built of one recipe in several places",
        "attach": "put the text back into a cache that was shared without it",
    },
}


@click.group(
    cls=GroupedCommands,
    sections=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
def main() -> None:
    """Build, inspect and share caches of what a teacher model says about a text.

    A cache holds a sample of the teacher's logits and some of its attention maps, together with the tokens, masks and
    tokenizer they belong to. `comet-train` trains students from it without the teacher.
    """


for command in (build, languages, info, verify_cache, repair, push, pull, subset, merge_caches, attach_text):
    main.add_command(command)


if __name__ == "__main__":
    main()
