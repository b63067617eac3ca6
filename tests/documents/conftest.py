"""The option that takes new pictures into the repository."""


def pytest_addoption(parser):
    parser.addoption(
        "--write-pictures", action="store_true", help="copy the pictures that tutorial pages make to docs/tutorial"
    )
