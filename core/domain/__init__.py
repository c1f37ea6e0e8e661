"""Records, jobs, messages and policies: pure data and transitions, no I/O, no framework."""
