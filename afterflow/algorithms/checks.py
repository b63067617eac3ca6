"""What the options of an algorithm must be; each sentence says what to change."""

from ..sampling.kernels import KernelName


def require(holds: bool, sentence: str) -> None:
    """ValueError with the sentence, which says what to change, where an option cannot be."""
    if not holds:
        raise ValueError(sentence)


def check_group(group: int) -> None:
    require(group >= 2, f"group = {group}: an advantage compares images of one prompt; take at least 2")


def check_policy_gradient(steps: int, kernel: KernelName, eta: float, clip: float, max_advantage: float) -> None:
    require(steps >= 2, f"steps = {steps}: the step onto the image is not trained; take at least 2")
    require(eta > 0, f"eta = {eta}: a policy gradient needs stochastic steps; take eta > 0")
    require(kernel != "cps" or eta < 1, f"eta = {eta}: cps swaps a share of the noise; take eta < 1")
    positive = clip > 0 and max_advantage > 0
    require(positive, f"clip = {clip}, max_advantage = {max_advantage}: both must be positive")
