"""No rich: `Stack` puts this folder on the path of its services, whose images do not contain it.

structlog imports rich where it can, which takes a tenth of the start of a process.
"""

raise ImportError("rich is not installed")
