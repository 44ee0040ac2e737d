"""comet-cache: build, inspect and share caches."""

import click

from cache_tools.cli.attach import attach_text
from cache_tools.cli.build import build
from cache_tools.cli.help import GroupedCommands, version_option
from cache_tools.cli.info import info, languages
from cache_tools.cli.parts import merge_caches, subset
from cache_tools.cli.transfer import pull, push
from cache_tools.cli.verify import repair, verify_cache

COMMANDS = {
    "Make a cache": {
        "build": "run a teacher once over a text and keep its signals",
        "languages": "list languages, codes and default corpora",
        "info": "show content, origin, progress and size",
    },
    "Check a cache": {
        "verify": "check every file, every value, or against the teacher",
        "repair": "drop damaged shards, to be built or pulled again",
    },
    "Share a cache": {
        "push": "copy to a folder or URL",
        "pull": "copy from a folder or URL, whole or in part",
        "subset": "copy a part as a smaller cache",
        "merge": "join parts of one recipe that were built in several places",
        "attach": "add the text to a cache that was shared without it",
    },
}


@click.group(
    cls=GroupedCommands,
    sections=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
)
@version_option
def main() -> None:
    """Build, inspect and share caches of a teacher model's outputs on a text.

    A cache holds a sample of the teacher's logits and of its attention, together with the tokens, masks and
    tokenizer they belong to. `comet-train` trains students from it without the teacher.
    """


for command in (build, languages, info, verify_cache, repair, push, pull, subset, merge_caches, attach_text):
    main.add_command(command)


if __name__ == "__main__":
    main()
