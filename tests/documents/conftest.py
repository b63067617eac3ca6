"""The option that takes new pictures and figures into the repository."""


def pytest_addoption(parser):
    parser.addoption(
        "--write-results",
        action="store_true",
        help="keep the pictures and the figures that pages of the tutorial make: docs/tutorial, bench/results/tutorial",
    )
