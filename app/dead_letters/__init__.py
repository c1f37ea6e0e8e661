"""Dead letters: routes, representation, and the command for operators."""
