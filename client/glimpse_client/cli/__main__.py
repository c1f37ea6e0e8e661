"""`python -m glimpse_client.cli`, the same as `glimpse`."""

from glimpse_client.cli import main

main()
