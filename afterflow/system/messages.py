"""Messages of the library on the terminal or in a notebook: what the rooms log, commands and `execute` print."""

import logging


class MessageHandler(logging.Handler):
    """A handler that prints plain messages, to whatever sys.stdout is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message of a log record."""
        print(self.format(record), flush=True)


def show_messages() -> None:
    """Print what afterflow logs, from level INFO on; calling it twice changes nothing."""
    logger = logging.getLogger("afterflow")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, MessageHandler) for handler in logger.handlers):
        logger.addHandler(MessageHandler())


def show_messages_by_default() -> None:
    """Print what afterflow logs where nobody has set up logging, as in a script or a notebook."""
    logger, root = logging.getLogger("afterflow"), logging.getLogger()
    if logger.level == logging.NOTSET and not logger.handlers and root.level == logging.WARNING:
        show_messages()
