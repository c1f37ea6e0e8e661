"""HTTP clients that people use, behind one interface: libraries, commands, and a browser."""
