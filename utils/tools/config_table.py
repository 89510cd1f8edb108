"""config.py's settings as a table: python -m utils.tools.config_table writes CONFIG.md."""

import html
import re
from pathlib import Path

from utils.errors import InputError, run_script
from utils.files import written_whole

_HEADING = re.compile(r"# ---- (.+?) -+$")
_SETTING = re.compile(r"([A-Z][A-Z0-9_]*)(?:: .+?)? = (.+?)(?:  # (.+))?$")
_INTRODUCTION = """# Settings

Every setting of [config.py](config.py) with its default, written by `python -m utils.tools.config_table`. Edit
config.py, or override a setting for one run: `--set NAME=VALUE`. What a setting may be is checked before anything is
computed.
"""


def main(argv):
    if argv:
        raise InputError(f"found arguments {' '.join(argv)}; expected none: python -m utils.tools.config_table")
    root = Path(__file__).parents[2]
    with written_whole(root / "CONFIG.md") as temporary:
        temporary.write_text(config_table((root / "config.py").read_text("utf-8")), "utf-8")


def config_table(source):
    """The text of config.py as a Markdown page: a section for each heading, a table row for each setting.

    A setting is explained by the comment lines right above it, and by the one behind it.
    """
    page, heading, explanation = _INTRODUCTION, "", []
    for line in source.splitlines():
        if found := _HEADING.match(line):
            heading = f"\n## {found[1]}\n\n| name | default | what it is |\n|---|---|---|\n"
        elif line.startswith("# "):
            explanation.append(line.removeprefix("# "))
            continue
        elif (found := _SETTING.match(line)) and (explanation or found[3]):
            meaning = " ".join([*explanation, *filter(None, [found[3]])])
            name, default, meaning = (
                html.escape(text, quote=False).replace("|", "\\|") for text in (found[1], found[2], meaning)
            )
            page += f"{heading}| `{name}` | <code>{default}</code> | {meaning} |\n"
            heading = ""
        explanation = []
    return page


if __name__ == "__main__":
    run_script(main)
