"""What runs at other services: the scripts that `export` copies, and what they call."""

PATIENCE = 20  # seconds for a cell: a submission full of endless loops must end within ten minutes
