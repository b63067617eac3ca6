"""afterflow doctor: is this recipe sound on this machine?"""

from collections.abc import Sequence

from ..system.errors import ConfigError
from .help_words import HELP
from .output import result_console
from .recipes import made_by

DOCTOR_USAGE = """\
usage: afterflow doctor RECIPE [--options]     the options are those of afterflow train RECIPE

It loads the model and tries a recipe in small, before hours go into it: sampling against the stock pipeline, the ratio
of 1 on its own rollout, gradients, a LoRA that is saved and loaded again, every reward twice, the judge, speed, memory.
Each check passes, or says what to change. Nothing stays on the disk, and the exit code is 2 where a check failed.
"""


def doctor(args: Sequence[str]) -> None:
    """Try a recipe's model, method and rewards in small, and say what is wrong and what to do."""
    if not args or args[0] in HELP:
        print(DOCTOR_USAGE)
        return
    made = made_by(args[0])
    from rich.text import Text

    from ..experiment.config import Run
    from ..experiment.doctor import examine, finding_text
    from ..models.pipeline import no_progress_bars
    from .train import overridden

    no_progress_bars()
    if not isinstance(made, Run):
        raise ConfigError(f"{args[0]} is a chain of runs; ask for its stages one by one")
    findings, console = [], result_console()
    for finding in examine(overridden(made, args[1:], f"afterflow doctor {args[0]}")):
        console.print(Text.from_markup(finding_text(finding), emoji=False))
        findings.append(finding)
    failed = [finding.check for finding in findings if finding.passed is False]
    if failed:
        raise ConfigError(f"{len(failed)} of {len(findings)} checks failed: {'; '.join(failed)}")
