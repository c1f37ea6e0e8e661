"""How the processes are run together on one machine."""
