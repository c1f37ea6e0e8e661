"""Dead letters: the routes and the command for operators."""
