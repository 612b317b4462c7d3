from .checker import check as check
from .checker import tasks as tasks
from .plug import use as use
from .stage import apart as apart
from .submission import load as load
