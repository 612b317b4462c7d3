"""The program `tinybitvit`: its commands, their arguments, and what they need."""
