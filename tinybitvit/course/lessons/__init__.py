"""The checks of the lessons' cells, a file each: `lesson01.py` holds a Task for every cell that a student writes."""
