"""Messages of the library on the terminal or in a notebook: what the rooms log, commands and `execute` print."""

import logging

from .escapes import printable

NOISE = {
    "torchao": ("Failed to load ", "Skipping import of cpp extensions"),
    "torch.utils._pytree": ("is an Enum subclass and is now natively supported",),
    "bitsandbytes.cextension": ("was compiled without GPU support",),
    "bitsandbytes.backends.cpu.ops": ("Failed to load CPU gemm_4bit_forward",),  # on CPUs that compute in bf16
    "diffusers.loaders.lora_base": ("No LoRA keys associated to NoneType",),  # text encoders that are not loaded
}
"""Logger of a library → messages that it has at every start, about parts that we do not use."""


class MessageHandler(logging.Handler):
    """A handler that prints plain messages, to whatever sys.stdout is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a log record."""
        print(printable(self.format(record)), flush=True)


class NoiseFilter(logging.Filter):
    """A filter that leaves out the messages of `NOISE`; all other messages of the library pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is another message."""
        return not any(noise in record.getMessage() for noise in NOISE[record.name])


NO_NOISE = NoiseFilter()


def show_messages() -> None:
    """Print what afterflow logs, from level INFO on; calling it twice changes nothing."""
    for name in NOISE:
        # One object for all, so that a logger that has it already keeps it once.
        logging.getLogger(name).addFilter(NO_NOISE)
    logger = logging.getLogger("afterflow")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, MessageHandler) for handler in logger.handlers):
        logger.addHandler(MessageHandler())


def show_messages_by_default() -> None:
    """Print what afterflow logs where nobody has set up logging, as in a script or a notebook."""
    logger, root = logging.getLogger("afterflow"), logging.getLogger()
    if logger.level == logging.NOTSET and not logger.handlers and root.level == logging.WARNING:
        show_messages()
