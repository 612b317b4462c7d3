"""Teaching: instant feedback on an exercise (`check`), a student's operations inside the library (`use`), grading.

Grading is the command `tinybitvit course`; only that part needs nbgrader.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
