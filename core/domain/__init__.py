"""Records, jobs, messages and policies: pure data and transitions, without I/O or a framework."""
