"""What the libraries would print while they load."""

import diffusers.utils.logging
import transformers.utils.logging


def quiet() -> None:
    """No progress bars over a pipeline's parts and shards, and no warnings about libraries that we do not use."""
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
