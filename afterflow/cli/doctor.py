"""afterflow doctor: is this recipe sound on this machine?"""

from collections.abc import Sequence

from ..system.errors import ConfigError
from .recipes import made_by


def doctor(args: Sequence[str]) -> None:
    """Try a recipe's model, method and rewards in small, and say what is wrong and what to do."""
    if not args or args[0] in ("-h", "--help"):
        print("usage: afterflow doctor RECIPE [--options]     the options of afterflow train RECIPE")
        return
    made = made_by(args[0])
    from rich.console import Console

    from ..experiment.config import Run
    from ..experiment.doctor import examine, finding_text
    from ..models.pipeline import no_progress_bars
    from .train import overridden

    no_progress_bars()
    if not isinstance(made, Run):
        raise ConfigError(f"{args[0]} is a chain of runs; ask for its stages one by one")
    findings, console = [], Console()
    for finding in examine(overridden(made, args[1:], f"afterflow doctor {args[0]}")):
        console.print(finding_text(finding))
        findings.append(finding)
    failed = [finding.check for finding in findings if finding.passed is False]
    if failed:
        raise ConfigError(f"{len(failed)} of {len(findings)} checks failed: {'; '.join(failed)}")
