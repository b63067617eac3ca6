"""What the libraries would draw and remark while they load a pipeline's parts and shards."""

import diffusers.utils.logging
import transformers.utils.logging


def no_progress_bars() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
